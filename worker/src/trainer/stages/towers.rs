//! The two sides of stage 2: the vision tower, and the adapter on the LLM's vectors; with the logit scale they are what
//! `clip` trains and `eval` measures.

use crate::{
    model::{
        adapter::{Adapter, AdapterConfig},
        vit::{ClipVision, ClipVisionConfig},
        weights,
    },
    trainer::{error::TrainerError, step::normalise},
};
use common::recipe::{Init, Recipe};
use tch::{Device, Tensor, nn};

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
}

impl Towers {
    /// Builds the towers of a recipe for text vectors of width `text_width`.
    pub fn build(
        recipe: &Recipe,
        text_width: usize,
        log_scale_init: f64,
        device: Device,
    ) -> Result<Self, TrainerError> {
        let (Some(vision), Some(adapter)) = (&recipe.model.vision, &recipe.model.adapter) else {
            return Err(TrainerError::Plan("this stage needs [model.vision] and [model.adapter]".to_owned()));
        };
        let config: ClipVisionConfig = crate::model::config::read(&vision.folder)?;
        let mut store = nn::VarStore::new(device);
        let tower = ClipVision::new(&store.root(), &config);
        match vision.init {
            Init::Random => crate::model::init::random(&store, recipe.seed, &config),
            Init::Pretrained => {
                weights::load(&mut store, &vision.folder, weights::NameMap::ClipVision)?;
            }
        }
        let adapter_config = AdapterConfig {
            input: text_width as i64,
            output: config.projection_dim,
            blocks: adapter.blocks as i64,
            expansion: adapter.expansion as i64,
            l2_norm: adapter.l2_norm,
        };
        let adapter = Adapter::new(&store.root(), &adapter_config);
        crate::model::init::random_adapter(&store, recipe.seed);
        let log_scale = store.root().var("logit_scale", &[], nn::Init::Const(log_scale_init));
        Ok(Self {
            image_size: config.image_size,
            width: config.projection_dim,
            vision: tower,
            adapter,
            log_scale,
            store,
        })
    }

    /// Image embeddings, normalised: [B, width] fp32.
    pub fn image_embeddings(&self, pixels_BCHW: &Tensor) -> Tensor {
        normalise(&self.vision.forward(pixels_BCHW))
    }

    /// Text embeddings, normalised: [B, width] fp32.
    pub fn text_embeddings(&self, vectors_BD: &Tensor) -> Tensor {
        normalise(&self.adapter.forward(vectors_BD))
    }
}
