//! Stage `embed`: the frozen LLM reads every caption once.
//!
//! Shards are dealt out to ranks; a shard whose file is there already, made of the same things, is skipped. Of data sets
//! whose vectors LLM2CLIP made, its tars are made into such files; those that another job made stay where they are. Of data
//! sets with classes it reads these in all templates, see `prompts`.

use super::{
    prompts::{self, Block, Prompts},
    text::CaptionEncoder,
    text_vectors::{Origin, TextVectors, tar_name},
};
use crate::{
    data::{Blob, Dataset, storage::Location},
    torch::{self, memory, peak},
    trainer::{agreement, context::Context, context::Outcome, error::TrainerError},
    vectors::{Expected, Provenance, ShardFile, ShardWriter, import, nth, shard_folder, shard_name},
};
use common::{ids::SampleIndex, recipe::EmbedStage};
use half::bf16;
use std::{ops::Range, path::PathBuf, sync::Arc, time::Instant};

/// One shard of one data set.
struct Unit {
    dataset: Arc<Dataset>,
    stem: String,
    rows: Range<u64>,
    path: PathBuf,
    origin: Origin,
    provenance: Provenance,
}

/// Runs the stage.
pub fn run(stage: &EmbedStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let started = Instant::now();
    let recipe = &context.plan.recipe;
    let datasets = context.datasets(&prompts::with_captions(recipe, &stage.data))?;
    let sources = TextVectors::of(context, &stage.data)?;
    let encoder = match context.llm() {
        Ok(spec) if recipe.needs_text_model(&stage.data) => {
            context.activity("loading the LLM");
            Some(CaptionEncoder::open(&spec, recipe.seed, stage.precision, context.device)?)
        }
        _ => None,
    };

    let (units, prompts) = (units(&datasets, &sources, context)?, Prompts::of_all(&stage.data, context, &sources)?);
    let (rank, world) = (context.rank().0 as usize, context.world().0 as usize);
    let mine: Vec<&Unit> = units.iter().skip(rank).step_by(world).collect();
    // Ranks that got a shard less get a block more.
    let first = (rank + world - units.len() % world) % world;
    let blocks: Vec<Block<'_>> = prompts.iter().flat_map(Prompts::to_make).skip(first).step_by(world).collect();
    let captions: u64 =
        mine.iter().map(|unit| (unit.rows.end - unit.rows.start) * columns(&unit.dataset).count() as u64).sum();
    let texts: u64 = blocks.iter().map(Block::texts).sum();
    let peak_flop_per_s = peak::flop_per_s(context.device, torch::kind(stage.precision));
    let mut meter =
        Meter { done: 0, total: captions + texts, started: Instant::now(), computed: 0, flops: 0.0, peak_flop_per_s };
    let mut stopped = false;
    let work = mine.into_iter().map(Work::Shard).chain(blocks.into_iter().map(Work::Prompts));
    for work in work {
        if context.link.stop_requested().is_some() {
            stopped = true;
            break;
        }
        match work {
            Work::Shard(unit) => make(unit, encoder.as_ref(), stage.batch_tokens, context, Some(&mut meter))?,
            Work::Prompts(block) => block.make(encoder.as_ref(), stage.batch_tokens, context, &mut meter)?,
        }
    }
    let stopped = agreement::agree(context.collective, stopped)?;
    let summary = if stopped { None } else { Some(summary(&datasets, &prompts, &sources, context, started)?) };
    Ok(Outcome { summary, stopped })
}

/// What a rank does in one piece.
enum Work<'a> {
    Shard(&'a Unit),
    Prompts(Block<'a>),
}

/// Makes files of what LLM2CLIP's tars hold of these data sets, each rank its share, unless they are there; returns when
/// all ranks are done.
///
/// # Errors
/// When a tar cannot be read or lacks a vector.
pub(super) fn take_over_all(
    datasets: &[Arc<Dataset>],
    sources: &TextVectors<'_, '_>,
    context: &Context<'_>,
) -> Result<(), TrainerError> {
    let mut units = units(datasets, sources, context)?;
    units.retain(|unit| matches!(unit.origin, Origin::Llm2clip(_)));
    if units.is_empty() {
        return Ok(());
    }
    context.activity("taking over LLM2CLIP's text vectors");
    for unit in units.iter().skip(context.rank().0 as usize).step_by(context.world().0 as usize) {
        make(unit, None, 0, context, None)?;
    }
    agreement::agree(context.collective, false)?;
    Ok(())
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

/// The shards whose vectors are to be made.
fn units(
    datasets: &[Arc<Dataset>],
    sources: &TextVectors<'_, '_>,
    context: &Context<'_>,
) -> Result<Vec<Unit>, TrainerError> {
    let mut units = Vec::new();
    for dataset in datasets {
        let origin = sources.origin(dataset)?;
        if let Origin::Store(_) = origin {
            continue;
        }
        let (folder, provenance) =
            (shard_folder(&context.plan.output, dataset.name()), sources.provenance(dataset, &origin));
        for (index, shard) in dataset.shards().iter().enumerate().filter(|(_, shard)| !shard.samples.is_empty()) {
            units.push(Unit {
                dataset: dataset.clone(),
                stem: shard.stem.clone(),
                rows: shard.samples.clone(),
                path: folder.join(shard_name(index, &shard.stem)),
                origin: origin.clone(),
                provenance: provenance.clone(),
            });
        }
    }
    Ok(units)
}

/// How far this rank is, in texts.
pub(super) struct Meter {
    done: u64,
    total: u64,
    started: Instant,
    computed: u64,
    /// Of what was computed.
    flops: f64,
    peak_flop_per_s: Option<f64>,
}

impl Meter {
    /// Texts whose vectors were there.
    pub(super) fn passed(&mut self, texts: u64, context: &Context<'_>) {
        self.done += texts;
        report(context, self);
    }

    /// Texts that the LLM read, in so many floating-point operations.
    pub(super) fn read(&mut self, texts: u64, flops: f64, context: &Context<'_>) {
        self.done += texts;
        self.computed += texts;
        self.flops += flops;
        report(context, self);
    }
}

/// Makes the vectors of a shard, unless they are there. Without a meter nothing is reported.
fn make(
    unit: &Unit,
    encoder: Option<&CaptionEncoder>,
    batch_tokens: usize,
    context: &Context<'_>,
    meter: Option<&mut Meter>,
) -> Result<(), TrainerError> {
    let rows = usize::try_from(unit.rows.end - unit.rows.start).expect("a shard's rows fit in memory");
    let expected = Expected { provenance: &unit.provenance, rows, width: encoder.map(CaptionEncoder::width) };
    let expected = if let Origin::Llm2clip(_) = unit.origin { Expected { width: None, ..expected } } else { expected };
    if ShardFile::open(context.storage, &unit.path.clone().into(), expected)?.is_some() {
        passed(unit, context, meter);
        return Ok(());
    }
    match (&unit.origin, encoder, meter) {
        (Origin::Llm2clip(folder), _, meter) => {
            take_over(unit, folder, context)?;
            passed(unit, context, meter);
            Ok(())
        }
        (_, Some(encoder), Some(meter)) => embed(unit, rows, encoder, batch_tokens, context, meter),
        _ => Err(TrainerError::Plan("text vectors need [model.text]".to_owned())),
    }
}

/// A shard whose captions the LLM did not have to read.
fn passed(unit: &Unit, context: &Context<'_>, meter: Option<&mut Meter>) {
    let Some(meter) = meter else { return };
    meter.passed((unit.rows.end - unit.rows.start) * columns(&unit.dataset).count() as u64, context);
}

/// Makes a shard's file of LLM2CLIP's tar. A sample without a vector could not be trained on: it is an error.
fn take_over(unit: &Unit, folder: &Location, context: &Context<'_>) -> Result<(), TrainerError> {
    let tar = folder.join(&tar_name(&unit.stem))?;
    let blob = Blob::named(context.storage, &tar)?;
    let keys = unit.rows.clone().map(|sample| unit.dataset.key(SampleIndex(sample)));
    let keys = keys.collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<&str> = columns(&unit.dataset).map(|(_, name)| name).collect();
    let taken = import(&blob, keys.iter().map(String::as_str), &columns, &unit.provenance, &unit.path)?;
    if taken.missing.count + taken.not_finite.count > 0 {
        let io = |source| TrainerError::Io { operation: "delete", path: unit.path.clone(), source };
        std::fs::remove_file(&unit.path).map_err(io)?;
        return Err(TrainerError::Plan(format!(
            "{tar} has not a vector for every sample of its shard:\n{taken}\nfetch it again, or leave `data.{}.vectors` out to \
             let the LLM read the captions",
            unit.dataset.name()
        )));
    }
    Ok(())
}

/// The LLM reads a shard's captions.
fn embed(
    unit: &Unit,
    rows: usize,
    encoder: &CaptionEncoder,
    batch_tokens: usize,
    context: &Context<'_>,
    meter: &mut Meter,
) -> Result<(), TrainerError> {
    let readings = readings(unit)?;
    let planned = (rows * columns(&unit.dataset).count()) as u64;
    meter.total = meter.total - planned + readings.iter().map(|reading| reading.captions.len() as u64).sum::<u64>();
    let (width, names) = (encoder.width(), readings.iter().map(|reading| reading.name.as_str()).collect::<Vec<_>>());
    let mut writer = ShardWriter::create(&unit.path, &unit.provenance, [rows, width], &names)?;
    for (column, reading) in readings.iter().enumerate() {
        let mut out = vec![bf16::ZERO; rows * width];
        let tokens = reading.captions.iter().map(|(row, caption)| encoder.tokens(*row, caption));
        for batch in CaptionEncoder::batches(tokens.collect::<Result<_, TrainerError>>()?, batch_tokens) {
            encoder.encode_into(&batch, &mut out)?;
            meter.read(batch.len() as u64, encoder.flops(&batch), context);
        }
        if reading.captions.len() == rows {
            writer.put_rows(column, 0, &out)?;
        } else {
            let mut present = reading.captions.iter().map(|(row, _)| *row);
            present.try_for_each(|row| writer.put(column, row, &out[row * width..][..width]))?;
        }
    }
    writer.finish()?;
    Ok(())
}

/// What the LLM reads into one column of a shard's file.
struct Reading {
    name: String,
    /// Row and caption.
    captions: Vec<(usize, String)>,
}

/// The captions of a shard by column. Of a column of several captions, the first ones are a column, the second ones, and
/// so on; samples with fewer have no vector there.
fn readings(unit: &Unit) -> Result<Vec<Reading>, TrainerError> {
    let mut readings: Vec<Reading> = Vec::new();
    for (column, name) in columns(&unit.dataset) {
        let first = readings.len();
        for (row, sample) in unit.rows.clone().enumerate() {
            for (n, caption) in unit.dataset.captions(SampleIndex(sample), column)?.into_iter().enumerate() {
                if readings.len() == first + n {
                    readings.push(Reading { name: nth(name, n), captions: Vec::new() });
                }
                readings[first + n].captions.push((row, caption));
            }
        }
    }
    Ok(readings)
}

fn report(context: &Context<'_>, meter: &Meter) {
    let mut progress = context.progress(meter.done, meter.total);
    let seconds = meter.started.elapsed().as_secs_f64().max(1e-9);
    let (ranks, flop_per_s) = (f64::from(context.world().0), meter.flops / seconds);
    progress.samples_per_s = Some(meter.computed as f64 / seconds * ranks);
    progress.model_flop_per_s = Some(flop_per_s * ranks);
    progress.mfu = meter.peak_flop_per_s.map(|peak| flop_per_s / peak);
    progress.peak_memory_bytes = memory::peak_bytes(context.device);
    context.report(progress);
}

fn summary(
    datasets: &[Arc<Dataset>],
    prompts: &[Prompts],
    sources: &TextVectors<'_, '_>,
    context: &Context<'_>,
    started: Instant,
) -> Result<serde_json::Value, TrainerError> {
    let row = |data: &Arc<Dataset>| {
        let names: Vec<&str> = columns(data).map(|(_, name)| name).collect();
        let from = match sources.origin(data)? {
            Origin::Encoder => "the LLM".to_owned(),
            Origin::Store(folder) | Origin::Llm2clip(folder) => folder.to_string(),
        };
        // All ranks are done: every shard is there.
        let width = sources.open(data)?.width().to_string();
        Ok(serde_json::json!([data.name(), data.len().to_string(), names.join(", "), width, from]))
    };
    let classes = |prompts: &Prompts| {
        let (classes, templates) = (prompts.words.classes(), prompts.words.templates().len());
        let texts = format!("{classes} classes in {templates} templates");
        let width = prompts.open(context)?.width().to_string();
        Ok(serde_json::json!([prompts.data, (classes * templates).to_string(), texts, width, prompts.origin()]))
    };
    let rows = datasets.iter().map(row).chain(prompts.iter().map(classes));
    let rows = rows.collect::<Result<Vec<_>, TrainerError>>()?;
    let table = serde_json::json!({
        "title": format!("text vectors ({:.1} s)", started.elapsed().as_secs_f64()),
        "columns": ["data set", "samples", "texts", "width", "from"],
        "rows": rows,
    });
    Ok(serde_json::json!({ "tables": [table] }))
}
