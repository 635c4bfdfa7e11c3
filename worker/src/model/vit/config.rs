//! `config.json` of a CLIP vision tower, and how Hugging Face draws its weights.

use super::BlockConfig;
use crate::model::{
    config::{self, Check},
    init::{Fill, Initialise},
    patches::CHANNELS,
    size::{Size, linear},
};
use serde::Deserialize;

/// The activation of the MLPs; it is not in the weights, and the wrong one degrades features without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x·σ(1.702x): OpenAI's weights.
    QuickGelu,
    /// x·Φ(x), exact.
    Gelu,
}

impl Activation {
    pub(in crate::model) fn parse(name: &str) -> Result<Self, String> {
        match name {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => Err(format!("hidden_act {other:?} is not supported; supported: quick_gelu, gelu")),
        }
    }

    /// As Hugging Face names it.
    pub fn name(self) -> &'static str {
        match self {
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu => "gelu",
        }
    }
}

/// Sizes of the tower: `config.json` of a `CLIPVisionModelWithProjection`, or of a whole `CLIPModel`, whose
/// `vision_config` is taken.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct ClipVisionConfig {
    /// D.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Heads of a block.
    pub num_attention_heads: i64,
    /// Side of the square image in pixels.
    pub image_size: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
    /// The MLPs' activation.
    pub hidden_act: Activation,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// P.
    pub projection_dim: i64,
}

// The file as written; absent keys have Hugging Face's defaults where those are the same for every CLIP.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    #[serde(default = "default_image_size")]
    image_size: i64,
    patch_size: i64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    projection_dim: i64,
}

fn default_image_size() -> i64 {
    224
}

fn default_activation() -> String {
    "quick_gelu".to_owned()
}

fn default_eps() -> f64 {
    1e-5
}

impl TryFrom<serde_json::Value> for ClipVisionConfig {
    type Error = String;

    fn try_from(mut document: serde_json::Value) -> Result<Self, String> {
        let mut of = "";
        if let Some(mut vision) = document.get_mut("vision_config").map(serde_json::Value::take) {
            // A whole CLIP says the shared width once, for both towers.
            if let Some(width) = document.get("projection_dim") {
                vision["projection_dim"] = width.clone();
            }
            (document, of) = (vision, "vision_config: ");
        }
        let raw: Raw = serde_json::from_value(document).map_err(|err| format!("{of}{err}"))?;
        config::model_type(raw.model_type.as_deref(), &["clip_vision_model", "clip"])?;
        let config = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            image_size: raw.image_size,
            patch_size: raw.patch_size,
            hidden_act: Activation::parse(&raw.hidden_act).map_err(|err| format!("{of}{err}"))?,
            layer_norm_eps: raw.layer_norm_eps,
            projection_dim: raw.projection_dim,
        };
        config.validate().map_err(|err| format!("{of}{err}"))?;
        Ok(config)
    }
}

impl ClipVisionConfig {
    /// Whether the sizes make a tower; the error names the field.
    pub fn validate(&self) -> Check {
        config::positive(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("projection_dim", self.projection_dim),
        ])?;
        config::divisible(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        config::divisible(("image_size", self.image_size), ("patch_size", self.patch_size))
    }

    /// See `VisionTower::flops`.
    pub(in crate::model) fn flops(&self, patches: i64) -> f64 {
        let [width, inner, tokens] = [self.hidden_size, self.intermediate_size, patches + 1].map(|n| n as f64);
        let patch = (CHANNELS * self.patch_size.pow(2)) as f64;
        let block = tokens * (8.0 * width * width + 4.0 * width * inner) + 4.0 * tokens * tokens * width;
        let ends = 2.0 * width * (patches as f64 * patch + self.projection_dim as f64);
        self.num_hidden_layers as f64 * block + ends
    }

    /// What the tower is in numbers.
    pub fn size(&self) -> Size {
        let (width, inner, tokens) = (self.hidden_size, self.intermediate_size, self.grid().pow(2) + 1);
        let block = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width;
        let embeddings = width * (1 + CHANNELS * self.patch_size.pow(2) + tokens);
        let blocks = self.num_hidden_layers;
        Size {
            parameters: embeddings + blocks * block + 4 * width + width * self.projection_dim,
            blocks,
            block_parameters: block,
            width,
            // The input and output of both norms; q, k, v; what is gathered, by heads and merged; both sides of the activation.
            kept: 9 * width + 2 * inner,
            kept_wide: 0,
            tokens,
        }
    }

    pub(super) fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
            causal: false,
        }
    }

    pub(super) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

impl Initialise for ClipVisionConfig {
    // Hugging Face's CLIPPreTrainedModel._init_weights with initializer_factor 1 and initializer_range 0.02.
    fn fill(&self, name: &str) -> Option<Fill> {
        let width = self.hidden_size as f64;
        let depth = (2.0 * self.num_hidden_layers as f64).powf(-0.5);
        let inside =
            name.strip_prefix("vision_model.").or_else(|| (name == "visual_projection.weight").then_some(name))?;
        let (layer, kind) = inside.rsplit_once('.').unwrap_or(("", inside));
        let std = match (layer.rsplit('.').next().unwrap_or(layer), kind) {
            (_, "class_embedding") | ("visual_projection", _) => width.powf(-0.5),
            ("patch_embedding" | "position_embedding", _) => 0.02,
            (_, "bias") => return Some(Fill::Constant(0.0)),
            ("q_proj" | "k_proj" | "v_proj" | "fc2", _) => width.powf(-0.5) * depth,
            ("out_proj", _) => width.powf(-0.5),
            ("fc1", _) => (2.0 * width).powf(-0.5),
            _ => return Some(Fill::Constant(1.0)),
        };
        Some(Fill::Normal { std })
    }
}
