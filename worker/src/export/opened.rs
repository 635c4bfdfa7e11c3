//! An export read back: both sides of the model, ready to make features.

use super::{Description, ExportError, description, files, hugging_face::WEIGHTS};
use crate::model::{
    adapter::{Adapter, AdapterConfig},
    vision::{VisionConfig, VisionTower},
    weights::{self, NameMap},
};
use std::path::Path;
use tch::{Device, Kind, Tensor, nn};

/// A trained model. Shapes: N images or texts, S pixels a side, D the LLM's width, P the shared width.
pub struct ExportedModel {
    /// What `llm2clip.json` says.
    pub description: Description,
    vision: Box<dyn VisionTower>,
    adapter: Adapter,
    // Keep the weights alive.
    _stores: [nn::VarStore; 2],
}

impl ExportedModel {
    /// Reads a folder; every weight must be there, fit, and be what the description says.
    ///
    /// # Errors
    /// When the description, the configuration or the weights do not hold or not fit each other.
    pub fn open(folder: &Path, device: Device) -> Result<Self, ExportError> {
        let description = description::read(folder)?;
        let config = VisionConfig::read(folder)?;
        let weights = folder.join(WEIGHTS);
        if files::digest(&weights)? != description.weights_blake3 {
            let reason = "its BLAKE3 digest is not that of llm2clip.json: fetch or export it again".to_owned();
            return Err(ExportError::Document { path: weights, reason });
        }
        let mut vision_store = nn::VarStore::new(device);
        let vision = config.build(&vision_store.root());
        weights::load_file(&mut vision_store, &weights, config.names())?;
        let mut adapter_store = nn::VarStore::new(device);
        let sizes = AdapterConfig {
            input: description.text.width,
            output: config.width(),
            blocks: description.adapter.blocks,
            expansion: description.adapter.expansion,
            l2_norm: description.adapter.l2_norm,
        };
        let adapter = Adapter::new(&adapter_store.root(), &sizes);
        let _ = adapter_store.root().var("logit_scale", &[], nn::Init::Const(0.0));
        weights::load_file(&mut adapter_store, &weights, NameMap::Adapter)?;
        let mut stores = [vision_store, adapter_store];
        stores.iter_mut().for_each(nn::VarStore::freeze);
        Ok(Self { description, vision, adapter, _stores: stores })
    }

    /// Pixels [N, 3, S, S], normalised, to features [N, P], normalised, in fp32.
    pub fn image_features(&self, pixels: &Tensor) -> Tensor {
        tch::no_grad(|| normalised(&self.vision.forward(pixels)))
    }

    /// The LLM's vectors [N, D] to features [N, P], normalised, in fp32.
    pub fn text_features(&self, vectors: &Tensor) -> Tensor {
        tch::no_grad(|| normalised(&self.adapter.forward(vectors)))
    }
}

fn normalised(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    &features / features.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12)
}
