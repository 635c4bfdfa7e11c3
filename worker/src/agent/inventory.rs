//! What this machine has.

use std::{fs, num::NonZero, thread};

/// What this machine has, whoever uses it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub host: String,
    /// Names of its GPUs.
    pub gpus: Vec<String>,
    /// CPU cores that this process may use.
    pub cores: u32,
    /// Main memory in bytes.
    pub memory_bytes: u64,
}

impl Machine {
    /// Looks at this machine. What cannot be found out is empty, or one core.
    pub fn look() -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            host,
            gpus: gpus(),
            cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes(&memory).unwrap_or(0),
        }
    }
}

/// The GPUs' names, in the order of their bus addresses, as the driver tells them.
fn gpus() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let information = folders.iter().filter_map(|folder| fs::read_to_string(folder.join("information")).ok());
    information.map(|text| field(&text, "Model:").unwrap_or("GPU").to_owned()).collect()
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let kibibytes: u64 = field(meminfo, "MemTotal:")?.strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_words_are_read() {
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(memory_bytes("nothing"), None);
        assert_eq!(field("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n", "Model:"), Some("NVIDIA H100 80GB HBM3"));
        let machine = Machine::look();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.host.is_empty(), "{machine:?}");
    }
}
