//! Global batches are the same in every byte for any number of ranks and threads, with mixing, a join, broken images and
//! weights that change, and through kills and resumes.

use super::{columns, fixtures, image, spec, storage, tar};
use crate::data::{BatchRequest, Dataset, Loader, LoaderConfig, OnBroken, Transform};
use common::{
    ids::{Rank, Step, WorldSize},
    recipe::{Augment, CaptionTable, ConvertToRgb, DataSet, IndexPlace, PixelMode, Unmatched},
    sampler::{Order, OrderSource, OrderSpec, Policy, Segment, Shuffle, Tail, choose_caption, local_slots},
};
use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

const SEED: u64 = 11;
const BATCH: u64 = 61;
const STEPS: u64 = 24;
/// Set for a process that is to print batches: `FOLDER WORLD THREADS FIRST_STEP`.
const TOLD: &str = "LLM2CLIP_TEST_BATCHES";

/// Pixels, captions and names of a data set's samples.
struct Setup {
    datasets: Vec<Arc<Dataset>>,
    order: Arc<Order>,
}

impl Setup {
    /// The emoji with their dense captions joined by key, once in blocks, and a small set with broken images.
    fn open(folder: &Path) -> Self {
        let captioned = |part: &str, tars: &str| {
            let emoji = fixtures().join("data/emoji");
            let mut spec = spec(&emoji.join("emoji-wds").join(part), 0.0);
            spec.shards = vec![emoji.join("emoji-wds").join(part).join(tars).into()];
            spec.captions.columns = columns(&[(".txt", 1), ("long_caption", 2)]);
            spec.captions.table = Some(CaptionTable {
                file: emoji.join(format!("emoji-dense-{part}.parquet")).into(),
                key: "key".to_owned(),
                join: "key".to_owned(),
                unmatched: Unmatched::Skip,
            });
            spec
        };
        let specs = [captioned("val", "*.tar"), captioned("train", "00000.tar"), spec(folder, 0.5)];
        let open = |(number, mut spec): (usize, DataSet)| {
            spec.index = IndexPlace::Folder(folder.join("index"));
            Arc::new(Dataset::open(&storage(), &format!("set {number}"), &spec).unwrap())
        };
        let datasets: Vec<_> = specs.into_iter().enumerate().map(open).collect();
        let shuffles = [Shuffle::Full, Shuffle::Blocks { block: 16, window: 256 }, Shuffle::Full];
        let source = |(data, shuffle): (&Arc<Dataset>, Shuffle)| OrderSource {
            name: data.name().to_owned(),
            samples: data.len(),
            shuffle,
        };
        let order = Order::new(OrderSpec {
            seed: SEED,
            global_batch: BATCH,
            sources: datasets.iter().zip(shuffles).map(source).collect(),
            policy: Policy::Mixed,
            tail: Tail::Carry,
            segments: vec![Segment::first(Some(vec![4, 6, 1]))],
        });
        let order = order.unwrap().with_weights_from(Step(9), Some(vec![1, 3, 1])).unwrap();
        Self { datasets, order: Arc::new(order) }
    }

    fn loader(&self, rank: Rank, world: WorldSize, threads: usize, first: u64) -> Loader {
        let config = LoaderConfig {
            datasets: self.datasets.clone(),
            image_size: 32,
            transform: Transform::Train { augment: Augment { scale: (0.5, 1.0), ratio: (0.75, 1.333) } },
            pixels: PixelMode::PillowExact,
            convert: ConvertToRgb::BeforeResize,
            on_broken: OnBroken::Replace(self.order.clone()),
            seed: SEED,
            threads,
            prefetch_batches: 2,
            beside: None,
        };
        let (order, slots) = (self.order.clone(), local_slots(rank, world, BATCH));
        Loader::start(config, (first..STEPS).map(move |step| BatchRequest::of_step(&order, Step(step), slots.clone())))
    }

    /// A digest of every global batch from a step on: of what each slot shows, says, and is.
    fn digests(&self, world: u32, threads: usize, first: u64) -> impl Iterator<Item = String> {
        let world = WorldSize(world);
        let mut loaders: Vec<Loader> = world.ranks().map(|rank| self.loader(rank, world, threads, first)).collect();
        (first..STEPS).map(move |step| {
            let mut digest = blake3::Hasher::new();
            for loader in &mut loaders {
                let batch = loader.next().unwrap().unwrap();
                assert_eq!(batch.tag, step);
                for (sample, pixels) in batch.samples.iter().zip(batch.pixels.chunks(3 * 32 * 32)) {
                    let data = &self.datasets[sample.source as usize];
                    let weights: Vec<u32> = data.columns().iter().map(|column| column.weight).collect();
                    let column = choose_caption(SEED, sample.source, sample.index, sample.epoch, &weights);
                    let caption = data.caption(sample.index, column).unwrap();
                    digest.update(
                        format!("{} {} {}\n", data.key(sample.index).unwrap(), sample.epoch, caption).as_bytes(),
                    );
                    digest.update(pixels);
                }
            }
            digest.finalize().to_string()
        })
    }
}

/// A tar with broken images.
fn small(folder: &Path) {
    let (good, cut) = (image("420.jpg"), image("420.jpg")[..1500].to_vec());
    let names: Vec<[String; 2]> = (0..90).map(|i| [format!("{i:03}.jpg"), format!("{i:03}.txt")]).collect();
    let image = |i: usize| if i % 7 == 3 { &cut } else { &good };
    let members = names.iter().enumerate();
    let members =
        members.flat_map(|(i, [jpg, txt])| [(jpg.as_str(), &image(i)[..]), (txt.as_str(), &b"a caption"[..])]);
    std::fs::write(folder.join("0.tar"), tar(&members.collect::<Vec<_>>())).unwrap();
}

#[test]
fn global_batches_are_the_same_for_any_number_of_ranks_and_threads() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let setup = Setup::open(folder.path());
    let epochs: Vec<u64> = (0..STEPS).map(|step| setup.order.repeats(Step(step)).len() as u64).collect();
    assert!(epochs.iter().sum::<u64>() > 0, "no sample stands in a batch twice: the case is not tested");
    let expected: Vec<String> = setup.digests(1, 1, 0).collect();
    for world in [1, 2, 3, 5, 7, 8] {
        for threads in [1, 2, 4] {
            let found: Vec<String> = setup.digests(world, threads, 0).collect();
            assert!(found == expected, "{world} ranks with {threads} threads make other batches");
        }
    }
}

#[test]
fn global_batches_are_the_same_through_kills_and_resumes_with_other_worlds() {
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let expected: Vec<String> = Setup::open(folder.path()).digests(1, 2, 0).collect();
    let mut found = Vec::new();
    for (world, lines) in [(2, 1), (5, 4), (1, 2), (8, 5), (3, 3), (7, 2), (2, 99)] {
        let first = found.len();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "data::tests::batches::prints_batches", "--nocapture"])
            .env(TOLD, format!("{world} 2 {first} {}", folder.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let digests = said.filter_map(|line| line.split_once("batch ").map(|(_, digest)| digest.to_owned()));
        found.extend(digests.take(lines));
        // Signal 9, whatever it is doing.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(found, expected);
}

/// Not a test: a process that prints batches until it is killed.
#[test]
fn prints_batches() {
    let Ok(told) = env::var(TOLD) else { return };
    let words: Vec<&str> = told.splitn(4, ' ').collect();
    let [world, threads, first, folder] = words[..] else { panic!("what batches are `{told}`?") };
    let setup = Setup::open(Path::new(folder));
    for digest in setup.digests(world.parse().unwrap(), threads.parse().unwrap(), first.parse().unwrap()) {
        println!("batch {digest}");
        std::io::stdout().flush().unwrap();
    }
}
