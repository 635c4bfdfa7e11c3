//! `config.json` of a Llama or a Qwen2, and how Hugging Face draws its weights.

use super::rope::Scaling;
use crate::model::{
    config::{self, Check},
    init::{Fill, Initialise},
    size::Size,
};
use serde::Deserialize;

/// Sizes of the body: `config.json` of a `LlamaModel`, a `Qwen2Model`, or the language model around one. Whether that ties its
/// head to the token table does not concern the body.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct LlamaConfig {
    /// Rows of the token table.
    pub vocab_size: i64,
    /// D.
    pub hidden_size: i64,
    /// Width inside the MLPs.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: i64,
    /// Heads of the queries.
    pub num_attention_heads: i64,
    /// Heads of the keys and values; each serves as many query heads.
    pub num_key_value_heads: i64,
    /// E, the width of a head.
    pub head_dim: i64,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the frequencies are stretched; absent means that they are not.
    pub rope_scaling: Option<Scaling>,
    /// Whether q, k and v have biases.
    pub query_key_value_bias: bool,
    /// Whether o has a bias.
    pub output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Standard deviation of random weights.
    pub initializer_range: f64,
}

// The file as written. Unknown keys are legal: configurations carry much that does not concern the body.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    hidden_act: Option<String>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<RawScaling>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_range")]
    initializer_range: f64,
}

// `rope_parameters`, the newer spelling, holds the base as well.
#[derive(Deserialize)]
struct RawScaling {
    #[serde(alias = "type")]
    rope_type: String,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn default_range() -> f64 {
    0.02
}

impl RawScaling {
    fn check(&self) -> Result<Option<Scaling>, String> {
        let need = |field: &str, value: Option<f64>| {
            let value = value.ok_or_else(|| format!("rope_scaling lacks {field}"))?;
            if value > 0.0 {
                Ok(value)
            } else {
                Err(format!("rope_scaling: {field} is {value}, but it must be positive"))
            }
        };
        match self.rope_type.as_str() {
            "default" => Ok(None),
            "llama3" => Ok(Some(Scaling {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_length: need("original_max_position_embeddings", self.original_max_position_embeddings)?,
            })),
            other => Err(format!("rope_scaling: rope_type {other:?} is not supported; supported: llama3, default")),
        }
    }
}

impl TryFrom<Raw> for LlamaConfig {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        config::model_type(raw.model_type.as_deref(), &["llama", "qwen2"])?;
        // Qwen2 has the biases that its file does not speak of.
        let is_qwen2 = raw.model_type.as_deref() == Some("qwen2");
        if raw.use_sliding_window {
            return Err("use_sliding_window is true, but only attention over the whole text is supported".to_owned());
        }
        if let Some(name) = raw.hidden_act.filter(|name| name != "silu") {
            return Err(format!("hidden_act {name:?} is not supported; supported: silu"));
        }
        config::positive(&[("num_attention_heads", raw.num_attention_heads)])?;
        let theta = raw.rope_scaling.as_ref().and_then(|scaling| scaling.rope_theta).or(raw.rope_theta);
        if raw.head_dim.is_none() {
            config::divisible(("hidden_size", raw.hidden_size), ("num_attention_heads", raw.num_attention_heads))?;
        }
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads),
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: raw.rope_scaling.map(|scaling| scaling.check()).transpose()?.flatten(),
            query_key_value_bias: raw.attention_bias || is_qwen2,
            output_bias: raw.attention_bias && !is_qwen2,
            mlp_bias: raw.mlp_bias,
            initializer_range: raw.initializer_range,
        };
        config.validate()?;
        Ok(config)
    }
}

impl LlamaConfig {
    /// Whether the sizes make a body; the error names the field.
    pub fn validate(&self) -> Check {
        config::positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ])?;
        let heads = ("num_attention_heads", self.num_attention_heads);
        config::divisible(heads, ("num_key_value_heads", self.num_key_value_heads))?;
        config::divisible(("head_dim", self.head_dim), ("the two halves of a rotation", 2))?;
        if self.rope_theta > 0.0 {
            Ok(())
        } else {
            Err(format!("rope_theta is {}, but it must be positive", self.rope_theta))
        }
    }
}

impl LlamaConfig {
    /// See `Llama::flops`.
    pub fn flops(&self, lengths: &[i64]) -> f64 {
        let [width, inner] = [self.hidden_size, self.intermediate_size].map(|n| n as f64);
        let [queries, keys] = self.head_widths().map(|n| n as f64);
        let tokens = lengths.iter().sum::<i64>() as f64;
        let pairs: f64 = lengths.iter().map(|length| (length * length) as f64).sum();
        let block = tokens * (4.0 * width * (queries + keys) + 6.0 * width * inner) + 4.0 * pairs * queries;
        self.num_hidden_layers as f64 * block
    }

    /// What the body is in numbers: the token table is a part of it, a head is not.
    pub fn size(&self) -> Size {
        let (width, inner, [queries, keys]) = (self.hidden_size, self.intermediate_size, self.head_widths());
        let bias = |present: bool, numbers: i64| if present { numbers } else { 0 };
        let biases = bias(self.query_key_value_bias, queries + 2 * keys)
            + bias(self.output_bias, width)
            + bias(self.mlp_bias, 2 * inner + width);
        let block = 2 * width * (queries + keys) + 3 * width * inner + 2 * width + biases;
        let blocks = self.num_hidden_layers;
        Size {
            parameters: self.vocab_size * width + blocks * block + width,
            blocks,
            block_parameters: block,
            width,
            // Both norms' outputs; q, k and v by heads, and what is gathered twice; SwiGLU's two sides, silu and product.
            kept: 4 * width + 5 * queries + 4 * inner,
            // What both norms normalise, and the result, in fp32.
            kept_wide: 4 * width,
            tokens: 0,
        }
    }

    /// Inputs and outputs of a block's linear layers, by the ends of their names.
    pub fn linears(&self) -> [(&'static str, i64, i64); 7] {
        let (width, inner, [queries, keys]) = (self.hidden_size, self.intermediate_size, self.head_widths());
        [
            ("q_proj", width, queries),
            ("k_proj", width, keys),
            ("v_proj", width, keys),
            ("o_proj", queries, width),
            ("gate_proj", width, inner),
            ("up_proj", width, inner),
            ("down_proj", inner, width),
        ]
    }

    /// Widths of all queries, and of all keys.
    fn head_widths(&self) -> [i64; 2] {
        [self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim]
    }
}

impl Initialise for LlamaConfig {
    // Hugging Face's LlamaPreTrainedModel: normal matrices, norms one, biases zero.
    fn fill(&self, name: &str) -> Option<Fill> {
        if !["embed_tokens.", "layers.", "norm."].iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        Some(match name {
            _ if name.ends_with("norm.weight") => Fill::Constant(1.0),
            _ if name.ends_with(".bias") => Fill::Constant(0.0),
            _ => Fill::Normal { std: self.initializer_range },
        })
    }
}
