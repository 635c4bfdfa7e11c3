//! SigLIP against Hugging Face and timm, with either activation and either library's names.

use super::*;
use crate::model::siglip::{Gelu, Siglip, SiglipConfig};

fn tower(folder: &str, activation: Gelu) -> (nn::VarStore, Siglip) {
    let mut config: SiglipConfig = config::read(&golden(folder)).unwrap();
    config.hidden_act = activation;
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = Siglip::new(&store.root(), &config);
    weights::load(&mut store, &golden(folder), NameMap::Siglip).unwrap();
    (store, tower)
}

#[test]
fn siglip_equals_hugging_face_with_either_activation_and_with_recomputation() {
    for (name, activation) in [("siglip-gelu", Gelu::Exact), ("siglip-gelu-tanh", Gelu::Tanh)] {
        let (store, mut tower) = tower("siglip", activation);
        let case = Case::open(&format!("{name}.safetensors")).renamed(str::to_owned);
        for recompute in [false, true] {
            tower.recompute_blocks(recompute);
            case.check(&store, &tower.forward(&case.get("pixels")), "");
            store.variables().into_values().for_each(|mut variable| variable.zero_grad());
        }
        case.check_bf16(name, &store, &tower.forward(&case.get("pixels").to_kind(Kind::BFloat16)), "");
    }
}

#[test]
fn the_wrong_activation_shows() {
    let (_store, tower) = tower("siglip", Gelu::Tanh);
    let case = Case::open("siglip-gelu.safetensors");
    let off = norm(&(tower.forward(&case.get("pixels")) - case.get("output"))) / norm(&case.get("output"));
    assert!(off > 2e-5, "{off}");
}

#[test]
fn timms_names_and_packed_matrices_give_timms_output() {
    let (_store, tower) = tower("siglip-timm", Gelu::Exact);
    let case = Case::open("siglip-timm.safetensors");
    near("output", &tower.forward(&case.get("pixels")), &case.get("output"), 0.0);
}

#[test]
fn of_few_patches_only_those_matter() {
    let (_store, tower) = tower("siglip", Gelu::Exact);
    let pixels = Case::open("siglip-gelu.safetensors").get("pixels");
    let all = Tensor::arange(9, (Kind::Int64, Device::Cpu)).flip([0]).expand([3, 9], false);
    near("all", &tower.forward_kept(&pixels, Some(&all)), &tower.forward(&pixels), 0.0);
    let kept = Tensor::from_slice(&[0i64, 1, 8]).expand([3, 3], false);
    let of_kept = tower.forward_kept(&pixels, Some(&kept));
    let other = pixels.copy();
    let _ = other.narrow(2, 8, 8).fill_(7.0);
    near("unseen", &tower.forward_kept(&other, Some(&kept)), &of_kept, 0.0);
}
