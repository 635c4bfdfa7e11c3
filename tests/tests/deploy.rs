//! What `deploy/` says is so: its files name flags that exist, and the Slurm script, under a stand-in for Slurm's two programs, is
//! preempted, queued again, and goes on as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tests::{Job, Recipe, losses};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// The flags that a program's help names.
fn help(program: &str, verb: Option<&str>) -> String {
    let output = Command::new(Job::binary(program)).args(verb).arg("--help").output().unwrap();
    assert!(output.status.success(), "{program} {verb:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every `--flag` of a command line must be in the help of its program and verb.
fn check(place: &str, words: &[String]) {
    let name = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
    let program = words.iter().position(|word| ["llm2clip", "llm2clip-worker"].contains(&name(word).as_str()));
    let program = program.unwrap_or_else(|| panic!("{place}: no program of ours in {words:?}"));
    let verb = (name(&words[program]) == "llm2clip").then(|| words[program + 1].as_str());
    let known = help(&name(&words[program]), verb);
    for flag in words[program..].iter().filter(|word| word.starts_with("--")) {
        assert!(
            known.contains(&format!("{flag} ")) || known.contains(&format!("{flag}\n")),
            "{place}: {flag} is no flag:\n{known}"
        );
    }
}

#[test]
fn units_and_manifests_name_flags_that_exist() {
    let mut lines = 0;
    // Settings are parsed where they are read: coordinator/src/cli/serve/options.rs, worker/src/agent/config.rs.
    for unit in fs::read_dir(deploy().join("systemd")).unwrap() {
        let path = unit.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecStart=")) {
            check(&path.display().to_string(), &line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            lines += 1;
        }
    }
    for manifest in ["llm2clip.yaml", "launch.yaml"] {
        let text = fs::read_to_string(deploy().join("kubernetes").join(manifest)).unwrap();
        let mut command: Vec<String> = Vec::new();
        for line in text.lines().map(str::trim) {
            // Lists of strings in this style are JSON.
            if let Some(list) = line.strip_prefix("command: ") {
                command = serde_json::from_str(list).unwrap();
            } else if let Some(list) = line.strip_prefix("args: ") {
                let arguments: Vec<String> = serde_json::from_str(list).unwrap();
                command.extend(arguments);
                check(manifest, &std::mem::take(&mut command));
                lines += 1;
            }
        }
    }
    let guide = fs::read_to_string(deploy().join("systemd/README.md")).unwrap();
    // What stands between fences is typed.
    let typed = guide.split("```").skip(1).step_by(2).flat_map(str::lines);
    for line in typed.filter(|line| line.starts_with("llm2clip")) {
        let typed = line.split('#').next().unwrap_or_default();
        check("systemd/README.md", &typed.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        lines += 1;
    }
    assert_eq!(lines, 8, "two units, three containers, three lines to type");
}

/// The units with the programs where this build has them: `verify` looks for those. Absent, with a word, where systemd is not.
fn units(folder: &Path) -> Option<Vec<PathBuf>> {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze on this machine");
        return None;
    }
    let here = |name: &str| {
        let text = fs::read_to_string(deploy().join("systemd").join(name)).unwrap();
        let programs = Job::binary("llm2clip").parent().unwrap().display().to_string();
        let path = folder.join(name);
        fs::write(&path, text.replace("/usr/local/bin", &programs)).unwrap();
        path
    };
    Some(["llm2clip-coordinator.service", "llm2clip-worker.service"].map(here).to_vec())
}

#[test]
fn systemd_finds_no_fault_in_the_units_and_little_exposure() {
    let folder = tempfile::tempdir().unwrap();
    let Some(units) = units(folder.path()) else { return };
    for (unit, most) in units.iter().zip(["13", "22"]) {
        let verified = Command::new("systemd-analyze").arg("verify").arg(unit).output().unwrap();
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(verified.status.success() && said.is_empty(), "{said}");
        let exposure = |most: &str| {
            let mut analyze = Command::new("systemd-analyze");
            analyze.args(["security", "--offline=true", "--no-pager", "--threshold", most]).arg(unit);
            let output = analyze.output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let (below, said) = exposure(most);
        assert!(below, "more than {most} tenths: {said}");
        assert!(!exposure("5").0, "it is measured");
    }
}

#[test]
fn a_stop_of_the_workers_unit_spares_its_trainers_and_what_they_use() {
    let text = fs::read_to_string(deploy().join("systemd/llm2clip-worker.service")).unwrap();
    for line in ["KillMode=process", "OOMPolicy=continue", "PrivateTmp=no", "RemoveIPC=no"] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}

/// Stand-ins: `srun` starts the command once a machine, and passes a signal on; `scontrol` names machines, and notes what is queued again.
fn slurm(job: &Job) -> PathBuf {
    let folder = job.folder().join("slurm");
    fs::create_dir_all(&folder).unwrap();
    let srun = r#"#!/usr/bin/env bash
nodes=1
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#--nodes=}; shift; done
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 143' TERM
for ((i = 0; i < nodes; i++)); do SLURMD_NODENAME=node$i "$@" & done
wait
"#;
    let scontrol = r#"#!/usr/bin/env bash
if [[ $1 == show ]]; then echo 127.0.0.1; else echo "$@" >>"$SLURM_NOTES"; fi
"#;
    for (name, text) in [("srun", srun), ("scontrol", scontrol)] {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn sbatch(job: &Job, port: u16) -> Child {
    let stand_ins = slurm(job);
    let programs = Job::binary("llm2clip").parent().unwrap().to_owned();
    let path = format!("{}:{}:{}", stand_ins.display(), programs.display(), std::env::var("PATH").unwrap());
    let mut command = job.around(Command::new(deploy().join("slurm/llm2clip.sbatch")));
    command.arg(job.recipe()).env("PATH", path);
    command.envs([("SLURM_JOB_ID", "7"), ("SLURM_NNODES", "2"), ("SLURM_JOB_NODELIST", "node[0-1]")]);
    command.envs([("LLM2CLIP_LISTEN", "127.0.0.1"), ("LLM2CLIP_PEER_HOST", "127.0.0.1")]);
    command.env("LLM2CLIP_PORT", port.to_string()).env("TMPDIR", job.folder());
    command.env("SLURM_NOTES", notes(job));
    let log = fs::File::options().create(true).append(true).open(job.folder().join("slurm.log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).stdin(Stdio::null()).spawn().unwrap()
}

fn notes(job: &Job) -> PathBuf {
    job.folder().join("requeued")
}

fn log(job: &Job) -> String {
    fs::read_to_string(job.folder().join("slurm.log")).unwrap_or_default()
}

/// A port that is free now. Slurm's script takes a number, as every machine must know it before the coordinator runs.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_slurm_job_that_is_preempted_writes_a_checkpoint_and_goes_on_when_it_is_run_again() {
    let recipe = Recipe { steps: 40, ..Recipe::default() };
    let (job, undisturbed) = (Job::new(&recipe), Job::new(&recipe));
    let mut first = sbatch(&job, free_port());
    job.wait_for_checkpoint(4);
    let pid = rustix::process::Pid::from_raw(i32::try_from(first.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = first.wait().unwrap();
    assert_eq!(ended.code(), Some(0), "{}", log(&job));
    assert_eq!(fs::read_to_string(notes(&job)).unwrap(), "requeue 7\n", "{}", log(&job));
    let stopped_at = job.steps().last().unwrap().step;
    assert!(stopped_at < 40, "{}", log(&job));

    let ended = sbatch(&job, free_port()).wait().unwrap();
    assert_eq!(ended.code(), Some(0), "{}", log(&job));
    assert!(log(&job).contains("goes on with"), "{}", log(&job));
    assert_eq!(fs::read_to_string(notes(&job)).unwrap(), "requeue 7\n", "what is done is not queued again");
    assert_eq!(job.steps().len(), 40, "no step was computed twice");
    undisturbed.run(2);
    // Its machines had other numbers of threads.
    for (step, loss) in losses(&undisturbed.steps()) {
        let found = losses(&job.steps())[&step];
        assert!((found / loss - 1.0).abs() < 1e-4, "step {step}: {found}, undisturbed {loss}");
    }
}
