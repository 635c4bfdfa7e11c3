//! Outputs and every gradient against Hugging Face's implementations: `tests/golden/model/make_golden.py` made the
//! references.

use super::{
    adapter::{Adapter, AdapterConfig},
    config,
    llama::{Llama, LlamaConfig},
    vision::VisionTower,
    vit::{Activation, ClipVision, ClipVisionConfig},
    weights::{self, NameMap},
};
use common::recipe::Attention;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor, nn};

mod clip_text;
mod eva02;
mod lora;
mod siglip;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model").join(name)
}

struct Case(HashMap<String, Tensor>);

impl Case {
    fn open(name: &str) -> Self {
        Case(Tensor::read_safetensors(golden(name)).unwrap().into_iter().collect())
    }

    /// With the reference's names of gradients made ours.
    fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        let ours = |(name, tensor): (String, Tensor)| match name.strip_prefix("grad.") {
            Some(theirs) => (format!("grad.{}", rename(theirs)), tensor),
            None => (name, tensor),
        };
        Case(self.0.into_iter().map(ours).collect())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].shallow_clone()
    }

    /// Compares the output, then every gradient of sum(output · probe); `prefix` is what our names have before theirs.
    fn check(&self, store: &nn::VarStore, output: &Tensor, prefix: &str) {
        let off = near("output", output, &self.get("output"), 0.0);
        (output * self.get("probe")).sum(Kind::Float).backward();
        let variables = store.variables();
        let gradients = self.0.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor)));
        let (mut checked, mut worst) = (0, 0f64);
        for (name, expected) in gradients {
            let gradient = variables[&format!("{prefix}{name}")].grad();
            // A constant added to every key changes no softmax: this gradient is exactly zero, and what fp32 leaves of
            // it is held against the weight's.
            let scale = match name.strip_suffix("k_proj.bias") {
                Some(layer) => norm(&self.get(&format!("grad.{layer}k_proj.weight"))),
                None => 0.0,
            };
            worst = worst.max(near(name, &gradient, expected, scale));
            checked += 1;
        }
        assert_eq!(checked, variables.len(), "every parameter has a reference gradient");
        println!("fp32: output off by {off:.1e}, the worst of {checked} gradients by {worst:.1e}");
    }
}

/// In bf16 nothing is equal. Both are compared with the exact values: we may be off by twice what the reference is off when
/// it computes in bf16.
#[derive(serde::Deserialize)]
struct Bf16Error {
    output: f64,
    gradients: f64,
}

impl Case {
    /// Holds a bf16 output and its gradients against the errors of the reference's own bf16 run of the case `name`.
    fn check_bf16(&self, name: &str, store: &nn::VarStore, output: &Tensor, prefix: &str) {
        assert_eq!(output.kind(), Kind::BFloat16);
        let text = std::fs::read_to_string(golden("bf16-errors.json")).unwrap();
        let allowed: HashMap<String, Bf16Error> = serde_json::from_str(&text).unwrap();
        let allowed = &allowed[name];
        let off = |found: &Tensor, exact: &Tensor| norm(&(found.to_kind(Kind::Double) - exact)) / norm(exact);
        let found = off(output, &self.get("output"));
        assert!(found <= 2.0 * allowed.output, "output: off by {found}, the reference by {}", allowed.output);
        assert!(found > 1e-4, "so near is no bf16");
        println!("{name} in bf16: output off by {found:.2e}, the reference by {:.2e}", allowed.output);

        (output.to_kind(Kind::Float) * self.get("probe")).sum(Kind::Float).backward();
        let mut variables: Vec<(String, Tensor)> = store.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        let exact = |name: &str| self.get(&format!("grad.{}", name.strip_prefix(prefix).unwrap())).flatten(0, -1);
        let cat = |parts: Vec<Tensor>| Tensor::cat(&parts, 0);
        let found = cat(variables.iter().map(|(_, variable)| variable.grad().flatten(0, -1)).collect());
        assert_eq!(found.kind(), Kind::Float, "gradients of fp32 master weights are fp32");
        let found = off(&found, &cat(variables.iter().map(|(name, _)| exact(name)).collect()));
        println!("{name} in bf16: gradients off by {found:.2e}, the reference by {:.2e}", allowed.gradients);
        assert!(found <= 2.0 * allowed.gradients, "gradients: off by {found}, the reference by {}", allowed.gradients);
    }
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).norm().double_value(&[])
}

/// Returns by how much of its norm it is off.
fn near(name: &str, found: &Tensor, expected: &Tensor, scale: f64) -> f64 {
    assert_eq!(found.size(), expected.size(), "{name}");
    let off = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double))) / norm(expected).max(scale);
    assert!(off <= 1e-5, "{name}: off by {off:.2e} of its norm");
    off
}

fn vision(name: &str, activation: Activation) {
    let mut config: ClipVisionConfig = config::read(&golden("vit")).unwrap();
    config.hidden_act = activation;
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = ClipVision::new(&store.root(), &config);
    weights::load(&mut store, &golden("vit"), NameMap::ClipVision).unwrap();
    let case = Case::open(&format!("{name}.safetensors"));
    case.check(&store, &tower.forward(&case.get("pixels")), "");
    store.variables().into_values().for_each(|mut variable| variable.zero_grad());
    case.check_bf16(name, &store, &tower.forward(&case.get("pixels").to_kind(Kind::BFloat16)), "");
}

#[test]
fn all_patches_kept_are_all_patches_and_of_few_only_those_matter() {
    let config: ClipVisionConfig = config::read(&golden("vit")).unwrap();
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = ClipVision::new(&store.root(), &config);
    weights::load(&mut store, &golden("vit"), NameMap::ClipVision).unwrap();
    let pixels = Case::open("vit-quick-gelu.safetensors").get("pixels");
    let all = Tensor::arange(9, (Kind::Int64, Device::Cpu)).expand([3, 9], false);
    near("all", &tower.forward_kept(&pixels, Some(&all)), &tower.forward(&pixels), 0.0);
    // Patch 1 is the second of the first row: columns 8 to 16 of rows 0 to 8.
    let kept = Tensor::from_slice(&[0i64, 1, 8, 0, 1, 8, 0, 1, 8]).view([3, 3]);
    let of_kept = tower.forward_kept(&pixels, Some(&kept));
    let other = pixels.copy();
    let _ = other.narrow(2, 8, 8).fill_(7.0);
    near("unseen", &tower.forward_kept(&other, Some(&kept)), &of_kept, 0.0);
    let _ = other.narrow(2, 0, 8).narrow(3, 8, 8).fill_(7.0);
    let seen = norm(&(tower.forward_kept(&other, Some(&kept)) - &of_kept)) / norm(&of_kept);
    assert!(seen > 1e-3, "a patch that is kept matters");
}

#[test]
fn clip_vision_with_quick_gelu_equals_hugging_face() {
    vision("vit-quick-gelu", Activation::QuickGelu);
}

#[test]
fn clip_vision_with_gelu_equals_hugging_face() {
    vision("vit-gelu", Activation::Gelu);
}

#[test]
fn openais_names_and_packed_matrices_in_a_file_of_torch_give_the_same_tower() {
    let config: ClipVisionConfig = config::read(&golden("clip-openai")).unwrap();
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = ClipVision::new(&store.root(), &config);
    weights::load(&mut store, &golden("clip-openai"), NameMap::ClipVision).unwrap();
    let case = Case::open("vit-quick-gelu.safetensors");
    near("output", &tower.forward(&case.get("pixels")), &case.get("output"), 0.0);
}

fn body(attention: Attention) -> (nn::VarStore, Llama) {
    body_of("llama", attention)
}

fn body_of(folder: &str, attention: Attention) -> (nn::VarStore, Llama) {
    let config: LlamaConfig = config::read(&golden(folder)).unwrap();
    let mut store = nn::VarStore::new(Device::Cpu);
    let llama = Llama::new(&store.root(), &config, attention);
    weights::load(&mut store, &golden(folder), NameMap::Llama).unwrap();
    (store, llama)
}

/// The reference pads on the left; here texts are packed. Both as [B, L, D] with zeros at padding.
fn packed(llama: &Llama, case: &Case) -> Tensor {
    let (ids_BL, keep_BL) = (case.get("ids"), case.get("keep"));
    let lengths: Vec<i64> = Vec::try_from(keep_BL.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)).unwrap();
    let hidden_TD = llama.forward(&ids_BL.masked_select(&keep_BL), &lengths);
    let (shape, width) = (ids_BL.size(), hidden_TD.size()[1]);
    let zeros = Tensor::zeros([shape[0], shape[1], width], (hidden_TD.kind(), Device::Cpu));
    zeros.masked_scatter(&keep_BL.unsqueeze(-1), &hidden_TD)
}

fn llama(name: &str, attention: Attention) {
    llama_of("llama", name, attention);
}

fn llama_of(folder: &str, name: &str, attention: Attention) {
    let (store, mut llama) = body_of(folder, attention);
    let case = Case::open(&format!("{name}.safetensors"));
    case.check(&store, &packed(&llama, &case), "");
    store.variables().into_values().for_each(|mut variable| variable.zero_grad());
    llama.compute_in(Kind::BFloat16);
    case.check_bf16(name, &store, &packed(&llama, &case), "");
}

#[test]
fn causal_llama_equals_hugging_face() {
    llama("llama-causal", Attention::Causal);
}

#[test]
fn bidirectional_llama_equals_hugging_face() {
    llama("llama-bidirectional", Attention::Bidirectional);
}

#[test]
fn a_language_model_with_a_tied_head_in_shards_gives_the_same_body() {
    llama_of("llama-sharded", "llama-causal", Attention::Causal);
}

#[test]
fn qwen2_equals_hugging_face() {
    llama_of("qwen2", "qwen2", Attention::Causal);
}

#[test]
fn what_stands_beside_a_text_changes_none_of_its_vectors() {
    for attention in [Attention::Causal, Attention::Bidirectional] {
        let (_store, llama) = body(attention);
        let ids = Tensor::from_slice(&[3i64, 14, 15, 9]);
        let alone = llama.forward(&ids, &[4]);
        let others = Tensor::from_slice(&[7i64, 1, 8, 2, 8, 1]);
        let beside = llama.forward(&Tensor::cat(&[&others, &ids, &others], 0), &[2, 4, 4, 4, 2]);
        near("hidden", &beside.narrow(0, 6, 4), &alone, 0.0);
    }
}

#[test]
fn the_adapter_equals_its_definition() {
    let config = AdapterConfig { input: 24, output: 20, blocks: 4, expansion: 2, l2_norm: true };
    let store = nn::VarStore::new(Device::Cpu);
    let adapter = Adapter::new(&store.root(), &config);
    let case = Case::open("adapter.safetensors");
    for (name, mut variable) in store.variables() {
        let weight = case.get(&name.replace("adapter.", "weight."));
        tch::no_grad(|| variable.copy_(&weight));
    }
    case.check(&store, &adapter.forward(&case.get("vectors")), "adapter.");
    store.variables().into_values().for_each(|mut variable| variable.zero_grad());
    let vectors = case.get("vectors").to_kind(Kind::BFloat16);
    case.check_bf16("adapter", &store, &adapter.forward(&vectors), "adapter.");
}
