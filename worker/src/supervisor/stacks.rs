//! What the threads of a stuck process do, kept before it is ended: what the kernel says of each in `/proc`, and the frames of
//! each where the machine has a program that reads them out of a process that cannot help (`eu-stack`, `gdb`).
//!
//! There is no handler in the trainer that would unwind by itself: a stopped process runs none, and unwinding takes locks
//! that a stuck one may hold.

use std::{
    fmt::Write as _,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// How long reading frames may take: the other ranks wait meanwhile.
const FRAMES_DEADLINE: Duration = Duration::from_secs(8);
/// The most of what such a program says that is kept, in bytes.
const MOST_BYTES: u64 = 4 << 20;
/// What is kept of each thread.
const OF_THREAD: [&str; 5] = ["stat", "status", "wchan", "syscall", "stack"];

/// Beside a log: `….log` → `….stacks-PID.txt`.
pub fn path(log: &Path, pid: u32) -> PathBuf {
    log.with_extension(format!("stacks-{pid}.txt"))
}

/// Writes down what the threads of a process do. Blocks, for some seconds at most.
///
/// # Errors
/// When the file cannot be written.
pub fn keep(pid: u32, path: &Path) -> std::io::Result<()> {
    let mut text = format!("threads of process {pid}\n\n");
    text.push_str(&kernel(pid));
    // What is here already is kept even if reading frames comes to nothing.
    fs::write(path, &text)?;
    text.push_str(&frames(pid));
    fs::write(path, text)
}

fn kernel(pid: u32) -> String {
    let mut text = String::new();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut threads: Vec<PathBuf> = threads.map(|thread| thread.path()).collect();
    threads.sort();
    for thread in threads {
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        let id = thread.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let _ = writeln!(text, "== thread {id} ({})", name.trim());
        for what in OF_THREAD {
            let said = match fs::read_to_string(thread.join(what)) {
                Ok(said) if what == "status" => state_line(&said),
                Ok(said) => said,
                Err(error) => format!("({error})"),
            };
            let _ = writeln!(text, "{what}: {}", said.trim().replace('\n', "\n  "));
        }
        text.push('\n');
    }
    text
}

fn state_line(status: &str) -> String {
    let wanted =
        |line: &&str| line.starts_with("State:") || line.starts_with("SigQ:") || line.contains("ctxt_switches");
    status.lines().filter(wanted).collect::<Vec<_>>().join(", ")
}

fn frames(pid: u32) -> String {
    let pid = pid.to_string();
    let tools: [(&str, Vec<&str>); 2] = [
        ("eu-stack", vec!["-p", &pid]),
        ("gdb", vec!["-nx", "-batch", "-p", &pid, "-ex", "set pagination off", "-ex", "thread apply all backtrace"]),
    ];
    for (tool, arguments) in tools {
        match run(tool, &arguments) {
            Ok(said) => return format!("== frames, by {tool}\n{said}\n"),
            Err(None) => {}
            Err(Some(error)) => return format!("== no frames: {tool} {error}\n"),
        }
    }
    "== no frames: neither eu-stack (elfutils) nor gdb is installed on this machine\n".to_owned()
}

/// What a program says; nothing when it is not there.
fn run(tool: &str, arguments: &[&str]) -> Result<String, Option<String>> {
    let mut command = Command::new(tool);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // It must not look for symbols on the network.
    command.env_remove("DEBUGINFOD_URLS");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(None),
        Err(error) => return Err(Some(format!("cannot be started: {error}"))),
    };
    let Some(out) = child.stdout.take() else { return Err(Some("has no output".to_owned())) };
    let (sender, said) = mpsc::sync_channel(1);
    // The thread ends with the program, whose output it reads.
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = out.take(MOST_BYTES).read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    let whole = said.recv_timeout(FRAMES_DEADLINE);
    // It has ended, or is to; a debugger that is killed lets go of what it held.
    let _ = child.kill();
    let _ = child.wait();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    match whole {
        Ok(bytes) => Ok(text(bytes)),
        Err(_) => {
            let part = said.recv_timeout(Duration::from_secs(1)).map(text).unwrap_or_default();
            Err(Some(format!("did not end within {} s; so far it said:\n{part}", FRAMES_DEADLINE.as_secs())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_process_are_kept_beside_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("trainer-box-0-gen-00001.log");
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let path = path(&log, child.id());
        assert_eq!(
            path.file_name().unwrap().to_str(),
            Some(&*format!("trainer-box-0-gen-00001.stacks-{}.txt", child.id()))
        );
        keep(child.id(), &path).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        // Of its name nothing is asked: it may not have become `sleep` yet.
        for part in [&*format!("== thread {} (", child.id()), "State:", "wchan: ", "syscall: ", "frames"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
