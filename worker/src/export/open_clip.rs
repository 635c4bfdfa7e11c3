//! The vision tower as open_clip loads it: `open_clip/open_clip_config.json` and `open_clip_model.safetensors`, for
//! `open_clip.create_model_and_transforms("local-dir:FOLDER/open_clip")`.
//!
//! open_clip has no text tower that takes an LLM's vectors. Its models need one all the same, so the state holds a text tower of
//! one token, one layer and width 1, all zeros: it stands for nothing and is not to be used. Texts go through the adapter.

use super::{ExportError, Trained, clip_names, files, timm_names};
use crate::{
    data::{MEAN, STD},
    model::{
        vision::VisionConfig,
        vit::{Activation, ClipVisionConfig},
    },
};
use serde_json::{Value, json};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The folder in an export.
pub(super) const FOLDER: &str = "open_clip";

/// Writes the folder; false when open_clip (or timm, for it) has no tower of these sizes.
pub(super) fn write(export: &Path, config: &VisionConfig, trained: &Trained) -> Result<bool, ExportError> {
    let Some(vision) = vision(config) else { return Ok(false) };
    let parameters = trained.parameters()?;
    let mut tensors = match config {
        VisionConfig::Clip(_) => clip_names::openai(&parameters),
        VisionConfig::Eva02(_) => timm_names::eva02(&parameters),
        VisionConfig::Siglip(_) => timm_names::siglip(&parameters),
    };
    tensors.extend(placeholder(config.width()));
    tensors.push(("logit_scale".to_owned(), trained.parameter("logit_scale")?));
    let bias = trained.logit_bias()?;
    tensors.extend(bias.as_ref().map(|bias| ("logit_bias".to_owned(), bias.shallow_clone())));
    let folder = export.join(FOLDER);
    std::fs::create_dir(&folder).map_err(super::error::io("create", &folder))?;
    files::write_safetensors(&folder.join("open_clip_model.safetensors"), tensors, &[])?;
    files::write_json(&folder.join("open_clip_config.json"), &document(config, vision, bias.as_ref()))?;
    Ok(true)
}

/// The text tower that stands for none.
fn placeholder(width: i64) -> Vec<(String, Tensor)> {
    let zeros =
        |(name, shape): (&str, &[i64])| (format!("text.{name}"), Tensor::zeros(shape, (Kind::Float, Device::Cpu)));
    let block = [
        ("ln_1.weight", [1].as_slice()),
        ("ln_1.bias", &[1]),
        ("attn.in_proj_weight", &[3, 1]),
        ("attn.in_proj_bias", &[3]),
        ("attn.out_proj.weight", &[1, 1]),
        ("attn.out_proj.bias", &[1]),
        ("ln_2.weight", &[1]),
        ("ln_2.bias", &[1]),
        ("mlp.c_fc.weight", &[1, 1]),
        ("mlp.c_fc.bias", &[1]),
        ("mlp.c_proj.weight", &[1, 1]),
        ("mlp.c_proj.bias", &[1]),
    ];
    let around = [
        ("token_embedding.weight", [1, 1].as_slice()),
        ("positional_embedding", &[1, 1]),
        ("ln_final.weight", &[1]),
        ("ln_final.bias", &[1]),
        ("text_projection", &[1, width]),
    ];
    let inside = block.map(|(name, shape)| (format!("transformer.resblocks.0.{name}"), shape));
    around.into_iter().map(zeros).chain(inside.iter().map(|(name, shape)| zeros((name, shape)))).collect()
}

fn document(config: &VisionConfig, vision: Value, bias: Option<&Tensor>) -> Value {
    let text = json!({ "context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1, "mlp_ratio": 1.0 });
    let mut model = json!({
        "embed_dim": config.width(), "vision_cfg": vision, "text_cfg": text, "custom_text": true,
    });
    if let VisionConfig::Clip(ClipVisionConfig { hidden_act: Activation::QuickGelu, .. }) = config {
        model["quick_gelu"] = json!(true);
    }
    if let Some(bias) = bias {
        model["init_logit_bias"] = json!(bias.double_value(&[]));
    }
    let preprocess = json!({
        "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest",
    });
    json!({ "model_cfg": model, "preprocess_cfg": preprocess })
}

/// What open_clip builds the tower from.
fn vision(config: &VisionConfig) -> Option<Value> {
    let timm = |name: &str, pool: &str, projection: Value| {
        json!({
            "image_size": config.image_size(), "timm_model_name": name, "timm_model_pretrained": false,
            "timm_pool": pool, "timm_proj": projection,
        })
    };
    match config {
        VisionConfig::Clip(clip) => {
            let mut vision = json!({
                "image_size": clip.image_size, "patch_size": clip.patch_size, "layers": clip.num_hidden_layers,
                "width": clip.hidden_size, "head_width": clip.hidden_size / clip.num_attention_heads,
                "mlp_ratio": clip.intermediate_size as f64 / clip.hidden_size as f64,
            });
            if clip.layer_norm_eps != 1e-5 {
                vision["norm_kwargs"] = json!({ "eps": clip.layer_norm_eps });
            }
            Some(vision)
        }
        VisionConfig::Eva02(eva02) => Some(timm(eva02.timm_name()?, "token", Value::Null)),
        VisionConfig::Siglip(siglip) => Some(timm(siglip.timm_name()?, "map", json!("none"))),
    }
}
