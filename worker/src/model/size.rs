//! What a network is in numbers: how many parameters it has, and how many numbers the backward pass of a block needs, from its
//! configuration alone. Nothing is built for it.

/// A stack of blocks with what stands before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// All of them.
    pub parameters: i64,
    /// How many blocks.
    pub blocks: i64,
    /// Of one block.
    pub block_parameters: i64,
    /// The width between blocks.
    pub width: i64,
    /// Numbers a token of a block that its backward pass needs, in what is computed in. Counted from the block's own code; a
    /// kernel may keep a little more.
    pub kept: i64,
    /// The same of numbers that are fp32 whatever is computed in.
    pub kept_wide: i64,
    /// Tokens of an image, with the class token; 0 where texts say how many.
    pub tokens: i64,
}

/// Parameters of a linear layer with a bias.
pub(super) const fn linear(input: i64, output: i64) -> i64 {
    input * output + output
}

#[cfg(test)]
mod tests {
    use crate::model::{
        adapter::{Adapter, AdapterConfig},
        llama::{Llama, LlamaConfig},
        vision::VisionConfig,
    };
    use common::recipe::Attention;
    use serde_json::json;
    use tch::{Device, nn};

    fn counted(store: &nn::VarStore) -> i64 {
        store.variables().values().map(|variable| variable.numel() as i64).sum()
    }

    fn of_blocks(store: &nn::VarStore, part: &str) -> i64 {
        let inside = |(name, variable): (String, tch::Tensor)| name.contains(part).then(|| variable.numel() as i64);
        store.variables().into_iter().filter_map(inside).sum()
    }

    #[test]
    fn every_vision_tower_has_as_many_parameters_as_its_configuration_says() {
        let clip = json!({
            "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "projection_dim": 20,
        });
        let eva02 = json!({
            "model_type": "eva02_clip", "hidden_size": 24, "intermediate_size": 41, "num_hidden_layers": 3,
            "num_attention_heads": 3, "image_size": 32, "patch_size": 8, "projection_dim": 20,
        });
        let siglip = json!({
            "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
        });
        for (document, block) in [(clip, "layers.1."), (eva02, "blocks.1."), (siglip, "layers.1.")] {
            let config: VisionConfig = serde_json::from_value(document).unwrap();
            let store = nn::VarStore::new(Device::Cpu);
            let tower = config.build(&store.root());
            let size = config.size();
            assert_eq!(size.parameters, counted(&store), "{config:?}");
            assert_eq!((size.blocks, size.block_parameters), (3, of_blocks(&store, block)), "{config:?}");
            assert_eq!(config.flops(tower.patches()), tower.flops(tower.patches()));
        }
    }

    #[test]
    fn an_llm_has_as_many_parameters_as_its_configuration_says() {
        for (kind, mlp_bias) in [("llama", false), ("llama", true), ("qwen2", false)] {
            let config: LlamaConfig = serde_json::from_value(json!({
                "model_type": kind, "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "mlp_bias": mlp_bias,
            }))
            .unwrap();
            let store = nn::VarStore::new(Device::Cpu);
            let _llama = Llama::new(&store.root(), &config, Attention::Bidirectional);
            let size = config.size();
            assert_eq!(size.parameters, counted(&store));
            assert_eq!(size.block_parameters, of_blocks(&store, "layers.1."));
            let products: i64 = config.linears().iter().map(|(_, input, output)| input * output).sum();
            assert!(products < size.block_parameters && size.block_parameters < products + 400);
        }
    }

    #[test]
    fn an_adapter_has_as_many_parameters_as_its_configuration_says_and_as_the_published_one() {
        let config = AdapterConfig { input: 24, output: 10, blocks: 2, expansion: 2, l2_norm: true };
        let store = nn::VarStore::new(Device::Cpu);
        let _adapter = Adapter::new(&store.root(), &config);
        assert_eq!(config.size().parameters, counted(&store));
        // The research code's TextProj for vectors of 4096 into 1280.
        let published = AdapterConfig { input: 4096, output: 1280, blocks: 4, expansion: 2, l2_norm: true };
        assert_eq!(published.size().parameters, 273_769_728);
    }
}
