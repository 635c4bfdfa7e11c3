//! The zip that `torch.save` writes: parts are stored as they are, and found by the directory at the end.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
};

/// Where a part's bytes are; within the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// The parts of a file by name.
#[derive(Debug)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const DIRECTORY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";
// The end's own bytes, and the longest comment behind them.
const END_BYTES: u64 = 22;
const COMMENT_BYTES: u64 = 0xffff;
// A directory names parts: 100 bytes each or so.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?)))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?)))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn read_at(file: &mut (impl Read + Seek), start: u64, length: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0u8; usize::try_from(length).map_err(|error| error.to_string())?];
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(&mut bytes)).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A part as the directory describes it.
struct Listed {
    name: String,
    header: u64,
    length: u64,
}

impl Archive {
    /// Reads the directory. Every entry lies within the file.
    pub(super) fn read(file: &mut (impl Read + Seek)) -> Result<Self, String> {
        let total = file.seek(SeekFrom::End(0)).map_err(|error| error.to_string())?;
        let cut = || "its zip directory is damaged or cut".to_owned();
        let tail = total.min(END_BYTES + COMMENT_BYTES);
        let bytes = read_at(file, total - tail, tail)?;
        let end = bytes
            .windows(END.len())
            .rposition(|window| window == END)
            .ok_or("it is no zip of torch.save (older files are not supported)")?;
        let (mut start, mut length) = u32_at(&bytes, end + 16).zip(u32_at(&bytes, end + 12)).ok_or_else(cut)?;
        if start == u64::from(u32::MAX) || length == u64::from(u32::MAX) {
            // Beyond 4 GiB the numbers stand in a record of their own, to which the bytes before the end point.
            let at = end.checked_sub(20).filter(|at| bytes[*at..].starts_with(&LOCATOR_64)).ok_or_else(cut)?;
            let record = u64_at(&bytes, at + 8).filter(|at| at.checked_add(56).is_some_and(|to| to <= total));
            let record = read_at(file, record.ok_or_else(cut)?, 56)?;
            if !record.starts_with(&END_64) {
                return Err(cut());
            }
            (start, length) = u64_at(&record, 48).zip(u64_at(&record, 40)).ok_or_else(cut)?;
        }
        if length > MAX_DIRECTORY_BYTES || start.checked_add(length).is_none_or(|to| to > total) {
            return Err(cut());
        }
        let mut entries = BTreeMap::new();
        let directory = read_at(file, start, length)?;
        let mut rest = directory.as_slice();
        while rest.starts_with(&DIRECTORY) {
            let (listed, after) = listed(rest)?;
            rest = after;
            let entry = locate(file, &listed, total)?;
            if entries.insert(listed.name.clone(), entry).is_some() {
                return Err(format!("{} is in its zip directory twice", listed.name));
            }
        }
        Ok(Self { entries })
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The only part `ROOT/name`, with `ROOT/`.
    pub(super) fn find_suffix(&self, name: &str) -> Option<(&str, &Entry)> {
        let root = |(full, entry)| {
            let full: &String = full;
            Some((full.strip_suffix(name)?, entry))
        };
        self.entries.iter().filter_map(root).find(|(root, _)| root.matches('/').count() == 1 && root.ends_with('/'))
    }

    /// A part's bytes, which are at most `limit`.
    pub(super) fn bytes(&self, file: &mut (impl Read + Seek), entry: &Entry, limit: u64) -> Result<Vec<u8>, String> {
        if entry.length > limit {
            return Err(format!("a part that should be small has {} bytes", entry.length));
        }
        read_at(file, entry.start, entry.length)
    }
}

/// The first part of a directory, and what follows it.
fn listed(bytes: &[u8]) -> Result<(Listed, &[u8]), String> {
    let parse = || {
        let (flags, method) = (u16_at(bytes, 8)?, u16_at(bytes, 10)?);
        let (packed, mut length, mut header) = (u32_at(bytes, 20)?, u32_at(bytes, 24)?, u32_at(bytes, 42)?);
        let [name, extra, comment] = [u16_at(bytes, 28)?, u16_at(bytes, 30)?, u16_at(bytes, 32)?].map(|n| n as usize);
        let text = String::from_utf8(bytes.get(46..46 + name)?.to_vec()).ok()?;
        let mut extras = bytes.get(46 + name..46 + name + extra)?;
        while let (Some(kind), Some(size)) = (u16_at(extras, 0), u16_at(extras, 2)) {
            let field = extras.get(4..4 + size as usize)?;
            if kind == 1 {
                // The numbers that did not fit, in this order: length, packed length, place of the header.
                let mut at = 0;
                for (value, full) in [(length, &mut length as &mut u64), (packed, &mut 0), (header, &mut header)] {
                    if value == u64::from(u32::MAX) {
                        *full = u64_at(field, at)?;
                        at += 8;
                    }
                }
            }
            extras = extras.get(4 + size as usize..)?;
        }
        let plain = method == 0 && flags & 1 == 0;
        Some((Listed { name: text, header, length }, plain, bytes.get(46 + name + extra + comment..)?))
    };
    let (listed, plain, rest) = parse().ok_or("its zip directory is damaged or cut")?;
    if !plain {
        return Err(format!("{} in it is compressed or encrypted, which torch.save does not do", listed.name));
    }
    Ok((listed, rest))
}

/// Where the bytes of a part begin: behind its own header, whose length only it knows.
fn locate(file: &mut (impl Read + Seek), listed: &Listed, total: u64) -> Result<Entry, String> {
    let outside = || format!("{} does not lie within the file, which is cut", listed.name);
    if listed.header.checked_add(30).is_none_or(|to| to > total) {
        return Err(outside());
    }
    let header = read_at(file, listed.header, 30)?;
    let lengths = u16_at(&header, 26).zip(u16_at(&header, 28)).filter(|_| header.starts_with(&LOCAL));
    let (name, extra) = lengths.ok_or_else(|| format!("{} has no zip header where one should be", listed.name))?;
    let start = listed.header + 30 + name + extra;
    if start.checked_add(listed.length).is_none_or(|to| to > total) {
        return Err(outside());
    }
    Ok(Entry { start, length: listed.length })
}
