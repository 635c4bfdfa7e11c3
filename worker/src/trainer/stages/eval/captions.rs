//! Caption retrieval: captions against captions of the same images, by the LLM's vectors alone.
//!
//! The protocol: of every sample the vector of its caption in the first column is a query, and those of all samples in the
//! second column are ranked by cosine; a query is a hit when its own sample is among the first k. Then the same the other
//! way round. Vectors are the stored ones, in fp32, without an adapter, and no image is read. The paper's caption retrieval
//! accuracy is R@1 of the first caption to the second on COCO's 5,000 test images: with `.caption[*]`, the pair
//! `[".caption[0]", ".caption[1]"]`.

use super::{
    figures::{Figures, Subject},
    images::{gather, gather_counts},
    rank::Side,
};
use crate::{
    data::Dataset,
    trainer::{context::Context, error::TrainerError},
    vectors::VectorStore,
};
use common::{recipe::CaptionPair, sampler};
use half::bf16;
use tch::{Device, Kind, Tensor};

/// Both directions of one pair of columns.
///
/// # Errors
/// When vectors cannot be read, or no sample has both captions.
pub fn rank_both(
    dataset: &Dataset,
    vectors: &VectorStore,
    pair: &CaptionPair,
    context: &Context<'_>,
) -> Result<[Figures; 2], TrainerError> {
    context.activity(&format!("caption retrieval in {}", dataset.name()));
    let mine = sampler::local_slots(context.rank(), context.world(), dataset.len());
    let rows: Vec<i64> = sampler::rows(context.world(), dataset.len()).into_iter().map(|n| n as i64).collect();
    let columns = [pair.first.as_str(), pair.second.as_str()];
    let local = columns.map(|column| read(vectors, mine.clone(), column));
    let [first, second] = local;
    let ((first, has_first), (second, has_second)) = (first?, second?);
    let both: Vec<i64> = has_first.iter().zip(&has_second).map(|(a, b)| i64::from(*a && *b)).collect();
    let both_N = gather_counts(&both, &rows, context)?;
    let kept: Vec<i64> = (0..).zip(&both_N).filter(|(_, both)| **both > 0).map(|(sample, _)| sample).collect();
    if kept.is_empty() {
        return Err(TrainerError::Plan(format!(
            "no sample of data set `{}` has vectors of both `{}` and `{}`, which `caption_retrieval` compares",
            dataset.name(),
            pair.first,
            pair.second
        )));
    }
    let kept_N = Tensor::from_slice(&kept).to_device(context.device);
    let width = vectors.width() as i64;
    let whole = |part: &[bf16]| -> Result<Tensor, TrainerError> {
        let all = gather(vec![normalised(part, width, context.device)?], &rows, width, context)?;
        Ok(all.index_select(0, &kept_N))
    };
    let (first, second) = (whole(&first)?, whole(&second)?);
    let sample_n: Vec<i64> = (0..kept.len() as i64).collect();
    let (first, second) = (Side { rows_nD: &first, image_n: &sample_n }, Side { rows_nD: &second, image_n: &sample_n });
    let figures = |from: &str, to: &str, queries, targets| {
        let subject = Subject {
            data: dataset.name(),
            captions: &format!("{}, {}", pair.first, pair.second),
            direction: format!("{from} to {to}"),
            pairs: kept.len() as u64,
            left_out: dataset.len() - kept.len() as u64,
        };
        Figures::compute(subject, queries, targets, context).map(|(figures, _)| figures)
    };
    Ok([figures(&pair.first, &pair.second, first, second)?, figures(&pair.second, &pair.first, second, first)?])
}

/// The vectors of a stretch of samples, and which of them are there.
fn read(
    vectors: &VectorStore,
    samples: std::ops::Range<u64>,
    column: &str,
) -> Result<(Vec<bf16>, Vec<bool>), TrainerError> {
    let width = vectors.width();
    let mut numbers = vec![bf16::ZERO; (samples.end - samples.start) as usize * width];
    let mut there = Vec::new();
    for (sample, row) in samples.zip(numbers.chunks_exact_mut(width)) {
        there.push(vectors.read(sample, column, row)?);
    }
    Ok((numbers, there))
}

/// As rows of length 1, in fp32; a row of zeros stays one.
fn normalised(numbers: &[bf16], width: i64, device: Device) -> Result<Tensor, TrainerError> {
    // Not `from_slice`: tch 0.24 takes bf16 for fp16.
    let shape = [numbers.len() as i64 / width, width];
    let rows = Tensor::f_from_data_size(bytemuck::cast_slice(numbers), &shape, Kind::BFloat16)?;
    let rows = rows.to_device(device).to_kind(Kind::Float);
    let length = rows.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).clamp_min(1e-12);
    Ok(rows / length)
}
