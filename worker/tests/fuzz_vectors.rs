//! The reader of the embedding store against files that were damaged at random, for a bounded time.
//!
//! Two seconds of it run with every `cargo test`; `make fuzz` sets LLM2CLIP_FUZZ_SECONDS. A failure prints its seed, and
//! LLM2CLIP_FUZZ_SEED replays from it. What may come of a damaged file: an error, or the rows that were written. Never a
//! panic, and never more memory than a small multiple of the file, which the process's own limit enforces.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use half::bf16;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use worker::{
    storage::{Limits, Storage},
    vectors::{Expected, Provenance, ShardFile, ShardWriter, sign},
};

const ROWS: usize = 37;
const WIDTH: usize = 300;
const COLUMNS: [&str; 2] = ["short", "long"];
/// What the process may take beyond what it has at the start.
const MEMORY: u64 = 512 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn value(column: usize, row: usize) -> Vec<bf16> {
    vec![bf16::from_f32((column * 100 + row) as f32); WIDTH]
}

fn is_null(column: usize, row: usize) -> bool {
    (column + row).is_multiple_of(5)
}

/// A file of version 2, and the same rows (without nulls) in one of version 1.
fn valid(folder: &Path, provenance: &Provenance) -> [Vec<u8>; 2] {
    let path = folder.join("valid.vectors");
    let mut writer = ShardWriter::create(&path, provenance, [ROWS, WIDTH], &COLUMNS).unwrap();
    let mut tensors = Vec::new();
    for (column, name) in COLUMNS.into_iter().enumerate() {
        let rows: Vec<bf16> = (0..ROWS).flat_map(|row| value(column, row)).collect();
        (0..ROWS)
            .filter(|row| !is_null(column, *row))
            .for_each(|row| writer.put(column, row, &value(column, row)).unwrap());
        tensors.push((name, rows));
    }
    writer.finish().unwrap();
    let views = tensors.iter().map(|(name, rows)| {
        let bytes = bytemuck::cast_slice(rows);
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![ROWS, WIDTH], bytes).unwrap())
    });
    let version_1 = safetensors::serialize(views, Some(provenance.to_metadata().into_iter().collect())).unwrap();
    [std::fs::read(&path).unwrap(), version_1]
}

/// Damages a file in one to four places; says whether its header was signed anew afterwards.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) -> bool {
    let head = 4096.min(bytes.len());
    for _ in 0..=random.below(4) {
        let at = if random.below(4) == 0 { random.below(bytes.len()) } else { random.below(600.min(bytes.len())) };
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at.max(1)),
            3 => bytes.resize(bytes.len() + random.below(5000), 0),
            // A digit of a number in the header.
            4 => {
                let digits: Vec<usize> = (0..bytes.len().min(600)).filter(|i| bytes[*i].is_ascii_digit()).collect();
                if let Some(at) = digits.get(random.below(digits.len())) {
                    bytes[*at] = b'0' + random.below(10) as u8;
                }
            }
            5 => {
                let number = [u64::MAX, 0, 1 << 63, 1 << 32, random.next(), 4096][random.below(6)].to_le_bytes();
                let place = (at & !7).min(bytes.len().saturating_sub(8));
                let end = (place + 8).min(bytes.len());
                bytes[place..end].copy_from_slice(&number[..end - place]);
            }
            _ => {
                let from = random.below(bytes.len());
                let part = bytes[from..(from + random.below(64)).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    let signed = random.below(2) == 0 && bytes.len() >= head && head >= 64;
    if signed {
        sign(&mut bytes[..head]);
    }
    signed
}

/// Opens the file and reads all of it; what comes must be what was written, unless the header was forged.
fn read_all(storage: &Arc<Storage>, path: &Path, provenance: &Provenance, version_1: bool, forged: bool) -> bool {
    let expected = Expected { provenance, rows: ROWS, width: None };
    let Ok(Some(file)) = ShardFile::open(storage, &path.to_owned().into(), expected) else { return false };
    let mut out = vec![bf16::ZERO; file.width()];
    for (column, name) in COLUMNS.into_iter().enumerate() {
        for row in 0..ROWS {
            match file.read(name, row as u64, &mut out) {
                // Version 1 has no checksums: damaged numbers come through.
                Ok(true) if !forged && !version_1 => assert_eq!(out, value(column, row), "{name} {row}"),
                Ok(false) if !forged && !version_1 => assert!(is_null(column, row), "{name} {row}"),
                Ok(_) | Err(_) => {}
            }
        }
    }
    let _ = file.verify(|_| ());
    true
}

fn limit_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    let limit = kibibytes * 1024 + MEMORY;
    let maximum = getrlimit(Resource::As).maximum;
    setrlimit(Resource::As, Rlimit { current: Some(limit), maximum }).unwrap();
}

#[test]
fn fuzz_damaged_files_give_errors_or_what_was_written() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let length = Duration::from_secs(variable("LLM2CLIP_FUZZ_SECONDS").unwrap_or(2));
    let first = variable("LLM2CLIP_FUZZ_SEED").unwrap_or(1);
    let folder = tempfile::tempdir().unwrap();
    let provenance = Provenance::named([("pooling", "mean"), ("template", "{caption}")]);
    let valid = valid(folder.path(), &provenance);
    limit_memory();
    let (started, mut files, mut opened) = (Instant::now(), 0u64, 0u64);
    for seed in first.. {
        if started.elapsed() >= length && files > 0 {
            break;
        }
        let mut random = Random(seed);
        let version_1 = random.below(4) == 0;
        let mut bytes = valid[usize::from(version_1)].clone();
        let forged = damage(&mut bytes, &mut random);
        let path = folder.path().join(if version_1 { "x.safetensors" } else { "x.vectors" });
        std::fs::write(&path, &bytes).unwrap();
        let outcome = std::panic::catch_unwind(|| {
            // A new one for each: it keeps files open by name.
            let storage = Arc::new(Storage::new(Limits::default(), []));
            read_all(&storage, &folder.path().join("x.vectors"), &provenance, version_1, forged)
        });
        std::fs::remove_file(&path).unwrap();
        opened += u64::from(outcome.unwrap_or_else(|_| panic!("seed {seed}: replay with LLM2CLIP_FUZZ_SEED={seed}")));
        files += 1;
    }
    println!("{files} damaged files, {opened} of them opened, in {:.1} s", started.elapsed().as_secs_f64());
    assert!(opened > 0, "damage that no file survives tests nothing behind the header");
}
