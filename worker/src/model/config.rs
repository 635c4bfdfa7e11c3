//! Reads a model folder's `config.json`.

use super::ModelError;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads `folder/config.json`. The error names the file and the field that is missing or not supported.
pub fn read<T: DeserializeOwned>(folder: &Path) -> Result<T, ModelError> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|source| ModelError::Config { path, source })
}

/// What a configuration must hold beyond its fields' types: `Err` says which field, its value, and what it should be.
pub(super) type Check = Result<(), String>;

/// Refuses sizes below one.
pub(super) fn positive(fields: &[(&str, i64)]) -> Check {
    match fields.iter().find(|(_, value)| *value < 1) {
        Some((field, value)) => Err(format!("{field} is {value}, but it must be 1 or more")),
        None => Ok(()),
    }
}

/// Refuses a size that another does not divide.
pub(super) fn divisible((of, size): (&str, i64), (by, divisor): (&str, i64)) -> Check {
    match size % divisor {
        0 => Ok(()),
        _ => Err(format!("{of} ({size}) must be divisible by {by} ({divisor})")),
    }
}

/// Refuses an architecture that this file does not describe.
pub(super) fn model_type(found: Option<&str>, known: &[&str]) -> Check {
    match found {
        Some(name) if !known.contains(&name) => {
            Err(format!("model_type {name:?} is not supported here; supported: {}", known.join(", ")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        llama::LlamaConfig,
        vision::VisionTower,
        vit::{Activation, ClipVision, ClipVisionConfig},
    };
    use serde_json::{Value, json};
    use tch::{Device, nn};

    fn models() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models")
    }

    fn vision() -> Value {
        json!({
            "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "hidden_act": "gelu", "projection_dim": 48,
        })
    }

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "rms_norm_eps": 1e-5,
        })
    }

    /// Reads `document` with `key` set to `value` (null: left out); the message must name the file and `expected`.
    fn refused<T: DeserializeOwned + std::fmt::Debug>(mut document: Value, key: &str, value: Value, expected: &str) {
        match value {
            Value::Null => _ = document.as_object_mut().unwrap().remove(key),
            value => document[key] = value,
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), document.to_string()).unwrap();
        let message = read::<T>(folder.path()).unwrap_err().to_string();
        assert!(message.contains("config.json") && message.contains(expected), "{key}: {message}");
    }

    #[test]
    fn the_demos_models_are_read() {
        assert_eq!(read::<ClipVisionConfig>(&models().join("vit-tiny")).unwrap().hidden_size, 192);
        let llama: LlamaConfig = read(&models().join("llama-tiny")).unwrap();
        assert_eq!((llama.hidden_size, llama.num_key_value_heads, llama.head_dim), (512, 4, 64));
    }

    #[test]
    fn what_is_missing_or_not_supported_is_named() {
        refused::<ClipVisionConfig>(vision(), "patch_size", Value::Null, "missing field `patch_size`");
        refused::<ClipVisionConfig>(vision(), "hidden_act", json!("gelu_new"), "hidden_act \"gelu_new\"");
        refused::<ClipVisionConfig>(vision(), "num_attention_heads", json!(3), "hidden_size (64) must be divisible by");
        refused::<ClipVisionConfig>(vision(), "patch_size", json!(5), "image_size (32) must be divisible by");
        refused::<ClipVisionConfig>(vision(), "num_attention_heads", json!(0), "num_attention_heads is 0");
        refused::<ClipVisionConfig>(vision(), "model_type", json!("siglip"), "model_type \"siglip\"");
        refused::<LlamaConfig>(llama(), "vocab_size", Value::Null, "missing field `vocab_size`");
        refused::<LlamaConfig>(
            llama(),
            "num_key_value_heads",
            json!(3),
            "num_attention_heads (4) must be divisible by",
        );
        refused::<LlamaConfig>(llama(), "num_attention_heads", json!(0), "num_attention_heads is 0");
        refused::<LlamaConfig>(llama(), "num_attention_heads", json!(5), "hidden_size (64) must be divisible by");
        refused::<LlamaConfig>(llama(), "hidden_act", json!("gelu"), "hidden_act \"gelu\"");
        refused::<LlamaConfig>(llama(), "model_type", json!("mistral"), "model_type \"mistral\"");
        refused::<LlamaConfig>(llama(), "rope_scaling", json!({"rope_type": "yarn"}), "rope_type \"yarn\"");
        refused::<LlamaConfig>(
            llama(),
            "rope_scaling",
            json!({"type": "llama3", "factor": 8}),
            "lacks low_freq_factor",
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read::<LlamaConfig>(folder.path()).unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn a_whole_clip_gives_its_vision_config_and_the_shared_width() {
        let mut inner = vision();
        inner["projection_dim"] = json!(512);
        inner.as_object_mut().unwrap().remove("hidden_act");
        let config: ClipVisionConfig =
            serde_json::from_value(json!({ "model_type": "clip", "projection_dim": 48, "vision_config": inner }))
                .unwrap();
        assert_eq!((config.hidden_size, config.projection_dim, config.hidden_act), (64, 48, Activation::QuickGelu));
        let broken = serde_json::from_value::<ClipVisionConfig>(json!({ "projection_dim": 48, "vision_config": {} }));
        assert!(broken.unwrap_err().to_string().contains("vision_config: missing field"));
    }

    #[test]
    fn the_newer_spelling_of_rotary_parameters_is_read() {
        let mut document = llama();
        document["rope_parameters"] = json!({
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        let config: LlamaConfig = serde_json::from_value(document).unwrap();
        assert_eq!((config.rope_theta, config.rope_scaling.unwrap().factor), (5e5, 32.0));
    }

    #[test]
    fn layers_are_counted_from_the_embeddings_to_the_head() {
        let config: ClipVisionConfig = serde_json::from_value(vision()).unwrap();
        let tower = ClipVision::new(&nn::VarStore::new(Device::Cpu).root(), &config);
        assert_eq!(tower.layers(), 2);
        for (name, id) in [
            ("vision_model.embeddings.class_embedding", 0),
            ("vision_model.pre_layrnorm.weight", 0),
            ("vision_model.encoder.layers.0.mlp.fc1.bias", 1),
            ("vision_model.encoder.layers.1.layer_norm2.weight", 2),
            ("vision_model.post_layernorm.bias", 3),
            ("visual_projection.weight", 3),
            ("adapter.0.fn.0.weight", 3),
            ("logit_scale", 3),
        ] {
            assert_eq!(tower.layer_id(name), id, "{name}");
        }
    }
}
