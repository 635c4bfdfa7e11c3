//! The LLM2CLIP adapter: from an LLM's vector to the space that images share (`TextProj` of the research code).
//!
//! x ← x/‖x‖ if so configured; then blocks x ← x + W₂·gelu(W₁·LN(x) + b₁) + b₂; then LN and a linear layer. Parameters
//! are named `adapter.{0..}.ln`, `adapter.{0..}.fn.{0,3}`, and, after the blocks, `adapter.N` (LN) and `adapter.N+1`.

use super::{
    layers::{LayerNorm, Linear, Widths},
    size::{Size, linear},
};
use tch::{Tensor, nn};

/// Where the adapter's parameters stand in a store of variables.
pub const PREFIX: &str = "adapter";

const EPS: f64 = 1e-5;

/// Sizes of the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterConfig {
    /// Width of the LLM's vectors.
    pub input: i64,
    /// Width of the shared space.
    pub output: i64,
    /// Residual blocks.
    pub blocks: i64,
    /// Hidden width of a block relative to `input`.
    pub expansion: i64,
    /// Whether the input is normalised first.
    pub l2_norm: bool,
}

impl AdapterConfig {
    /// See [`Adapter::flops`].
    pub fn flops(&self) -> f64 {
        let Self { input, output, blocks, expansion, .. } = *self;
        (4 * blocks * expansion * input * input + 2 * input * output) as f64
    }

    /// What the adapter is in numbers; its tokens are the vectors.
    pub fn size(&self) -> Size {
        let (outer, inner) = (self.input, self.input * self.expansion);
        let block = linear(outer, inner) + linear(inner, outer) + 2 * outer;
        Size {
            parameters: self.blocks * block + 2 * outer + linear(outer, self.output),
            blocks: self.blocks,
            block_parameters: block,
            width: outer,
            kept: 2 * outer + 2 * inner,
            kept_wide: 0,
            tokens: 1,
        }
    }
}

#[derive(Debug)]
struct Block {
    ln: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(path: &nn::Path, config: &AdapterConfig) -> Self {
        let (outer, inner) = (config.input, config.input * config.expansion);
        Self {
            ln: LayerNorm::new(&(path / "ln"), outer, EPS),
            // 1 and 2 of the original's sequence are the activation and a dropout of 0.
            up: Linear::new(&(path / "fn" / "0"), Widths { input: outer, output: inner }, true),
            down: Linear::new(&(path / "fn" / "3"), Widths { input: inner, output: outer }, true),
        }
    }

    fn forward(&self, x_BD: &Tensor) -> Tensor {
        x_BD + self.down.forward(&self.up.forward(&self.ln.forward(x_BD)).gelu("none"))
    }
}

/// The network between the LLM's vectors and the shared space.
#[derive(Debug)]
pub struct Adapter {
    blocks: Vec<Block>,
    ln: LayerNorm,
    projection: Linear,
    config: AdapterConfig,
}

impl Adapter {
    /// Adds the parameters below `path / "adapter"`; `init::random_adapter` fills them.
    pub fn new(path: &nn::Path, config: &AdapterConfig) -> Self {
        let root = path / PREFIX;
        let last = config.blocks;
        Self {
            blocks: (0..last).map(|i| Block::new(&(&root / i), config)).collect(),
            ln: LayerNorm::new(&(&root / last), config.input, EPS),
            projection: Linear::new(&(&root / (last + 1)), Widths { input: config.input, output: config.output }, true),
            config: *config,
        }
    }

    /// Floating-point operations of one vector's forward pass, counted as those of the vision tower.
    pub fn flops(&self) -> f64 {
        self.config.flops()
    }

    /// Text vectors [B, input] to embeddings [B, output], not normalised; computed in the vectors' kind.
    pub fn forward(&self, vectors_BD: &Tensor) -> Tensor {
        let mut x_BD = vectors_BD.shallow_clone();
        if self.config.l2_norm {
            x_BD = &x_BD / x_BD.norm_scalaropt_dim(2.0, [-1i64], true).clamp_min(1e-12);
        }
        for block in &self.blocks {
            x_BD = block.forward(&x_BD);
        }
        self.projection.forward(&self.ln.forward(&x_BD))
    }
}
