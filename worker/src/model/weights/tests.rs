//! Layouts that users have, and what is said about those that do not fit.

use super::*;
use crate::model::{
    config,
    llama::{Llama, LlamaConfig},
    vit::{ClipVision, ClipVisionConfig},
};
use common::recipe::Attention;
use std::fs;
use tch::{Device, Kind};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model").join(name)
}

type Tensors = Vec<(String, Tensor)>;

fn read(folder: &str) -> Tensors {
    Tensor::read_safetensors(golden(folder).join("model.safetensors")).unwrap()
}

fn write(folder: &Path, file: &str, tensors: &[(String, Tensor)]) {
    let views: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&views, folder.join(file)).unwrap();
}

fn llama_store() -> nn::VarStore {
    let config: LlamaConfig = config::read(&golden("llama")).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    Llama::new(&store.root(), &config, Attention::Causal);
    store
}

fn vision_store() -> nn::VarStore {
    let config: ClipVisionConfig = config::read(&golden("vit")).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    ClipVision::new(&store.root(), &config);
    store
}

fn assert_holds(store: &nn::VarStore, expected: &Tensors) {
    let variables = store.variables();
    assert_eq!(variables.len(), expected.len());
    for (name, tensor) in expected {
        assert!(variables[name].equal(tensor), "{name}");
    }
}

fn zeros(size: &[i64]) -> Tensor {
    Tensor::zeros(size, (Kind::Float, Device::Cpu))
}

#[test]
fn a_language_model_in_indexed_shards_gives_its_body() {
    let folder = tempfile::tempdir().unwrap();
    let body = read("llama");
    let mut whole: Tensors =
        body.iter().map(|(name, tensor)| (format!("model.{name}"), tensor.shallow_clone())).collect();
    whole.push(("lm_head.weight".into(), zeros(&[40, 32])));
    whole.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[4])));
    let (one, two) = whole.split_at(9);
    write(folder.path(), "model-1-of-2.safetensors", one);
    write(folder.path(), "model-2-of-2.safetensors", two);
    // Not in the index, so not of the model.
    write(folder.path(), "other.safetensors", &whole[..1]);
    let file = |tensors: &[(String, Tensor)], file: &str| {
        tensors.iter().map(|(name, _)| (name.clone(), file.to_owned())).collect::<Vec<_>>()
    };
    let map: HashMap<String, String> =
        [file(one, "model-1-of-2.safetensors"), file(two, "model-2-of-2.safetensors")].concat().into_iter().collect();
    fs::write(folder.path().join(INDEX), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    let mut store = llama_store();
    load(&mut store, folder.path(), NameMap::Llama).unwrap();
    assert_holds(&store, &body);
}

#[test]
fn a_whole_clip_gives_its_vision_tower() {
    let folder = tempfile::tempdir().unwrap();
    let tower = read("vit");
    let mut whole: Tensors = tower.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    whole.push(("text_model.embeddings.token_embedding.weight".into(), zeros(&[5, 4])));
    whole.push(("text_projection.weight".into(), zeros(&[4, 4])));
    whole.push(("logit_scale".into(), zeros(&[])));
    whole.push(("vision_model.embeddings.position_ids".into(), zeros(&[1, 10]).to_kind(Kind::Int64)));
    write(folder.path(), "model.safetensors", &whole);
    let mut store = vision_store();
    load(&mut store, folder.path(), NameMap::ClipVision).unwrap();
    assert_holds(&store, &tower);
}

#[test]
fn sixteen_bit_weights_are_converted_to_the_variables_kind() {
    let folder = tempfile::tempdir().unwrap();
    let half: Tensors =
        read("vit").iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(Kind::BFloat16))).collect();
    write(folder.path(), "model.safetensors", &half);
    let mut store = vision_store();
    load(&mut store, folder.path(), NameMap::ClipVision).unwrap();
    let rounded = half.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(Kind::Float))).collect();
    assert_holds(&store, &rounded);
}

#[test]
fn unmatched_names_of_both_sides_are_one_error_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = read("llama");
    let lost = tensors.iter().position(|(name, _)| name == "norm.weight").unwrap();
    tensors[lost].0 = "final_norm.weight".into();
    write(folder.path(), "model.safetensors", &tensors);
    let mut store = llama_store();
    let message = load(&mut store, folder.path(), NameMap::Llama).unwrap_err().to_string();
    assert!(message.contains("1 missing: norm.weight; 1 unexpected: final_norm.weight"), "{message}");
    assert!(message.contains(&folder.path().display().to_string()), "{message}");
    assert_eq!(store.variables()["embed_tokens.weight"].abs().max().double_value(&[]), 0.0);
}

#[test]
fn another_width_names_the_tensor_and_both_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = read("vit");
    for (name, tensor) in &mut tensors {
        if name == "visual_projection.weight" {
            *tensor = zeros(&[16, 32]);
        }
    }
    write(folder.path(), "model.safetensors", &tensors);
    let message = load(&mut vision_store(), folder.path(), NameMap::ClipVision).unwrap_err().to_string();
    for part in ["visual_projection.weight", "[16, 32]", "[20, 32]", "config.json"] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_name_in_two_files_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = read("vit");
    write(folder.path(), "a.safetensors", &tensors);
    write(folder.path(), "b.safetensors", &tensors[..1]);
    let message = load(&mut vision_store(), folder.path(), NameMap::ClipVision).unwrap_err().to_string();
    assert!(message.contains("b.safetensors") && message.contains("a.safetensors too"), "{message}");
}

#[test]
fn folders_without_weights_and_cut_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = load(&mut vision_store(), folder.path(), NameMap::ClipVision).unwrap_err().to_string();
    assert!(message.contains("holds no *.safetensors"), "{message}");

    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(golden("vit").join("model.safetensors")).unwrap();
    for (length, what) in [(bytes.len() - 4, "its header says"), (100, "it is cut"), (3, "too few")] {
        fs::write(&file, &bytes[..length]).unwrap();
        let message = load(&mut vision_store(), folder.path(), NameMap::ClipVision).unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn an_integer_weight_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = read("vit");
    tensors[0].1 = tensors[0].1.to_kind(Kind::Int8);
    let name = tensors[0].0.clone();
    write(folder.path(), "model.safetensors", &tensors);
    let message = load(&mut vision_store(), folder.path(), NameMap::ClipVision).unwrap_err().to_string();
    assert!(message.contains(&name) && message.contains("I8"), "{message}");
}
