//! Trainers' logs: `OUTPUT/logs/trainer-WORKER-SLOT-gen-00001.log`, and a link for each plan that names its rank.

use common::ids::{Generation, Rank, Slot, WorkerId};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// How much of the end of a log is looked at, in bytes.
const TAIL_BYTES: u64 = 16 << 10;
/// How many lines are told.
const LAST_LINES: usize = 20;

/// Where the log of a trainer lies.
pub fn path(output: &Path, worker: &WorkerId, slot: Slot, generation: Generation) -> PathBuf {
    output.join("logs").join(format!("trainer-{worker}-{slot}-gen-{:05}.log", generation.0))
}

/// Opens a log for appending; its folder is made if need be.
///
/// # Errors
/// When the job's folder cannot be written.
pub fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Makes `gen-00001-rank-00000.log` beside a log lead to it.
///
/// # Errors
/// When the folder cannot be written.
pub fn name_rank(log: &Path, generation: Generation, rank: Rank) -> io::Result<()> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let link = folder.join(format!("gen-{:05}-rank-{:05}.log", generation.0, rank.0));
    let temporary = link.with_extension(format!("tmp-{}", std::process::id()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(name, &temporary)?;
    fs::rename(&temporary, &link)
}

/// The last lines of a log, oldest first; empty when it cannot be read.
pub fn last_lines(log: &Path) -> Vec<String> {
    tail(log).unwrap_or_else(|error| {
        tracing::warn!(log = %log.display(), %error, "a trainer's log cannot be read");
        Vec::new()
    })
}

fn tail(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let begin = file.metadata()?.len().saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if begin > 0 && lines.len() > 1 {
        lines.remove(0); // It is torn.
    }
    lines.drain(..lines.len().saturating_sub(LAST_LINES));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_long_log_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("a.log");
        assert_eq!(last_lines(&log), [""; 0]);
        let many: String = (0..5000).map(|i| format!("line {i}\n")).collect();
        fs::write(&log, many).unwrap();
        let lines = last_lines(&log);
        assert_eq!(lines.len(), 20);
        assert_eq!((lines[0].as_str(), lines[19].as_str()), ("line 4980", "line 4999"));
        fs::write(&log, b"one\nt\xffo").unwrap();
        assert_eq!(last_lines(&log), ["one", "t\u{fffd}o"]);
    }

    #[test]
    fn the_link_of_a_rank_leads_to_the_newest_log() {
        let folder = tempfile::tempdir().unwrap();
        for slot in [0, 1] {
            let log = path(folder.path(), &"box".parse().unwrap(), Slot(slot), Generation(1));
            io::Write::write_all(&mut open(&log).unwrap(), format!("slot {slot}").as_bytes()).unwrap();
            name_rank(&log, Generation(2), Rank(0)).unwrap();
        }
        assert_eq!(last_lines(&folder.path().join("logs/gen-00002-rank-00000.log")), ["slot 1"]);
    }
}
