//! The LLM is tuned as anything is trained: killed, it goes on with the same losses in every bit; the number of workers changes
//! nothing; what it leaves is read by the stages after it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, path::Path};
use tests::{Job, Recipe, losses, tuning};

/// Dropout is on, blocks are computed twice, chunks are smaller than a rank's share, and the tail is carried.
fn recipe() -> Recipe {
    let both = "schedule = { warmup_steps = 2 }\ncheckpoint = { every_steps = 3, keep = 2 }\n";
    let contrast = "activation_checkpointing = true\nlora = { rank = 4, alpha = 8, dropout = 0.1 }\n";
    let tuning = tuning(8, &format!("{both}tail = \"carry\""), &format!("{both}{contrast}"));
    Recipe { steps: 3, tuning, ..Recipe::default() }
}

const STAGES: [&str; 3] = ["mntp", "contrast", "clip"];

fn all_losses(job: &Job) -> BTreeMap<&'static str, BTreeMap<u64, f64>> {
    STAGES.map(|stage| (stage, losses(&job.steps_of(stage)))).into()
}

fn bytes(job: &Job, file: &str) -> Vec<u8> {
    std::fs::read(job.output().join(file)).unwrap()
}

#[test]
fn killed_in_either_stage_it_resumes_bitwise_and_leaves_the_same_weights() {
    let (job, undisturbed) = (Job::new(&recipe()), Job::new(&recipe()));
    let recipe = job.recipe().to_str().unwrap().to_owned();
    let mut run = job.command(&["run", &recipe, "--workers", "2"]);
    let ended = run.env("LLM2CLIP_FAILPOINTS", "mntp.step=kill@5").output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    let output = job.output().to_str().unwrap().to_owned();
    let mut resume = job.command(&["resume", &output]);
    let ended = resume.env("LLM2CLIP_FAILPOINTS", "contrast.step=kill@6").output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    let (code, text) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");

    undisturbed.run(2);
    let (found, expected) = (all_losses(&job), all_losses(&undisturbed));
    assert_eq!(expected.values().map(BTreeMap::len).collect::<Vec<_>>(), [3, 8, 8]);
    assert_eq!(found, expected);
    for file in ["mntp/model/model.safetensors", "contrast/adapter/adapter_model.safetensors"] {
        assert_eq!(bytes(&job, file), bytes(&undisturbed, file), "{file}");
    }
    for file in ["mntp/model/config.json", "mntp/model/tokenizer.json", "contrast/adapter/adapter_config.json"] {
        assert!(undisturbed.output().join(file).exists(), "{file}");
    }
    // The second stage builds on what the first one left, and the text vectors on both.
    let config = String::from_utf8(bytes(&undisturbed, "contrast/adapter/adapter_config.json")).unwrap();
    assert!(config.contains("output/mntp/model"), "{config}");
}

#[test]
fn one_worker_and_two_give_the_same_losses() {
    let (one, two) = (Job::new(&recipe()), Job::new(&recipe()));
    one.run(1);
    two.run(2);
    let (one, two) = (all_losses(&one), all_losses(&two));
    for (stage, losses) in &one {
        for (step, loss) in losses {
            let other = two[stage][step];
            let apart = (loss - other).abs();
            assert!(apart <= 1e-4 * loss.abs(), "{stage}, step {step}: {loss} with one worker, {other} with two");
        }
    }
}

#[test]
fn shares_that_cut_chunks_drop_what_whole_chunks_drop() {
    // 23 by two are 12 and 11: chunks of 8 and of 16 are cut; in `clip`, 50 by three are 17, 17 and 16.
    let cut = |recipe: Recipe| {
        let tuning = recipe.tuning.replace("global_batch = 16", "global_batch = 23").replace("chunk = 4", "chunk = 8");
        let tuning = tuning.replacen("steps = 8", "steps = 8\nlora = { rank = 4, dropout = 0.2 }", 1);
        Recipe { tuning, global_batch: 50, clip: "lora = { rank = 4, dropout = 0.2 }".to_owned(), ..recipe }
    };
    let jobs = [1, 2, 3].map(|workers| {
        let job = Job::new(&cut(recipe()));
        job.run(workers);
        all_losses(&job)
    });
    let mut worst: f64 = 0.0;
    for other in &jobs[1..] {
        for (stage, losses) in &jobs[0] {
            for (step, loss) in losses {
                worst = worst.max((loss - other[stage][step]).abs() / loss.abs());
            }
        }
    }
    println!("with dropout and cut chunks, one, two and three workers: losses differ by {worst:.1e} at most");
    assert!(worst <= 1e-5, "{worst}");
}

#[test]
fn a_lora_of_another_model_is_refused_by_name() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/model/lora-llama");
    let job = Job::new(&Recipe { text: format!("adapters = {folder:?}"), ..Recipe::default() });
    let ended = job.llm2clip(&["run", job.recipe().to_str().unwrap(), "--workers", "1"]);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("golden/model/lora-llama cannot be put on this model"), "{said}");
    assert!(said.contains("take the LoRA that was trained on this model"), "{said}");
}
