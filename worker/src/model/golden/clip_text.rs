//! CLIP's text tower against Hugging Face's and open_clip's: `tests/golden/model/make_clip_text.py`.

use super::{Case, golden, near, norm};
use crate::model::{
    clip_text::{ClipText, ClipTextConfig},
    config,
    vit::Activation,
    weights::{self, NameMap},
};
use std::{collections::HashMap, fs};
use tch::{Device, Tensor, nn};

fn tower(folder: &str, change: impl FnOnce(&mut ClipTextConfig)) -> (nn::VarStore, ClipText) {
    let mut config: ClipTextConfig = config::read(&golden(folder)).unwrap();
    change(&mut config);
    let mut store = nn::VarStore::new(Device::Cpu);
    let tower = ClipText::new(&store.root(), &config);
    weights::load(&mut store, &golden(folder), NameMap::ClipText).unwrap();
    (store, tower)
}

fn features(tower: &ClipText, case: &Case) -> Tensor {
    let rows: Vec<Vec<i64>> = Vec::try_from(case.get("ids")).unwrap();
    let rows: Vec<Vec<u32>> = rows.into_iter().map(|row| row.into_iter().map(|id| id as u32).collect()).collect();
    tower.forward(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn check(name: &str, change: impl FnOnce(&mut ClipTextConfig)) {
    let (mut store, tower) = tower("clip-text", change);
    let case = Case::open(&format!("{name}.safetensors"));
    case.check(&store, &features(&tower, &case), "");
    let errors: HashMap<String, HashMap<String, f64>> =
        serde_json::from_str(&fs::read_to_string(golden("bf16-errors.json")).unwrap()).unwrap();
    store.freeze();
    store.bfloat16();
    let found = features(&tower, &case).to_kind(tch::Kind::Double) - case.get("output");
    let (off, allowed) = (norm(&found) / norm(&case.get("output")), errors[name]["output"]);
    println!("{name} in bf16: output off by {off:.2e}, the reference by {allowed:.2e}");
    assert!(off <= 2.0 * allowed && off > 1e-4, "off by {off}, the reference by {allowed}");
}

#[test]
fn clip_text_with_quick_gelu_and_an_end_that_is_looked_up_equals_hugging_face() {
    check("clip-text-quick-gelu", |_| ());
}

#[test]
fn clip_text_with_gelu_and_the_highest_id_as_its_end_equals_hugging_face() {
    check("clip-text-gelu", |config| (config.hidden_act, config.eos_token_id) = (Activation::Gelu, 2));
}

#[test]
fn a_whole_clip_of_hugging_face_and_one_of_open_clip_give_their_text_towers() {
    let case = Case::open("clip-text-quick-gelu.safetensors");
    let off = near("whole", &features(&tower("clip-text-whole", |_| ()).1, &case), &case.get("output"), 0.0);
    let case = Case::open("clip-text-open.safetensors");
    let open = near("open_clip", &features(&tower("clip-text-open", |_| ()).1, &case), &case.get("output"), 0.0);
    println!("off by {off:.1e} and {open:.1e}");
}
