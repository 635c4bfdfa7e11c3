//! Evaluations between the steps of `clip`, by the real programs: the training is the same with and without them, and a job
//! that was killed has each of them once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{fs, path::Path};
use tests::{Job, Recipe, losses};

fn recipe(eval: &str) -> Recipe {
    Recipe { data: "rows = { to = 96 }".to_owned(), clip: eval.to_owned(), ..Recipe::default() }
}

const EVAL: &str = "eval = { every_steps = 2, data = \"train\", chunk = 40 }";

fn lines(job: &Job) -> Vec<Value> {
    let text = fs::read_to_string(job.output().join("clip/eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn step(line: &Value) -> u64 {
    line["step"].as_u64().unwrap()
}

/// The newest committed checkpoint's step.
fn newest(output: &Path) -> u64 {
    let folders = fs::read_dir(output.join("clip")).unwrap().map(|entry| entry.unwrap());
    let whole = folders.filter(|entry| entry.path().join("manifest.json").exists());
    whole.map(|entry| entry.file_name().to_str().unwrap()["step-".len()..].parse().unwrap()).max().unwrap()
}

#[test]
fn evaluations_change_no_step_and_a_killed_job_has_each_once() {
    let plain = Job::new(&recipe(""));
    plain.run(2);
    assert!(!plain.output().join("clip/eval.jsonl").exists());
    let job = Job::new(&recipe(EVAL));
    let output = job.llm2clip(&["run", job.recipe().to_str().unwrap(), "--workers", "2"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert_eq!(losses(&job.steps()), losses(&plain.steps()), "the same losses in every bit");

    let expected = lines(&job);
    let found: Vec<(u64, &str)> =
        expected.iter().map(|line| (step(line), line["captions"].as_str().unwrap())).collect();
    let both = |step| [(step, ".txt"), (step, "long_caption")];
    assert_eq!(found, [2, 4, 6, 8, 10, 12].map(both).concat());
    for line in &expected {
        for direction in ["image_to_text", "text_to_image"] {
            let recall = |k: &str| line[direction][k].as_f64().unwrap();
            let (r1, r5, r10) = (recall("r1"), recall("r5"), recall("r10"));
            assert!(0.0 <= r1 && r1 <= r5 && r5 <= r10 && 10.0 / 96.0 < r10 + 0.1 && r10 <= 1.0, "{line}");
        }
    }
    // On the screen, in the summary and in the status: the step and R@1.
    let first = |line: &Value| 100.0 * line["image_to_text"]["r1"].as_f64().unwrap();
    let told = format!("step 12: train `.txt` R@1 {:.1} % image to text", first(&expected[10]));
    assert!(said.contains(&format!(": {told}")) && said.contains("evaluations beside it"), "{told} is not in:\n{said}");
    let (_, status) = job.say(&["status"]);
    assert!(status.contains(&told), "{told} is not in:\n{status}");
    let evaluated = job.json("status")["stages"][1]["progress"]["evaluated"].clone();
    assert_eq!(evaluated.as_array().unwrap()[..], expected[10..]);
    // Its time is no step's.
    let metrics = fs::read_to_string(job.output().join("clip/metrics.jsonl")).unwrap();
    let timed = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let timed: Vec<u64> =
        timed.filter(|line| line["evaluation_s"].as_f64().is_some()).map(|line| step(&line)).collect();
    assert_eq!(timed, [3, 5, 7, 9, 11], "the step after an evaluation says how long that took");

    let killed = Job::new(&recipe(EVAL));
    let run = killed.start(2);
    killed.wait_for_checkpoint(4);
    for pid in killed.trainers() {
        // It may have ended in this moment.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    run.wait_with_output().unwrap();
    // As if it had been killed between a step and the end of its evaluation.
    let (file, resumed) = (killed.output().join("clip/eval.jsonl"), newest(&killed.output()));
    let kept = lines(&killed).into_iter().filter(|line| step(line) < resumed).map(|line| format!("{line}\n"));
    fs::write(&file, kept.collect::<String>() + "{\"step\":").unwrap();
    let (code, text) = killed.say(&["resume"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(lines(&killed), expected, "resumed at step {resumed}");
    assert_eq!(losses(&killed.steps()), losses(&plain.steps()));
}

#[test]
fn what_nothing_embeds_cannot_be_evaluated() {
    for (eval, expected) in [
        ("eval = { every_steps = 2, data = \"trian\" }", "did you mean `train`?"),
        ("eval = { data = \"train\" }", "either `every_steps` or `every_epochs`"),
        ("eval = { every_epoch = 1, data = \"train\" }", "either `every_steps` or `every_epochs`"),
        ("eval = { every_epochs = 1, data = \"train\", chnk = 3 }", "did you mean `chunk`?"),
        (
            "eval = { every_epochs = 1, data = \"val\" }\n[data.val]\nkind = \"webdataset\"\nshards = \"v.tar\"",
            "add `val` to the `data` of an `embed` stage before `clip`",
        ),
    ] {
        let job = Job::new(&recipe(eval));
        let output = job.llm2clip(&["run", job.recipe().to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(expected), "{expected} is not in: {text}");
    }
}
