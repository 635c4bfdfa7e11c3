//! `why JOB` names the rank, the cause and the last lines of what went wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::{Command, Output};
use tests::{Job, Recipe, model};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_panic_is_named_with_its_rank_its_message_and_its_log() {
    let job = Job::new(&Recipe { steps: 12, every_steps: 4, ..Recipe::default() });
    let recipe = job.recipe().to_str().unwrap();
    let mut run = job.command(&["run", recipe, "--workers", "2"]);
    let ended = run.env("LLM2CLIP_FAILPOINTS", "clip.step=panic@6").output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", text(&ended));

    let (_, why) = job.say(&["why"]);
    for part in
        ["rank ", "panicked (exit code 101)", "asks for a panic at ClipStep 6", "log: ", "next: llm2clip resume"]
    {
        assert!(why.contains(part), "{part} is not in: {why}");
    }
    let (code, said) = job.say(&["resume"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(job.steps().len(), 12);
}

/// The training goes on without its checkpoints; only without the last one the job cannot end. The output is a small file system
/// of its own, in a mount namespace of the test's own; what runs there is killed with the shell that made it.
#[test]
fn a_full_disk_is_named_with_its_rank_and_its_file_and_space_is_all_that_a_resume_needs() {
    let job = Job::new(&Recipe {
        steps: 12,
        every_steps: 4,
        storage_wait_s: 3,
        vision: model("vit-tiny"),
        ..Recipe::default()
    });
    let output = job.output();
    std::fs::create_dir(&output).unwrap();
    let script = format!(
        "set -u\n\
         mount -t tmpfs -o size=24m tmpfs {output}\n\
         {llm2clip} run {recipe} --workers 2; echo \"run ended with $?\"\n\
         {llm2clip} why {output}\n\
         {llm2clip} events {output}\n\
         echo folders $(ls {output}/clip | grep -c step-)\n\
         mount -o remount,size=200m {output}\n\
         {llm2clip} resume {output}; echo \"resume ended with $?\"\n\
         wc -l {output}/clip/metrics.jsonl\n",
        output = output.display(),
        recipe = job.recipe().display(),
        llm2clip = Job::binary("llm2clip").display(),
    );
    // As root a mount namespace is enough; others need a user namespace around it.
    let user: &[&str] = if rustix::process::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let mut shell = job.around(Command::new("unshare"));
    let ended = shell.args(user).args(["--mount", "--", "sh", "-c", &script]).output().unwrap();
    let said = text(&ended);
    for part in [
        "ALARM: checkpoints fail since step 8",
        "no checkpoint of step 8, the training goes on: rank ",
        "run ended with 1",
        "ALARM 2",
        "rank ",
        "No space left on device",
        "Free space on the shared storage",
        "rank-0000",
        "resume ended with 0",
        "12 ",
        // What was half written of the others is removed, and the one that was whole stays.
        "folders 1",
    ] {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
}
