//! OpenAI's and open_clip's names of a CLIP vision tower; in the files projections of queries, keys and values are one matrix.

use tch::Tensor;

/// The vision tower's parameters under `visual.`; others are left out.
pub(super) fn openai(parameters: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for (name, tensor) in parameters {
        let Some(inside) = name.strip_prefix("vision_model.") else {
            if name == "visual_projection.weight" {
                tensors.push(("visual.proj".to_owned(), tensor.tr().contiguous()));
            }
            continue;
        };
        if let Some(block) = inside.strip_prefix("encoder.layers.") {
            tensors.extend(of_block(parameters, block, tensor));
            continue;
        }
        let theirs = match inside {
            "embeddings.class_embedding" => "class_embedding".to_owned(),
            "embeddings.patch_embedding.weight" => "conv1.weight".to_owned(),
            "embeddings.position_embedding.weight" => "positional_embedding".to_owned(),
            other => other.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post"),
        };
        tensors.push((format!("visual.{theirs}"), tensor.shallow_clone()));
    }
    tensors
}

/// One parameter of a block; with that of the queries, those of the keys and values, whose turns give nothing.
fn of_block(parameters: &[(String, Tensor)], name: &str, tensor: &Tensor) -> Option<(String, Tensor)> {
    let (number, inside) = name.split_once('.')?;
    let block = format!("visual.transformer.resblocks.{number}");
    if let Some(kind) = inside.strip_prefix("self_attn.q_proj.") {
        let packed = packed(parameters, &format!("vision_model.encoder.layers.{number}.self_attn"), kind);
        return Some((format!("{block}.attn.in_proj_{kind}"), packed));
    }
    if inside.starts_with("self_attn.k_proj.") || inside.starts_with("self_attn.v_proj.") {
        return None;
    }
    let theirs = inside
        .replace("layer_norm1.", "ln_1.")
        .replace("layer_norm2.", "ln_2.")
        .replace("self_attn.out_proj.", "attn.out_proj.")
        .replace("mlp.fc1.", "mlp.c_fc.")
        .replace("mlp.fc2.", "mlp.c_proj.");
    Some((format!("{block}.{theirs}"), tensor.shallow_clone()))
}

/// Queries, keys and values of an attention layer, one after the other.
pub(super) fn packed(parameters: &[(String, Tensor)], layer: &str, kind: &str) -> Tensor {
    let part = |part: &str| {
        let name = format!("{layer}.{part}_proj.{kind}");
        let found = parameters.iter().find(|(other, _)| *other == name);
        &found.expect("an attention layer has queries, keys and values").1
    };
    Tensor::cat(&[part("q"), part("k"), part("v")], 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::write_safetensors,
        model::{vision::VisionConfig, weights},
    };
    use std::path::Path;
    use tch::{Device, nn};

    #[test]
    fn a_tower_under_openais_names_is_read_back_as_it_was() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model/vit");
        let config = VisionConfig::read(&golden).unwrap();
        let tower = |folder: &Path| {
            let mut store = nn::VarStore::new(Device::Cpu);
            let _tower = config.build(&store.root());
            weights::load(&mut store, folder, config.names()).unwrap();
            let mut parameters: Vec<_> = store.variables().into_iter().map(|(name, t)| (name, t.detach())).collect();
            parameters.sort_by(|a, b| a.0.cmp(&b.0));
            parameters
        };
        let parameters = tower(&golden);
        let folder = tempfile::tempdir().unwrap();
        let theirs = openai(&parameters);
        assert!(theirs.iter().all(|(name, _)| name.starts_with("visual.")));
        assert_eq!(
            theirs.len(),
            parameters.len() - 2 * 2 * 2,
            "of each of 2 blocks 3 matrices and 3 vectors are packed"
        );
        write_safetensors(&folder.path().join("model.safetensors"), theirs, &[]).unwrap();
        assert_eq!(tower(folder.path()), parameters);
    }
}
