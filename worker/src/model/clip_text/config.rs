//! `config.json` of a CLIP text tower, and how Hugging Face draws its weights.

use crate::model::{
    config::{self, Check},
    init::{Fill, Initialise},
    size::linear,
    vit::{Activation, BlockConfig},
};
use serde::Deserialize;

/// The id of the end token in files that were written when it was not looked up: those of OpenAI's CLIP say 2, and mean the
/// highest id of a text.
const NOT_LOOKED_UP: u32 = 2;

/// Sizes of the tower: `config.json` of a `CLIPTextModelWithProjection`, or of a whole `CLIPModel`, whose `text_config` is taken.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct ClipTextConfig {
    /// Rows of the token table.
    pub vocab_size: i64,
    /// D.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Heads of a block.
    pub num_attention_heads: i64,
    /// The longest text in tokens.
    pub max_position_embeddings: i64,
    /// The MLPs' activation.
    pub hidden_act: Activation,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f64,
    /// P.
    pub projection_dim: i64,
    /// The token that ends a text.
    pub eos_token_id: u32,
}

// The file as written; absent keys have the defaults of Hugging Face's `CLIPTextConfig`, which leaves those out when it writes.
#[derive(Deserialize)]
#[serde(default)]
struct Raw {
    model_type: Option<String>,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: String,
    layer_norm_eps: f64,
    projection_dim: i64,
    eos_token_id: u32,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            model_type: None,
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            projection_dim: 512,
            eos_token_id: 49407,
        }
    }
}

impl TryFrom<serde_json::Value> for ClipTextConfig {
    type Error = String;

    fn try_from(mut document: serde_json::Value) -> Result<Self, String> {
        let mut of = "";
        if let Some(mut text) = document.get_mut("text_config").map(serde_json::Value::take) {
            // A whole CLIP says the shared width once, for both towers.
            if let Some(width) = document.get("projection_dim") {
                text["projection_dim"] = width.clone();
            }
            (document, of) = (text, "text_config: ");
        }
        let raw: Raw = serde_json::from_value(document).map_err(|err| format!("{of}{err}"))?;
        config::model_type(raw.model_type.as_deref(), &["clip_text_model", "clip"])?;
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            max_position_embeddings: raw.max_position_embeddings,
            hidden_act: Activation::parse(&raw.hidden_act).map_err(|err| format!("{of}{err}"))?,
            layer_norm_eps: raw.layer_norm_eps,
            projection_dim: raw.projection_dim,
            eos_token_id: raw.eos_token_id,
        };
        config.validate().map_err(|err| format!("{of}{err}"))?;
        Ok(config)
    }
}

impl ClipTextConfig {
    /// Whether the sizes make a tower; the error names the field.
    pub fn validate(&self) -> Check {
        config::positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("max_position_embeddings", self.max_position_embeddings),
            ("projection_dim", self.projection_dim),
        ])?;
        config::divisible(("hidden_size", self.hidden_size), ("num_attention_heads", self.num_attention_heads))
    }

    /// Where a text ends: at its first end token, or, in files of before that was looked up, at its first token with the highest
    /// id. Without an end token it is the first token, as Hugging Face has it.
    pub fn end(&self, ids: &[u32]) -> usize {
        let end = match self.eos_token_id {
            NOT_LOOKED_UP => ids.iter().copied().max().unwrap_or(0),
            token => token,
        };
        ids.iter().position(|id| *id == end).unwrap_or(0)
    }

    /// See `ClipText::flops`.
    pub fn flops(&self, lengths: &[i64]) -> f64 {
        let [width, inner] = [self.hidden_size, self.intermediate_size].map(|n| n as f64);
        let tokens = lengths.iter().sum::<i64>() as f64;
        let pairs: f64 = lengths.iter().map(|length| (length * length) as f64).sum();
        let block = tokens * (8.0 * width * width + 4.0 * width * inner) + 4.0 * pairs * width;
        self.num_hidden_layers as f64 * block + 2.0 * lengths.len() as f64 * width * self.projection_dim as f64
    }

    /// How many numbers the weights are.
    pub fn parameters(&self) -> i64 {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let block = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width;
        let tables = (self.vocab_size + self.max_position_embeddings) * width;
        tables + self.num_hidden_layers * block + 2 * width + width * self.projection_dim
    }

    pub(super) fn block(&self) -> BlockConfig {
        BlockConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
            causal: true,
        }
    }
}

impl Initialise for ClipTextConfig {
    // Hugging Face's CLIPPreTrainedModel._init_weights with initializer_factor 1 and initializer_range 0.02.
    fn fill(&self, name: &str) -> Option<Fill> {
        let width = self.hidden_size as f64;
        let depth = (2.0 * self.num_hidden_layers as f64).powf(-0.5);
        let inside = name.strip_prefix("text_model.").or_else(|| (name == "text_projection.weight").then_some(name))?;
        let (layer, kind) = inside.rsplit_once('.').unwrap_or(("", inside));
        let std = match (layer.rsplit('.').next().unwrap_or(layer), kind) {
            ("token_embedding" | "position_embedding", _) => 0.02,
            (_, "bias") => return Some(Fill::Constant(0.0)),
            ("text_projection" | "out_proj", _) => width.powf(-0.5),
            ("q_proj" | "k_proj" | "v_proj" | "fc2", _) => width.powf(-0.5) * depth,
            ("fc1", _) => (2.0 * width).powf(-0.5),
            _ => return Some(Fill::Constant(1.0)),
        };
        Some(Fill::Normal { std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_whole_clip_gives_its_text_config_and_what_is_left_out_is_hugging_faces() {
        let whole = json!({ "model_type": "clip", "projection_dim": 768, "vision_config": {},
                            "text_config": { "model_type": "clip_text_model", "hidden_size": 768, "num_attention_heads": 12,
                                             "intermediate_size": 3072, "projection_dim": 512, "eos_token_id": 2 } });
        let config: ClipTextConfig = serde_json::from_value(whole).unwrap();
        assert_eq!((config.hidden_size, config.projection_dim, config.max_position_embeddings), (768, 768, 77));
        assert_eq!((config.vocab_size, config.hidden_act, config.eos_token_id), (49408, Activation::QuickGelu, 2));
        // The text tower of OpenAI's ViT-L/14, with its projection.
        assert_eq!(config.parameters(), 123_650_304);
        for (key, value, expected) in [
            ("hidden_act", json!("gelu_new"), "hidden_act \"gelu_new\""),
            ("num_attention_heads", json!(7), "must be divisible by num_attention_heads (7)"),
            ("model_type", json!("clip_vision_model"), "model_type \"clip_vision_model\" is not supported here"),
        ] {
            let error = serde_json::from_value::<ClipTextConfig>(json!({ key: value })).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_text_ends_at_its_end_token_or_at_the_highest_id_of_older_files() {
        let check = |eos: u32, ids: &[u32], expected: usize| {
            let config: ClipTextConfig = serde_json::from_value(json!({ "eos_token_id": eos })).unwrap();
            assert_eq!(config.end(ids), expected, "{eos} in {ids:?}");
        };
        check(7, &[1, 5, 7, 9, 7], 2);
        check(2, &[1, 5, 7, 9, 9], 3);
        check(7, &[1, 5], 0);
    }
}
