//! timm's names of EVA02 and SigLIP vision towers, with open_clip's `visual.trunk.` before them.

use super::clip_names::packed;
use tch::Tensor;

const TRUNK: &str = "visual.trunk.";

/// An EVA02 tower's parameters; others are left out.
pub(super) fn eva02(parameters: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let theirs = |(name, tensor): &(String, Tensor)| {
        let own = name.starts_with("visual.").then(|| format!("{TRUNK}{}", eva02_alone(name)))?;
        Some((own, tensor.shallow_clone()))
    };
    parameters.iter().filter_map(theirs).collect()
}

/// The name of an EVA02 tower's parameter where the tower stands alone.
pub(super) fn eva02_alone(name: &str) -> String {
    let inside = name.strip_prefix("visual.").unwrap_or(name);
    inside
        .replace(".attn.inner_attn_ln.", ".attn.norm.")
        .replace(".mlp.ffn_ln.", ".mlp.norm.")
        .replace(".mlp.w1.", ".mlp.fc1_g.")
        .replace(".mlp.w2.", ".mlp.fc1_x.")
        .replace(".mlp.w3.", ".mlp.fc2.")
}

/// A SigLIP tower's parameters; others are left out.
pub(super) fn siglip(parameters: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for (name, tensor) in parameters {
        let Some(inside) = name.strip_prefix("vision_model.") else { continue };
        let mut put = |theirs: String, tensor: Tensor| tensors.push((format!("{TRUNK}{theirs}"), tensor));
        if let Some(block) = inside.strip_prefix("encoder.layers.") {
            if let Some((theirs, tensor)) = of_block(parameters, block, tensor) {
                put(theirs, tensor);
            }
        } else if let Some(kind) = inside.strip_prefix("head.attention.in_proj_") {
            let width = tensor.size()[0] / 3;
            put(format!("attn_pool.q.{kind}"), tensor.narrow(0, 0, width).contiguous());
            put(format!("attn_pool.kv.{kind}"), tensor.narrow(0, width, 2 * width).contiguous());
        } else if inside == "embeddings.position_embedding.weight" {
            put("pos_embed".to_owned(), tensor.unsqueeze(0));
        } else if inside == "head.probe" {
            put("attn_pool.latent".to_owned(), tensor.shallow_clone());
        } else {
            let theirs = inside
                .replace("embeddings.patch_embedding.", "patch_embed.proj.")
                .replace("post_layernorm.", "norm.")
                .replace("head.attention.out_proj.", "attn_pool.proj.")
                .replace("head.layernorm.", "attn_pool.norm.")
                .replace("head.mlp.", "attn_pool.mlp.");
            put(theirs, tensor.shallow_clone());
        }
    }
    tensors
}

fn of_block(parameters: &[(String, Tensor)], name: &str, tensor: &Tensor) -> Option<(String, Tensor)> {
    let (number, inside) = name.split_once('.')?;
    if let Some(kind) = inside.strip_prefix("self_attn.q_proj.") {
        let packed = packed(parameters, &format!("vision_model.encoder.layers.{number}.self_attn"), kind);
        return Some((format!("blocks.{number}.attn.qkv.{kind}"), packed));
    }
    if inside.starts_with("self_attn.k_proj.") || inside.starts_with("self_attn.v_proj.") {
        return None;
    }
    let theirs = inside
        .replace("layer_norm1.", "norm1.")
        .replace("layer_norm2.", "norm2.")
        .replace("self_attn.out_proj.", "attn.proj.");
    Some((format!("blocks.{number}.{theirs}"), tensor.shallow_clone()))
}

/// Reads a folder of `tests/golden/model`, which another library wrote, into our names and back: what comes out must be what
/// the file holds, name by name and number by number.
#[cfg(test)]
fn round_trip(folder: &str, back: impl Fn(&[(String, Tensor)]) -> Vec<(String, Tensor)>) {
    use crate::model::{vision::VisionConfig, weights};
    use std::collections::BTreeMap;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model").join(folder);
    let config = VisionConfig::read(&folder).unwrap();
    let mut store = tch::nn::VarStore::new(tch::Device::Cpu);
    let _tower = config.build(&store.root());
    weights::load(&mut store, &folder, config.names()).unwrap();
    let mut parameters: Vec<_> = store.variables().into_iter().map(|(name, t)| (name, t.detach())).collect();
    parameters.push(("adapter.0.ln.weight".to_owned(), Tensor::from(1.0f32)));
    parameters.push(("logit_scale".to_owned(), Tensor::from(1.0f32)));
    let ours: BTreeMap<String, Tensor> = back(&parameters).into_iter().collect();
    let theirs = Tensor::read_safetensors(folder.join("model.safetensors")).unwrap();
    let theirs: BTreeMap<String, Tensor> =
        theirs.into_iter().filter(|(name, _)| name.starts_with("visual.") && !name.contains("rope")).collect();
    assert!(theirs.len() > 10);
    let names = |tensors: &BTreeMap<String, Tensor>| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs));
    for (name, tensor) in &ours {
        assert_eq!(tensor.size(), theirs[name].size(), "{name}");
        assert_eq!(*tensor, theirs[name], "{name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn towers_that_timm_wrote_come_out_as_they_went_in() {
        round_trip("eva02", eva02);
        round_trip("siglip-timm", siglip);
    }
}
