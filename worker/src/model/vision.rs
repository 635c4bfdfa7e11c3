//! What the trainer knows of a vision tower, whichever architecture it is, and which one a model folder describes.

use super::{
    ModelError,
    eva02::{Eva02, Eva02Config},
    init::{Fill, Initialise},
    lora::Adaptable,
    siglip::{Siglip, SiglipConfig},
    size::Size,
    vit::{ClipVision, ClipVisionConfig},
    weights::NameMap,
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tch::{Tensor, nn};

/// A vision tower with its way into the shared space. Shapes: B batch, S pixels a side, K patches kept, P shared width.
pub trait VisionTower: std::fmt::Debug + Adaptable {
    /// As [`VisionTower::forward`], of the patches `kept_BK` [B, K] int64 alone: numbers from 0, row by row of the grid.
    fn forward_kept(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor;

    /// Pixels [B, 3, S, S], normalised, to embeddings [B, P], not normalised; computed in the pixels' kind.
    fn forward(&self, pixels_BCHW: &Tensor) -> Tensor {
        self.forward_kept(pixels_BCHW, None)
    }

    /// Keeps only the input of each block for the backward pass, which runs the block again: less memory for a third more
    /// work.
    fn recompute_blocks(&mut self, recompute: bool);

    /// Floating-point operations of one image's forward pass when `patches` of its patches are seen; a product of [a, b]
    /// with [b, c] counts 2abc, and nothing else counts. The whole of every block counts, as in other people's figures.
    fn flops(&self, patches: i64) -> f64;

    /// How many patches an image of the tower's own size has.
    fn patches(&self) -> i64;

    /// L, the number of blocks.
    fn layers(&self) -> i64;

    /// The depth of a parameter for layer-wise learning rates: 0 embeddings, 1..=L blocks, L + 1 the head and whatever
    /// is not of the tower.
    fn layer_id(&self, name: &str) -> i64;

    /// What the names of the norm behind the last block begin with.
    fn final_norm(&self) -> &'static str;
}

/// The configuration of any supported vision tower, as the folder's `config.json` describes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum VisionConfig {
    /// OpenAI's CLIP.
    Clip(ClipVisionConfig),
    /// EVA02-CLIP.
    Eva02(Eva02Config),
    /// SigLIP and SigLIP 2.
    Siglip(SiglipConfig),
}

const SUPPORTED: &str = "model_type clip_vision_model, clip, eva02_clip, siglip_vision_model, siglip; architecture \
                         eva02_*_clip_* or vit_so400m_*_siglip_* (timm); vision_cfg with eva_model_name (eva_clip) or \
                         timm_model_name (open_clip)";

impl TryFrom<Value> for VisionConfig {
    type Error = String;

    fn try_from(document: Value) -> Result<Self, String> {
        let cfg = document.get("model_cfg").unwrap_or(&document).get("vision_cfg").unwrap_or(&document);
        let name = ["architecture", "timm_model_name", "eva_model_name", "model_type"]
            .iter()
            .find_map(|key| Some((*key, cfg.get(*key)?.as_str()?)));
        match name {
            None | Some(("model_type", "clip_vision_model" | "clip")) => document.try_into().map(VisionConfig::Clip),
            Some(("model_type", "eva02_clip") | ("eva_model_name", _)) => document.try_into().map(VisionConfig::Eva02),
            Some(("architecture" | "timm_model_name", name)) if name.starts_with("eva02_") => {
                document.try_into().map(VisionConfig::Eva02)
            }
            Some(("model_type", "siglip_vision_model" | "siglip")) => document.try_into().map(VisionConfig::Siglip),
            Some(("architecture" | "timm_model_name", name)) if name.contains("_siglip_") => {
                document.try_into().map(VisionConfig::Siglip)
            }
            Some((key, name)) => {
                Err(format!("{key} {name:?} is no vision tower that is supported here; supported: {SUPPORTED}"))
            }
        }
    }
}

impl VisionConfig {
    /// Reads `folder/config.json`. The error names the file, and the field or the architecture that is not supported.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        super::config::read(folder)
    }

    /// Adds the tower's parameters below `path`; `init::random` or `weights::load` fills them.
    pub fn build(&self, path: &nn::Path) -> Box<dyn VisionTower> {
        match self {
            VisionConfig::Clip(config) => Box::new(ClipVision::new(path, config)),
            VisionConfig::Eva02(config) => Box::new(Eva02::new(path, config)),
            VisionConfig::Siglip(config) => Box::new(Siglip::new(path, config)),
        }
    }

    /// How names in weights files become the tower's.
    pub fn names(&self) -> NameMap {
        match self {
            VisionConfig::Clip(_) => NameMap::ClipVision,
            VisionConfig::Eva02(_) => NameMap::Eva02,
            VisionConfig::Siglip(_) => NameMap::Siglip,
        }
    }

    /// What the architecture is called.
    pub fn architecture(&self) -> &'static str {
        match self {
            VisionConfig::Clip(_) => "clip",
            VisionConfig::Eva02(_) => "eva02",
            VisionConfig::Siglip(_) => "siglip",
        }
    }

    /// The activation of the MLPs, as Hugging Face names it.
    pub fn activation(&self) -> &'static str {
        match self {
            VisionConfig::Clip(config) => config.hidden_act.name(),
            VisionConfig::Eva02(_) => "silu",
            VisionConfig::Siglip(config) => config.hidden_act.name(),
        }
    }

    /// Side of the square image in pixels.
    pub fn image_size(&self) -> i64 {
        match self {
            VisionConfig::Clip(config) => config.image_size,
            VisionConfig::Eva02(config) => config.image_size,
            VisionConfig::Siglip(config) => config.image_size,
        }
    }

    /// Floating-point operations of one image's forward pass, see [`VisionTower::flops`].
    pub fn flops(&self, patches: i64) -> f64 {
        match self {
            VisionConfig::Clip(config) => config.flops(patches),
            VisionConfig::Eva02(config) => config.flops(patches),
            VisionConfig::Siglip(config) => config.flops(patches),
        }
    }

    /// What the tower is in numbers.
    pub fn size(&self) -> Size {
        match self {
            VisionConfig::Clip(config) => config.size(),
            VisionConfig::Eva02(config) => config.size(),
            VisionConfig::Siglip(config) => config.size(),
        }
    }

    /// Inputs and outputs of a block's linear layers, by the ends of their names.
    pub fn linears(&self) -> Vec<(&'static str, i64, i64)> {
        let size = self.size();
        let width = size.width;
        let square = |names: &[&'static str]| names.iter().map(|name| (*name, width, width)).collect::<Vec<_>>();
        let (mut linears, inner) = match self {
            VisionConfig::Clip(config) => {
                (square(&["q_proj", "k_proj", "v_proj", "out_proj"]), config.intermediate_size)
            }
            VisionConfig::Siglip(config) => {
                (square(&["q_proj", "k_proj", "v_proj", "out_proj"]), config.intermediate_size)
            }
            VisionConfig::Eva02(config) => (square(&["q_proj", "k_proj", "v_proj", "proj"]), config.intermediate_size),
        };
        match self {
            VisionConfig::Eva02(_) => {
                linears.extend([("w1", width, inner), ("w2", width, inner), ("w3", inner, width)])
            }
            _ => linears.extend([("fc1", width, inner), ("fc2", inner, width)]),
        }
        linears
    }

    /// How many patches an image has.
    pub fn patches(&self) -> i64 {
        match self {
            VisionConfig::Clip(config) => (config.image_size / config.patch_size).pow(2),
            VisionConfig::Eva02(config) => (config.image_size / config.patch_size).pow(2),
            VisionConfig::Siglip(config) => (config.image_size / config.patch_size).pow(2),
        }
    }

    /// P, the width of the shared space.
    pub fn width(&self) -> i64 {
        match self {
            VisionConfig::Clip(config) => config.projection_dim,
            VisionConfig::Eva02(config) => config.projection_dim,
            VisionConfig::Siglip(config) => config.hidden_size,
        }
    }
}

impl Initialise for VisionConfig {
    fn fill(&self, name: &str) -> Option<Fill> {
        match self {
            VisionConfig::Clip(config) => config.fill(name),
            VisionConfig::Eva02(config) => config.fill(name),
            VisionConfig::Siglip(config) => config.fill(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::siglip::Gelu;
    use serde_json::json;
    use tch::Device;

    fn read(document: Value) -> Result<VisionConfig, String> {
        serde_json::from_value(document).map_err(|err| err.to_string())
    }

    fn eva02(document: Value) -> Eva02Config {
        match read(document) {
            Ok(VisionConfig::Eva02(config)) => config,
            other => panic!("{other:?}"),
        }
    }

    fn eva_clip() -> Value {
        json!({ "embed_dim": 1280, "vision_cfg": {
            "image_size": 336, "layers": 24, "width": 1024, "drop_path_rate": 0, "head_width": 64, "mlp_ratio": 2.6667,
            "patch_size": 14, "eva_model_name": "eva-clip-l-14-336", "xattn": true, "fusedLN": true, "rope": true,
            "pt_hw_seq_len": 16, "intp_freq": true, "naiveswiglu": true, "subln": true,
        }})
    }

    #[test]
    fn four_spellings_describe_one_tower() {
        let expected = eva02(eva_clip());
        assert_eq!(
            (expected.intermediate_size, expected.num_attention_heads, expected.image_size / expected.patch_size),
            (2730, 16, 24)
        );
        assert_eq!(expected, eva02(json!({ "architecture": "eva02_large_patch14_clip_336", "num_classes": 1280 })));
        let open_clip = json!({ "embed_dim": 1280, "vision_cfg": {
            "image_size": 336, "timm_model_name": "eva02_large_patch14_clip_336", "timm_pool": "token",
        }});
        assert_eq!(expected, eva02(open_clip.clone()));
        assert_eq!(expected, eva02(json!({ "model_cfg": open_clip })));
        let own = json!({
            "model_type": "eva02_clip", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 1280,
        });
        assert_eq!(expected, eva02(own));
    }

    #[test]
    fn a_siglip_towers_activation_is_its_librarys() {
        let siglip = |document: Value| match read(document) {
            Ok(VisionConfig::Siglip(config)) => config,
            other => panic!("{other:?}"),
        };
        let timm = siglip(json!({ "architecture": "vit_so400m_patch14_siglip_224", "num_classes": 0 }));
        assert_eq!((timm.intermediate_size, timm.hidden_act), (4304, Gelu::Exact));
        assert_eq!(siglip(json!({ "architecture": "vit_so400m_patch16_siglip_256" })).hidden_act, Gelu::Tanh);
        // What Hugging Face leaves out has its default.
        let inner = json!({
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14,
        });
        let whole = siglip(json!({ "model_type": "siglip", "text_config": {}, "vision_config": inner }));
        assert_eq!(whole, SiglipConfig { hidden_act: Gelu::Tanh, ..timm });
        let odd = json!({ "model_type": "siglip_vision_model", "vision_config": { "hidden_act": "relu" } });
        assert!(read(odd).unwrap_err().contains("missing field"));
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_is() {
        let refused = |document: Value, parts: &[&str]| {
            let message = read(document).unwrap_err();
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        };
        refused(json!({ "model_type": "dinov2" }), &["model_type \"dinov2\"", "eva02_clip"]);
        refused(json!({ "architecture": "resnet50", "num_classes": 5 }), &["architecture \"resnet50\""]);
        refused(
            json!({ "architecture": "eva02_enormous_patch14_clip_224", "num_classes": 5 }),
            &["eva02_enormous", "supported: eva02_base_patch16_clip_224"],
        );
        let mut post = eva_clip();
        post["vision_cfg"]["postnorm"] = json!(true);
        refused(post, &["postnorm"]);
        let mut plain = eva_clip();
        plain["vision_cfg"]["subln"] = json!(false);
        refused(plain, &["subln is false"]);
    }

    #[test]
    fn an_eva02_tower_has_the_published_size_and_layers() {
        let mut small = eva02(eva_clip());
        (small.num_hidden_layers, small.image_size) = (2, 28);
        let store = nn::VarStore::new(Device::Cpu);
        let tower = VisionConfig::Eva02(small).build(&store.root());
        assert_eq!((tower.layers(), tower.patches()), (2, 4));
        for (name, id) in [
            ("visual.cls_token", 0),
            ("visual.pos_embed", 0),
            ("visual.patch_embed.proj.bias", 0),
            ("visual.blocks.0.mlp.w1.bias", 1),
            ("visual.blocks.1.attn.inner_attn_ln.weight", 2),
            ("visual.norm.bias", 3),
            ("visual.head.weight", 3),
            ("adapter.0.fn.0.weight", 3),
            ("logit_scale", 3),
        ] {
            assert_eq!(tower.layer_id(name), id, "{name}");
        }
        // 304.96 million parameters with 24 blocks on a grid of 24 (research code's EVA02-L-14-336 with a head of 1280).
        let count = |part: &str| -> usize {
            store.variables().iter().filter(|(name, _)| name.contains(part)).map(|(_, variable)| variable.numel()).sum()
        };
        let whole = count("visual.") + 22 * count("blocks.0.") + (24 * 24 - 4) * 1024;
        assert_eq!((whole as f64 / 1e4).round(), 30_496.0);
    }
}
