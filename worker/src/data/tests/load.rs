//! The loader: order, sameness for any number of threads, broken images, errors, and its end.

use super::{fixtures, image, spec, storage, tar};
use crate::data::{
    Batch, BatchRequest, DataError, Dataset, Loader, LoaderConfig, OnBroken, Reserve, SampleRequest, SkipReason,
    Transform, pixels_to_tensor,
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{Augment, ConvertToRgb, IndexPlace, PixelMode},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tch::{Device, Kind};

const TRAIN: Transform = Transform::Train { augment: Augment { scale: (0.5, 1.0), ratio: (0.75, 4.0 / 3.0) } };

/// The samples behind the broken one, sixteen at most.
#[derive(Debug)]
struct Next(u64);

impl Reserve for Next {
    fn reserve(&self, wanted: SampleRequest, attempt: u64) -> Option<SampleIndex> {
        (attempt < 16.min(self.0 - 1)).then(|| SampleIndex((wanted.index.0 + 1 + attempt) % self.0))
    }
}

pub(super) fn config(dataset: &Arc<Dataset>, threads: usize) -> LoaderConfig {
    let datasets = vec![dataset.clone()];
    LoaderConfig {
        datasets,
        image_size: 32,
        transform: TRAIN,
        pixels: PixelMode::PillowExact,
        convert: ConvertToRgb::BeforeResize,
        on_broken: OnBroken::Replace(Arc::new(Next(dataset.len()))),
        seed: 7,
        threads,
        prefetch_batches: 3,
        beside: None,
    }
}

pub(super) fn request(tag: u64, indices: impl IntoIterator<Item = u64>, epoch: u64) -> BatchRequest {
    let sample = |index| SampleRequest { source: 0, index: SampleIndex(index), epoch: Epoch(epoch) };
    BatchRequest { tag, samples: indices.into_iter().map(sample).collect() }
}

fn emoji() -> Arc<Dataset> {
    // The index is not left in the repository: an open one is read although its folder is gone.
    let cache = tempfile::tempdir().unwrap();
    let mut spec = spec(&fixtures().join("data/emoji/emoji-wds/val"), 0.0);
    spec.index = IndexPlace::Folder(cache.path().to_owned());
    Arc::new(Dataset::open(&storage(), "emoji", &spec).unwrap())
}

pub(super) fn all(config: LoaderConfig, requests: Vec<BatchRequest>) -> Vec<Batch> {
    let mut loader = Loader::start(config, requests.into_iter());
    std::iter::from_fn(|| loader.next()).collect::<Result<_, _>>().unwrap()
}

/// Samples with the names of golden images, or with bytes that are no image.
fn small(folder: &Path, images: &[&str]) -> Arc<Dataset> {
    let bodies: Vec<Vec<u8>> = images
        .iter()
        .map(|name| match *name {
            "cut" => image("420.jpg")[..1500].to_vec(),
            "html" => b"<html>404</html>".to_vec(),
            name => image(name),
        })
        .collect();
    let names: Vec<(String, String)> = (0..images.len()).map(|i| (format!("{i}.jpg"), format!("{i}.txt"))).collect();
    let members = names
        .iter()
        .zip(&bodies)
        .flat_map(|((jpg, txt), body)| [(jpg.as_str(), body.as_slice()), (txt.as_str(), b"x")]);
    std::fs::write(folder.join("0.tar"), tar(&members.collect::<Vec<_>>())).unwrap();
    Arc::new(Dataset::open(&storage(), "small", &spec(folder, 1.0)).unwrap())
}

#[test]
fn batches_come_in_order_and_the_same_for_any_number_of_threads() {
    let dataset = emoji();
    let requests: Vec<BatchRequest> =
        (0..9).map(|tag| request(100 + tag, (tag * 31..).step_by(3).take(tag as usize * 2), tag % 2)).collect();
    let one = all(config(&dataset, 1), requests.clone());
    assert_eq!(one.iter().map(|batch| batch.tag).collect::<Vec<_>>(), (100..109).collect::<Vec<_>>());
    for (batch, request) in one.iter().zip(&requests) {
        assert_eq!(batch.samples, request.samples);
        assert_eq!(batch.pixels.len(), request.samples.len() * 3 * 32 * 32);
        assert!(batch.broken.is_empty());
    }
    assert!(one == all(config(&dataset, 5), requests), "pixels depend on the number of threads");
}

#[test]
fn a_crop_depends_on_seed_and_epoch_and_evaluation_on_neither() {
    let dataset = emoji();
    let pixels = |transform, seed, epoch| {
        let config = LoaderConfig { transform, seed, ..config(&dataset, 2) };
        all(config, vec![request(0, 0..8, epoch)]).remove(0).pixels
    };
    assert_eq!(pixels(TRAIN, 1, 0), pixels(TRAIN, 1, 0));
    assert_ne!(pixels(TRAIN, 1, 0), pixels(TRAIN, 2, 0));
    assert_ne!(pixels(TRAIN, 1, 0), pixels(TRAIN, 1, 1));
    assert_eq!(pixels(Transform::Eval, 1, 0), pixels(Transform::Eval, 2, 1));
}

#[test]
fn a_broken_image_is_replaced_by_the_first_of_its_reserve_that_decodes() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = small(folder.path(), &["420.jpg", "cut", "html", "png-by-nature.jpg", "cut"]);
    let batch = all(config(&dataset, 2), vec![request(0, [0, 1, 3, 4], 0)]).remove(0);
    let used: Vec<u64> = batch.samples.iter().map(|sample| sample.index.0).collect();
    assert_eq!(used, [0, 3, 3, 0]);
    let named: Vec<_> = batch.broken.iter().map(|broken| (broken.wanted.index.0, broken.key.as_str())).collect();
    assert_eq!(named, [(1, "1"), (4, "4")]);
    assert!(batch.broken.iter().all(|broken| broken.reason == SkipReason::BrokenImage), "{:?}", batch.broken);
    let image = 3 * 32 * 32;
    assert_eq!(batch.pixels[image..2 * image], batch.pixels[2 * image..3 * image], "the replacement has its own crop");
}

#[test]
fn a_broken_image_may_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = small(folder.path(), &["420.jpg", "cut", "html", "420.jpg", "cut"]);
    let config = LoaderConfig { on_broken: OnBroken::LeaveOut, ..config(&dataset, 2) };
    let batch = all(config.clone(), vec![request(0, [0, 1, 3], 0)]).remove(0);
    assert_eq!(batch.samples.iter().map(|sample| sample.index.0).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(batch.broken.iter().map(|broken| broken.wanted.index.0).collect::<Vec<_>>(), [1]);
    let image = 3 * 32 * 32;
    assert_eq!(batch.pixels[image..2 * image], vec![0; image]);
}

#[test]
fn no_replacement_is_an_error_in_its_place_and_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut images = vec!["html"; 20];
    images[0] = "420.jpg";
    let dataset = small(folder.path(), &images);
    let mut loader = Loader::start(config(&dataset, 2), vec![request(0, [0, 19], 0), request(1, [1], 0)].into_iter());
    assert_eq!(loader.next().unwrap().unwrap().tag, 0);
    let error = loader.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::NoReplacement { index: 1, tries: 16, .. }), "{error}");
    assert!(error.to_string().contains("neither JPEG nor PNG nor WebP"), "{error}");
    assert!(loader.next().is_none());
    let mut loader = Loader::start(config(&dataset, 2), vec![request(5, [20], 0)].into_iter());
    assert!(matches!(loader.next(), Some(Err(DataError::NoSuchSample { tag: 5, index: 20, .. }))));
}

#[test]
fn a_panic_of_a_thread_is_an_error() {
    let requests = (0..3).map(|tag| if tag < 2 { request(tag, 0..4, 0) } else { panic!("no request {tag}") });
    let mut loader = Loader::start(config(&emoji(), 2), requests);
    let error = std::iter::from_fn(|| loader.next()).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("no request 2"), "{error}");
    assert!(loader.next().is_none());
}

#[test]
fn no_more_batches_are_begun_than_may_be_ahead_and_dropping_ends() {
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    let requests = (0..).map(move |tag| {
        counter.fetch_add(1, Ordering::Relaxed);
        request(tag, 0..8, 0)
    });
    let mut loader = Loader::start(config(&emoji(), 4), requests);
    for tag in 0..5 {
        assert_eq!(loader.next().unwrap().unwrap().tag, tag);
    }
    assert!(loader.wait_time() > std::time::Duration::ZERO);
    drop(loader);
    assert!(asked.load(Ordering::Relaxed) <= 5 + 3, "{asked:?}");
}

#[test]
fn pixels_are_normalised_as_torchvision_does() {
    let sample = request(0, [0, 1], 0).samples;
    let pixels: Vec<u8> = (0..2 * 3 * 4).map(|i| (i * 11) as u8).collect();
    let batch = Batch { tag: 0, samples: sample, pixels: pixels.clone().into(), image_size: 2, broken: vec![] };
    let tensor = pixels_to_tensor(&batch, Device::Cpu);
    assert_eq!((tensor.size(), tensor.kind()), (vec![2, 3, 2, 2], Kind::Float));
    let values: Vec<f32> = Vec::try_from(tensor.flatten(0, -1)).unwrap();
    let mean = [0.48145466f64, 0.4578275, 0.40821073].map(|value| value as f32);
    let std = [0.26862954f64, 0.26130258, 0.27577711].map(|value| value as f32);
    for (i, value) in values.iter().enumerate() {
        let channel = i / 4 % 3;
        assert_eq!(*value, (f32::from(pixels[i]) / 255.0 - mean[channel]) / std[channel]);
    }
    let empty = Batch { samples: vec![], pixels: vec![].into(), ..batch };
    assert_eq!(pixels_to_tensor(&empty, Device::Cpu).size(), [0, 3, 2, 2]);
}
