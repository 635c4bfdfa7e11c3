//! Text vectors that are there already: another job's, or LLM2CLIP's own tars. What does not fit is said in one paragraph.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{Bucket, Job, Recipe, data, losses};

fn short() -> Recipe {
    Recipe { steps: 3, every_steps: 3, ..Recipe::default() }
}

/// A job whose vectors are there already, over the data of another.
fn with(vectors: PathBuf, recipe: Recipe) -> Recipe {
    Recipe { vectors: Some(vectors), ..recipe }
}

/// Runs a recipe that must fail because of its vectors, and asks for these words.
fn fails(recipe: &Recipe, parts: &[&str]) {
    let job = Job::new(recipe);
    let output = job.llm2clip(&["run", job.recipe().to_str().unwrap()]);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

fn tar(arguments: &[&str], folder: &Path) {
    assert!(Command::new("tar").args(arguments).current_dir(folder).status().unwrap().success());
}

/// The keys of the training shard, from the names of its images.
fn keys() -> Vec<String> {
    let listed = Command::new("tar").arg("-tf").arg(data("emoji-wds/train/00000.tar")).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    names.lines().filter_map(|name| name.strip_suffix(".jpg")).map(str::to_owned).collect()
}

/// LLM2CLIP's layout: a member `KEY.COLUMN` of raw f32 a caption, of `width` numbers that bf16 can hold.
fn reference_tar(folder: &Path, width: usize, keys: &[String]) {
    let members = folder.join("members");
    fs::create_dir(&members).unwrap();
    for (row, key) in keys.iter().enumerate() {
        for (column, name) in ["txt", "long_caption"].iter().enumerate() {
            let number = |i: usize| (((row * 31 + column * 7 + i * i) % 17) as f32 - 8.0) / 8.0;
            let bytes: Vec<u8> = (0..width).flat_map(|i| number(i).to_le_bytes()).collect();
            fs::write(members.join(format!("{key}.{name}")), bytes).unwrap();
        }
    }
    tar(&["-cf", "../00000_text_embeddings.tar", "--sort=name", "."], &members);
}

#[test]
fn a_job_over_another_jobs_vectors_needs_no_llm_and_has_the_same_losses() {
    let first = Job::new(&short());
    first.run(1);
    let vectors = first.output().join("embed/train");
    let second = Job::new(&with(vectors.clone(), short()));
    second.run(2);
    assert!(!second.output().join("embed").exists(), "nothing was made again");
    let (mine, theirs) = (losses(&second.steps()), losses(&first.steps()));
    assert_eq!(mine.len(), 3);
    for (step, loss) in &mine {
        assert!((loss - theirs[step]).abs() < 1e-4, "step {step}: {loss} and {}", theirs[step]);
    }

    // The same vectors over what is other data: another shard of the same name, another table.
    let other = Recipe { shards: data("emoji-wds/val/*.tar"), table: data("emoji-dense-val.parquet"), ..short() };
    let place = vectors.to_str().unwrap();
    fails(&with(vectors.clone(), other), &[place, "other data than data set `train`", "`data.train.vectors`"]);
    // More shards than the other job had.
    let more = Recipe { shards: data("emoji-wds/train/*.tar"), ..short() };
    fails(&with(vectors.clone(), more), &[place, "`data.train.vectors`"]);
}

#[test]
fn llm2clips_own_tars_are_taken_over_and_trained_on_without_an_llm() {
    let folder = tempfile::tempdir().unwrap();
    reference_tar(folder.path(), 40, &keys());
    let job = Job::new(&with(folder.path().to_owned(), short()));
    job.run(2);
    let made = job.output().join("embed/train/00000-00000.vectors");
    assert!(made.exists());
    assert_eq!(job.steps().iter().filter(|step| step.loss.is_finite()).count(), 3);
}

#[test]
fn a_folder_without_vectors_is_named_with_the_files_that_were_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere");
    fails(
        &with(path.clone(), short()),
        &[path.to_str().unwrap(), "`data.train.vectors`", "00000-00000.vectors", "00000_text_embeddings.tar"],
    );
}

#[test]
fn a_sample_without_a_vector_in_llm2clips_tar_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let keys = keys();
    reference_tar(folder.path(), 40, &keys[1..]);
    fails(
        &with(folder.path().to_owned(), short()),
        &["00000_text_embeddings.tar", &format!("{}.txt", keys[0]), "`data.train.vectors`"],
    );
}

#[test]
fn images_and_vectors_in_a_bucket_give_the_losses_of_files_and_so_do_llm2clips_tars() {
    let bucket = Bucket::start();
    let blocks = || Recipe { data: "shuffle = { block = 32, window = 384 }".to_owned(), ..short() };
    let first = Job::new(&blocks());
    first.run(1);
    let embedded = first.output().join("embed/train");
    bucket.take(&embedded, "vectors");
    bucket.take(&data("emoji-wds/train"), "tars");
    let shards = PathBuf::from("s3://bucket/tars/00000.tar");
    let reads = |recipe: &Recipe| Job::with_environment(recipe, bucket.environment());
    let second = reads(&with("s3://bucket/vectors".into(), Recipe { shards: shards.clone(), ..blocks() }));
    second.run(2);
    assert!(!second.output().join("embed").exists(), "nothing was made again");
    let (mine, theirs) = (losses(&second.steps()), losses(&first.steps()));
    assert_eq!(mine.len(), 3);
    for (step, loss) in &mine {
        assert!((loss - theirs[step]).abs() < 1e-4, "step {step}: {loss} and {}", theirs[step]);
    }

    let folder = tempfile::tempdir().unwrap();
    reference_tar(folder.path(), 40, &keys());
    let local = Job::new(&with(folder.path().to_owned(), blocks()));
    local.run(1);
    bucket.take(folder.path(), "theirs");
    let remote = reads(&with("s3://bucket/theirs".into(), Recipe { shards, ..blocks() }));
    remote.run(1);
    assert_eq!(losses(&remote.steps()), losses(&local.steps()), "one rank, the same bytes");
}
