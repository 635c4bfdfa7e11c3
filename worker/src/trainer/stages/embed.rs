//! Stage `embed`: the frozen LLM reads every caption once.
//!
//! Shards are dealt out to ranks; a shard whose file is there already, made of the same things, is skipped. Of data sets
//! whose vectors LLM2CLIP made, its tars are made into such files; those that another job made stay where they are. Of data
//! sets with classes it reads these in all templates, see `prompts`. Of data sets that `distill` learns from, the teacher reads
//! the captions as well, see `taught`.

use super::{
    prompts::{self, Block, Prompts},
    taught::TaughtVectors,
    text::CaptionEncoder,
    text_vectors::{Origin, TextVectors, tar_name},
};
use crate::{
    data::{Blob, Dataset, Shard},
    storage::Location,
    torch::{self, memory, peak},
    trainer::{
        agreement,
        context::{Context, Outcome},
        error::TrainerError,
    },
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
    made_by: MadeBy,
    provenance: Provenance,
}

/// Who makes the vectors of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MadeBy {
    Llm,
    Teacher,
    /// Nobody: they are taken out of one of LLM2CLIP's tars in this folder.
    Llm2clip(Location),
}

/// The networks that read captions; absent is who has none to read.
#[derive(Clone, Copy, Default)]
struct Readers<'a> {
    llm: Option<&'a CaptionEncoder>,
    teacher: Option<&'a CaptionEncoder>,
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

    let taught = TaughtVectors::of(context)?;
    let learned_from: Vec<&String> = recipe.taught(&stage.data).collect();
    let teacher = recipe.model.teacher.as_ref().filter(|_| !learned_from.is_empty()).map(|spec| {
        context.activity("loading the teacher");
        CaptionEncoder::teacher(spec, recipe.seed, stage.precision, context.device)
    });
    let teacher = teacher.transpose()?;
    let readers = Readers { llm: encoder.as_ref(), teacher: teacher.as_ref() };

    let (mut units, prompts) = (units(&datasets, &sources, context)?, Prompts::of_all(&stage.data, context, &sources)?);
    if let Some(taught) = &taught {
        let learned = datasets.iter().filter(|data| learned_from.iter().any(|name| *name == data.name()));
        units.extend(learned.flat_map(|data| to_teach(data, taught)));
    }
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
            Work::Shard(unit) => make(unit, readers, stage.batch_tokens, context, Some(&mut meter))?,
            Work::Prompts(block) => block.make(readers.llm, stage.batch_tokens, context, &mut meter)?,
        }
    }
    let stopped = agreement::agree(context.collective, stopped)?;
    let summary =
        if stopped { None } else { Some(summary(&datasets, &prompts, (&sources, taught.as_ref()), context, started)?) };
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
    units.retain(|unit| matches!(unit.made_by, MadeBy::Llm2clip(_)));
    if units.is_empty() {
        return Ok(());
    }
    context.activity("taking over LLM2CLIP's text vectors");
    for unit in units.iter().skip(context.rank().0 as usize).step_by(context.world().0 as usize) {
        make(unit, Readers::default(), 0, context, None)?;
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
        let provenance = sources.provenance(dataset, &origin);
        let made_by = match origin {
            Origin::Store(_) => continue,
            Origin::Encoder => MadeBy::Llm,
            Origin::Llm2clip(folder) => MadeBy::Llm2clip(folder),
        };
        units.extend(shards(dataset, (shard_folder(&context.plan.output, dataset.name()), provenance), made_by));
    }
    Ok(units)
}

/// The shards of a data set that the teacher is to read.
fn to_teach(dataset: &Arc<Dataset>, taught: &TaughtVectors<'_, '_>) -> Vec<Unit> {
    shards(dataset, (taught.folder(dataset), taught.provenance(dataset)), MadeBy::Teacher)
}

/// A data set's shards, but for those without samples, with files in `folder` that are made of what `provenance` says.
fn shards(dataset: &Arc<Dataset>, (folder, provenance): (PathBuf, Provenance), made_by: MadeBy) -> Vec<Unit> {
    let all = dataset.shards().iter().enumerate().filter(|(_, shard)| !shard.samples.is_empty());
    let unit = |(index, shard): (usize, &Shard)| Unit {
        dataset: dataset.clone(),
        stem: shard.stem.clone(),
        rows: shard.samples.clone(),
        path: folder.join(shard_name(index, &shard.stem)),
        made_by: made_by.clone(),
        provenance: provenance.clone(),
    };
    all.map(unit).collect()
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
    readers: Readers<'_>,
    batch_tokens: usize,
    context: &Context<'_>,
    meter: Option<&mut Meter>,
) -> Result<(), TrainerError> {
    let encoder = match unit.made_by {
        MadeBy::Llm => readers.llm,
        MadeBy::Teacher => readers.teacher,
        MadeBy::Llm2clip(_) => None,
    };
    let rows = usize::try_from(unit.rows.end - unit.rows.start).expect("a shard's rows fit in memory");
    let expected = Expected { provenance: &unit.provenance, rows, width: encoder.map(CaptionEncoder::width) };
    if ShardFile::open(context.storage, &unit.path.clone().into(), expected)?.is_some() {
        passed(unit, context, meter);
        return Ok(());
    }
    match (&unit.made_by, encoder, meter) {
        (MadeBy::Llm2clip(folder), _, meter) => {
            take_over(unit, folder, context)?;
            passed(unit, context, meter);
            Ok(())
        }
        (_, Some(encoder), Some(meter)) => embed(unit, rows, encoder, batch_tokens, context, meter),
        _ => Err(TrainerError::Plan("text vectors need [model.text]".to_owned())),
    }
}

/// A shard whose captions nobody had to read.
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

/// An encoder reads a shard's captions.
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

/// What is read into one column of a shard's file.
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
    (sources, taught): (&TextVectors<'_, '_>, Option<&TaughtVectors<'_, '_>>),
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
    let learned = |data: &Arc<Dataset>| {
        let taught = taught.filter(|_| context.plan.recipe.taught(&[data.name().to_owned()]).next().is_some())?;
        let names: Vec<&str> = columns(data).map(|(_, name)| name).collect();
        let row = |width: usize| {
            serde_json::json!([data.name(), data.len().to_string(), names.join(", "), width.to_string(), "the teacher"])
        };
        Some(taught.open(data).map(|store| row(store.width())))
    };
    let rows = datasets.iter().map(row).chain(datasets.iter().filter_map(learned)).chain(prompts.iter().map(classes));
    let rows = rows.collect::<Result<Vec<_>, TrainerError>>()?;
    let table = serde_json::json!({
        "title": format!("text vectors ({:.1} s)", started.elapsed().as_secs_f64()),
        "columns": ["data set", "samples", "texts", "width", "from"],
        "rows": rows,
    });
    Ok(serde_json::json!({ "tables": [table] }))
}
