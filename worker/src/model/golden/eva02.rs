//! EVA02 against timm, and what its loader makes of the names and sizes that users have.

use super::*;
use crate::model::eva02::{Eva02, Eva02Config};
use tch::nn::VarStore;

/// A tower, filled from a folder.
fn tower(config: &Eva02Config, folder: &Path) -> (VarStore, Eva02) {
    let mut store = VarStore::new(Device::Cpu);
    let tower = Eva02::new(&store.root(), config);
    weights::load(&mut store, folder, NameMap::Eva02).unwrap();
    (store, tower)
}

fn config() -> Eva02Config {
    config::read(&golden("eva02")).unwrap()
}

/// timm's names of parameters as eva_clip's.
fn renamed(theirs: &str) -> String {
    let pairs = [
        ("attn.norm", "attn.inner_attn_ln"),
        ("mlp.norm", "mlp.ffn_ln"),
        ("fc1_g", "w1"),
        ("fc1_x", "w2"),
        ("mlp.fc2", "mlp.w3"),
    ];
    pairs.iter().fold(format!("visual.{theirs}"), |name, (from, to)| name.replace(from, to))
}

fn case() -> Case {
    Case::open("eva02.safetensors").renamed(renamed)
}

fn reset(store: &VarStore) {
    store.variables().into_values().for_each(|mut variable| variable.zero_grad());
}

#[test]
fn eva02_equals_timm_with_and_without_recomputation() {
    let (store, mut tower) = tower(&config(), &golden("eva02"));
    let case = case();
    for recompute in [false, true] {
        tower.recompute_blocks(recompute);
        case.check(&store, &tower.forward(&case.get("pixels")), "");
        reset(&store);
    }
    case.check_bf16("eva02", &store, &tower.forward(&case.get("pixels").to_kind(Kind::BFloat16)), "");
}

#[test]
fn a_patch_that_is_dropped_is_not_seen_and_the_others_keep_their_places() {
    let (_store, tower) = tower(&config(), &golden("eva02"));
    let pixels = case().get("pixels");
    let all = Tensor::arange(9, (Kind::Int64, Device::Cpu)).expand([3, 9], false);
    near("all", &tower.forward_kept(&pixels, Some(&all)), &tower.forward(&pixels), 0.0);
    // The order of the kept patches means nothing, because each brings its position and rotation.
    let backwards = all.flip([1]);
    near("backwards", &tower.forward_kept(&pixels, Some(&backwards)), &tower.forward(&pixels), 0.0);
    let kept = Tensor::from_slice(&[0i64, 1, 8, 0, 1, 8, 0, 1, 8]).view([3, 3]);
    let of_kept = tower.forward_kept(&pixels, Some(&kept));
    let other = pixels.copy();
    let _ = other.narrow(2, 8, 8).fill_(7.0);
    near("unseen", &tower.forward_kept(&other, Some(&kept)), &of_kept, 0.0);
}

#[test]
fn eva_clips_names_with_tables_of_rotations_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = |name: &str| {
        let name = renamed(name.strip_prefix("visual.trunk.").unwrap());
        name.replace("attn.q_proj.bias", "attn.q_bias").replace("attn.v_proj.bias", "attn.v_bias")
    };
    let mut tensors: Vec<(String, Tensor)> = Tensor::read_safetensors(golden("eva02").join("model.safetensors"))
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| (theirs(&name), tensor))
        .collect();
    let none = || Tensor::zeros([9, 16], (Kind::Float, Device::Cpu));
    for name in ["visual.rope.freqs_cos", "visual.blocks.1.attn.rope.freqs_sin", "text.blocks.0.weight", "logit_scale"]
    {
        tensors.push((name.to_owned(), none()));
    }
    let views: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Tensor::write_safetensors(&views, folder.path().join("model.safetensors")).unwrap();
    let (_store, tower) = tower(&config(), folder.path());
    let case = case();
    near("output", &tower.forward(&case.get("pixels")), &case.get("output"), 0.0);
}

#[test]
fn another_image_or_patch_size_resizes_tables_and_kernels_and_another_width_is_refused() {
    for (image_size, patch_size) in [(40, 8), (30, 10)] {
        let config = Eva02Config { image_size, patch_size, ..config() };
        let (_store, tower) = tower(&config, &golden("eva02"));
        let pixels = Tensor::ones([1, 3, image_size, image_size], (Kind::Float, Device::Cpu));
        assert!(tower.forward(&pixels).isfinite().all().double_value(&[]) == 1.0);
    }
    let wide = Eva02Config { projection_dim: 24, ..config() };
    let mut store = VarStore::new(Device::Cpu);
    Eva02::new(&store.root(), &wide);
    let message = weights::load(&mut store, &golden("eva02"), NameMap::Eva02).unwrap_err().to_string();
    for part in ["visual.trunk.head.", "[20", "[24", "config.json asks for"] {
        assert!(message.contains(part), "{message}");
    }
}
