//! A LoRA on disk, as PEFT writes and reads it: `adapter_config.json` and `adapter_model.safetensors`.

use super::{Adaptable, Lora, LoraConfig};
use crate::model::{
    ModelError,
    weights::{self, NameMap},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use tch::Tensor;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
// What PEFT puts before the path of a module.
const PREFIX: &str = "base_model.model.";

/// Which model PEFT is to put the LoRA on. Reading takes either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// The body (`LlamaModel`) or a vision tower: keys begin with `base_model.model.`.
    Body,
    /// The language model (`LlamaForCausalLM`): keys begin with `base_model.model.model.`.
    LanguageModel,
}

// The file as PEFT writes it. It holds much that does not matter here, and some that would change what is computed.
#[derive(Deserialize)]
struct Raw {
    peft_type: String,
    r: i64,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Value,
    #[serde(default)]
    use_rslora: bool,
}

/// Settings of which only one value is supported; null and absent mean that one.
fn only() -> [(&'static str, Value); 12] {
    [
        ("bias", json!("none")),
        ("use_dora", json!(false)),
        ("use_qalora", json!(false)),
        ("use_bdlora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("lora_bias", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("modules_to_save", Value::Null),
        ("layers_to_transform", Value::Null),
        ("layer_replication", Value::Null),
        ("target_parameters", Value::Null),
    ]
}

fn parse(text: &str) -> Result<LoraConfig, String> {
    let document: Value = serde_json::from_str(text).map_err(|err| err.to_string())?;
    for (field, only) in only() {
        let found = &document[field];
        if !found.is_null() && *found != only {
            return Err(format!("{field} is {found}, but only {only} is supported"));
        }
    }
    let raw = Raw::deserialize(&document).map_err(|err| err.to_string())?;
    if raw.peft_type != "LORA" {
        return Err(format!("peft_type is {:?}, but only \"LORA\" is supported", raw.peft_type));
    }
    let target_modules = serde_json::from_value(raw.target_modules).map_err(|_| {
        "target_modules is a pattern, but only a list of layers is supported; write the list".to_owned()
    })?;
    let config = LoraConfig {
        rank: raw.r,
        alpha: raw.lora_alpha,
        dropout: raw.lora_dropout,
        target_modules,
        rank_stabilised: raw.use_rslora,
    };
    config.check()?;
    Ok(config)
}

impl Lora {
    /// Puts the LoRA of a PEFT folder beside the model's layers.
    ///
    /// # Errors
    /// When the folder is no LoRA that is supported, or not of this model: keys without a partner on either side are listed.
    pub fn read(model: &mut (impl Adaptable + ?Sized), folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(CONFIG);
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let unfit = |reason| ModelError::Lora { folder: folder.to_owned(), reason };
        let config = parse(&text).map_err(|reason| unfit(format!("{CONFIG}: {reason}")))?;
        let mut lora = Self::attach(model, &config).map_err(unfit)?;
        let loaded = weights::load_file(&mut lora.store, &folder.join(WEIGHTS), NameMap::Lora);
        // A LoRA that does not fit leaves no update behind.
        loaded.inspect_err(|_| lora.detach(model)).map_err(|error| match error {
            ModelError::Names { missing, unexpected, .. } => {
                unfit(crate::model::error::mismatch(&missing, &unexpected))
            }
            ModelError::Shape { name, found, expected, .. } => {
                unfit(format!("{name} has shape {found:?}, but this model needs {expected:?}"))
            }
            other => other,
        })?;
        Ok(lora)
    }

    /// Writes the LoRA into a folder, for [`Lora::read`] and for PEFT. `base` is the model that PEFT is to look for.
    pub fn write(&self, folder: &Path, wrapper: Wrapper, base: &str) -> Result<(), ModelError> {
        let inner = if wrapper == Wrapper::LanguageModel { "model." } else { "" };
        let variables = self.store.variables().into_iter();
        let tensors = variables.map(|(name, tensor)| (format!("{inner}{name}"), tensor.detach())).collect();
        write_folder(folder, &self.config, tensors, base).map(|_| ())
    }

    /// Takes the updates that were put last away again.
    fn detach(&self, model: &mut (impl Adaptable + ?Sized)) {
        for (module, linear) in model.linears() {
            if self.config.targets(&module) {
                linear.remove_last();
            }
        }
    }
}

/// Writes a folder for [`Lora::read`] and for PEFT of `tensors`, `MODULE.lora_A.weight` and `MODULE.lora_B.weight` with the paths of
/// modules in `base`, the model that PEFT is to look for. Returns the files.
///
/// # Errors
/// When the disk refuses.
pub fn write_folder(
    folder: &Path,
    config: &LoraConfig,
    mut tensors: Vec<(String, Tensor)>,
    base: &str,
) -> Result<[PathBuf; 2], ModelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let targets: BTreeSet<&String> = config.target_modules.iter().collect();
    let document = json!({
        "peft_type": "LORA", "task_type": null, "base_model_name_or_path": base, "inference_mode": true,
        "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none",
        "target_modules": targets, "use_rslora": config.rank_stabilised, "use_dora": false, "fan_in_fan_out": false,
        "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {},
    });
    let (description, weights) = (folder.join(CONFIG), folder.join(WEIGHTS));
    std::fs::write(&description, format!("{document:#}\n")).map_err(failed(&description))?;
    tensors.iter_mut().for_each(|(name, _)| name.insert_str(0, PREFIX));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let views: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&views, &weights)?;
    Ok([description, weights])
}
