//! What the stages that tune the LLM have in common: what is trained of it, and what they leave for those after them.

use super::llm::{Kinds, Llm};
use crate::{
    model::{
        ModelError,
        llama::Head,
        lora::{Lora, LoraConfig, Part, Wrapper},
    },
    torch,
    trainer::{context::Context, error::TrainerError, layout::clip_groups, parameters::FlatParameters},
};
use common::{
    ids::{Epoch, SampleIndex, Step},
    manifest::paths,
    recipe::{self, TextModel},
    sampler::{CounterRng, Purpose},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// What is copied from the model's folder beside new weights, where it is there.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// The LLM and what is trained of it.
pub struct Tuning {
    /// The LLM.
    pub llm: Llm,
    spec: TextModel,
    /// Absent when all weights are trained.
    lora: Option<Lora>,
}

impl Tuning {
    /// Builds the LLM, and puts a new LoRA beside its layers where the recipe asks for one.
    ///
    /// # Errors
    /// When the LLM cannot be built, or has not the layers.
    pub fn begin(
        training: &recipe::Training,
        lora: Option<&recipe::Lora>,
        context: &Context<'_>,
    ) -> Result<Self, TrainerError> {
        context.activity("loading the LLM");
        let (spec, seed) = (context.llm()?, context.plan.recipe.seed);
        let compute = torch::kind(training.precision);
        // What is trained is kept in fp32; what is frozen in what it computes in.
        let weights = if lora.is_some() { compute } else { Kind::Float };
        let mut llm = Llm::open(&spec, seed, Kinds { weights, compute }, context.device)?;
        llm.llama.recompute_blocks(training.activation_checkpointing);
        let put = |lora: &recipe::Lora| {
            let config = LoraConfig {
                rank: i64::from(lora.rank),
                alpha: lora.alpha,
                dropout: lora.dropout,
                target_modules: lora.targets.clone(),
                rank_stabilised: false,
            };
            Lora::new(&mut llm.llama, &config, seed)
        };
        let lora = lora.map(put).transpose()?;
        if let Some(lora) = &lora {
            llm.store.freeze();
            lora.train(true);
        }
        Ok(Self { llm, spec, lora })
    }

    /// The LLM's folder, template and limits.
    pub fn spec(&self) -> &TextModel {
        &self.spec
    }

    /// Everything that is trained.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn parameters(
        &self,
        optimizer: &recipe::Optimizer,
        context: &Context<'_>,
    ) -> Result<FlatParameters, TrainerError> {
        let store = self.lora.as_ref().map_or(&self.llm.store, Lora::store);
        let llama = &self.llm.llama;
        let groups =
            clip_groups(optimizer.weight_decay, optimizer.layer_decay, llama.layers(), |name| llama.layer_id(name));
        FlatParameters::new(store.variables().into_iter().collect(), groups, context.device)
    }

    /// Floating-point operations of a step over those of its forward pass: the backward pass has as many for the inputs, and as
    /// many again for the weights when they are trained.
    pub fn passes(&self) -> f64 {
        if self.lora.is_some() { 2.0 } else { 3.0 }
    }

    /// Whether inputs of updates are dropped: a pass draws random numbers then.
    pub fn drops(&self) -> bool {
        self.lora.as_ref().is_some_and(|lora| lora.config().dropout > 0.0)
    }

    /// See [`Lora::see`].
    pub fn see(&self, part: Option<Part>) {
        if let Some(lora) = &self.lora {
            lora.see(part);
        }
    }

    /// Writes what the stages after this one and other programs read: a PEFT folder, or a model's.
    ///
    /// # Errors
    /// When storage fails.
    pub fn write(&self, head: Option<&Head>, context: &Context<'_>) -> Result<(), TrainerError> {
        let (output, kind) = (&context.plan.output, context.stage_kind());
        match &self.lora {
            Some(lora) => publish(&paths::tuned_adapter(output, kind), |folder| {
                lora.write(folder, Wrapper::Body, &self.spec.folder.display().to_string())
            }),
            None => publish(&paths::tuned_model(output, kind), |folder| self.write_model(folder, head)),
        }
    }

    /// A folder of a language model, as transformers writes one.
    fn write_model(&self, folder: &Path, head: Option<&Head>) -> Result<(), ModelError> {
        for name in COMPANIONS {
            let (from, to) = (self.spec.folder.join(name), folder.join(name));
            if from.exists() {
                std::fs::copy(&from, &to).map_err(|source| ModelError::Write { path: to, source })?;
            }
        }
        let body =
            self.llm.store.variables().into_iter().map(|(name, tensor)| (format!("model.{name}"), tensor.detach()));
        let own = head.and_then(Head::own).map(|(name, tensor)| (name.to_owned(), tensor.detach()));
        let mut tensors: Vec<(String, Tensor)> = body.chain(own).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let views: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        Ok(Tensor::write_safetensors(&views, folder.join("model.safetensors"))?)
    }
}

/// The slots of the whole chunk of which a rank has this piece.
pub(super) fn whole_chunk(piece: &Range<u64>, training: &recipe::Training) -> Range<u64> {
    let first = piece.start - piece.start % training.chunk;
    first..training.global_batch.min(first + training.chunk)
}

/// Which rows of its chunk a piece has, where every slot has so many; absent when it is the chunk.
pub(super) fn part_of(piece: &Range<u64>, whole: &Range<u64>, rows_of_slot: i64, device: Device) -> Option<Part> {
    if piece == whole {
        return None;
    }
    let [first, last, all] = [piece.start - whole.start, piece.end - whole.start, whole.end - whole.start];
    let [first, last, rows] = [first, last, all].map(|slots| slots as i64 * rows_of_slot);
    Some(Part { rows, own: Tensor::arange_start(first, last, (Kind::Int64, device)) })
}

/// Seeds libtorch's generator for a chunk of a step: its dropout is the same whenever and wherever it is computed. `first_slot` is the
/// whole chunk's; a rank that has a part of it draws for all of it.
pub(super) fn seed_chunk(seed: u64, step: Step, first_slot: u64) {
    let mut rng = CounterRng::new(seed, Purpose::Dropout, 0, SampleIndex(first_slot), Epoch(step.0));
    tch::manual_seed(rng.next_u64().cast_signed());
}

/// Writes a folder beside its place, and puts it there when it is whole and on disk; what was there before goes.
pub(super) fn publish(place: &Path, write: impl FnOnce(&Path) -> Result<(), ModelError>) -> Result<(), TrainerError> {
    let draft = place.with_extension("tmp");
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| TrainerError::Io { operation, path, source }
    };
    for old in [&draft, &place.to_owned()] {
        if old.exists() {
            std::fs::remove_dir_all(old).map_err(failed("remove", old))?;
        }
    }
    std::fs::create_dir_all(&draft).map_err(failed("make", &draft))?;
    write(&draft)?;
    let entries = std::fs::read_dir(&draft).map_err(failed("list", &draft))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).chain([draft.clone()]).collect();
    for path in files {
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        synced.map_err(failed("flush", &path))?;
    }
    std::fs::rename(&draft, place).map_err(failed("rename", &draft))?;
    let parent = place.parent().expect("it is below the output folder");
    std::fs::File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed("flush", parent))
}
