//! What describes a SigLIP vision tower, as Hugging Face and timm write it, and how its weights are drawn.

use crate::model::{
    config::{self, Check},
    init::{Fill, Initialise},
    patches::CHANNELS,
    size::{Size, linear},
};
use serde::Deserialize;
use serde_json::Value;

/// The activation of the MLPs. It is not in the weights, and moves features by only 1e-4: nothing else tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// x·Φ(x): `gelu`, timm's `vit_so400m_patch14_siglip_*`.
    Exact,
    /// The approximation by tanh: `gelu_pytorch_tanh`, Hugging Face's default and timm's `patch16` towers.
    Tanh,
}

impl Gelu {
    fn parse(name: &str) -> Result<Self, String> {
        match name {
            "gelu" => Ok(Gelu::Exact),
            "gelu_pytorch_tanh" => Ok(Gelu::Tanh),
            other => Err(format!("hidden_act {other:?} is not supported; supported: gelu, gelu_pytorch_tanh")),
        }
    }

    /// As Hugging Face names it.
    pub fn name(self) -> &'static str {
        match self {
            Gelu::Exact => "gelu",
            Gelu::Tanh => "gelu_pytorch_tanh",
        }
    }

    /// As libtorch names it.
    pub(super) fn approximation(self) -> &'static str {
        match self {
            Gelu::Exact => "none",
            Gelu::Tanh => "tanh",
        }
    }
}

/// Sizes of the tower. Read from Hugging Face's `config.json` (`siglip_vision_model`, or a whole `siglip`, whose
/// `vision_config` is taken), timm's (`"architecture"`), or open_clip's `model_cfg` with a `timm_model_name`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct SiglipConfig {
    /// D, also the shared width.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Heads of a block and of the pooling head.
    pub num_attention_heads: i64,
    /// Side of the square image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// The MLPs' activation.
    pub hidden_act: Gelu,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
}

// Hugging Face's file. It leaves out what has Hugging Face's default.
#[derive(Deserialize)]
struct Raw {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    #[serde(default = "default_image")]
    image_size: i64,
    patch_size: i64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_head")]
    vision_use_head: bool,
}

fn default_image() -> i64 {
    224
}

fn default_activation() -> String {
    "gelu_pytorch_tanh".to_owned()
}

fn default_eps() -> f64 {
    1e-6
}

fn default_head() -> bool {
    true
}

// timm's towers of 1152 by 27 blocks: patch, image, activation.
const TIMM: [(&str, i64, i64, Gelu); 6] = [
    ("vit_so400m_patch14_siglip_224", 14, 224, Gelu::Exact),
    ("vit_so400m_patch14_siglip_378", 14, 378, Gelu::Exact),
    ("vit_so400m_patch14_siglip_384", 14, 384, Gelu::Exact),
    ("vit_so400m_patch16_siglip_256", 16, 256, Gelu::Tanh),
    ("vit_so400m_patch16_siglip_384", 16, 384, Gelu::Tanh),
    ("vit_so400m_patch16_siglip_512", 16, 512, Gelu::Tanh),
];

fn of_timm(name: &str, image: Option<i64>) -> Result<SiglipConfig, String> {
    let plain = name.split('.').next().unwrap_or(name);
    let Some((_, patch_size, image_size, hidden_act)) = TIMM.iter().find(|(known, ..)| *known == plain) else {
        let known: Vec<&str> = TIMM.iter().map(|(known, ..)| *known).collect();
        return Err(format!("architecture {name:?} is not supported here; supported: {}", known.join(", ")));
    };
    Ok(SiglipConfig {
        hidden_size: 1152,
        intermediate_size: 4304,
        num_hidden_layers: 27,
        num_attention_heads: 16,
        image_size: image.unwrap_or(*image_size),
        patch_size: *patch_size,
        hidden_act: *hidden_act,
        layer_norm_eps: default_eps(),
    })
}

fn of_hugging_face(document: Value) -> Result<SiglipConfig, String> {
    let raw: Raw = serde_json::from_value(document).map_err(|err| err.to_string())?;
    if !raw.vision_use_head {
        return Err("vision_use_head is false; only the tower with its pooling head is supported".to_owned());
    }
    Ok(SiglipConfig {
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        image_size: raw.image_size,
        patch_size: raw.patch_size,
        hidden_act: Gelu::parse(&raw.hidden_act)?,
        layer_norm_eps: raw.layer_norm_eps,
    })
}

impl TryFrom<Value> for SiglipConfig {
    type Error = String;

    fn try_from(mut document: Value) -> Result<Self, String> {
        for inner in ["model_cfg", "vision_cfg", "vision_config"] {
            if let Some(inner) = document.get_mut(inner).map(Value::take) {
                document = inner;
            }
        }
        let name = document["timm_model_name"].as_str().or(document["architecture"].as_str());
        let config = match name {
            Some(name) => of_timm(name, document["image_size"].as_i64())?,
            None => of_hugging_face(document)?,
        };
        config.validate()?;
        Ok(config)
    }
}

impl SiglipConfig {
    /// Whether the sizes make a tower; the error names the field.
    pub fn validate(&self) -> Check {
        config::positive(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ])?;
        config::divisible(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        config::divisible(("image_size", self.image_size), ("patch_size", self.patch_size))
    }

    /// timm's tower that is this one, if it has one.
    pub fn timm_name(&self) -> Option<&'static str> {
        TIMM.iter().map(|(name, ..)| *name).find(|name| of_timm(name, None).as_ref() == Ok(self))
    }

    /// See `VisionTower::flops`.
    pub(in crate::model) fn flops(&self, patches: i64) -> f64 {
        let [width, inner, tokens] = [self.hidden_size, self.intermediate_size, patches].map(|n| n as f64);
        let patch = (CHANNELS * self.patch_size.pow(2)) as f64;
        let block = tokens * (8.0 * width * width + 4.0 * width * inner) + 4.0 * tokens * tokens * width;
        // The probe's query and output, the tokens' keys and values, what is gathered, and the MLP of one token.
        let head = 4.0 * width * width * (1.0 + tokens) + 4.0 * tokens * width + 4.0 * width * inner;
        self.num_hidden_layers as f64 * block + 2.0 * width * tokens * patch + head
    }

    /// What the tower is in numbers.
    pub fn size(&self) -> Size {
        let (width, inner, tokens) = (self.hidden_size, self.intermediate_size, self.grid().pow(2));
        let mlp = linear(width, inner) + linear(inner, width);
        // Four projections, packed or not; in the head, one norm and the probe for two norms.
        let block = 4 * linear(width, width) + mlp + 4 * width;
        let head = 4 * linear(width, width) + mlp + 3 * width;
        let embeddings = width * (1 + CHANNELS * self.patch_size.pow(2) + tokens);
        let blocks = self.num_hidden_layers;
        Size {
            parameters: embeddings + blocks * block + 2 * width + head,
            blocks,
            block_parameters: block,
            width,
            kept: 9 * width + 2 * inner,
            kept_wide: 0,
            tokens,
        }
    }

    pub(super) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

impl Initialise for SiglipConfig {
    // Normal with the inverse root of the width, as big_vision's Xavier draws are for square matrices.
    fn fill(&self, name: &str) -> Option<Fill> {
        let inside = name.strip_prefix("vision_model.")?;
        let (layer, kind) = inside.rsplit_once('.').unwrap_or(("", inside));
        Some(match kind {
            "bias" | "in_proj_bias" => Fill::Constant(0.0),
            _ if layer.contains("norm") => Fill::Constant(1.0),
            _ if layer.ends_with("fc2") => Fill::Normal { std: (self.intermediate_size as f64).powf(-0.5) },
            _ => Fill::Normal { std: (self.hidden_size as f64).powf(-0.5) },
        })
    }
}
