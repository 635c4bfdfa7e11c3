//! The body of a Llama (Touvron et al. 2023; Llama 3), or of a Qwen2, which differs by biases on q, k and v, as an encoder: no
//! head, no cache; attention causal or not.
//!
//! Several texts are read at once, packed one after the other without padding: every layer but attention treats tokens
//! alone, and attention knows where texts begin, without a mask. So what is computed is what is asked for. On a GPU one kernel
//! attends within all texts; elsewhere, and where all have one length, attention goes over runs of texts of one length. Sort
//! texts by length: then the runs are long.
//!
//! Parameter names are Hugging Face's without the `model.` prefix. Shapes: T tokens of all texts, L length of a text, B texts
//! of a run, D width, H heads, K of them for keys and values, E head width.

mod config;
mod head;
mod rope;

pub use config::LlamaConfig;
pub use head::Head;
pub use rope::Scaling;

use super::{
    layers::{Linear, Widths},
    lora::Adaptable,
};
use crate::torch::{
    attention::{Starts, packed, packs},
    recompute::recompute,
};
use common::recipe::Attention;
use rope::Angles;
use std::sync::Arc;
use tch::{Device, Kind, Tensor, nn};

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

    fn forward(&self, x_TD: &Tensor) -> Tensor {
        let x = x_TD.to_kind(Kind::Float);
        let mean_square = x.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
        self.weight.to_kind(x_TD.kind()) * (x * (mean_square + self.eps).rsqrt()).to_kind(x_TD.kind())
    }
}

/// Texts of one length that stand next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Texts {
    /// Their first token among all.
    start: i64,
    /// How many texts.
    count: i64,
    /// Tokens of each.
    length: i64,
}

/// Texts of these lengths, one after the other, as runs of one length. Empty texts are none.
fn runs(lengths: &[i64]) -> Vec<Texts> {
    let mut start = 0;
    let run = |texts: &[i64]| {
        let run = Texts { start, count: texts.len() as i64, length: texts[0] };
        start += run.count * run.length;
        run
    };
    lengths.chunk_by(|a, b| a == b).map(run).filter(|run| run.length > 0).collect()
}

/// The texts that tokens are of, as attention sees them.
#[derive(Debug)]
enum Layout {
    /// By the kernel that knows where each begins.
    Packed(Starts),
    Runs(Vec<Texts>),
}

impl Layout {
    /// Of texts of these lengths, read by heads of this width in this kind.
    fn new(lengths: &[i64], device: Device, kind: Kind, head_width: i64) -> Self {
        let runs = runs(lengths);
        if runs.len() > 1 && packs(device, kind, head_width) {
            let present: Vec<i64> = lengths.iter().copied().filter(|length| *length > 0).collect();
            return Self::Packed(Starts::new(&present, device));
        }
        Self::Runs(runs)
    }
}

/// What blocks know of tokens beside their vectors.
struct Around {
    angles: Angles,
    layout: Layout,
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    heads: i64,
    key_value_heads: i64,
    attention: Attention,
}

impl SelfAttention {
    fn new(path: &nn::Path, config: &LlamaConfig, attention: Attention) -> Self {
        let outer = config.hidden_size;
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        let linear = |name: &str, input, output, bias| Linear::new(&(path / name), Widths { input, output }, bias);
        let bias = config.query_key_value_bias;
        Self {
            q_proj: linear("q_proj", outer, queries, bias),
            k_proj: linear("k_proj", outer, keys, bias),
            v_proj: linear("v_proj", outer, keys, bias),
            o_proj: linear("o_proj", queries, outer, config.output_bias),
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            attention,
        }
    }

    fn forward(&self, x_TD: &Tensor, Around { angles, layout }: &Around) -> Tensor {
        let heads = |projection: &Linear, heads: i64| projection.forward(x_TD).unflatten(-1, [heads, -1]);
        let q_THE = angles.rotate(&heads(&self.q_proj, self.heads));
        let k_TKE = angles.rotate(&heads(&self.k_proj, self.key_value_heads));
        let v_TKE = heads(&self.v_proj, self.key_value_heads);
        let runs = match layout {
            Layout::Runs(runs) => runs,
            Layout::Packed(starts) => {
                let causal = self.attention == Attention::Causal;
                let x_THE =
                    packed([&q_THE, &k_TKE, &v_TKE], starts, causal).expect("the layout was made for the kernel");
                return self.o_proj.forward(&x_THE.flatten(1, 2));
            }
        };
        // Each key and value head serves a run of query heads. Repeated here: not every kernel takes unequal numbers.
        let [k_THE, v_THE] = [k_TKE, v_TKE].map(|x| match self.heads / self.key_value_heads {
            1 => x,
            times => x.repeat_interleave_self_int(times, 1, None),
        });
        let attended: Vec<Tensor> = runs.iter().map(|run| self.within(run, [&q_THE, &k_THE, &v_THE])).collect();
        self.o_proj.forward(&Tensor::cat(&attended, 0))
    }

    /// What the tokens of a run of texts gather from their own text: [B·L, H·E].
    fn within(&self, run: &Texts, qkv_THE: [&Tensor; 3]) -> Tensor {
        let Texts { start, count, length } = *run;
        let [q, k, v] =
            qkv_THE.map(|x_THE| x_THE.narrow(0, start, count * length).unflatten(0, [count, length]).transpose(1, 2));
        let causal = self.attention == Attention::Causal;
        let x_BHLE = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, causal, None, false);
        x_BHLE.transpose(1, 2).flatten(2, 3).flatten(0, 1)
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

    fn forward(&self, x_TD: &Tensor) -> Tensor {
        self.down_proj.forward(&(self.gate_proj.forward(x_TD).silu() * self.up_proj.forward(x_TD)))
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
    fn new(path: &nn::Path, config: &LlamaConfig, attention: Attention) -> Self {
        Self {
            input_layernorm: RmsNorm::new(&(path / "input_layernorm"), config),
            self_attn: SelfAttention::new(&(path / "self_attn"), config, attention),
            post_attention_layernorm: RmsNorm::new(&(path / "post_attention_layernorm"), config),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    /// `seed` is of what the block draws, so that it draws the same whenever it runs.
    fn forward(&self, x_TD: &Tensor, around: &Around, seed: Option<i64>) -> Tensor {
        if let Some(seed) = seed {
            tch::manual_seed(seed);
        }
        let x_TD = x_TD + self.self_attn.forward(&self.input_layernorm.forward(x_TD), around);
        &x_TD + self.mlp.forward(&self.post_attention_layernorm.forward(&x_TD))
    }

    fn draws(&self) -> bool {
        let SelfAttention { q_proj, k_proj, v_proj, o_proj, .. } = &self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj } = &self.mlp;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj].iter().any(|linear| linear.draws())
    }

    /// The linear layers and their paths below the block.
    fn linears(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.self_attn.q_proj),
            ("self_attn.k_proj", &mut self.self_attn.k_proj),
            ("self_attn.v_proj", &mut self.self_attn.v_proj),
            ("self_attn.o_proj", &mut self.self_attn.o_proj),
            ("mlp.gate_proj", &mut self.mlp.gate_proj),
            ("mlp.up_proj", &mut self.mlp.up_proj),
            ("mlp.down_proj", &mut self.mlp.down_proj),
        ]
    }
}

/// Token ids to hidden states.
#[derive(Debug)]
pub struct Llama {
    embed_tokens: Tensor,
    layers: Vec<Arc<Block>>,
    norm: RmsNorm,
    frequencies: Tensor,
    config: LlamaConfig,
    compute: Kind,
    recompute: bool,
}

impl Llama {
    /// Adds the body's parameters below `path`; `init::random` or `weights::load` fills them.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "libtorch's threads drop handles; nobody else uses the blocks then"
    )]
    pub fn new(path: &nn::Path, config: &LlamaConfig, attention: Attention) -> Self {
        let table = path / "embed_tokens";
        Self {
            embed_tokens: table.var("weight", &[config.vocab_size, config.hidden_size], nn::Init::Const(0.0)),
            layers: (0..config.num_hidden_layers)
                .map(|i| Arc::new(Block::new(&(path / "layers" / i), config, attention)))
                .collect(),
            norm: RmsNorm::new(&(path / "norm"), config),
            // Not a parameter: no checkpoint holds it, and no change of kind may round it.
            frequencies: rope::frequencies(config.head_dim, config.rope_theta, config.rope_scaling, path.device()),
            config: config.clone(),
            compute: path.kind(),
            recompute: false,
        }
    }

    /// Computes in another kind than that of the parameters.
    pub fn compute_in(&mut self, kind: Kind) {
        self.compute = kind;
    }

    /// Whether the backward pass runs each block again instead of keeping what it computed.
    pub fn recompute_blocks(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Blocks.
    pub fn layers(&self) -> i64 {
        self.layers.len() as i64
    }

    /// How far a parameter is from the input: 0 for the token table, i + 1 for block i, one more than blocks for the rest.
    pub fn layer_id(&self, name: &str) -> i64 {
        if name.starts_with("embed_tokens.") {
            return 0;
        }
        let block = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        block.map_or(self.layers() + 1, |block| block + 1)
    }

    /// The token table [vocabulary, D].
    pub fn token_table(&self) -> &Tensor {
        &self.embed_tokens
    }

    /// Floating-point operations of the forward pass over texts of these lengths; a product of [a, b] with [b, c] counts
    /// 2abc, and nothing else counts.
    pub fn flops(&self, lengths: &[i64]) -> f64 {
        self.config.flops(lengths)
    }

    /// Token ids [T] int64 of texts of these lengths, one after the other, to hidden states after the final norm [T, D]. A
    /// text sees itself only.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "libtorch's threads drop handles; nobody else uses the angles then"
    )]
    pub fn forward(&self, ids_T: &Tensor, lengths: &[i64]) -> Tensor {
        assert_eq!(ids_T.size(), [lengths.iter().sum::<i64>()], "the lengths are those of the texts");
        let mut x_TD = Tensor::embedding(&self.embed_tokens, ids_T, -1, false, false).to_kind(self.compute);
        let around = Arc::new(Around {
            angles: Angles::new(&self.frequencies, lengths, x_TD.kind()),
            layout: Layout::new(lengths, x_TD.device(), x_TD.kind(), self.config.head_dim),
        });
        let seed = self.layers.iter().any(|layer| layer.draws()).then(draw);
        for (layer, number) in self.layers.iter().zip(0..) {
            let seed = seed.map(|seed: i64| seed.wrapping_add(number));
            x_TD = if self.recompute {
                let (layer, around) = (layer.clone(), around.clone());
                recompute(&x_TD, move |x_TD| layer.forward(x_TD, &around, seed))
            } else {
                layer.forward(&x_TD, &around, seed)
            };
        }
        self.norm.forward(&x_TD)
    }
}

/// A number from libtorch's generator.
fn draw() -> i64 {
    Tensor::randint(i64::MAX, [1], (Kind::Int64, Device::Cpu)).int64_value(&[0])
}

impl Adaptable for Llama {
    fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (i, block) in self.layers.iter_mut().enumerate() {
            let block = Arc::get_mut(block).expect("blocks are shared with backward passes only, and none is waiting");
            linears.extend(block.linears().map(|(name, linear)| (format!("layers.{i}.{name}"), linear)));
        }
        linears
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, PoisonError};

    /// Who draws from libtorch's generator, which is the process's, draws alone.
    static DRAWS: Mutex<()> = Mutex::new(());

    #[test]
    fn recomputed_blocks_drop_what_they_dropped_and_give_the_same_gradients_in_every_bit() {
        use crate::model::lora::{Lora, LoraConfig};
        let _alone = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
        let config: LlamaConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        }))
        .unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        let mut llama = Llama::new(&store.root(), &config, Attention::Bidirectional);
        crate::model::init::random(&store, 1, &config);
        let targets = ["q_proj", "o_proj", "down_proj"].map(str::to_owned).to_vec();
        let settings =
            LoraConfig { rank: 4, alpha: 8.0, dropout: 0.3, target_modules: targets, rank_stabilised: false };
        let lora = Lora::new(&mut llama, &settings, 5).unwrap();
        for (name, mut b) in lora.store().variables() {
            if name.ends_with("lora_B.weight") {
                tch::no_grad(|| _ = b.fill_(0.02));
            }
        }
        lora.train(true);
        let ids = Tensor::arange(11, (Kind::Int64, Device::Cpu));
        let mut run = |recompute: bool| {
            llama.recompute_blocks(recompute);
            tch::manual_seed(9);
            let y = llama.forward(&ids, &[3, 3, 5]);
            y.square().sum(Kind::Float).backward();
            let take = |(name, tensor): (String, Tensor)| {
                let gradient = tensor.grad().copy();
                let _ = tensor.grad().zero_();
                (name, gradient)
            };
            let gradients: std::collections::BTreeMap<_, _> = lora.store().variables().into_iter().map(take).collect();
            (y.detach(), gradients)
        };
        let (plain, again) = (run(false), run(true));
        assert_eq!(plain, again);
        assert_ne!(plain.0, llama.forward(&ids, &[3, 3, 5]).detach(), "another draw drops others");
    }

    #[test]
    fn a_part_of_a_chunk_drops_what_the_whole_chunk_drops_there() {
        use crate::model::lora::{Lora, LoraConfig, Part};
        let _alone = DRAWS.lock().unwrap_or_else(PoisonError::into_inner);
        let config: LlamaConfig = serde_json::from_value(serde_json::json!({
            "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        }))
        .unwrap();
        let store = nn::VarStore::new(Device::Cpu);
        let mut llama = Llama::new(&store.root(), &config, Attention::Bidirectional);
        crate::model::init::random(&store, 1, &config);
        let targets = ["q_proj", "o_proj", "down_proj"].map(str::to_owned).to_vec();
        let settings =
            LoraConfig { rank: 4, alpha: 8.0, dropout: 0.3, target_modules: targets, rank_stabilised: false };
        let lora = Lora::new(&mut llama, &settings, 5).unwrap();
        lora.store().variables().into_values().for_each(|mut tensor| tch::no_grad(|| _ = tensor.normal_(0.0, 0.2)));
        lora.train(true);
        let ids = Tensor::arange(11, (Kind::Int64, Device::Cpu));
        let read = |tokens: &[i64], lengths: &[i64], part: bool| {
            let own = Tensor::from_slice(tokens);
            lora.see(part.then(|| Part { rows: 11, own: own.shallow_clone() }));
            tch::manual_seed(9);
            tch::no_grad(|| llama.forward(&ids.index_select(0, &own), lengths))
        };
        let all: Vec<i64> = (0..11).collect();
        let whole = read(&all, &[3, 3, 5], false);
        for (tokens, lengths) in [(3i64..6, vec![3i64]), (3..11, vec![3, 5]), (0..3, vec![3])] {
            let tokens: Vec<i64> = tokens.collect();
            let expected = whole.index_select(0, &Tensor::from_slice(&tokens));
            let apart = |found: Tensor| ((found - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(apart(read(&tokens, &lengths, true)) < 1e-6, "{tokens:?}");
            let alone = apart(read(&tokens, &lengths, false));
            assert!(tokens[0] == 0 || alone > 1e-2, "{tokens:?} alone are drawn from the beginning: {alone}");
        }
    }

    #[test]
    fn texts_of_one_length_that_stand_together_are_one_run() {
        let text = |start, count, length| Texts { start, count, length };
        assert_eq!(runs(&[3, 3, 5, 0, 0, 3]), [text(0, 2, 3), text(6, 1, 5), text(11, 1, 3)]);
        assert_eq!(runs(&[]), []);
    }
}
