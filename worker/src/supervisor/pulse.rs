//! A trainer's own record of where it stands: a page of numbers that it overwrites as it goes, and that its agent reads.
//!
//! It is there whatever becomes of the trainer: it may be stopped, stuck in a driver, or dead. It lies in memory (`/dev/shm`)
//! where the machine has that: a page of a disk's file can keep a writer waiting for the disk, and the writer is the training.
//! A write is one system call; a reader that comes between sees it by the checksum.

use common::{
    ids::{Generation, Step},
    pulse::{Doing, Operation, OperationKind, ProcessState, Pulse},
};
use rustix::time::{ClockId, clock_gettime};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

/// The first number.
const MAGIC: u64 = u64::from_le_bytes(*b"l2cpuls1");
/// How many of the newest operations are kept.
pub const KEPT: usize = 16;
/// Numbers before those of the operations.
const HEAD: usize = 10;
/// All numbers, the checksum at the end.
const WORDS: usize = HEAD + KEPT + 1;
/// How often a record is read anew that was written while it was read.
const TRIES: u32 = 8;
/// Nothing changed for so long: a trainer counts as quiet, and its agent speaks of it.
pub const QUIET: Duration = Duration::from_secs(2);

/// Where a trainer stands, by its own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// The membership.
    pub generation: u64,
    /// The step that it takes, from 1; 0 before the first.
    pub step: u64,
    /// What it does.
    pub doing: Doing,
    /// How many collective operations it called in this membership.
    pub called: u64,
    /// Whether it is in the newest of them.
    pub waiting: bool,
    /// When any of this changed last, in nanoseconds of the machine's monotonic clock.
    pub since_ns: u64,
    /// The 99th percentile of its recent steps in nanoseconds; 0 while that is not known.
    pub slow_step_ns: u64,
    /// The newest operations, kind and bytes as one number, each at its own number modulo [`KEPT`].
    pub operations: [u64; KEPT],
}

impl Mark {
    /// Notes that an operation is called.
    pub fn call(&mut self, kind: OperationKind, bytes: u64) {
        let kind = OperationKind::ALL.iter().position(|other| *other == kind).unwrap_or_default() as u64;
        self.operations[self.called as usize % KEPT] = kind << 56 | bytes.min((1 << 56) - 1);
        self.called += 1;
        self.waiting = true;
    }

    fn encode(&self) -> [u64; WORDS] {
        let doing = Doing::ALL.iter().position(|other| *other == self.doing).unwrap_or_default() as u64;
        let mut words = [0; WORDS];
        words[..HEAD].copy_from_slice(&[
            MAGIC,
            self.generation,
            self.step,
            doing,
            self.called,
            u64::from(self.waiting),
            self.since_ns,
            self.slow_step_ns,
            0,
            0,
        ]);
        words[HEAD..HEAD + KEPT].copy_from_slice(&self.operations);
        words[WORDS - 1] = checksum(&words);
        words
    }

    /// Absent when the numbers are no record, or one that is just being written.
    fn decode(words: &[u64; WORDS]) -> Option<Self> {
        if words[0] != MAGIC || words[WORDS - 1] != checksum(words) {
            return None;
        }
        let mut operations = [0; KEPT];
        operations.copy_from_slice(&words[HEAD..HEAD + KEPT]);
        Some(Self {
            generation: words[1],
            step: words[2],
            doing: *Doing::ALL.get(words[3] as usize)?,
            called: words[4],
            waiting: words[5] != 0,
            since_ns: words[6],
            slow_step_ns: words[7],
            operations,
        })
    }

    /// As it is told. `now_ns` is of the clock of `since_ns`.
    pub fn pulse(&self, now_ns: u64, process: ProcessState) -> Pulse {
        let operation = |number: u64| {
            let word = self.operations[number as usize % KEPT];
            let kind = *OperationKind::ALL.get((word >> 56) as usize)?;
            Some(Operation { number, kind, bytes: word & ((1 << 56) - 1) })
        };
        let quiet = Duration::from_nanos(now_ns.saturating_sub(self.since_ns));
        Pulse {
            generation: Generation(self.generation),
            step: Step(self.step),
            doing: self.doing,
            operations: (self.called.saturating_sub(KEPT as u64)..self.called).filter_map(operation).collect(),
            waiting: self.waiting,
            // One that waits for a plan may be quiet, and one that is stopped will not take it.
            quiet: (quiet >= QUIET && (self.doing != Doing::Idle || process == ProcessState::Stopped)).then_some(quiet),
            slow_step: (self.slow_step_ns > 0).then_some(Duration::from_nanos(self.slow_step_ns)),
            process,
        }
    }
}

fn checksum(words: &[u64; WORDS]) -> u64 {
    u64::from(crc32fast::hash(bytemuck::cast_slice(&words[..WORDS - 1])))
}

/// Nanoseconds of the clock that all processes of the machine share and nobody sets.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Where the record of a trainer lies: of this worker, whose folder `state` is its own, and of this place on it.
pub fn path(state: &Path, slot: u32) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let name = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
    let of = |folder: &Path| folder.join(format!("llm2clip-{}-{slot}.pulse", &name[..16]));
    if memory.is_dir() { of(memory) } else { of(&state.join("trainers")) }
}

/// Makes the record of a trainer that is about to start: its own file, which nobody else writes.
///
/// # Errors
/// When the folder cannot be written.
pub fn create(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    write(&file, &Mark::default())
}

/// Opens a record to write.
///
/// # Errors
/// When it is not there.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// Overwrites a record.
///
/// # Errors
/// When its file system is full or gone.
pub fn write(file: &File, mark: &Mark) -> io::Result<()> {
    file.write_all_at(bytemuck::cast_slice(&mark.encode()), 0)
}

/// Reads a record; absent when it is none.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> io::Result<Option<Mark>> {
    let file = File::open(path)?;
    for _ in 0..TRIES {
        let mut words = [0; WORDS];
        file.read_exact_at(bytemuck::cast_slice_mut(&mut words), 0)?;
        if let Some(mark) = Mark::decode(&words) {
            return Ok(Some(mark));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_last_and_a_torn_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pulse");
        create(&path).unwrap();
        assert_eq!(read(&path).unwrap(), Some(Mark::default()));
        let mut mark = Mark { generation: 3, step: 7, doing: Doing::Computing, since_ns: 5, ..Mark::default() };
        for number in 0..20 {
            mark.call(OperationKind::AllGather, number);
        }
        let file = open(&path).unwrap();
        write(&file, &mark).unwrap();
        assert_eq!(read(&path).unwrap(), Some(mark));
        file.write_all_at(&[1], 9).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn the_newest_operations_are_told_with_their_numbers_and_quiet_only_what_is() {
        let mut mark = Mark { doing: Doing::Computing, since_ns: 1_000_000_000, ..Mark::default() };
        for bytes in 100..120 {
            mark.call(OperationKind::AllReduce, bytes);
        }
        let pulse = mark.pulse(2_000_000_000, ProcessState::Alive);
        assert_eq!((pulse.quiet, pulse.waiting, pulse.operations.len()), (None, true, KEPT));
        assert_eq!(
            (pulse.operations[0].number, pulse.newest()),
            (4, Some(Operation { number: 19, kind: OperationKind::AllReduce, bytes: 119 }))
        );
        assert_eq!(mark.pulse(12_000_000_000, ProcessState::Alive).quiet, Some(Duration::from_secs(11)));
        assert_eq!(
            Mark { doing: Doing::Idle, ..mark }.pulse(12_000_000_000, ProcessState::Alive).quiet,
            None,
            "nobody waits for it"
        );
    }
}
