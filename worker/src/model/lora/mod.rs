//! LoRA (Hu et al. 2021): low-rank updates beside frozen linear layers, y = W x + b + s · B·A·drop(x), as PEFT computes them.
//!
//! The base is shared by reference and its store stays as it was; a LoRA's own store holds all that is trained, in fp32, with
//! names `MODULE.lora_A.weight` [r, inputs] and `MODULE.lora_B.weight` [outputs, r].

mod folder;

pub use folder::{Wrapper, write_folder};

use super::{
    ModelError,
    init::{self, Fill},
    layers::{Linear, LowRank},
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tch::{Kind, Tensor, nn};

/// A model whose linear layers a LoRA may stand beside.
pub trait Adaptable {
    /// Every such layer with the path of its parameters.
    fn linears(&mut self) -> Vec<(String, &mut Linear)>;
}

/// What a LoRA is, apart from its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// r, the rank.
    pub rank: i64,
    /// α: updates are scaled by α/r.
    pub alpha: f64,
    /// The probability with which an input of an update is zeroed in training.
    pub dropout: f64,
    /// Which layers: whole paths, or the ends of paths behind a dot (`q_proj`).
    pub target_modules: Vec<String>,
    /// Whether updates are scaled by α/√r instead (Kalajdzievski 2023).
    pub rank_stabilised: bool,
}

impl LoraConfig {
    /// The factor on B·A.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    fn check(&self) -> Result<(), String> {
        if self.rank < 1 {
            return Err(format!("the rank r is {}, but it must be 1 or more", self.rank));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(format!("lora_dropout is {}, but it must be at least 0 and below 1", self.dropout));
        }
        if self.target_modules.is_empty() {
            return Err("target_modules names no layer".to_owned());
        }
        Ok(())
    }

    fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| ends_with(module, target))
    }
}

fn ends_with(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// What of a chunk's rows a pass has, when the others are another rank's.
#[derive(Debug)]
pub struct Part {
    /// Rows of the whole chunk, as layers see them in the first dimension: tokens, or images.
    pub rows: i64,
    /// [own] int64, where the layers are: which of them the pass has, in its order.
    pub own: Tensor,
}

/// What all updates of a LoRA know of the pass that they are in.
#[derive(Debug, Default)]
pub(super) struct Dropping {
    on: AtomicBool,
    part: Mutex<Option<Part>>,
}

/// The trained part of a model with low-rank updates.
#[derive(Debug)]
pub struct Lora {
    config: LoraConfig,
    store: nn::VarStore,
    dropping: Arc<Dropping>,
}

impl Lora {
    /// Puts an update beside every targeted layer: A as PyTorch draws linear layers, a function of the seed and the name, B
    /// zero, so that the model's outputs do not change. Updates that are there stay.
    ///
    /// # Errors
    /// When the settings make no LoRA, or a target is no layer of this model.
    pub fn new(model: &mut (impl Adaptable + ?Sized), config: &LoraConfig, seed: u64) -> Result<Self, ModelError> {
        let lora = Self::attach(model, config).map_err(|reason| ModelError::LoraSettings { reason })?;
        for (name, mut tensor) in lora.store.variables() {
            if name.ends_with("lora_A.weight") {
                let bound = (tensor.size()[1] as f64).powf(-0.5);
                init::draw(&mut tensor, Fill::Uniform { bound }, seed, &name);
            }
        }
        Ok(lora)
    }

    /// Zero updates beside the targeted layers.
    fn attach(model: &mut (impl Adaptable + ?Sized), config: &LoraConfig) -> Result<Self, String> {
        config.check()?;
        let mut linears = model.linears();
        let unknown: Vec<&str> = config
            .target_modules
            .iter()
            .filter(|target| !linears.iter().any(|(module, _)| ends_with(module, target)))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            return Err(format!("target_modules names {}, which this model does not have", unknown.join(", ")));
        }
        let device = linears.first().map_or(tch::Device::Cpu, |(_, linear)| linear.device());
        let store = nn::VarStore::new(device);
        let dropping = Arc::new(Dropping::default());
        for (module, linear) in linears.iter_mut().filter(|(module, _)| config.targets(module)) {
            let path = module.split('.').fold(store.root(), |path, part| path / part);
            let (zero, widths) = (nn::Init::Const(0.0), linear.widths());
            linear.add(LowRank {
                a: (&path / "lora_A").var("weight", &[config.rank, widths.input], zero),
                b: (&path / "lora_B").var("weight", &[widths.output, config.rank], zero),
                scale: config.scale(),
                dropout: config.dropout,
                dropping: dropping.clone(),
            });
        }
        Ok(Self { config: config.clone(), store, dropping })
    }

    /// What is trained: all of it, and nothing else.
    pub fn store(&self) -> &nn::VarStore {
        &self.store
    }

    /// What this LoRA is.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Whether inputs are dropped. Dropping draws from libtorch's generator, so a block that drops is not recomputed in the
    /// backward pass, whatever the tower was told: it would drop others there.
    pub fn train(&self, training: bool) {
        self.dropping.on.store(training, Ordering::Relaxed);
    }

    /// Says which rows of a chunk the passes from now on have; absent means all. What a row drops does not depend on it: all rows'
    /// are drawn, and the others' left.
    pub fn see(&self, part: Option<Part>) {
        *self.dropping.part.lock().unwrap_or_else(PoisonError::into_inner) = part;
    }
}

/// Adds all updates to the weights they stand beside, W ← W + s·B·A computed in fp32, and takes them away. The base changes.
pub fn merge(model: &mut (impl Adaptable + ?Sized)) {
    for (_, linear) in model.linears() {
        linear.merge();
    }
}

impl LowRank {
    /// s · B·A·drop(x), in the kind of x.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (a, b) = (self.a.to_kind(x.kind()), self.b.to_kind(x.kind()));
        let inside = match self.draws() {
            true => self.dropped(x).linear(&a, None::<&Tensor>),
            false => x.linear(&a, None::<&Tensor>),
        };
        inside.linear(&b, None::<&Tensor>) * self.scale
    }

    /// Inputs, some of them zero and the others larger.
    fn dropped(&self, x: &Tensor) -> Tensor {
        let part = self.dropping.part.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Part { rows, own }) = &*part else { return x.dropout(self.dropout, true) };
        let mut shape = x.size();
        shape[0] = *rows;
        x * Tensor::ones(shape, (x.kind(), x.device())).dropout(self.dropout, true).index_select(0, own)
    }

    /// Whether inputs are dropped now.
    pub(super) fn draws(&self) -> bool {
        self.dropout > 0.0 && self.dropping.on.load(Ordering::Relaxed)
    }

    /// s · B·A in fp32.
    pub(super) fn matrix(&self) -> Tensor {
        self.b.to_kind(Kind::Float).matmul(&self.a.to_kind(Kind::Float)) * self.scale
    }
}
