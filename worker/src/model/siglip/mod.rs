//! The vision transformer of SigLIP and SigLIP 2 (Zhai et al. 2023; Tschannen et al. 2025) with the parameter names of Hugging
//! Face's `SiglipVisionModel`: no class token, and a learned probe that gathers from all patches.
//!
//! Shapes: B batch, C channels, H and W pixels, G patches a side, N = G² tokens, K of them kept, D width.

mod config;

pub use config::{Gelu, SiglipConfig};

use super::{
    layers::{LayerNorm, Linear, Widths, merge_heads, split_heads},
    lora::Adaptable,
    patches,
    vision::VisionTower,
};
use crate::torch::recompute::recompute;
use std::sync::Arc;
use tch::{Tensor, nn};

#[derive(Debug)]
struct Embeddings {
    weight: Tensor,
    bias: Tensor,
    position_embedding: Tensor,
    patch: i64,
}

impl Embeddings {
    fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let (width, patch, zero) = (config.hidden_size, config.patch_size, nn::Init::Const(0.0));
        let projection = path / "patch_embedding";
        Self {
            weight: projection.var("weight", &[width, patches::CHANNELS, patch, patch], zero),
            bias: projection.var("bias", &[width], zero),
            position_embedding: (path / "position_embedding").var("weight", &[config.grid().pow(2), width], zero),
            patch,
        }
    }

    fn forward(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let patches = patches::cut(pixels_BCHW, self.patch, kept_BK);
        let kind = patches.kind();
        let x_BKD = patches.linear(&self.weight.flatten(1, -1).to_kind(kind), Some(&self.bias.to_kind(kind)));
        x_BKD + patches::rows(&self.position_embedding.to_kind(kind), 0, kept_BK)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: i64,
}

impl Attention {
    fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let widths = Widths { input: config.hidden_size, output: config.hidden_size };
        let linear = |name: &str| Linear::new(&(path / name), widths, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            heads: config.num_attention_heads,
        }
    }

    fn forward(&self, x_BND: &Tensor) -> Tensor {
        let [q, k, v] = [&self.q_proj, &self.k_proj, &self.v_proj].map(|p| split_heads(&p.forward(x_BND), self.heads));
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        self.out_proj.forward(&merge_heads(&x))
    }
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Gelu,
}

impl Mlp {
    fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let (outer, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            fc1: Linear::new(&(path / "fc1"), Widths { input: outer, output: inner }, true),
            fc2: Linear::new(&(path / "fc2"), Widths { input: inner, output: outer }, true),
            activation: config.hidden_act,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.fc1.forward(x).gelu(self.activation.approximation()))
    }
}

#[derive(Debug)]
struct Block {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let norm = |name: &str| LayerNorm::new(&(path / name), config.hidden_size, config.layer_norm_eps);
        Self {
            layer_norm1: norm("layer_norm1"),
            self_attn: Attention::new(&(path / "self_attn"), config),
            layer_norm2: norm("layer_norm2"),
            mlp: Mlp::new(&(path / "mlp"), config),
        }
    }

    fn forward(&self, x_BND: &Tensor) -> Tensor {
        let x_BND = x_BND + self.self_attn.forward(&self.layer_norm1.forward(x_BND));
        &x_BND + self.mlp.forward(&self.layer_norm2.forward(&x_BND))
    }
}

impl Block {
    fn draws(&self) -> bool {
        let Attention { q_proj, k_proj, v_proj, out_proj, .. } = &self.self_attn;
        [q_proj, k_proj, v_proj, out_proj, &self.mlp.fc1, &self.mlp.fc2].iter().any(|linear| linear.draws())
    }

    /// The linear layers and their paths below the block.
    fn linears(&mut self) -> [(&'static str, &mut Linear); 6] {
        [
            ("self_attn.q_proj", &mut self.self_attn.q_proj),
            ("self_attn.k_proj", &mut self.self_attn.k_proj),
            ("self_attn.v_proj", &mut self.self_attn.v_proj),
            ("self_attn.out_proj", &mut self.self_attn.out_proj),
            ("mlp.fc1", &mut self.mlp.fc1),
            ("mlp.fc2", &mut self.mlp.fc2),
        ]
    }
}

/// Attention pooling: what the probe gathers from the tokens, then a residual MLP. The projections are packed in one matrix.
#[derive(Debug)]
struct Head {
    probe: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    layernorm: LayerNorm,
    mlp: Mlp,
    heads: i64,
}

impl Head {
    fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let (width, zero, attention) = (config.hidden_size, nn::Init::Const(0.0), path / "attention");
        Self {
            probe: path.var("probe", &[1, 1, width], zero),
            in_proj_weight: attention.var("in_proj_weight", &[3 * width, width], zero),
            in_proj_bias: attention.var("in_proj_bias", &[3 * width], zero),
            out_proj: Linear::new(&(&attention / "out_proj"), Widths { input: width, output: width }, true),
            layernorm: LayerNorm::new(&(path / "layernorm"), width, config.layer_norm_eps),
            mlp: Mlp::new(&(path / "mlp"), config),
            heads: config.num_attention_heads,
        }
    }

    fn forward(&self, x_BND: &Tensor) -> Tensor {
        let kind = x_BND.kind();
        let [weights, biases] = [&self.in_proj_weight, &self.in_proj_bias].map(|p| p.to_kind(kind).chunk(3, 0));
        let project = |x: &Tensor, part: usize| split_heads(&x.linear(&weights[part], Some(&biases[part])), self.heads);
        let probe_B1D = self.probe.to_kind(kind).expand([x_BND.size()[0], -1, -1], false);
        let (q, k, v) = (project(&probe_B1D, 0), project(x_BND, 1), project(x_BND, 2));
        let x = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        let x_BD = self.out_proj.forward(&merge_heads(&x)).squeeze_dim(1);
        &x_BD + self.mlp.forward(&self.layernorm.forward(&x_BD))
    }
}

/// The vision tower. Its pooled width is the shared width: there is no projection.
#[derive(Debug)]
pub struct Siglip {
    embeddings: Embeddings,
    layers: Vec<Arc<Block>>,
    post_layernorm: LayerNorm,
    head: Head,
    config: SiglipConfig,
    recompute: bool,
}

impl Siglip {
    /// Adds the tower's parameters below `path`; `init::random` or `weights::load` fills them.
    #[expect(
        clippy::arc_with_non_send_sync,
        reason = "libtorch's threads drop handles; nobody else uses the blocks then"
    )]
    pub fn new(path: &nn::Path, config: &SiglipConfig) -> Self {
        let root = path / "vision_model";
        let layers = &root / "encoder" / "layers";
        Self {
            embeddings: Embeddings::new(&(&root / "embeddings"), config),
            layers: (0..config.num_hidden_layers).map(|i| Arc::new(Block::new(&(&layers / i), config))).collect(),
            post_layernorm: LayerNorm::new(&(&root / "post_layernorm"), config.hidden_size, config.layer_norm_eps),
            head: Head::new(&(&root / "head"), config),
            config: config.clone(),
            recompute: false,
        }
    }
}

impl VisionTower for Siglip {
    fn forward_kept(&self, pixels_BCHW: &Tensor, kept_BK: Option<&Tensor>) -> Tensor {
        let mut x_BND = self.embeddings.forward(pixels_BCHW, kept_BK);
        for layer in &self.layers {
            x_BND = if self.recompute && !layer.draws() {
                let layer = layer.clone();
                recompute(&x_BND, move |x_BND| layer.forward(x_BND))
            } else {
                layer.forward(&x_BND)
            };
        }
        self.head.forward(&self.post_layernorm.forward(&x_BND))
    }

    fn recompute_blocks(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    fn flops(&self, patches: i64) -> f64 {
        self.config.flops(patches)
    }

    fn patches(&self) -> i64 {
        self.config.grid().pow(2)
    }

    fn layers(&self) -> i64 {
        self.layers.len() as i64
    }

    fn layer_id(&self, name: &str) -> i64 {
        let head = self.layers() + 1;
        let Some(inside) = name.strip_prefix("vision_model.") else { return head };
        if inside.starts_with("embeddings.") {
            return 0;
        }
        let block = inside.strip_prefix("encoder.layers.").and_then(|rest| rest.split('.').next()?.parse::<i64>().ok());
        block.map_or(head, |block| block + 1)
    }

    fn final_norm(&self) -> &'static str {
        "vision_model.post_layernorm."
    }
}

/// The blocks' layers and the head's MLP. The head's attention is not among them: its projections are packed.
impl Adaptable for Siglip {
    fn linears(&mut self) -> Vec<(String, &mut Linear)> {
        let mut linears = Vec::new();
        for (i, block) in self.layers.iter_mut().enumerate() {
            let block = Arc::get_mut(block).expect("blocks are shared with backward passes only, and none is waiting");
            linears.extend(
                block.linears().map(|(name, linear)| (format!("vision_model.encoder.layers.{i}.{name}"), linear)),
            );
        }
        let mlp = &mut self.head.mlp;
        linears.extend(
            [("fc1", &mut mlp.fc1), ("fc2", &mut mlp.fc2)]
                .map(|(name, linear)| (format!("vision_model.head.mlp.{name}"), linear)),
        );
        linears
    }
}
