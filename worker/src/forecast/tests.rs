//! Forecasts of the recipes in the repository, and of a job whose figures were counted by hand.

use super::{
    given::{Given, Known, Said},
    report::Report,
    stage::{Forecast, forecast},
};
use crate::storage::{Limits, Storage};
use common::{
    ids::WorldSize,
    recipe::{Recipe, Source, parse},
};
use std::{path::Path, sync::Arc};

fn read(name: &str) -> Recipe {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    parse(Source { text: &text, file: name, folder: &folder, working_directory: &folder }, &[]).unwrap()
}

fn look(recipe: &Recipe, samples: &[(&str, u64)]) -> Given {
    let samples: Vec<(String, u64)> = samples.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    let said = Said { samples, ..Said::default() };
    Given::find(recipe, &Arc::new(Storage::from_environment(Limits::default())), &said)
}

fn all(recipe: &Recipe, given: &Given, ranks: u32) -> Vec<Forecast> {
    let each = |numbered| forecast(recipe, numbered, given, WorldSize(ranks)).unwrap();
    recipe.stages.iter().enumerate().map(each).collect()
}

fn of<'a>(forecasts: &'a [Forecast], stage: &str) -> &'a Forecast {
    forecasts.iter().find(|forecast| forecast.stage == stage).unwrap()
}

fn item(items: &[super::stage::Item], what: &str) -> u64 {
    items.iter().find(|item| item.what == what).unwrap_or_else(|| panic!("{what} is not in {items:?}")).bytes
}

#[test]
fn the_papers_recipes_can_be_forecast_before_anything_was_downloaded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = names.filter(|name| name.starts_with("llm2clip-p")).collect();
    assert_eq!(names.len(), 9);
    for name in names {
        let recipe = read(&name);
        let sets = recipe.data.keys().chain(recipe.text.keys());
        let said: Vec<(&str, u64)> = sets.map(|set| (set.as_str(), 1_000_000)).collect();
        let given = look(&recipe, &said);
        assert_eq!(given.llm.as_ref().unwrap().known, Known::Published, "{name}");
        assert_eq!(given.vision.as_ref().unwrap().known, Known::Published, "{name}");
        // The models are not here, and nothing else is missing.
        let models = 2 + usize::from(recipe.model.teacher.is_some());
        assert_eq!(given.missing.len(), models, "{:?}", given.missing);
        let forecasts = all(&recipe, &given, 8);
        for forecast in &forecasts {
            assert!(forecast.stage == "export" || forecast.samples.is_some(), "{name} {forecast:?}");
            assert!(!forecast.memory.is_empty() || forecast.stage == "export", "{name} {forecast:?}");
            let sum: u64 = forecast.memory.iter().map(|item| item.bytes).sum();
            assert!(sum < 80 << 30, "{name}: {} would not fit its hardware: {:?}", forecast.stage, forecast.memory);
        }
        let text = Report::new(&recipe, WorldSize(8), &given, forecasts).text();
        assert!(text.contains("stage clip: ") && text.contains("sent a rank and step"), "{text}");
    }
}

#[test]
fn a_step_of_the_papers_batch_sends_and_keeps_what_was_counted_by_hand() {
    let recipe = read("llm2clip-paper-v6-15m-eva02-l-14-336.toml");
    let said: Vec<(&str, u64)> =
        recipe.data.keys().chain(recipe.text.keys()).map(|set| (set.as_str(), 1_000_000)).collect();
    let given = look(&recipe, &said);
    let forecasts = all(&recipe, &given, 8);
    let clip = of(&forecasts, "clip");
    assert_eq!((clip.global_batch, clip.rank_batch), (Some(4096), Some(512)));
    // Research code: 304.96 M of the tower, 273.77 M of the adapter, one scale.
    let trained: u64 = 304_963_072 + 273_769_728 + 1;
    let found = item(&clip.memory, "trained weights") / 4;
    assert!(found.abs_diff(trained) < 300_000, "{found}");
    assert_eq!(item(&clip.memory, "moments"), found.div_ceil(8) * 8, "a share of an eighth");
    // Two towers of 4096 rows of 1280 bf16 numbers are 20 MiB; seven eighths of them are sent.
    assert_eq!(item(&clip.sent_per_step, "embeddings"), (20 << 20) * 7 / 8);
    assert_eq!(item(&clip.sent_per_step, "gradients"), 8 * found - (8 * found).div_ceil(8));
    let contrast = of(&forecasts, "contrast");
    // LoRA of rank 16 on seven layers of an 8B: 41.94 M.
    assert_eq!(item(&contrast.memory, "trained weights") / 4, 41_943_040);
    assert_eq!(item(&contrast.storage, "adapter") / 4, 41_943_040);
}

#[test]
fn what_is_locked_has_no_gradients_and_low_rank_updates_stand_for_the_tower() {
    let of_settings = |settings: &[&str]| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let text = std::fs::read_to_string(folder.join("demo-quick.toml")).unwrap();
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let source = Source { text: &text, file: "demo-quick.toml", folder: &folder, working_directory: &folder };
        let recipe = parse(source, &settings).unwrap();
        let given = look(&recipe, &[("train", 3_335), ("val", 320)]);
        of(&all(&recipe, &given, 1), "clip").clone()
    };
    let whole = of_settings(&[]);
    let trained = |forecast: &Forecast| item(&forecast.memory, "trained weights") / 4;
    let locked = of_settings(&["stage.clip.lock={ vision = true }"]);
    assert_eq!(trained(&whole) - trained(&locked), item(&locked.memory, "frozen weights") / 4);
    assert!(item(&locked.memory, "activations of a chunk") * 10 < item(&whole.memory, "activations of a chunk"));
    let updated = of_settings(&["stage.clip.lora={ rank = 4 }", "stage.clip.ema={}"]);
    assert!(trained(&updated) < trained(&whole) && item(&updated.memory, "frozen weights") > 0);
    assert_eq!(item(&updated.memory, "the average"), 4 * trained(&updated));
    assert!(
        updated.flop < whole.flop && locked.flop < updated.flop,
        "{:?} {:?} {:?}",
        whole.flop,
        updated.flop,
        locked.flop
    );
}

#[test]
fn the_demo_is_forecast_from_its_data() {
    let recipe = read("demo-quick.toml");
    let given = look(&recipe, &[]);
    assert_eq!(given.missing, Vec::<String>::new());
    assert_eq!((given.sets["train"].samples, given.sets["train"].tokens_known), (Some(3_335), Known::Here));
    let clip = all(&recipe, &given, 2);
    let clip = of(&clip, "clip");
    assert_eq!((clip.samples, clip.steps, clip.rank_batch), (Some(3_335), Some(22 * (3_335 / 128)), Some(64)));
    assert!(
        matches!(forecast(&recipe, (1, &recipe.stages[1]), &given, WorldSize(129)), Err(error) if error.to_string().contains("129 ranks"))
    );
}
