//! The two sides of stage 2: the vision tower, and the adapter on the LLM's vectors; with the logit scale they are what
//! `clip` trains and `eval` measures.

use crate::{
    model::{
        adapter::{Adapter, AdapterConfig},
        vit::{ClipVision, ClipVisionConfig},
        weights,
    },
    torch,
    trainer::{error::TrainerError, step::normalise},
};
use common::recipe::{Init, Precision, Recipe};
use tch::{Device, Kind, Tensor, nn};

/// Vision tower, adapter and logit scale, over one store of variables.
pub struct Towers {
    /// Every variable by its checkpoint name.
    pub store: nn::VarStore,
    /// Pixels to the shared space.
    pub vision: ClipVision,
    /// Text vectors to the shared space.
    pub adapter: Adapter,
    /// The logit scale's logarithm, a scalar in fp32.
    pub log_scale: Tensor,
    /// Side of the square image in pixels.
    pub image_size: i64,
    /// Width of the shared space.
    pub width: i64,
    /// What forward and backward passes compute in; the variables are fp32.
    compute: Kind,
}

/// What a stage asks of the towers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TowerSettings {
    /// Width of the text vectors.
    pub text_width: usize,
    /// Where the logit scale's logarithm begins.
    pub log_scale_init: f64,
    /// What to compute in.
    pub precision: Precision,
    /// Whether the backward pass runs each block of the vision tower again.
    pub activation_checkpointing: bool,
}

impl Towers {
    /// Builds the towers of a recipe.
    pub fn build(recipe: &Recipe, settings: TowerSettings, device: Device) -> Result<Self, TrainerError> {
        let (Some(vision), Some(adapter)) = (&recipe.model.vision, &recipe.model.adapter) else {
            return Err(TrainerError::Plan("this stage needs [model.vision] and [model.adapter]".to_owned()));
        };
        let config: ClipVisionConfig = crate::model::config::read(&vision.folder)?;
        let mut store = nn::VarStore::new(device);
        let mut tower = ClipVision::new(&store.root(), &config);
        tower.recompute_blocks(settings.activation_checkpointing);
        match vision.init {
            Init::Random => crate::model::init::random(&store, recipe.seed, &config),
            Init::Pretrained => {
                weights::load(&mut store, &vision.folder, weights::NameMap::ClipVision)?;
            }
        }
        let adapter_config = AdapterConfig {
            input: settings.text_width as i64,
            output: config.projection_dim,
            blocks: adapter.blocks as i64,
            expansion: adapter.expansion as i64,
            l2_norm: adapter.l2_norm,
        };
        let adapter = Adapter::new(&store.root(), &adapter_config);
        crate::model::init::random_adapter(&store, recipe.seed);
        let log_scale = store.root().var("logit_scale", &[], nn::Init::Const(settings.log_scale_init));
        Ok(Self {
            image_size: config.image_size,
            width: config.projection_dim,
            vision: tower,
            adapter,
            log_scale,
            store,
            compute: torch::kind(settings.precision),
        })
    }

    /// What the vision tower makes of pixels, or of the patches `kept_BK` of them: [B, width], not normalised.
    pub fn image_features(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        self.vision.forward_kept(&pixels_BCHW.to_kind(self.compute), kept_BK)
    }

    /// What the adapter makes of text vectors: [B, width], not normalised.
    pub fn text_features(&self, vectors_BD: &Tensor) -> Tensor {
        self.adapter.forward(&vectors_BD.to_kind(self.compute))
    }

    /// What the towers compute in.
    pub fn kind(&self) -> Kind {
        self.compute
    }

    /// Floating-point operations of a training step per pair when `patches` of an image are seen: three times those of a
    /// forward pass (Kaplan et al. 2020, section 2.1). What recomputation adds does not count.
    pub fn flops_per_pair(&self, patches: i64) -> f64 {
        3.0 * (self.vision.flops(patches) + self.adapter.flops())
    }

    /// Image embeddings, normalised: [B, width] fp32.
    pub fn image_embeddings(&self, pixels_BCHW: &Tensor) -> Tensor {
        normalise(&self.image_features(pixels_BCHW, None))
    }

    /// Text embeddings, normalised: [B, width] fp32.
    pub fn text_embeddings(&self, vectors_BD: &Tensor) -> Tensor {
        normalise(&self.text_features(vectors_BD))
    }
}
