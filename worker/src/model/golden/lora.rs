//! LoRA against PEFT: outputs, every gradient, merging, folders in both directions, and what is said about a wrong one.

use super::*;
use crate::model::{
    lora::{Lora, LoraConfig, Wrapper, merge},
    vision::VisionConfig,
};
use std::collections::BTreeMap;

fn causal() -> (nn::VarStore, Llama) {
    let (mut store, llama) = body(Attention::Causal);
    store.freeze();
    (store, llama)
}

fn clip() -> (nn::VarStore, ClipVision) {
    let config: ClipVisionConfig = config::read(&golden("vit")).unwrap();
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = ClipVision::new(&store.root(), &config);
    weights::load(&mut store, &golden("vit"), NameMap::ClipVision).unwrap();
    store.freeze();
    (store, tower)
}

/// PEFT's names of parameters as ours.
fn renamed(theirs: &str) -> String {
    let module = theirs.strip_prefix("base_model.model.").unwrap();
    module.strip_prefix("model.").unwrap_or(module).replace(".default.", ".")
}

fn case(name: &str) -> Case {
    Case::open(&format!("{name}.safetensors")).renamed(renamed)
}

fn reset(lora: &Lora) {
    lora.store().variables().into_values().for_each(|mut variable| variable.zero_grad());
}

/// Addresses of the base's numbers: the same as long as nothing was copied.
fn places(store: &nn::VarStore) -> BTreeMap<String, usize> {
    store.variables().into_iter().map(|(name, variable)| (name, variable.data_ptr() as usize)).collect()
}

#[test]
fn a_llama_with_a_lora_equals_peft_and_its_base_is_shared_and_frozen() {
    let (store, mut llama) = causal();
    let before = places(&store);
    let lora = Lora::read(&mut llama, &golden("lora-llama")).unwrap();
    let case = case("lora-llama");
    case.check(lora.store(), &packed(&llama, &case), "");
    assert!(store.variables().values().all(|variable| !variable.grad().defined() && !variable.requires_grad()));
    assert_eq!(places(&store), before);
    reset(&lora);
    llama.compute_in(Kind::BFloat16);
    case.check_bf16("lora-llama", lora.store(), &packed(&llama, &case), "");
}

#[test]
fn a_second_lora_with_the_language_models_prefix_on_the_merged_first_equals_peft() {
    let (_store, mut llama) = causal();
    let first = Lora::read(&mut llama, &golden("lora-llama")).unwrap();
    merge(&mut llama);
    let of_first = case("lora-llama");
    near("merged", &packed(&llama, &of_first), &of_first.get("output"), 0.0);
    drop(first);
    let second = Lora::read(&mut llama, &golden("lora-llama-lm")).unwrap();
    let case = case("lora-llama-lm");
    case.check(second.store(), &packed(&llama, &case), "");
    merge(&mut llama);
    let merged = Case::open("lora-llama-merged.safetensors");
    near("merged twice", &packed(&llama, &merged), &merged.get("output"), 0.0);
}

#[test]
fn two_loras_beside_each_other_are_the_sum_of_their_updates() {
    let (_one, mut together) = causal();
    let (_two, mut merged) = causal();
    for folder in ["lora-llama", "lora-llama-lm"] {
        Lora::read(&mut together, &golden(folder)).unwrap();
        Lora::read(&mut merged, &golden(folder)).unwrap();
        merge(&mut merged);
    }
    let case = case("lora-llama");
    near("together", &packed(&together, &case), &packed(&merged, &case), 0.0);
}

#[test]
fn a_clip_tower_with_a_lora_equals_peft_with_and_without_recomputation() {
    let (_store, mut tower) = clip();
    let lora = Lora::read(&mut tower, &golden("lora-vit")).unwrap();
    let case = case("lora-vit");
    for recompute in [false, true] {
        tower.recompute_blocks(recompute);
        case.check(lora.store(), &tower.forward(&case.get("pixels")), "");
        reset(&lora);
    }
    case.check_bf16("lora-vit", lora.store(), &tower.forward(&case.get("pixels").to_kind(Kind::BFloat16)), "");
}

#[test]
fn a_written_folder_holds_what_peft_wrote() {
    for (name, wrapper) in [("lora-llama", Wrapper::Body), ("lora-llama-lm", Wrapper::LanguageModel)] {
        let (_store, mut llama) = causal();
        let lora = Lora::read(&mut llama, &golden(name)).unwrap();
        let temporary = tempfile::tempdir().unwrap();
        // `check_peft.py` loads these with PEFT.
        let kept = std::env::var_os("LLM2CLIP_PEFT_FOLDER").map(|folder| PathBuf::from(folder).join(name));
        let folder = kept.unwrap_or_else(|| temporary.path().to_owned());
        lora.write(&folder, wrapper, "llm2clip/tiny").unwrap();
        let tensors = |folder: &Path| -> BTreeMap<String, Tensor> {
            Tensor::read_safetensors(folder.join("adapter_model.safetensors")).unwrap().into_iter().collect()
        };
        let (ours, theirs) = (tensors(&folder), tensors(&golden(name)));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
        assert!(ours.iter().all(|(key, tensor)| tensor.equal(&theirs[key])));
        let settings = |folder: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
        };
        let (ours, theirs) = (settings(&folder), settings(&golden(name)));
        for (key, value) in ours.as_object().unwrap() {
            let same = value == &theirs[key] || value.as_f64().is_some() && value.as_f64() == theirs[key].as_f64();
            assert!(same, "{key}: {value} and {}", theirs[key]);
        }
    }
}

fn settings(targets: &[&str]) -> LoraConfig {
    let target_modules = targets.iter().map(|target| (*target).to_owned()).collect();
    LoraConfig { rank: 4, alpha: 8.0, dropout: 0.5, target_modules, rank_stabilised: false }
}

#[test]
fn a_fresh_lora_changes_nothing_and_drops_inputs_only_in_training() {
    let (_store, mut llama) = causal();
    let case = case("lora-llama");
    let plain = packed(&llama, &case);
    let lora = Lora::new(&mut llama, &settings(&["q_proj", "layers.1.mlp.up_proj"]), 3).unwrap();
    assert_eq!(
        lora.store().variables().len(),
        2 * (2 + 1),
        "a whole path is one layer, the end of one is every layer's"
    );
    assert!(plain.equal(&packed(&llama, &case)));
    for mut variable in lora.store().variables().into_values() {
        tch::no_grad(|| _ = variable.fill_(0.1));
    }
    assert!(packed(&llama, &case).equal(&packed(&llama, &case)));
    lora.train(true);
    assert!(!packed(&llama, &case).equal(&packed(&llama, &case)));
}

#[test]
fn recomputation_never_drops_other_inputs_in_the_backward_pass() {
    let (_store, mut tower) = clip();
    let lora = Lora::new(&mut tower, &settings(&["q_proj", "fc1", "fc2"]), 5).unwrap();
    for mut variable in lora.store().variables().into_values() {
        tch::no_grad(|| variable.copy_(&variable.randn_like()));
    }
    lora.train(true);
    let case = case("lora-vit");
    let mut gradients = |recompute| {
        reset(&lora);
        tower.recompute_blocks(recompute);
        tch::manual_seed(9);
        (tower.forward(&case.get("pixels")) * case.get("probe")).sum(Kind::Float).backward();
        let variables: BTreeMap<String, Tensor> = lora.store().variables().into_iter().collect();
        Tensor::cat(&variables.values().map(|variable| variable.grad().flatten(0, -1)).collect::<Vec<_>>(), 0)
    };
    let plain = gradients(false);
    assert!(plain.equal(&gradients(true)));
}

#[test]
fn a_lora_of_another_model_is_refused_and_leaves_no_update() {
    let (_store, mut tower) = clip();
    let case = Case::open("vit-quick-gelu.safetensors");
    let message = Lora::read(&mut tower, &golden("lora-llama")).unwrap_err().to_string();
    assert!(message.contains("o_proj") && message.contains("does not have"), "{message}");
    assert!(message.contains("lora-llama") && message.contains("trained on this model"), "{message}");

    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("lora-vit").join(file), folder.path().join(file)).unwrap();
    }
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    write(&text.replace("\"out_proj\"", "\"fc1\""));
    let message = Lora::read(&mut tower, folder.path()).unwrap_err().to_string();
    for part in ["4 missing: vision_model.encoder.layers.0.mlp.fc1.lora_A.weight", "4 unexpected", "out_proj"] {
        assert!(message.contains(part), "{message}");
    }
    write(&text.replace("\"r\": 4", "\"r\": 5"));
    let message = Lora::read(&mut tower, folder.path()).unwrap_err().to_string();
    assert!(message.contains("has shape [") && message.contains("this model needs ["), "{message}");
    for (from, to, part) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora is true"),
        ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "IA3"),
        ("\"r\": 4", "\"r\": 0", "rank r is 0"),
    ] {
        write(&text.replace(from, to));
        let message = Lora::read(&mut tower, folder.path()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    near("output", &tower.forward(&case.get("pixels")), &case.get("output"), 0.0);
}

#[test]
fn settings_that_name_no_layer_are_refused() {
    let (_store, mut llama) = causal();
    let message = Lora::new(&mut llama, &settings(&["q_proj", "query"]), 0).unwrap_err().to_string();
    assert!(message.contains("query, which this model does not have"), "{message}");
}

/// timm's names, packed as PEFT packs them, as ours.
fn of_eva02(theirs: &str) -> String {
    let inside = renamed(theirs);
    let pairs = [("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3")];
    pairs.iter().fold(format!("visual.{inside}"), |name, (from, to)| name.replace(from, to))
}

/// From names of PEFT's to ours.
type Rename = fn(&str) -> String;

/// A tower of a folder with the LoRA of a case, whose numbers are the case's `weight.NAME`.
fn adapted(folder: &str, name: &str, rename: Rename) -> (nn::VarStore, Box<dyn VisionTower>, Lora, Case) {
    let config = VisionConfig::read(&golden(folder)).unwrap();
    let mut store = nn::VarStore::new(Device::Cpu);
    let mut tower = config.build(&store.root());
    weights::load(&mut store, &golden(folder), config.names()).unwrap();
    store.freeze();
    let case = Case::open(&format!("{name}.safetensors")).renamed(rename);
    let theirs = |key: &String| Some(rename(key.strip_prefix("weight.")?));
    let numbers: BTreeMap<String, &Tensor> = case.0.iter().filter_map(|(key, t)| Some((theirs(key)?, t))).collect();
    let ends = |name: &String| name.split(".lora_").next().unwrap().rsplit('.').next().unwrap().to_owned();
    let targets: std::collections::BTreeSet<String> = numbers.keys().map(ends).collect();
    let settings = settings(&targets.iter().map(String::as_str).collect::<Vec<_>>());
    let lora = Lora::new(tower.as_mut(), &settings, 1).unwrap();
    let variables = lora.store().variables();
    assert_eq!(variables.keys().collect::<std::collections::BTreeSet<_>>(), numbers.keys().collect());
    for (name, mut variable) in variables {
        tch::no_grad(|| variable.copy_(numbers[&name]));
    }
    (store, tower, lora, case)
}

#[test]
fn eva02_and_siglip_towers_with_a_lora_equal_peft_with_recomputation_and_merged() {
    let cases: [(&str, &str, Rename); 2] = [("eva02", "lora-eva02", of_eva02), ("siglip", "lora-siglip", renamed)];
    for (folder, name, rename) in cases {
        let (store, mut tower, lora, case) = adapted(folder, name, rename);
        for recompute in [false, true] {
            tower.recompute_blocks(recompute);
            case.check(lora.store(), &tower.forward(&case.get("pixels")), "");
            reset(&lora);
        }
        assert!(store.variables().values().all(|variable| !variable.grad().defined()));
        case.check_bf16(name, lora.store(), &tower.forward(&case.get("pixels").to_kind(Kind::BFloat16)), "");
        merge(tower.as_mut());
        near("merged", &tower.forward(&case.get("pixels")), &case.get("output"), 0.0);
    }
}
