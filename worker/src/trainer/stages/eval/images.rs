//! The image embeddings of a data set, computed by all ranks and known to all.

use super::super::towers::Towers;
use crate::{
    data::{BatchRequest, Dataset, Loader, LoaderConfig, OnBroken, SampleRequest, Transform, pixels_to_tensor},
    trainer::{context::Context, error::TrainerError},
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{ConvertToRgb, PixelMode},
    sampler,
};
use std::sync::Arc;
use tch::{Kind, Tensor};

/// Keys of broken images that an error names.
const EXAMPLES: usize = 6;

/// How a pass over a data set is made, and who hears of it.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Images per forward pass.
    pub chunk: u64,
    /// Hears of every batch of this rank: the data set, how many are done, and of how many.
    pub told: &'a dyn Fn(&str, u64, u64),
}

/// Embeddings of a whole data set but for its broken images, the same on every rank.
pub struct Images {
    /// Which samples they are of.
    pub samples: Vec<SampleIndex>,
    /// [N, P] fp32, normalised.
    pub rows_ND: Tensor,
    /// Of every sample of the data set whether its image is whole: 1 or 0.
    pub whole_N: Vec<i64>,
    /// How many samples each rank has.
    pub shares: Vec<i64>,
}

impl Images {
    /// Computes them, each rank its samples; `each` sees the samples of every batch, in order.
    ///
    /// # Errors
    /// When more images are broken than the recipe bears, `each` refuses, or a peer fails.
    pub fn compute(
        dataset: &Arc<Dataset>,
        towers: &Towers,
        pass: Pass<'_>,
        context: &Context<'_>,
        mut each: impl FnMut(&[SampleRequest]) -> Result<(), TrainerError>,
    ) -> Result<Self, TrainerError> {
        let mine = sampler::local_slots(context.rank(), context.world(), dataset.len());
        let shares: Vec<i64> = sampler::rows(context.world(), dataset.len()).into_iter().map(|n| n as i64).collect();
        let chunks = sampler::chunks(mine, pass.chunk);
        let (mut parts, mut whole) = (Vec::new(), Vec::new());
        let mut loader = Loader::start(config(dataset, towers, context), requests(&chunks).into_iter());
        let mut done = 0;
        while let Some(batch) = loader.next() {
            let batch = batch?;
            let broken = |sample: &SampleRequest| batch.broken.iter().any(|broken| broken.wanted == *sample);
            whole.extend(batch.samples.iter().map(|sample| i64::from(!broken(sample))));
            let pixels = pixels_to_tensor(&batch, context.device);
            parts.push(tch::no_grad(|| towers.image_embeddings(&pixels)));
            each(&batch.samples)?;
            done += 1;
            (pass.told)(dataset.name(), done, chunks.len() as u64);
        }
        let whole_N = gather_counts(&whole, &shares, context)?;
        let samples: Vec<i64> =
            (0..).zip(&whole_N).filter(|(_, whole)| **whole > 0).map(|(sample, _)| sample).collect();
        bear(dataset, &samples)?;
        let kept_N = Tensor::from_slice(&samples).to_device(context.device);
        Ok(Self {
            rows_ND: gather(parts, &shares, towers.width, context)?.index_select(0, &kept_N),
            samples: samples.into_iter().map(|sample| SampleIndex(sample as u64)).collect(),
            whole_N,
            shares,
        })
    }
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
        beside: None,
        seed: context.plan.recipe.seed,
    }
}
