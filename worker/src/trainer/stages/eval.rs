//! Stage `eval`: retrieval both ways, sharded over ranks, exact.
//!
//! What was ranked is left in `OUTPUT/eval/DATA_SET.safetensors` (`image`, and `text/COLUMN`, each [N, width] fp32,
//! normalised), and the figures in `OUTPUT/eval/results.json`, so that anyone can compute the table again.

use super::{clip, embed, retrieval, text_vectors::TextVectors, towers::Towers};
use crate::{
    checkpoint,
    data::{BatchRequest, Dataset, Loader, LoaderConfig, OnBroken, SampleRequest, Transform, pixels_to_tensor},
    supervisor::ipc::Report,
    trainer::{context::Context, context::Outcome, error::TrainerError},
    vectors::VectorStore,
};
use common::{
    ids::{Epoch, SampleIndex, Step},
    recipe::{ClipStage, ConvertToRgb, EvalStage, PixelMode, Stage},
    sampler,
};
use std::{path::PathBuf, sync::Arc};
use tch::Tensor;

/// Targets are ranked in tiles of so many.
const TILE: i64 = 4096;
/// Examples shown in the summary.
const EXAMPLES: usize = 6;

/// Retrieval in one direction over one caption column.
#[derive(Debug, Clone, serde::Serialize)]
struct Figures {
    data: String,
    captions: String,
    direction: &'static str,
    pairs: u64,
    /// Images that could not be decoded, with their texts.
    left_out: u64,
    recall_at_1: f64,
    recall_at_5: f64,
    recall_at_10: f64,
}

/// Runs the stage.
pub fn run(stage: &EvalStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let datasets = context.datasets(&stage.data)?;
    let sources = TextVectors::of(context, &stage.data)?;
    let (stores, width) = sources.open_all(&datasets)?;
    let (towers, step) = trained(width, context)?;
    let mut figures = Vec::new();
    let mut notes = Vec::new();
    for (dataset, vectors) in datasets.iter().zip(&stores) {
        let features = Features::compute(dataset, vectors, &towers, stage, context)?;
        for (name, text_ND) in &features.text {
            let examples = rank_both(dataset, name, (&features, text_ND), context, &mut figures)?;
            if notes.is_empty() {
                notes = examples;
            }
        }
        if context.speaks() {
            features
                .save(&context.plan.output.join("eval").join(format!("{}.safetensors", dataset.name())), dataset)?;
        }
    }
    let summary = summary(&figures, notes, step);
    if context.speaks() {
        let path = context.plan.output.join("eval/results.json");
        let text = serde_json::to_string_pretty(
            &serde_json::json!({ "schema": 1, "checkpoint_step": step, "retrieval": figures }),
        )
        .expect("figures are JSON");
        std::fs::write(&path, text).map_err(|source| TrainerError::Io { operation: "write", path, source })?;
    }
    Ok(Outcome { summary: Some(summary), stopped: false })
}

/// The towers as the recipe's `clip` stage left them, and at which step.
fn trained(text_width: usize, context: &Context<'_>) -> Result<(Towers, Step), TrainerError> {
    let recipe = &context.plan.recipe;
    let clip_stage: &ClipStage = recipe
        .stages
        .iter()
        .find_map(|stage| if let Stage::Clip(clip) = stage { Some(clip) } else { None })
        .ok_or_else(|| TrainerError::Plan("`eval` needs a `clip` stage before it".to_owned()))?;
    context.activity("loading the newest checkpoint");
    let mut towers = Towers::build(recipe, clip::tower_settings(clip_stage, text_width), context.device)?;
    let loaded = checkpoint::newest(&context.plan.output, "clip")?.ok_or_else(|| {
        TrainerError::Plan(format!(
            "there is no checkpoint below {}: run the `clip` stage first",
            context.plan.output.join("clip").display()
        ))
    })?;
    clip::load_parameters(&mut towers.store, &loaded)?;
    towers.store.freeze();
    let step = loaded.manifest.step;
    Ok((towers, step))
}

/// Embeddings of a whole data set but for its broken images, the same on every rank.
struct Features {
    /// Which samples they are of.
    samples: Vec<SampleIndex>,
    image_ND: Tensor,
    text: Vec<(String, Tensor)>,
}

impl Features {
    fn compute(
        dataset: &Arc<Dataset>,
        vectors: &VectorStore,
        towers: &Towers,
        stage: &EvalStage,
        context: &Context<'_>,
    ) -> Result<Self, TrainerError> {
        let mine = sampler::local_slots(context.rank(), context.world(), dataset.len());
        let rows: Vec<i64> = sampler::rows(context.world(), dataset.len()).into_iter().map(|n| n as i64).collect();
        let chunks = sampler::chunks(mine, stage.chunk);

        let names: Vec<&str> = embed::columns(dataset).map(|(_, name)| name).collect();
        let (mut image, mut whole) = (Vec::new(), Vec::new());
        let mut text: Vec<Vec<Tensor>> = names.iter().map(|_| Vec::new()).collect();
        let requests = chunks.clone().into_iter().enumerate().map(|(tag, chunk)| BatchRequest {
            tag: tag as u64,
            samples: chunk.map(|i| SampleRequest { source: 0, index: SampleIndex(i), epoch: Epoch(0) }).collect(),
        });
        let config = LoaderConfig {
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
        };
        let mut loader = Loader::start(config, requests.collect::<Vec<_>>().into_iter());
        let mut done = 0;
        while let Some(batch) = loader.next() {
            let batch = batch?;
            let broken = |sample: &SampleRequest| batch.broken.iter().any(|broken| broken.wanted == *sample);
            whole.extend(batch.samples.iter().map(|sample| i64::from(!broken(sample))));
            let pixels = pixels_to_tensor(&batch, context.device);
            image.push(tch::no_grad(|| towers.image_embeddings(&pixels)));
            for (column, name) in names.iter().enumerate() {
                let wanted = batch.samples.iter().map(|sample| (vectors, sample.index.0, *name));
                let vectors_BD = clip::gather_vectors(wanted, vectors.width(), context.device)?;
                text[column].push(tch::no_grad(|| towers.text_embeddings(&vectors_BD)));
            }
            done += 1;
            context.link.report(Report::Progress(Box::new(context.progress(done, chunks.len() as u64))));
        }
        // Between hosts; the rows are on the device.
        let whole_N: Vec<i64> = Vec::try_from(context.collective.all_gather_rows(&Tensor::from_slice(&whole), &rows)?)?;
        let samples: Vec<i64> = (0..).zip(whole_N).filter(|(_, whole)| *whole > 0).map(|(sample, _)| sample).collect();
        let whole = |sample: &u64| samples.binary_search(&(*sample as i64)).is_ok();
        let broken = (0..dataset.len()).filter(|sample| !whole(sample)).take(EXAMPLES);
        let broken = broken.map(|sample| dataset.key(SampleIndex(sample))).collect::<Result<Vec<_>, _>>()?;
        dataset.bear(dataset.len() - samples.len() as u64, &broken)?;
        let kept_M = Tensor::from_slice(&samples).to_device(context.device);
        let gather = |parts: Vec<Tensor>| -> Result<Tensor, TrainerError> {
            let mine = if parts.is_empty() {
                Tensor::zeros([0, towers.width], (tch::Kind::Float, context.device))
            } else {
                Tensor::cat(&parts, 0)
            };
            Ok(context.collective.all_gather_rows(&mine.contiguous(), &rows)?.index_select(0, &kept_M))
        };
        let image_ND = gather(image)?;
        let text = names.iter().zip(text).map(|(name, parts)| Ok(((*name).to_owned(), gather(parts)?)));
        let text = text.collect::<Result<_, TrainerError>>()?;
        Ok(Self { samples: samples.into_iter().map(|sample| SampleIndex(sample as u64)).collect(), image_ND, text })
    }

    fn save(&self, path: &PathBuf, dataset: &Dataset) -> Result<(), TrainerError> {
        let io = |source| TrainerError::Io { operation: "write", path: path.clone(), source };
        std::fs::create_dir_all(path.parent().expect("the file has a folder")).map_err(io)?;
        let mut tensors = vec![("image".to_owned(), self.image_ND.shallow_clone())];
        tensors.extend(self.text.iter().map(|(name, text)| (format!("text/{name}"), text.shallow_clone())));
        Tensor::write_safetensors(&tensors, path)?;
        let keys = self.samples.iter().map(|sample| dataset.key(*sample)).collect::<Result<Vec<_>, _>>()?;
        std::fs::write(path.with_extension("keys.txt"), keys.join("\n") + "\n").map_err(io)
    }
}

/// Ranks images for texts and texts for images; returns the examples of text → image.
fn rank_both(
    dataset: &Dataset,
    column: &str,
    (features, text_ND): (&Features, &Tensor),
    context: &Context<'_>,
    figures: &mut Vec<Figures>,
) -> Result<Vec<String>, TrainerError> {
    let (pairs, image_ND) = (features.samples.len() as u64, &features.image_ND);
    let mine = sampler::local_slots(context.rank(), context.world(), pairs);
    let (first, n) = (mine.start as i64, (mine.end - mine.start) as i64);
    let rows: Vec<i64> = sampler::rows(context.world(), pairs).into_iter().map(|n| n as i64).collect();
    let mut best = None;
    for (direction, queries, targets) in [("image to text", image_ND, text_ND), ("text to image", text_ND, image_ND)] {
        let ranked = retrieval::rank(&queries.narrow(0, first, n), targets, first, TILE, 3);
        let mut hits = retrieval::hits(&ranked.position_n);
        context.collective.all_reduce_sum(&mut hits)?;
        let hits: Vec<i64> = Vec::try_from(hits)?;
        let share = |i: usize| hits[i] as f64 / pairs.max(1) as f64;
        figures.push(Figures {
            data: dataset.name().to_owned(),
            captions: column.to_owned(),
            direction,
            pairs,
            left_out: dataset.len() - pairs,
            recall_at_1: share(0),
            recall_at_5: share(1),
            recall_at_10: share(2),
        });
        best = Some(context.collective.all_gather_rows(&ranked.best_nk.contiguous(), &rows)?);
    }
    let best: Vec<Vec<i64>> = best.map(Vec::try_from).transpose()?.unwrap_or_default();
    examples(dataset, column, &features.samples, &best)
}

/// Texts and the images found for them, spread evenly over the data set.
fn examples(
    dataset: &Dataset,
    column: &str,
    samples: &[SampleIndex],
    best: &[Vec<i64>],
) -> Result<Vec<String>, TrainerError> {
    let Some((column, _)) = embed::columns(dataset).find(|(_, name)| *name == column) else { return Ok(Vec::new()) };
    let count = EXAMPLES.min(best.len());
    let show = |example: usize| {
        let query = example * best.len() / count;
        let found = best[query].iter().map(|i| label(dataset, samples[*i as usize])).collect::<Result<Vec<_>, _>>()?;
        let mark = if best[query].first() == Some(&(query as i64)) { "hit " } else { "miss" };
        let text: String = dataset.caption(samples[query], column)?.chars().take(48).collect();
        Ok(format!("{mark}  {text:<48}  ->  {}", found.join("   ")))
    };
    (0..count).map(show).collect()
}

/// What stands for an image on the screen: a caption column of weight 0 if there is one, else its key. `emoji:1f450`
/// is shown as the character itself.
fn label(dataset: &Dataset, sample: SampleIndex) -> Result<String, TrainerError> {
    let labels = dataset.columns().iter().position(|column| column.weight == 0);
    let text = labels.map_or_else(|| dataset.key(sample), |column| dataset.caption(sample, column))?;
    let points = text.strip_prefix("emoji:").map(|points| points.split('-').map(|p| u32::from_str_radix(p, 16)));
    let shown: Option<String> = points.and_then(|points| points.map(|p| char::from_u32(p.ok()?)).collect());
    Ok(shown.unwrap_or(text))
}

fn summary(figures: &[Figures], notes: Vec<String>, step: Step) -> serde_json::Value {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let rows: Vec<_> = figures
        .iter()
        .map(|f| {
            let chance = 1.0 / f.pairs.max(1) as f64;
            serde_json::json!([
                f.data,
                f.captions,
                f.direction,
                f.pairs.to_string(),
                f.left_out.to_string(),
                percent(f.recall_at_1),
                percent(f.recall_at_5),
                percent(f.recall_at_10),
                percent(chance),
            ])
        })
        .collect();
    let table = serde_json::json!({
        "title": format!("retrieval with the checkpoint of step {step}"),
        "columns": ["data set", "captions", "direction", "pairs", "left out as broken", "R@1", "R@5", "R@10", "chance R@1"],
        "rows": rows,
    });
    let mut lines = vec!["text -> the three nearest images, best first".to_owned()];
    lines.extend(notes);
    serde_json::json!({ "tables": [table], "notes": lines, "retrieval": figures })
}
