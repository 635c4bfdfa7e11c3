//! An export read back: both sides of the model, ready to make features.

use super::{Description, ExportError, description, files, hugging_face::WEIGHTS};
use crate::model::{
    adapter::{Adapter, AdapterConfig},
    vision::{VisionConfig, VisionTower},
    weights::{self, NameMap},
};
use std::path::{Path, PathBuf};
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
        let weights = verified(folder, &description)?;
        let mut vision_store = nn::VarStore::new(device);
        let vision = config.build(&vision_store.root());
        weights::load_file(&mut vision_store, &weights, config.names())?;
        let (adapter, adapter_store) = text_side(&weights, &description, device)?;
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

/// Puts the weights of an export into a store with both sides, under our own names: the vision tower's, the adapter's and
/// `logit_scale`.
///
/// # Errors
/// When a weight is missing, does not fit, or is not what the description says.
pub fn load_weights(folder: &Path, description: &Description, store: &mut nn::VarStore) -> Result<(), ExportError> {
    let weights = verified(folder, description)?;
    let config = VisionConfig::read(folder)?;
    let mut vision = nn::VarStore::new(Device::Cpu);
    config.build(&vision.root());
    weights::load_file(&mut vision, &weights, config.names())?;
    let (_, text) = text_side(&weights, description, Device::Cpu)?;
    let mut found = vision.variables();
    found.extend(text.variables());
    for (name, mut variable) in store.variables() {
        let tensor = found.get(&name).filter(|tensor| tensor.size() == variable.size());
        let tensor = tensor.ok_or_else(|| ExportError::Document {
            path: weights.clone(),
            reason: format!("it has no `{name}` of shape {:?}", variable.size()),
        })?;
        tch::no_grad(|| variable.copy_(tensor));
    }
    Ok(())
}

/// The file of weights, which is what the description says.
fn verified(folder: &Path, description: &Description) -> Result<PathBuf, ExportError> {
    let weights = folder.join(WEIGHTS);
    if files::digest(&weights)? != description.weights_blake3 {
        let reason = "its BLAKE3 digest is not that of llm2clip.json: fetch or export it again".to_owned();
        return Err(ExportError::Document { path: weights, reason });
    }
    Ok(weights)
}

/// The adapter, with the store of its variables and the logit scale.
fn text_side(
    weights: &Path,
    description: &Description,
    device: Device,
) -> Result<(Adapter, nn::VarStore), ExportError> {
    let mut store = nn::VarStore::new(device);
    let sizes = AdapterConfig {
        input: description.text.width,
        output: description.shared_width,
        blocks: description.adapter.blocks,
        expansion: description.adapter.expansion,
        l2_norm: description.adapter.l2_norm,
    };
    let adapter = Adapter::new(&store.root(), &sizes);
    let _ = store.root().var("logit_scale", &[], nn::Init::Const(0.0));
    weights::load_file(&mut store, weights, NameMap::Adapter)?;
    Ok((adapter, store))
}

fn normalised(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    &features / features.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12)
}
