//! The embeddings of a data set, computed by all ranks and known to all.

use super::{super::towers::Towers, rank::Side};
use crate::{
    data::{BatchRequest, Dataset, Loader, LoaderConfig, OnBroken, SampleRequest, Transform, pixels_to_tensor},
    supervisor::ipc::Report,
    trainer::{context::Context, error::TrainerError, stages::embed},
    vectors::{VectorStore, nth},
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{ConvertToRgb, PixelMode},
    sampler,
};
use half::bf16;
use std::{path::PathBuf, sync::Arc};
use tch::{Kind, Tensor};

/// Keys of broken images that an error names.
const EXAMPLES: usize = 6;

/// Embeddings of a whole data set but for its broken images, the same on every rank.
pub struct Features {
    /// Which samples they are of.
    pub samples: Vec<SampleIndex>,
    /// 0, 1, 2 …: each image's own number.
    image_n: Vec<i64>,
    image_ND: Tensor,
    /// One a caption column.
    pub texts: Vec<Texts>,
}

/// The texts of one caption column.
pub struct Texts {
    /// The column.
    pub name: String,
    text_MD: Tensor,
    /// The image of each text, by its number among those that are whole; ascending.
    image_m: Vec<i64>,
}

impl Texts {
    /// As a side of a ranking.
    pub fn side(&self) -> Side<'_> {
        Side { rows_nD: &self.text_MD, image_n: &self.image_m }
    }
}

impl Features {
    /// The images as a side of a ranking.
    pub fn images(&self) -> Side<'_> {
        Side { rows_nD: &self.image_ND, image_n: &self.image_n }
    }

    /// Computes them, each rank its samples, `chunk` images a pass.
    ///
    /// # Errors
    /// When a vector is missing, or more images are broken than the recipe bears.
    pub fn compute(
        dataset: &Arc<Dataset>,
        vectors: &VectorStore,
        towers: &Towers,
        chunk: u64,
        context: &Context<'_>,
    ) -> Result<Self, TrainerError> {
        let mine = sampler::local_slots(context.rank(), context.world(), dataset.len());
        let rows: Vec<i64> = sampler::rows(context.world(), dataset.len()).into_iter().map(|n| n as i64).collect();
        let chunks = sampler::chunks(mine, chunk);
        let mut image = Vec::new();
        let mut whole = Vec::new();
        let mut local: Vec<LocalTexts> = embed::columns(dataset).map(|(_, name)| LocalTexts::of(name)).collect();
        let mut loader = Loader::start(config(dataset, towers, context), requests(&chunks).into_iter());
        let mut done = 0;
        while let Some(batch) = loader.next() {
            let batch = batch?;
            let broken = |sample: &SampleRequest| batch.broken.iter().any(|broken| broken.wanted == *sample);
            whole.extend(batch.samples.iter().map(|sample| i64::from(!broken(sample))));
            let pixels = pixels_to_tensor(&batch, context.device);
            image.push(tch::no_grad(|| towers.image_embeddings(&pixels)));
            for texts in &mut local {
                let vectors_BD = texts.read(vectors, &batch.samples)?.to_device(context.device).to_kind(Kind::Float);
                texts.parts.push(tch::no_grad(|| towers.text_embeddings(&vectors_BD)));
            }
            done += 1;
            context.link.report(Report::Progress(Box::new(context.progress(done, chunks.len() as u64))));
        }
        let whole_N = gather_counts(&whole, &rows, context)?;
        let samples: Vec<i64> =
            (0..).zip(&whole_N).filter(|(_, whole)| **whole > 0).map(|(sample, _)| sample).collect();
        bear(dataset, &samples)?;
        let kept_N = Tensor::from_slice(&samples).to_device(context.device);
        let image_ND = gather(image, &rows, towers.width, context)?.index_select(0, &kept_N);
        let texts = local.into_iter().map(|texts| texts.gather(&rows, &whole_N, towers.width, context));
        Ok(Self {
            image_n: (0..samples.len() as i64).collect(),
            samples: samples.into_iter().map(|sample| SampleIndex(sample as u64)).collect(),
            image_ND,
            texts: texts.collect::<Result<_, _>>()?,
        })
    }

    /// Writes `image`, and per caption column `text/COLUMN` with `image_of_text/COLUMN` (the row of `image` that each
    /// text belongs to), and the keys of `image`'s rows beside them.
    pub fn save(&self, path: &PathBuf, dataset: &Dataset) -> Result<(), TrainerError> {
        let io = |source| TrainerError::Io { operation: "write", path: path.clone(), source };
        std::fs::create_dir_all(path.parent().expect("the file has a folder")).map_err(io)?;
        let mut tensors = vec![("image".to_owned(), self.image_ND.shallow_clone())];
        for texts in &self.texts {
            tensors.push((format!("text/{}", texts.name), texts.text_MD.shallow_clone()));
            tensors.push((format!("image_of_text/{}", texts.name), Tensor::from_slice(&texts.image_m)));
        }
        Tensor::write_safetensors(&tensors, path)?;
        let keys = self.samples.iter().map(|sample| dataset.key(*sample)).collect::<Result<Vec<_>, _>>()?;
        std::fs::write(path.with_extension("keys.txt"), keys.join("\n") + "\n").map_err(io)
    }
}

/// One caption column's texts of this rank's samples.
struct LocalTexts {
    name: String,
    parts: Vec<Tensor>,
    /// How many texts each sample has.
    counts: Vec<i64>,
}

impl LocalTexts {
    fn of(name: &str) -> Self {
        Self { name: name.to_owned(), parts: Vec::new(), counts: Vec::new() }
    }

    /// The vectors of all captions of these samples, one after the other, as bf16 on the host.
    fn read(&mut self, vectors: &VectorStore, samples: &[SampleRequest]) -> Result<Tensor, TrainerError> {
        let width = vectors.width();
        let mut numbers: Vec<bf16> = Vec::new();
        for sample in samples {
            let mut count = 0;
            loop {
                let start = numbers.len();
                numbers.resize(start + width, bf16::ZERO);
                if (count > 0 && !self.name.ends_with("[*]"))
                    || !vectors.read(sample.index.0, &nth(&self.name, count), &mut numbers[start..])?
                {
                    numbers.truncate(start);
                    break;
                }
                count += 1;
            }
            if count == 0 {
                return Err(TrainerError::Plan(format!(
                    "the embedding store has no vector of sample {}, caption column `{}`",
                    sample.index.0, self.name
                )));
            }
            self.counts.push(count as i64);
        }
        // Not `from_slice`: tch 0.24 takes bf16 for fp16.
        let shape = [(numbers.len() / width) as i64, width as i64];
        Ok(Tensor::f_from_data_size(bytemuck::cast_slice(&numbers), &shape, Kind::BFloat16)?)
    }

    /// Every rank's texts, but for those of broken images.
    fn gather(self, rows: &[i64], whole_N: &[i64], width: i64, context: &Context<'_>) -> Result<Texts, TrainerError> {
        let counts = gather_counts(&self.counts, rows, context)?;
        let mut first = 0;
        let text_rows: Vec<i64> = rows
            .iter()
            .map(|samples| {
                let own = &counts[first..first + *samples as usize];
                first += *samples as usize;
                own.iter().sum()
            })
            .collect();
        let text_MD = gather(self.parts, &text_rows, width, context)?;
        let (kept, image_m) = of_whole_images(&counts, whole_N);
        let kept = Tensor::from_slice(&kept).to_device(context.device);
        Ok(Texts { name: self.name, text_MD: text_MD.index_select(0, &kept), image_m })
    }
}

/// The rows of texts whose image is whole, and the number of each one's image among those.
fn of_whole_images(counts: &[i64], whole: &[i64]) -> (Vec<i64>, Vec<i64>) {
    let (mut kept, mut image_m) = (Vec::new(), Vec::new());
    let (mut row, mut image) = (0, 0);
    for (count, whole) in counts.iter().zip(whole) {
        if *whole > 0 {
            kept.extend(row..row + count);
            image_m.extend(std::iter::repeat_n(image, *count as usize));
            image += 1;
        }
        row += count;
    }
    (kept, image_m)
}

/// One number a sample, of all ranks' samples. Between hosts: no device waits for them.
pub(super) fn gather_counts(mine: &[i64], rows: &[i64], context: &Context<'_>) -> Result<Vec<i64>, TrainerError> {
    Ok(Vec::try_from(context.collective.all_gather_rows(&Tensor::from_slice(mine), rows)?)?)
}

/// All ranks' rows, in rank order.
pub(super) fn gather(
    parts: Vec<Tensor>,
    rows: &[i64],
    width: i64,
    context: &Context<'_>,
) -> Result<Tensor, TrainerError> {
    let mine = if parts.is_empty() {
        Tensor::zeros([0, width], (Kind::Float, context.device))
    } else {
        Tensor::cat(&parts, 0)
    };
    Ok(context.collective.all_gather_rows(&mine.contiguous(), rows)?)
}

/// Whether the recipe bears the images that are broken.
fn bear(dataset: &Dataset, samples: &[i64]) -> Result<(), TrainerError> {
    let whole = |sample: &u64| samples.binary_search(&(*sample as i64)).is_ok();
    let broken = (0..dataset.len()).filter(|sample| !whole(sample)).take(EXAMPLES);
    let broken = broken.map(|sample| dataset.key(SampleIndex(sample))).collect::<Result<Vec<_>, _>>()?;
    Ok(dataset.limit().bear(dataset.len() - samples.len() as u64, &broken)?)
}

fn requests(chunks: &[std::ops::Range<u64>]) -> Vec<BatchRequest> {
    let request = |(tag, chunk): (usize, &std::ops::Range<u64>)| BatchRequest {
        tag: tag as u64,
        samples: chunk.clone().map(|i| SampleRequest { source: 0, index: SampleIndex(i), epoch: Epoch(0) }).collect(),
    };
    chunks.iter().enumerate().map(request).collect()
}

fn config(dataset: &Arc<Dataset>, towers: &Towers, context: &Context<'_>) -> LoaderConfig {
    LoaderConfig {
        datasets: vec![dataset.clone()],
        image_size: towers.image_size as u32,
        transform: Transform::Eval,
        // As open_clip, whatever the training did: figures are compared with others.
        pixels: PixelMode::PillowExact,
        convert: ConvertToRgb::AfterResize,
        on_broken: OnBroken::LeaveOut,
        threads: context.threads,
        prefetch_batches: 2,
        seed: context.plan.recipe.seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_broken_images_are_left_out_and_the_others_keep_their_image() {
        let (kept, image) = of_whole_images(&[2, 3, 1, 2], &[1, 0, 1, 1]);
        assert_eq!(kept, [0, 1, 5, 6, 7]);
        assert_eq!(image, [0, 0, 1, 2, 2]);
    }
}
