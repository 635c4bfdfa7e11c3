//! Whether a process ended because memory ran out: the kernel's counts of what it killed for that, and what allocators say
//! before a process ends by itself.

use super::process::Exit;
use common::cause::{MemoryJudge, OutOfMemory};
use std::{fs, path::PathBuf};

/// What an allocator says when it is refused, and whether it speaks of a GPU.
const REFUSALS: [(&str, bool); 6] = [
    ("DefaultCPUAllocator: can't allocate memory", false),
    ("DefaultCPUAllocator: not enough memory", false),
    ("std::bad_alloc", false),
    ("memory allocation of ", false),
    ("CUDA out of memory", true),
    ("CUDA error: out of memory", true),
];

/// A control group of processes that share a limit of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    /// Of the first version: the names of its files differ.
    first: bool,
}

impl Group {
    /// The group of a process whose memory is counted.
    fn of(pid: u32) -> Option<Self> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        group(&groups, &mounts).filter(|group| group.kills().is_some())
    }

    /// How many processes of it were killed because its memory ran out.
    fn kills(&self) -> Option<u64> {
        let name = if self.first { "memory.oom_control" } else { "memory.events" };
        count(&fs::read_to_string(self.folder.join(name)).ok()?)
    }

    /// How much memory it may have; absent when there is no limit.
    fn limit(&self) -> Option<u64> {
        let name = if self.first { "memory.limit_in_bytes" } else { "memory.max" };
        let limit = fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()?;
        // The first version says "none" by a number near the largest.
        (limit < 1 << 60).then_some(limit)
    }
}

/// The line `oom_kill N` of a file of counts.
fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Finds the folder of the memory's group in what `/proc/PID/cgroup` and `/proc/self/mountinfo` say.
fn group(groups: &str, mounts: &str) -> Option<Group> {
    let path = |wanted: fn(&str, &str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(number, controllers).then(|| path.to_owned())
        })
    };
    let place = |kind: &str, option: &str| {
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let fits =
                after.next()? == kind && after.nth(1)?.split(',').any(|found| option.is_empty() || found == option);
            fits.then(|| (root.to_owned(), PathBuf::from(point)))
        })
    };
    let below = |path: String, (root, point): (String, PathBuf)| {
        let path = path.strip_prefix(&root).unwrap_or(&path).trim_start_matches('/').to_owned();
        point.join(path)
    };
    let first = path(|_, controllers| controllers.split(',').any(|controller| controller == "memory"))
        .and_then(|path| Some(Group { folder: below(path, place("cgroup", "memory")?), first: true }));
    first.or_else(|| {
        let path = path(|number, controllers| number == "0" && controllers.is_empty())?;
        Some(Group { folder: below(path, place("cgroup2", "")?), first: false })
    })
}

/// How many processes of the whole machine the kernel killed because memory ran out.
fn machine_kills() -> Option<u64> {
    count(&fs::read_to_string("/proc/vmstat").ok()?)
}

/// Looks at the memory of a living process now and then, to know how it ended.
#[derive(Debug, Default)]
pub struct MemoryWatch {
    pid: u32,
    group: Option<(Group, u64)>,
    machine: Option<u64>,
    peak_bytes: Option<u64>,
}

impl MemoryWatch {
    /// Begins to watch.
    pub fn begin(pid: u32) -> Self {
        let mut watch = Self { pid, machine: machine_kills(), ..Self::default() };
        watch.look();
        watch
    }

    /// Looks again: its peak, and the group it is in by now.
    pub fn look(&mut self) {
        if let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.pid)) {
            self.peak_bytes = peak(&status).or(self.peak_bytes);
        }
        if let Some(group) = Group::of(self.pid)
            && self.group.as_ref().is_none_or(|(known, _)| *known != group)
        {
            let kills = group.kills().unwrap_or_default();
            self.group = Some((group, kills));
        }
    }

    /// What there is to say of the memory of the process, which has ended so. `killed` says that its end by signal 9 was
    /// ordered here; `last_lines` is the end of its log.
    pub fn at_end(&self, exit: Exit, killed: bool, last_lines: &[String]) -> Memory {
        let limit_bytes = self.group.as_ref().and_then(|(group, _)| group.limit());
        let said_by = match exit {
            Exit::Signal(9) if !killed => self.killer(),
            Exit::Signal(6) | Exit::Code(101) => refusal(last_lines.iter().rev().map(String::as_str)),
            Exit::Signal(_) | Exit::Code(_) | Exit::Unknown => None,
        };
        Memory { said_by, peak_bytes: self.peak_bytes, limit_bytes }
    }

    /// Whose memory ran out, if the kernel killed a process of this one's for that.
    fn killer(&self) -> Option<MemoryJudge> {
        if let Some((group, before)) = &self.group
            && group.kills().is_some_and(|now| now > *before)
        {
            return Some(MemoryJudge::ControlGroup { group: group.folder.display().to_string() });
        }
        let more = matches!((self.machine, machine_kills()), (Some(before), Some(now)) if now > before);
        more.then_some(MemoryJudge::Machine)
    }
}

/// What is known of the memory of a process that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// Whose memory ran out; absent when none did, as far as is known without the process's last word.
    said_by: Option<MemoryJudge>,
    peak_bytes: Option<u64>,
    limit_bytes: Option<u64>,
}

impl Memory {
    /// Whether it ran out; `said` is the process's last word.
    pub fn ran_out(&self, said: Option<&str>) -> Option<OutOfMemory> {
        let said_by = self.said_by.clone().or_else(|| refusal(said.into_iter().flat_map(str::lines)))?;
        Some(OutOfMemory { said_by, peak_bytes: self.peak_bytes, limit_bytes: self.limit_bytes })
    }
}

/// The line `VmHWM` of `/proc/PID/status`, in bytes.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The words of an allocator that was refused.
fn refusal<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<MemoryJudge> {
    lines.into_iter().find_map(|line| {
        let (at, gpu) = REFUSALS.iter().find_map(|(words, gpu)| Some((line.find(words)?, *gpu)))?;
        let words: String = line[at..].chars().take(300).collect();
        // The message comes quoted out of a panic.
        let message = words.split("\\n").next().unwrap_or_default().trim_end_matches('"').to_owned();
        Some(if gpu { MemoryJudge::Device { message } } else { MemoryJudge::Allocator { message } })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
                          31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_group_is_found_in_both_versions_and_below_a_mounted_part() {
        let check = |groups: &str, mounts: &str, expected: Option<(&str, bool)>| {
            let expected = expected.map(|(folder, first)| Group { folder: folder.into(), first });
            assert_eq!(group(groups, mounts), expected);
        };
        check("0::/llm2clip.slice/w.scope\n", MOUNTS, Some(("/sys/fs/cgroup/llm2clip.slice/w.scope", false)));
        check("4:memory:/a/b\n0::/\n", MOUNTS, Some(("/sys/fs/cgroup/memory/a/b", true)));
        let part = "30 23 0:26 /kube /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n";
        check("0::/kube/pod\n", part, Some(("/sys/fs/cgroup/pod", false)));
        check("4:cpu:/a\n", MOUNTS, None);
        check("0::/a\n", "", None);
    }

    #[test]
    fn counts_and_peaks_are_read() {
        assert_eq!(count("low 0\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), Some(1));
        assert_eq!(peak("VmPeak:\t 9 kB\nVmHWM:\t    1828 kB\n"), Some(1828 << 10));
    }

    #[test]
    fn an_allocator_that_was_refused_is_heard_in_the_last_word_or_the_last_lines() {
        let watch = MemoryWatch::default();
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let check = |exit, said: Option<&str>, text: &str, expected: Option<&str>| {
            let found = watch.at_end(exit, false, &lines(text)).ran_out(said).map(|found| found.to_string());
            assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
        };
        let torch = "error: panicked at x.rs: Torch(\"[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't \
                     allocate memory: you tried to allocate 64 bytes. Error code 12\\nframe #0: c10\")\nmore";
        check(
            Exit::Code(101),
            None,
            torch,
            Some("out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate 64"),
        );
        check(
            Exit::Signal(6),
            None,
            "memory allocation of 99 bytes failed",
            Some("memory allocation of 99 bytes failed"),
        );
        let gpu = "libtorch: CUDA out of memory. Tried to allocate 2 GiB";
        check(
            Exit::Code(1),
            Some(gpu),
            "",
            Some("out of memory on its GPU: CUDA out of memory. Tried to allocate 2 GiB"),
        );
        check(Exit::Code(101), None, "panicked at y.rs", None);
        check(Exit::Code(0), None, torch, None);
    }
}
