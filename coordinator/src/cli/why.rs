//! What `why` says: the first thing that went wrong, and what to do.

use common::{
    daemon::clock::rfc3339,
    status::{Failure, FailureCause, JobStatus, Phase},
};

/// The explanation, line by line. Pure: the status says it all.
pub(super) fn explain(status: &JobStatus) -> Vec<String> {
    let job = &status.job;
    let mut lines = vec![match &status.phase {
        Phase::Waiting { reason } => format!("{job} waits: {reason}"),
        Phase::Running => format!("{job} runs, generation {}", status.generation),
        Phase::Stopping => format!("{job} writes a checkpoint, then stops"),
        Phase::Stopped => format!("{job} was stopped"),
        Phase::Succeeded => format!("{job} is done"),
        // What is told below in full is not told twice.
        Phase::Failed { exit_code, message } if status.failures.iter().any(|one| says(message, one)) => {
            format!("{job} failed (exit code {exit_code})")
        }
        Phase::Failed { exit_code, message } => format!("{job} failed (exit code {exit_code}): {message}"),
    }];
    lines.extend(status.alarm.as_ref().map(|alarm| format!("ALARM {}: {alarm}", rfc3339(alarm.since))));
    if status.failures.is_empty() {
        lines.push("nothing was lost".to_owned());
    }
    // Of each generation the first loss is the cause; the others are peers that saw a connection end.
    let mut first: Option<&Failure> = None;
    for failure in &status.failures {
        match first.filter(|first| first.generation == failure.generation) {
            Some(first) if first.cause == failure.cause => {
                lines.push(format!("  after it {}: the same", who(failure)));
            }
            Some(_) => lines.push(format!("  after it {}: {}", who(failure), failure.cause)),
            None => {
                lines.push(String::new());
                lines.extend(cause(failure));
                first = Some(failure);
            }
        }
    }
    lines.extend(next(status));
    lines
}

/// Whether a text has what a failure's cause says.
fn says(text: &str, failure: &Failure) -> bool {
    text.contains(&failure.cause.to_string())
}

fn who(failure: &Failure) -> String {
    let rank = failure.rank.map_or_else(|| "a trainer".to_owned(), |rank| format!("rank {rank}"));
    let pid = failure.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
    format!("{rank} (worker {}{pid})", failure.worker)
}

fn cause(failure: &Failure) -> Vec<String> {
    let at = failure.step.map_or_else(|| "before its first step".to_owned(), |step| format!("after step {step}"));
    let mut lines = vec![
        format!("{}  generation {}, {at}", rfc3339(failure.at), failure.generation),
        format!("  {}: {}", who(failure), failure.cause),
    ];
    let last_lines: Vec<&String> = failure.last_lines.iter().filter(|line| !says(line, failure)).collect();
    if !last_lines.is_empty() {
        lines.push("  last lines:".to_owned());
        lines.extend(last_lines.into_iter().map(|line| format!("    {line}")));
    }
    if let Some(log) = &failure.log {
        lines.push(format!("  log: {}", log.display()));
    }
    if let FailureCause::Hung(stuck) = &failure.cause
        && let Some(stacks) = &stuck.stacks
    {
        lines.push(format!("  stacks of its threads, on that worker: {}", stacks.display()));
    }
    lines
}

fn next(status: &JobStatus) -> Vec<String> {
    let checkpoint = status.stages.iter().filter_map(|stage| stage.checkpoint).next_back();
    let from =
        checkpoint.map_or_else(|| "from the beginning of its stage".to_owned(), |step| format!("from step {step}"));
    match status.phase {
        Phase::Failed { .. } | Phase::Stopped => {
            vec![String::new(), format!("next: llm2clip resume {}   goes on {from}", status.job)]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{
        ids::{Generation, Rank, Step},
        status::{FailureCause, StageStatus},
        time::Timestamp,
    };

    fn failure(rank: u32, cause: FailureCause) -> Failure {
        Failure {
            at: Timestamp(0),
            generation: Generation(2),
            rank: Some(Rank(rank)),
            worker: "local-0".parse().unwrap(),
            pid: Some(77),
            cause,
            step: Some(Step(13)),
            last_lines: vec!["the last words".to_owned()],
            log: Some("/out/logs/x.log".into()),
        }
    }

    fn failed(message: &str, failures: Vec<Failure>) -> JobStatus {
        let stage =
            StageStatus { kind: "clip".into(), done: false, summary: None, checkpoint: Some(Step(8)), progress: None };
        JobStatus {
            job: "demo-1".parse().unwrap(),
            phase: Phase::Failed { exit_code: 1, message: message.into() },
            generation: Generation(2),
            stage: 0,
            stages: vec![stage],
            ranks: vec![],
            spares: 0,
            alarm: None,
            failures,
            output: "/out".into(),
            checkpoints: None,
            created: Timestamp(0),
            updated: Timestamp(0),
        }
    }

    #[test]
    fn what_every_rank_says_is_told_once() {
        let no_folder = |rank| Failure {
            last_lines: vec!["started".into(), "ERROR the stage failed error=no such folder".into()],
            ..failure(rank, FailureCause::Error { message: "no such folder".into() })
        };
        let lines = explain(&failed("rank 0 on local-0: no such folder", vec![no_folder(0), no_folder(1)]));
        assert_eq!(lines.iter().filter(|line| line.contains("no such folder")).count(), 1, "{lines:#?}");
        assert_eq!(lines[0], "demo-1 failed (exit code 1)");
        assert!(lines.contains(&"  after it rank 1 (worker local-0, pid 77): the same".to_owned()), "{lines:#?}");
        assert!(lines.contains(&"    started".to_owned()), "{lines:#?}");
    }

    #[test]
    fn the_first_loss_is_told_in_full_and_its_followers_in_a_line() {
        let losses = vec![
            failure(1, FailureCause::Signal { signal: 9 }),
            failure(0, FailureCause::Error { message: "rank 1 is gone".into() }),
        ];
        let text = explain(&failed("rank 1 was lost", losses)).join("\n");
        for part in [
            "demo-1 failed (exit code 1): rank 1 was lost",
            "generation 2, after step 13",
            "rank 1 (worker local-0, pid 77): killed by signal 9 (SIGKILL)",
            "    the last words",
            "log: /out/logs/x.log",
            "after it rank 0 (worker local-0, pid 77): rank 1 is gone",
            "llm2clip resume demo-1   goes on from step 8",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
