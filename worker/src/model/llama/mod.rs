//! The body of a Llama (Touvron et al. 2023; Llama 3) as an encoder: no head, no cache; attention causal or not.
//!
//! Parameter names are Hugging Face's without the `model.` prefix. Shapes: B batch, L length, D width, H heads, E head
//! width.

mod config;
mod rope;

pub use config::LlamaConfig;
pub use rope::Scaling;

use super::layers::{Linear, Widths, merge_heads, split_heads};
use common::recipe::Attention;
use rope::Angles;
use tch::{Kind, Tensor, nn};

/// x / rms(x) · w, in fp32 whatever the kind of x.
#[derive(Debug)]
struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn new(path: &nn::Path, config: &LlamaConfig) -> Self {
        Self { weight: path.var("weight", &[config.hidden_size], nn::Init::Const(1.0)), eps: config.rms_norm_eps }
    }

    fn forward(&self, x_BLD: &Tensor) -> Tensor {
        let x = x_BLD.to_kind(Kind::Float);
        let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        self.weight.to_kind(x_BLD.kind()) * (x * (mean_square + self.eps).rsqrt()).to_kind(x_BLD.kind())
    }
}

/// Which keys a query sees: [B, 1, L, L], true where it does.
///
/// A padding query that may see nothing would be 0/0; every query sees itself, and what a padding position computes
/// reaches no other one.
fn visible(keep_BL: &Tensor, attention: Attention) -> Tensor {
    let length = keep_BL.size()[1];
    let options = (Kind::Bool, keep_BL.device());
    let mut seen = keep_BL.unsqueeze(1).unsqueeze(1).expand([-1, 1, length, -1], false);
    if attention == Attention::Causal {
        seen = seen.logical_and(&Tensor::ones([length, length], options).tril(0));
    }
    seen.logical_or(&Tensor::eye(length, options))
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: i64,
    key_value_heads: i64,
}

impl SelfAttention {
    fn new(path: &nn::Path, config: &LlamaConfig) -> Self {
        let outer = config.hidden_size;
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let linear =
            |name: &str, input, output| Linear::new(&(path / name), Widths { input, output }, config.attention_bias);
        Self {
            q_proj: linear("q_proj", outer, queries),
            k_proj: linear("k_proj", outer, keys),
            v_proj: linear("v_proj", outer, keys),
            o_proj: linear("o_proj", queries, outer),
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
        }
    }

    fn forward(&self, x_BLD: &Tensor, angles: &Angles, visible: &Tensor) -> Tensor {
        let q = angles.rotate(&split_heads(&self.q_proj.forward(x_BLD), self.heads));
        let k = angles.rotate(&split_heads(&self.k_proj.forward(x_BLD), self.key_value_heads));
        let v = split_heads(&self.v_proj.forward(x_BLD), self.key_value_heads);
        // Each key and value head serves a run of query heads. Repeated here: the kernels that take a mask want equal
        // numbers of heads.
        let [k, v] = [k, v].map(|x| match self.heads / self.key_value_heads {
            1 => x,
            times => x.repeat_interleave_self_int(times, 1, None),
        });
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, Some(visible), 0.0, false, None, false);
        self.o_proj.forward(&merge_heads(&x))
    }
}

/// SwiGLU: down(silu(gate(x)) ⊙ up(x)).
#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn new(path: &nn::Path, config: &LlamaConfig) -> Self {
        let (outer, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |name: &str, input, output| Linear::new(&(path / name), Widths { input, output }, config.mlp_bias);
        Self {
            gate_proj: linear("gate_proj", outer, inner),
            up_proj: linear("up_proj", outer, inner),
            down_proj: linear("down_proj", inner, outer),
        }
    }

    fn forward(&self, x_BLD: &Tensor) -> Tensor {
        self.down_proj.forward(&(self.gate_proj.forward(x_BLD).silu() * self.up_proj.forward(x_BLD)))
    }
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn new(path: &nn::Path, config: &LlamaConfig) -> Self {
        Self {
            input_layernorm: RmsNorm::new(&(path / "input_layernorm"), config),
            self_attn: SelfAttention::new(&(path / "self_attn"), config),
            post_attention_layernorm: RmsNorm::new(&(path / "post_attention_layernorm"), config),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    fn forward(&self, x_BLD: &Tensor, angles: &Angles, visible: &Tensor) -> Tensor {
        let x_BLD = x_BLD + self.self_attn.forward(&self.input_layernorm.forward(x_BLD), angles, visible);
        &x_BLD + self.mlp.forward(&self.post_attention_layernorm.forward(&x_BLD))
    }
}

/// Token ids to hidden states.
#[derive(Debug)]
pub struct Llama {
    embed_tokens: Tensor,
    layers: Vec<Block>,
    norm: RmsNorm,
    frequencies: Tensor,
    attention: Attention,
    compute: Kind,
}

impl Llama {
    /// Adds the body's parameters below `path`; `init::random` or `weights::load` fills them.
    pub fn new(path: &nn::Path, config: &LlamaConfig, attention: Attention) -> Self {
        let table = path / "embed_tokens";
        Self {
            embed_tokens: table.var("weight", &[config.vocab_size, config.hidden_size], nn::Init::Const(0.0)),
            layers: (0..config.num_hidden_layers).map(|i| Block::new(&(path / "layers" / i), config)).collect(),
            norm: RmsNorm::new(&(path / "norm"), config),
            // Not a parameter: no checkpoint holds it, and no change of kind may round it.
            frequencies: rope::frequencies(config.head_dim, config.rope_theta, config.rope_scaling, path.device()),
            attention,
            compute: path.kind(),
        }
    }

    /// Computes in another kind than that of the parameters.
    pub fn compute_in(&mut self, kind: Kind) {
        self.compute = kind;
    }

    /// Token ids [B, L] int64 and which of them are no padding [B, L] bool, to hidden states after the final norm
    /// [B, L, D]. What stands at padding positions is finite and means nothing.
    pub fn forward(&self, ids_BL: &Tensor, keep_BL: &Tensor) -> Tensor {
        let mut x_BLD = Tensor::embedding(&self.embed_tokens, ids_BL, -1, false, false).to_kind(self.compute);
        let angles = Angles::new(&self.frequencies, ids_BL.size()[1], x_BLD.kind());
        let visible = visible(keep_BL, self.attention);
        for layer in &self.layers {
            x_BLD = layer.forward(&x_BLD, &angles, &visible);
        }
        self.norm.forward(&x_BLD)
    }
}
