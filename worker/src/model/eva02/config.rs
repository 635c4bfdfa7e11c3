//! What describes an EVA02-CLIP vision tower, as four libraries write it, and how its weights are drawn.

use crate::model::{
    config::{self, Check},
    init::{Fill, Initialise},
    patches::CHANNELS,
    size::{Size, linear},
};
use serde::Deserialize;
use serde_json::Value;

/// Sizes of the tower. Read from our own `config.json` (`"model_type": "eva02_clip"`), timm's (`"architecture"`), open_clip's
/// `model_cfg` with a `timm_model_name`, or eva_clip's model configuration (`vision_cfg` with an `eva_model_name`).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct Eva02Config {
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
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// P.
    pub projection_dim: i64,
    /// The grid side over which positions run from 0 to it, whatever the image's own: 16 in every released model. It is not
    /// in the weights, and another one moves outputs by about their own size.
    pub rope_reference_grid: i64,
}

// Our own file. The defaults are those of every released model.
#[derive(Deserialize)]
struct Raw {
    hidden_size: i64,
    intermediate_size: Option<i64>,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    image_size: i64,
    patch_size: i64,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    projection_dim: i64,
    #[serde(default = "default_grid")]
    rope_reference_grid: i64,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_grid() -> i64 {
    16
}

// eva_clip's `vision_cfg`.
#[derive(Deserialize)]
struct EvaClip {
    image_size: i64,
    layers: i64,
    width: i64,
    #[serde(default = "default_head")]
    head_width: i64,
    mlp_ratio: f64,
    patch_size: i64,
    #[serde(default = "default_grid")]
    pt_hw_seq_len: i64,
    #[serde(default)]
    rope: bool,
    #[serde(default)]
    intp_freq: bool,
    #[serde(default)]
    naiveswiglu: bool,
    #[serde(default)]
    subln: bool,
    #[serde(default)]
    postnorm: bool,
}

fn default_head() -> i64 {
    64
}

// The names of timm that are this architecture: width, blocks, heads, patch, image.
const TIMM: [(&str, [i64; 5]); 3] = [
    ("eva02_base_patch16_clip_224", [768, 12, 12, 16, 224]),
    ("eva02_large_patch14_clip_224", [1024, 24, 16, 14, 224]),
    ("eva02_large_patch14_clip_336", [1024, 24, 16, 14, 336]),
];

// Every library rounds 8/3 of the width down, eva_clip after writing it as 2.6667.
fn intermediate(width: i64) -> i64 {
    width * 8 / 3
}

fn of_timm(name: &str, projection_dim: i64) -> Result<Eva02Config, String> {
    let plain = name.split('.').next().unwrap_or(name);
    let Some((_, sizes)) = TIMM.iter().find(|(known, _)| *known == plain) else {
        let known: Vec<&str> = TIMM.iter().map(|(known, _)| *known).collect();
        return Err(format!("architecture {name:?} is not supported here; supported: {}", known.join(", ")));
    };
    let [hidden_size, num_hidden_layers, num_attention_heads, patch_size, image_size] = *sizes;
    Ok(Eva02Config {
        hidden_size,
        intermediate_size: intermediate(hidden_size),
        num_hidden_layers,
        num_attention_heads,
        image_size,
        patch_size,
        layer_norm_eps: default_eps(),
        projection_dim,
        rope_reference_grid: default_grid(),
    })
}

fn of_eva_clip(document: &Value) -> Result<Eva02Config, String> {
    let raw = EvaClip::deserialize(&document["vision_cfg"]).map_err(|err| format!("vision_cfg: {err}"))?;
    let wanted =
        [("rope", raw.rope), ("intp_freq", raw.intp_freq), ("naiveswiglu", raw.naiveswiglu), ("subln", raw.subln)];
    if let Some((name, _)) = wanted.iter().find(|(_, set)| !set) {
        return Err(format!(
            "vision_cfg: {name} is false, but EVA02's towers of sizes B and L, which are supported, have it"
        ));
    }
    if raw.postnorm {
        return Err("vision_cfg: postnorm is true; only the towers without it (sizes B and L) are supported".to_owned());
    }
    config::positive(&[("head_width", raw.head_width)])?;
    Ok(Eva02Config {
        hidden_size: raw.width,
        intermediate_size: (raw.width as f64 * raw.mlp_ratio) as i64,
        num_hidden_layers: raw.layers,
        num_attention_heads: raw.width / raw.head_width,
        image_size: raw.image_size,
        patch_size: raw.patch_size,
        layer_norm_eps: default_eps(),
        projection_dim: need(document, "embed_dim")?,
        rope_reference_grid: raw.pt_hw_seq_len,
    })
}

fn need(document: &Value, field: &str) -> Result<i64, String> {
    document[field].as_i64().ok_or_else(|| format!("missing field `{field}`, a whole number"))
}

fn of_own(document: Value) -> Result<Eva02Config, String> {
    let raw: Raw = serde_json::from_value(document).map_err(|err| err.to_string())?;
    Ok(Eva02Config {
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size.unwrap_or_else(|| intermediate(raw.hidden_size)),
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        image_size: raw.image_size,
        patch_size: raw.patch_size,
        layer_norm_eps: raw.layer_norm_eps,
        projection_dim: raw.projection_dim,
        rope_reference_grid: raw.rope_reference_grid,
    })
}

impl TryFrom<Value> for Eva02Config {
    type Error = String;

    fn try_from(mut document: Value) -> Result<Self, String> {
        if let Some(whole) = document.get_mut("model_cfg").map(Value::take) {
            document = whole;
        }
        let config = if let Some(name) = document["vision_cfg"]["timm_model_name"].as_str() {
            let mut config = of_timm(name, need(&document, "embed_dim")?)?;
            config.image_size = document["vision_cfg"]["image_size"].as_i64().unwrap_or(config.image_size);
            config
        } else if document.get("vision_cfg").is_some() {
            of_eva_clip(&document)?
        } else if let Some(name) = document["architecture"].as_str() {
            of_timm(name, need(&document, "num_classes")?)?
        } else {
            of_own(document)?
        };
        config.validate()?;
        Ok(config)
    }
}

impl Eva02Config {
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
            ("rope_reference_grid", self.rope_reference_grid),
        ])?;
        config::divisible(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))?;
        config::divisible(("the width of a head", self.head_dim()), ("the pairs of two axes", 4))?;
        config::divisible(("image_size", self.image_size), ("patch_size", self.patch_size))
    }

    /// timm's tower that is this one but for the width of the head, if it has one.
    pub fn timm_name(&self) -> Option<&'static str> {
        TIMM.iter().map(|(name, _)| *name).find(|name| of_timm(name, self.projection_dim).as_ref() == Ok(self))
    }

    /// See `VisionTower::flops`.
    pub(in crate::model) fn flops(&self, patches: i64) -> f64 {
        let [width, inner, tokens] = [self.hidden_size, self.intermediate_size, patches + 1].map(|n| n as f64);
        let patch = (CHANNELS * self.patch_size.pow(2)) as f64;
        let block = tokens * (8.0 * width * width + 6.0 * width * inner) + 4.0 * tokens * tokens * width;
        let ends = 2.0 * width * (patches as f64 * patch + self.projection_dim as f64);
        self.num_hidden_layers as f64 * block + ends
    }

    /// What the tower is in numbers.
    pub fn size(&self) -> Size {
        let (width, inner, tokens) = (self.hidden_size, self.intermediate_size, self.grid().pow(2) + 1);
        let attention = 4 * linear(width, width) - width;
        let block = attention + 2 * linear(width, inner) + linear(inner, width) + 6 * width + 2 * inner;
        let embeddings = width * (2 + CHANNELS * self.patch_size.pow(2) + tokens);
        let blocks = self.num_hidden_layers;
        Size {
            parameters: embeddings + blocks * block + 2 * width + linear(width, self.projection_dim),
            blocks,
            block_parameters: block,
            width,
            // As of CLIP's tower, and the norm within attention; SwiGLU's two sides, the product, and its norm.
            kept: 10 * width + 5 * inner,
            kept_wide: 0,
            tokens,
        }
    }

    pub(super) fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    pub(super) fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }
}

impl Initialise for Eva02Config {
    // eva_clip: normal with 0.02, the last layer of each residual divided by the root of twice its depth (BEiT); the head as
    // CLIP's projection, because eva_clip's own begins at zero.
    fn fill(&self, name: &str) -> Option<Fill> {
        let inside = name.strip_prefix("visual.")?;
        let (layer, kind) = inside.rsplit_once('.').unwrap_or(("", inside));
        let depth = inside.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()?.parse::<f64>().ok());
        let std = match (layer.rsplit('.').next().unwrap_or(layer), kind) {
            (_, "bias") => return Some(Fill::Constant(0.0)),
            ("norm" | "norm1" | "norm2" | "inner_attn_ln" | "ffn_ln", _) => return Some(Fill::Constant(1.0)),
            ("head", _) => (self.hidden_size as f64).powf(-0.5),
            ("proj" | "w3", _) => 0.02 * depth.map_or(1.0, |depth| (2.0 * (depth + 1.0)).powf(-0.5)),
            _ => 0.02,
        };
        Some(Fill::Normal { std })
    }
}
