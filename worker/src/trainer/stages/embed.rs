//! Stage `embed`: the frozen LLM reads every caption once.
//!
//! Shards are dealt out to ranks; a shard whose file is there already, made of the same things, is skipped.

use super::text::CaptionEncoder;
use crate::{
    data::Dataset,
    supervisor::ipc::Report,
    torch::{self, memory, peak},
    trainer::{agreement, context::Context, context::Outcome, error::TrainerError},
    vectors::{Expected, Provenance, ShardFile, shard_path, write_shard},
};
use common::recipe::EmbedStage;
use half::bf16;
use std::{ops::Range, path::PathBuf, sync::Arc, time::Instant};

/// One shard of one data set.
struct Unit {
    dataset: Arc<Dataset>,
    rows: Range<u64>,
    path: PathBuf,
}

/// Runs the stage.
pub fn run(stage: &EmbedStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let started = Instant::now();
    let datasets = context.datasets(&stage.data)?;
    context.activity("loading the LLM");
    let recipe = &context.plan.recipe;
    let spec = context.llm()?;
    let encoder = CaptionEncoder::open(&spec, recipe.seed, stage.precision, context.device)?;
    let provenance = Provenance::of_encoder(&spec, recipe.seed, stage.precision)?;

    let units = units(&datasets, context);
    let mine: Vec<&Unit> = units.iter().skip(context.rank().0 as usize).step_by(context.world().0 as usize).collect();
    let captions: u64 =
        mine.iter().map(|unit| (unit.rows.end - unit.rows.start) * columns(&unit.dataset).count() as u64).sum();
    let peak_flop_per_s = peak::flop_per_s(context.device, torch::kind(stage.precision));
    let mut meter =
        Meter { done: 0, total: captions, started: Instant::now(), computed: 0, flops: 0.0, peak_flop_per_s };
    let mut stopped = false;
    for unit in mine {
        if context.link.stop_requested().is_some() {
            stopped = true;
            break;
        }
        embed_unit(unit, &encoder, &provenance, stage.batch_tokens, context, &mut meter)?;
    }
    let stopped = agreement::agree(context.collective, stopped)?;
    Ok(Outcome { summary: (!stopped).then(|| summary(&datasets, &encoder, started)), stopped })
}

/// Columns whose vectors are needed: those that are drawn.
pub(super) fn columns(dataset: &Dataset) -> impl Iterator<Item = (usize, &str)> {
    dataset
        .columns()
        .iter()
        .enumerate()
        .filter(|(_, column)| column.weight > 0)
        .map(|(i, column)| (i, column.name.as_str()))
}

fn units(datasets: &[Arc<Dataset>], context: &Context<'_>) -> Vec<Unit> {
    let mut units = Vec::new();
    for dataset in datasets {
        for (index, shard) in dataset.shards().iter().enumerate() {
            let path = shard_path(&context.plan.output, dataset.name(), index, &shard.stem);
            units.push(Unit { dataset: dataset.clone(), rows: shard.samples.clone(), path });
        }
    }
    units
}

/// How far this rank is, in captions.
struct Meter {
    done: u64,
    total: u64,
    started: Instant,
    computed: u64,
    /// Of what was computed.
    flops: f64,
    peak_flop_per_s: Option<f64>,
}

fn embed_unit(
    unit: &Unit,
    encoder: &CaptionEncoder,
    provenance: &Provenance,
    batch_tokens: usize,
    context: &Context<'_>,
    meter: &mut Meter,
) -> Result<(), TrainerError> {
    let rows = usize::try_from(unit.rows.end - unit.rows.start).expect("a shard's rows fit in memory");
    let provenance = provenance.over(unit.dataset.fingerprint());
    if rows == 0 {
        return Ok(());
    }
    let expected = Expected { provenance: &provenance, rows, width: Some(encoder.width()) };
    if ShardFile::open(context.storage, &unit.path.clone().into(), expected)?.is_some() {
        meter.done += (rows * columns(&unit.dataset).count()) as u64;
        report(context, meter);
        return Ok(());
    }
    let mut written = Vec::new();
    for (column, name) in columns(&unit.dataset) {
        let mut out = vec![bf16::ZERO; rows * encoder.width()];
        let captions = unit.rows.clone().enumerate().map(|(row, sample)| {
            let caption = unit.dataset.caption(common::ids::SampleIndex(sample), column)?;
            encoder.tokens(row, &caption)
        });
        for batch in CaptionEncoder::batches(captions.collect::<Result<_, TrainerError>>()?, batch_tokens) {
            encoder.encode_into(&batch, &mut out)?;
            meter.done += batch.len() as u64;
            meter.computed += batch.len() as u64;
            meter.flops += encoder.flops(&batch);
            report(context, meter);
        }
        written.push((name.to_owned(), out));
    }
    write_shard(&unit.path, &provenance, encoder.width(), &written)?;
    Ok(())
}

fn report(context: &Context<'_>, meter: &Meter) {
    let mut progress = context.progress(meter.done, meter.total);
    let seconds = meter.started.elapsed().as_secs_f64().max(1e-9);
    let (ranks, flop_per_s) = (f64::from(context.world().0), meter.flops / seconds);
    progress.samples_per_s = Some(meter.computed as f64 / seconds * ranks);
    progress.model_flop_per_s = Some(flop_per_s * ranks);
    progress.mfu = meter.peak_flop_per_s.map(|peak| flop_per_s / peak);
    progress.peak_memory_bytes = memory::peak_bytes(context.device);
    context.link.report(Report::Progress(Box::new(progress)));
}

fn summary(datasets: &[Arc<Dataset>], encoder: &CaptionEncoder, started: Instant) -> serde_json::Value {
    let rows: Vec<_> = datasets
        .iter()
        .map(|data| {
            let names: Vec<&str> = columns(data).map(|(_, name)| name).collect();
            serde_json::json!([data.name(), data.len().to_string(), names.join(", "), encoder.width().to_string()])
        })
        .collect();
    let table = serde_json::json!({
        "title": format!("text vectors ({:.1} s)", started.elapsed().as_secs_f64()),
        "columns": ["data set", "samples", "captions", "width"],
        "rows": rows,
    });
    serde_json::json!({ "tables": [table] })
}
