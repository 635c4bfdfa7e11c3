//! Questions about the order of small data sets, and about the demo's.

use super::*;
use crate::data::tests::{image, tar};
use clap::Parser as _;
use common::{
    ids::{Epoch, Generation, Rank, SampleIndex, Step},
    manifest::{DataCursor, FORMAT, Manifest, Part, paths},
    sampler::local_slots,
};
use serde_json::Value;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: OrderArgs,
}

const RECIPE: &str = r#"
name = "two"
seed = 5
output = "out"
[data.a]
kind = "webdataset"
shards = "a/*.tar"
index = "index"
captions = { columns = { ".txt" = 1 } }
[data.b]
kind = "webdataset"
shards = "b/*.tar"
index = "index"
captions = { columns = { ".txt" = 1 } }
[model]
text = { folder = "llama" }
vision = { folder = "vit" }
adapter = {}
[[stage]]
kind = "embed"
data = ["a", "b"]
[[stage]]
kind = "clip"
data = ["a", "b"]
global_batch = 5
epochs = 6
tail = "drop"
optimizer = { learning_rate = 1e-3 }
"#;

/// A recipe of two data sets: `a` with shards of 7 and 5 samples, `b` with one of 6.
fn fixture() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pixels = image("444.jpg");
    for (name, keys) in [("a/00.tar", 0..7), ("a/01.tar", 7..12), ("b/00.tar", 0..6)] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let files: Vec<(String, &[u8])> = keys
            .flat_map(|key| {
                [(format!("k{key:02}.jpg"), pixels.as_slice()), (format!("k{key:02}.txt"), b"words".as_slice())]
            })
            .collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, body)| (name.as_str(), *body)).collect();
        std::fs::write(path, tar(&files)).unwrap();
    }
    std::fs::write(folder.path().join("two.toml"), RECIPE).unwrap();
    folder
}

fn open(folder: &tempfile::TempDir, more: &[&str]) -> Result<Opened, OrderQuestionError> {
    let recipe = folder.path().join("two.toml").display().to_string();
    let arguments = [&["order", recipe.as_str()], more].concat();
    Opened::open(&Cli::try_parse_from(arguments).unwrap().args)
}

#[test]
fn a_batch_lists_what_training_draws_with_shard_key_and_rank() {
    let folder = fixture();
    let opened = open(&folder, &["--step", "3", "--workers", "2"]).unwrap();
    // 2 batches of `a` and 1 of `b` an epoch.
    assert_eq!(opened.steps, 6 * 3);
    for step in 0..opened.steps {
        let listing = serde_json::to_value(Listing::of(&opened, step, None).unwrap()).unwrap();
        assert_eq!(listing["first_position"], step * 5);
        let rows = listing["samples"].as_array().unwrap();
        assert_eq!(rows.len(), 5);
        for (slot, (row, draw)) in rows.iter().zip(opened.order.draws(Step(step), 0..5)).enumerate() {
            let data = &opened.datasets[draw.source];
            let local = local_slots(Rank(1), opened.workers, 5);
            assert_eq!((&row["slot"], &row["data"]), (&slot.into(), &data.name().into()));
            assert_eq!((&row["index"], &row["epoch"]), (&draw.index.0.into(), &draw.epoch.0.into()));
            assert_eq!(row["key"], data.key(draw.index).unwrap());
            assert_eq!(row["shard"], if data.name() == "a" && draw.index.0 >= 7 { "01" } else { "00" });
            assert_eq!(row["rank"], u32::from(local.contains(&(slot as u64))));
        }
    }
}

#[test]
fn a_sample_is_found_wherever_batches_list_it() {
    let folder = fixture();
    let opened = open(&folder, &["--sample", "a/k09"]).unwrap();
    let found = serde_json::to_value(Found::find(&opened, "a/k09").unwrap()).unwrap();
    for other in ["a/01/k09", "a/#9", "a/9"] {
        assert_eq!(serde_json::to_value(Found::find(&opened, other).unwrap()).unwrap(), found, "{other}");
    }
    let times: Vec<(u64, u64)> = found["samples"][0]["times"]
        .as_array()
        .unwrap()
        .iter()
        .map(|time| (time["step"].as_u64().unwrap(), time["slot"].as_u64().unwrap()))
        .collect();
    let everywhere = (0..opened.steps).flat_map(|step| (0..5).map(move |slot| (step, slot)));
    let expected: Vec<(u64, u64)> = everywhere
        .filter(|(step, slot)| {
            let draw = opened.order.draw(Step(*step), *slot);
            (draw.source, draw.index) == (0, SampleIndex(9))
        })
        .collect();
    assert_eq!(times, expected);
    // 10 of 12 samples fill batches.
    let left_out = found["samples"][0]["left_out_epochs"].as_array().unwrap();
    assert!(
        left_out.iter().all(|epoch| opened.order.find(0, SampleIndex(9), Epoch(epoch.as_u64().unwrap())).is_none())
    );
    assert!(times.len() + left_out.len() <= 6);
}

#[test]
fn a_key_in_two_data_sets_is_that_of_the_one_that_is_named() {
    let folder = fixture();
    let opened = open(&folder, &["--step", "0"]).unwrap();
    let found = serde_json::to_value(Found::find(&opened, "b/k03").unwrap()).unwrap();
    assert_eq!((&found["samples"][0]["data"], &found["samples"][0]["index"]), (&"b".into(), &3.into()));
}

#[test]
fn large_batches_fit_a_screen_and_the_slot_of_a_position_is_marked() {
    let folder = fixture();
    let opened =
        open(&folder, &["--step", "0", "--set", "stage.clip.global_batch=18", "--set", "stage.clip.mix.policy=mixed"]);
    let opened = opened.unwrap();
    let listing = Listing::of(&opened, 0, Some(13)).unwrap();
    let (short, all) = (listing.text(false), listing.text(true));
    assert_eq!((short.lines().count(), all.lines().count()), (2 + 12 + 1 + 4 + 1, 2 + 18));
    assert!(short.contains("... 1 more, --all shows them"), "{short}");
    assert!(short.lines().any(|line| line.starts_with(">  13")), "{short}");
    assert!(short.starts_with("step 0 of 6 (the log calls it 1): positions 0 to 17, 1 rank\n"), "{short}");
}

#[test]
fn what_cannot_be_answered_says_why() {
    let folder = fixture();
    let opened = open(&folder, &["--step", "0"]).unwrap();
    let sample = |wanted: &str| Found::find(&opened, wanted).unwrap_err().to_string();
    assert_eq!(sample("a/k12"), "none of the 12 usable samples of data set `a` has the key `k12`");
    assert_eq!(sample("a/#12"), "data set `a` has 12 usable samples, 0 to 11, and no number 12");
    assert_eq!(sample("c/k00"), "the stage has no data set `c`; it has: a, b");
    assert!(sample("a").starts_with("`a` names no sample: write DATASET/KEY"));
    let beyond = Listing::of(&opened, 18, None).unwrap_err().to_string();
    assert_eq!(beyond, "step 18 is beyond the end: the stage has 18 steps, 0 to 17, and 90 samples in all");
    let refused = |more: &[&str]| open(&folder, &[&["--step", "0"], more].concat()).err().unwrap().to_string();
    assert_eq!(refused(&["--stage", "eval"]), "the recipe has no stage `eval`; it has: embed, clip");
    assert!(refused(&["--stage", "embed"]).contains("not those of stage `embed`"));
    assert_eq!(refused(&["--workers", "6"]), "a global batch of 5 cannot be shared by 6 workers");
    assert!(Cli::try_parse_from(["order", "x.toml"]).is_err(), "one question is needed");
    assert!(Cli::try_parse_from(["order", "x.toml", "--step", "1", "--position", "1"]).is_err(), "and no two");
}

/// A checkpoint after `step` steps of an order, as a job with output `out` leaves one.
fn checkpoint(folder: &tempfile::TempDir, opened: &Opened, step: u64) -> std::path::PathBuf {
    let digest = |number: usize| opened.datasets[number].fingerprint();
    let part = Part {
        rank: Rank(0),
        file: paths::part_file(Rank(0), Generation(1)),
        bytes: 1,
        blake3: "00".repeat(32),
        tensors: Default::default(),
    };
    let manifest = Manifest {
        format: FORMAT,
        job: "two-1".parse().unwrap(),
        generation: Generation(1),
        step: Step(step),
        world: WorldSize(1),
        stage: "clip".to_owned(),
        recipe_fingerprint: "ab".to_owned(),
        data: DataCursor::new(opened.order.spec(), step * 5, digest),
        parts: vec![part],
    };
    let place = folder.path().join("out/clip").join(paths::step_folder(Step(step)));
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join(paths::MANIFEST_FILE), manifest.to_text()).unwrap();
    place
}

#[test]
fn weights_that_changed_on_the_way_are_taken_from_the_newest_checkpoint_or_the_one_that_is_named() {
    let folder = fixture();
    let in_out = format!("output={}", folder.path().join("out").display());
    let with = |weights: &str, more: &[&str]| {
        let weights = format!("stage.clip.mix.weights={weights}");
        open(&folder, &[&["--step", "0", "--set", &in_out, "--set", &weights], more].concat())
    };
    let batches = |opened: &Opened, steps: std::ops::Range<u64>| -> Vec<Vec<(usize, u64)>> {
        let batch = |step| opened.order.draws(Step(step), 0..5).map(|draw| (draw.source, draw.index.0)).collect();
        steps.map(batch).collect()
    };
    let old = with("{a=2,b=1}", &[]).unwrap();
    let early = checkpoint(&folder, &old, 4);
    checkpoint(&folder, &old, 7);
    // The recipe has other weights now: they hold from the newest checkpoint on.
    let new = with("{a=1,b=4}", &[]).unwrap();
    assert_eq!(new.order.spec().segments.iter().map(|segment| segment.first.0).collect::<Vec<_>>(), [0, 7]);
    assert_eq!(batches(&new, 0..7), batches(&old, 0..7));
    assert_ne!(batches(&new, 7..14), batches(&old, 7..14));
    // Its own checkpoints know both, and so does everything behind them.
    checkpoint(&folder, &new, 9);
    assert_eq!(batches(&with("{a=1,b=4}", &[]).unwrap(), 0..14), batches(&new, 0..14));
    let named = with("{a=1,b=4}", &["--checkpoint", early.to_str().unwrap()]).unwrap();
    assert_eq!(named.order.spec().segments[1].first, Step(4));
    // Another seed's are of another job: said, and passed over, unless one is named.
    let other = with("{a=1,b=4}", &["--set", "seed=6"]).unwrap();
    assert_eq!(other.order.spec().segments.len(), 1);
    let refused = |path: &str| with("{a=1,b=4}", &["--set", "seed=6", "--checkpoint", path]).err().unwrap().to_string();
    let text = refused(early.to_str().unwrap());
    assert!(text.contains("`seed` was 5") && text.contains("step-000000004"), "{text}");
    let missing = refused("nowhere/step-000000004");
    assert!(missing.starts_with("--checkpoint: ") && missing.contains("nowhere/step-000000004"), "{missing}");
}

#[test]
fn the_demos_every_sample_comes_up_as_often_as_its_batches_say() {
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/demo-quick.toml");
    let args = Cli::try_parse_from(["order", recipe, "--sample", "train/#0"]).unwrap().args;
    let opened = Opened::open(&args).unwrap();
    let found: Value = serde_json::to_value(Found::find(&opened, "train/#0").unwrap()).unwrap();
    let times = found["samples"][0]["times"].as_array().unwrap();
    assert!((20..=22).contains(&times.len()), "{times:?}");
    for time in times {
        let step = time["step"].as_u64().unwrap();
        let listing = serde_json::to_value(Listing::of(&opened, step, None).unwrap()).unwrap();
        let row = &listing["samples"][time["slot"].as_u64().unwrap() as usize];
        assert_eq!((&row["key"], &row["epoch"]), (&found["samples"][0]["key"], &time["epoch"]));
    }
}
