//! `config.json`, `model.safetensors` and the processor's settings, with the names of the released LLM2CLIP models.
//!
//! A CLIP vision tower is a whole `LLM2CLIPModel`, for which the class lies beside; EVA02 and SigLIP towers have our own names
//! of sizes and, of SigLIP, Hugging Face's names of weights.

use super::{ExportError, Trained, files};
use crate::{
    data::{MEAN, STD},
    model::{adapter, vision::VisionConfig, vit::ClipVisionConfig},
};
use serde_json::{Value, json};
use std::path::Path;
use tch::Tensor;

/// The weights' file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// What stands before the adapter's parameters in the released models.
const ADAPTER: &str = "text_adapter.adaptor";

/// The class for `AutoModel.from_pretrained(…, trust_remote_code=True)`.
const CLASS_FILE: &str = "modeling_llm2clip.py";
const CLASS: &str = include_str!("modeling_llm2clip.py");

/// Writes the files; returns the digest of the weights.
pub(super) fn write(folder: &Path, config: &VisionConfig, trained: &Trained) -> Result<String, ExportError> {
    let tensors: Vec<(String, Tensor)> =
        trained.parameters()?.into_iter().map(|(name, tensor)| (theirs(&name), tensor)).collect();
    let weights = folder.join(WEIGHTS);
    files::write_safetensors(&weights, tensors, &[])?;
    files::write_json(&folder.join("config.json"), &document(config, trained)?)?;
    files::write_json(&folder.join("preprocessor_config.json"), &processor(config.image_size()))?;
    if matches!(config, VisionConfig::Clip(_)) {
        files::write(&folder.join(CLASS_FILE), CLASS.as_bytes())?;
    }
    files::digest(&weights)
}

/// The released models' name of a parameter; the vision tower's are ours.
fn theirs(name: &str) -> String {
    match name.strip_prefix(adapter::PREFIX) {
        Some(inside) if inside.starts_with('.') => format!("{ADAPTER}{inside}"),
        _ => name.to_owned(),
    }
}

fn document(config: &VisionConfig, trained: &Trained) -> Result<Value, ExportError> {
    let adapter = trained.adapter()?;
    let sizes = json!({
        "input": trained.text_width()?, "output": config.width(), "blocks": adapter.blocks,
        "expansion": adapter.expansion, "l2_norm": adapter.l2_norm,
    });
    let log_scale = trained.parameter("logit_scale")?.double_value(&[]);
    let mut document = match config {
        VisionConfig::Clip(config) => json!({
            "architectures": ["LLM2CLIPModel"], "auto_map": { "AutoModel": "modeling_llm2clip.LLM2CLIPModel" },
            "model_type": "clip", "projection_dim": config.projection_dim, "logit_scale_init_value": log_scale,
            "text_adapter": sizes, "vision_config": clip(config), "dtype": "float32",
        }),
        VisionConfig::Eva02(config) => json!({
            "model_type": "eva02_clip", "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
            "image_size": config.image_size, "patch_size": config.patch_size, "layer_norm_eps": config.layer_norm_eps,
            "projection_dim": config.projection_dim, "rope_reference_grid": config.rope_reference_grid,
            "text_adapter": sizes,
        }),
        VisionConfig::Siglip(config) => json!({
            "architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model",
            "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_hidden_layers, "num_attention_heads": config.num_attention_heads,
            "image_size": config.image_size, "patch_size": config.patch_size, "layer_norm_eps": config.layer_norm_eps,
            "hidden_act": config.hidden_act.name(), "text_adapter": sizes, "dtype": "float32",
        }),
    };
    if let Some(bias) = trained.logit_bias()? {
        document["logit_bias_init_value"] = json!(bias.double_value(&[]));
    }
    Ok(document)
}

fn clip(config: &ClipVisionConfig) -> Value {
    json!({
        "model_type": "clip_vision_model", "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "image_size": config.image_size,
        "patch_size": config.patch_size, "hidden_act": config.hidden_act.name(),
        "layer_norm_eps": config.layer_norm_eps, "projection_dim": config.projection_dim,
    })
}

/// What makes `CLIPImageProcessor` do as our evaluation does.
fn processor(size: i64) -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": true,
        "do_resize": true, "size": { "shortest_edge": size }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": size, "width": size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": MEAN, "image_std": STD,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_adapter_has_other_names() {
        assert_eq!(theirs("adapter.0.fn.3.bias"), "text_adapter.adaptor.0.fn.3.bias");
        for same in ["logit_scale", "visual_projection.weight", "vision_model.post_layernorm.bias"] {
            assert_eq!(theirs(same), same);
        }
    }
}
