//! Stage `distill`: the adapter learns what CLIP's own text tower makes of captions, before any image is seen; `clip` begins with it
//! ("representation inheritance", ProCLIP, arXiv 2510.18795, section 3.2).
//!
//! Both sides are stored vectors: the LLM's and the teacher's of one caption a sample, drawn as `clip` draws it. No image is decoded,
//! and no tower runs.

use super::{taught::TaughtVectors, text_vectors::TextVectors, towers::adapter_config, tuning::publish};
use crate::{
    data::{BrokenSample, Dataset},
    model::{
        ModelError,
        adapter::{self, Adapter},
        init,
        vision::VisionConfig,
    },
    torch,
    torch::transfer::Uploader,
    trainer::{
        ahead::Ahead,
        context::{Context, Outcome},
        error::TrainerError,
        layout::clip_groups,
        parameters::FlatParameters,
        step::{
            StepBegun,
            distill::{TaughtEncoder, distill_step},
        },
        training::{Source, Taken, Task, Training},
    },
    vectors::{VectorStore, nth},
};
use common::{
    ids::Step,
    manifest::paths,
    recipe::{AdapterModel, DistillStage},
    sampler::{self, Order},
};
use half::bf16;
use std::{collections::HashMap, ops::Range, path::Path, sync::Arc, time::Duration};
use tch::{Kind, Tensor, nn};

/// Batches of vectors read ahead.
const PREFETCH: usize = 4;
/// The weights in the folder that the stage leaves.
const WEIGHTS: &str = "model.safetensors";

/// Runs the stage.
pub fn run(stage: &DistillStage, context: &mut Context<'_>) -> Result<Outcome, TrainerError> {
    let recipe = &context.plan.recipe;
    let datasets = context.datasets(&stage.training.data)?;
    let (vectors, width) = TextVectors::of(context, &stage.training.data)?.open_all(&datasets)?;
    let taught =
        TaughtVectors::of(context)?.ok_or_else(|| TrainerError::Plan("`distill` needs [model.teacher]".into()))?;
    let (teacher, output) = taught.open_all(&datasets)?;
    let store = nn::VarStore::new(context.device);
    let adapter = build(&store, context, [width, output])?;
    let samples: Vec<u64> = datasets.iter().map(|data| data.len()).collect();
    let order = recipe.order(&stage.training, &samples).map_err(|error| TrainerError::Plan(error.to_string()))?;
    let optimizer = &stage.training.optimizer;
    let groups = clip_groups(optimizer.weight_decay, optimizer.layer_decay, 0, |_| 1);
    let parameters = FlatParameters::new(store.variables().into_iter().collect(), groups, context.device)?;
    let sources = datasets.iter().map(|data| Source { limit: data.limit(), fingerprint: data.fingerprint() }).collect();
    let mut training = Training::prepare(&stage.training, context, sources, order, parameters)?;
    let weights = |data: &Arc<Dataset>| data.columns().iter().map(|column| column.weight).collect();
    let maker = Maker {
        weights: datasets.iter().map(weights).collect(),
        datasets,
        sides: [vectors, teacher],
        order: training.order().clone(),
        slots: training.slots(),
        seed: recipe.seed,
    };
    let upload = || Uploader::new(context.device);
    let mut captions = Captions {
        adapter,
        compute: torch::kind(stage.training.precision),
        widths: [width, output],
        rows: stage.rows.unwrap_or(stage.training.global_batch) as f64,
        uploads: [upload()?, upload()?],
        batches: Ahead::start(training.steps(), PREFETCH, move |step| maker.batch(Step(step))),
    };
    let outcome = training.run(&mut captions)?;
    if !outcome.stopped && context.speaks() {
        let folder = paths::distilled_adapter(&context.plan.output, context.stage_kind());
        publish(&folder, |folder| write(&store, folder))?;
    }
    Ok(outcome)
}

/// The recipe's adapter as `clip` would begin with it, for vectors of these widths.
fn build(store: &nn::VarStore, context: &Context<'_>, [input, output]: [usize; 2]) -> Result<Adapter, TrainerError> {
    let model = &context.plan.recipe.model;
    let (Some(vision), Some(spec), Some(teacher)) = (&model.vision, &model.adapter, &model.teacher) else {
        return Err(TrainerError::Plan(
            "`distill` needs [model.vision], [model.adapter] and [model.teacher]".to_owned(),
        ));
    };
    let shared = VisionConfig::read(&vision.folder)?.width();
    if shared != output as i64 {
        return Err(TrainerError::Plan(format!(
            "the teacher in {} makes vectors of width {output}, and the vision tower in {} of width {shared}: they do not share a \
             space. `model.teacher.folder` is to hold the text tower of the CLIP that the vision tower is of",
            teacher.folder.display(),
            vision.folder.display()
        )));
    }
    let adapter = Adapter::new(&store.root(), &adapter_config(spec, input, shared));
    init::random_adapter(store, context.plan.recipe.seed);
    Ok(adapter)
}

fn write(store: &nn::VarStore, folder: &Path) -> Result<(), ModelError> {
    let mut tensors: Vec<(String, Tensor)> =
        store.variables().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Tensor::write_safetensors(&tensors, folder.join(WEIGHTS))?)
}

/// Puts the adapter that `distill` left in `folder` in the place of that in `variables`.
///
/// # Errors
/// When it is not there, or is of another recipe.
pub(super) fn begin_with(
    variables: &HashMap<String, Tensor>,
    folder: &Path,
    spec: &AdapterModel,
) -> Result<(), TrainerError> {
    let path = folder.join(WEIGHTS);
    let unusable = |what: String| {
        TrainerError::Plan(format!(
            "{} cannot be the adapter that `clip` begins with: {what}. Stage `distill` of this job writes it: give the recipe's \
             `[model.adapter]` the settings that it had then ({spec:?} now), or choose another `output` to run `distill` again",
            path.display()
        ))
    };
    let found = Tensor::read_safetensors(&path).map_err(|error| unusable(error.to_string()))?;
    let found: HashMap<String, Tensor> = found.into_iter().collect();
    let own: Vec<&String> = variables.keys().filter(|name| name.split('.').next() == Some(adapter::PREFIX)).collect();
    if let Some(name) = found.keys().find(|name| !own.contains(name)) {
        return Err(unusable(format!("it has `{name}`, which this recipe's adapter has not")));
    }
    for name in own {
        let (mut variable, tensor) = (variables[name].shallow_clone(), found.get(name));
        let tensor = tensor.ok_or_else(|| unusable(format!("it lacks `{name}`")))?;
        if tensor.size() != variable.size() {
            let shapes = (tensor.size(), variable.size());
            return Err(unusable(format!("its `{name}` has shape {:?}, this recipe's {:?}", shapes.0, shapes.1)));
        }
        tch::no_grad(|| variable.copy_(tensor));
    }
    Ok(())
}

/// Reads a rank's part of global batches.
struct Maker {
    datasets: Vec<Arc<Dataset>>,
    /// Of the caption columns, by data set.
    weights: Vec<Vec<u32>>,
    /// The LLM's and the teacher's, by data set.
    sides: [Vec<VectorStore>; 2],
    order: Arc<Order>,
    slots: Range<u64>,
    seed: u64,
}

/// Rows of both sides, one after the other: the LLM's and the teacher's.
type Sides = [Vec<bf16>; 2];

impl Maker {
    fn batch(&self, step: Step) -> Result<Sides, TrainerError> {
        let mut batch = Sides::default();
        for draw in self.order.draws(step, self.slots.clone()) {
            let (data, source) = (&self.datasets[draw.source], draw.source as u32);
            let column = sampler::choose_caption(self.seed, source, draw.index, draw.epoch, &self.weights[draw.source]);
            let column = nth(&data.columns()[column].name, 0);
            for (side, numbers) in self.sides.iter().zip(&mut batch) {
                let (vectors, start) = (&side[draw.source], numbers.len());
                numbers.resize(start + vectors.width(), bf16::ZERO);
                if !vectors.read(draw.index.0, &column, &mut numbers[start..])? {
                    let key = data.key(draw.index)?;
                    return Err(TrainerError::Plan(format!(
                        "the embedding store of data set `{}` has no vector of sample {key}, caption column `{column}`",
                        data.name()
                    )));
                }
            }
        }
        Ok(batch)
    }
}

/// Captions as the training's task.
struct Captions {
    adapter: Adapter,
    compute: Kind,
    widths: [usize; 2],
    rows: f64,
    uploads: [Uploader; 2],
    batches: Ahead<Sides>,
}

impl Task for Captions {
    type Batch = Sides;

    fn next(&mut self) -> Option<Result<Sides, TrainerError>> {
        self.batches.next()
    }

    fn waited(&self) -> Duration {
        self.batches.waited()
    }

    fn broken<'b>(&self, _batch: &'b Sides) -> &'b [BrokenSample] {
        &[]
    }

    fn flops(&self, batch: &Sides) -> f64 {
        3.0 * self.adapter.flops() * (batch[0].len() / self.widths[0]) as f64
    }

    fn step(&mut self, batch: &Sides, taken: Taken<'_>) -> Result<StepBegun, TrainerError> {
        let mut sides = Vec::new();
        for ((numbers, width), upload) in batch.iter().zip(self.widths).zip(&mut self.uploads) {
            let shape = [(numbers.len() / width) as i64, width as i64];
            let rows = upload.upload(bytemuck::cast_slice(numbers), &shape, Kind::BFloat16)?;
            sides.push(rows.to_kind(Kind::Float).split_with_sizes(taken.cut.sizes, 0));
        }
        let Taken { cut, settings, collective, parameters, poisoned, timeline, .. } = taken;
        let chunks = Chunks { captions: self, llm: &sides[0], teacher: &sides[1], poisoned };
        distill_step(&chunks, cut, self.rows, collective, parameters, &settings, timeline)
    }
}

/// A local slice in chunks.
struct Chunks<'a> {
    captions: &'a Captions,
    llm: &'a [Tensor],
    teacher: &'a [Tensor],
    poisoned: bool,
}

impl TaughtEncoder for Chunks<'_> {
    fn encode(&self, chunk: usize) -> Tensor {
        let rows = self.captions.adapter.forward(&self.llm[chunk].to_kind(self.captions.compute));
        if self.poisoned { rows * f64::NAN } else { rows }
    }

    fn teach(&self, chunk: usize) -> Tensor {
        self.teacher[chunk].shallow_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::adapter::AdapterConfig;
    use tch::Device;

    fn store(blocks: i64, input: i64, seed: u64) -> nn::VarStore {
        let store = nn::VarStore::new(Device::Cpu);
        Adapter::new(&store.root(), &AdapterConfig { input, output: 6, blocks, expansion: 2, l2_norm: true });
        let _ = store.root().var("logit_scale", &[], nn::Init::Const(2.0));
        init::random_adapter(&store, seed);
        store
    }

    #[test]
    fn an_adapter_is_taken_whole_or_refused_by_the_tensor_that_does_not_fit() {
        let (folder, spec) = (tempfile::tempdir().unwrap(), AdapterModel { blocks: 1, expansion: 2, l2_norm: true });
        let missing = begin_with(&store(1, 8, 2).variables(), folder.path(), &spec).unwrap_err().to_string();
        assert!(missing.contains("model.safetensors") && missing.contains("Stage `distill` of this job"), "{missing}");
        let left = nn::VarStore::new(Device::Cpu);
        let config = AdapterConfig { input: 8, output: 6, blocks: 1, expansion: 2, l2_norm: true };
        Adapter::new(&left.root(), &config);
        init::random_adapter(&left, 1);
        write(&left, folder.path()).unwrap();
        let begun = store(1, 8, 2);
        begin_with(&begun.variables(), folder.path(), &spec).unwrap();
        for (name, tensor) in left.variables() {
            assert_eq!(begun.variables()[&name], tensor, "{name}");
        }
        assert_eq!(begun.variables()["logit_scale"].double_value(&[]), 2.0);
        let refused = |blocks, input, expected: &str| {
            let error = begin_with(&store(blocks, input, 2).variables(), folder.path(), &spec).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        refused(0, 8, "which this recipe's adapter has not");
        refused(1, 9, "has shape");
    }
}
