//! LLM2CLIP's own text vectors: a tar per shard, `X_text_embeddings.tar`, with a member `KEY.COLUMN` of raw
//! little-endian f32 per sample and caption column.
//!
//! Samples are matched by key, in whatever order they come; what is missing, there twice or of no sample is counted and
//! named. The reference computes in bf16 and only stores in f32, so a number's lower half is zero and nothing is lost
//! here; numbers for which that does not hold are rounded to the nearest bf16, ties to even, and counted.

use super::{Provenance, ShardWriter, VectorsError};
use crate::data::{
    Blob, ReadAt as _,
    tar::{End, Walk},
};
use half::bf16;
use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

/// Examples that a report names.
const EXAMPLES: usize = 3;

/// A count and the first few of what was counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Named {
    /// How many.
    pub count: u64,
    /// The first three, `KEY.COLUMN`.
    pub examples: Vec<String>,
}

/// What a tar's vectors were good for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ImportReport {
    /// Numbers a vector.
    pub width: usize,
    /// Vectors that were taken.
    pub taken: u64,
    /// Samples without a vector: their rows are null.
    pub missing: Named,
    /// Members that came again; the first one counts.
    pub duplicates: Named,
    /// Members whose key no sample has.
    pub unmatched: Named,
    /// Members with a number that is infinite or none: their rows are null.
    pub not_finite: Named,
    /// Numbers that are no bf16 and were rounded; zero for what LLM2CLIP wrote.
    pub rounded: u64,
    /// How the tar is cut short or damaged, if it is.
    pub fault: Option<String>,
}

/// A member that is wanted.
struct Found {
    offset: u64,
    column: usize,
    row: usize,
}

/// Makes the vectors in `tar` a shard's file at `out`. `keys` are the shard's samples in the order of the index;
/// `columns` the caption columns: of `.json:shortSV_captions` the members `KEY.shortSV_captions`, whatever the case of
/// their letters.
///
/// # Errors
/// When a file cannot be read or written, or the members that match are of different sizes or there is none.
pub fn import<'a>(
    tar: &Blob,
    keys: impl IntoIterator<Item = &'a str>,
    columns: &[&str],
    provenance: &Provenance,
    out: &Path,
) -> Result<ImportReport, VectorsError> {
    let keys: Vec<&str> = keys.into_iter().collect();
    let mut report = ImportReport::default();
    let members = find(tar, &keys, columns, &mut report)?;
    let width = report.width;
    let mut writer = ShardWriter::create(out, provenance, [keys.len(), width], columns)?;
    let (mut bytes, mut vector) = (vec![0u8; width * 4], vec![bf16::ZERO; width]);
    for Found { offset, column, row } in members {
        let name = || format!("{}.{}", keys[row], ending(columns[column]));
        if writer.has(column, row) {
            report.duplicates.add(name);
            continue;
        }
        tar.read_at(&mut bytes, offset).map_err(|source| unread(tar, source))?;
        match convert(&bytes, &mut vector) {
            Some(rounded) => {
                writer.put(column, row, &vector)?;
                report.taken += 1;
                report.rounded += rounded;
            }
            None => report.not_finite.add(name),
        }
    }
    for (row, key) in keys.iter().enumerate() {
        for (_, name) in columns.iter().enumerate().filter(|(column, _)| !writer.has(*column, row)) {
            report.missing.add(|| format!("{key}.{}", ending(name)));
        }
    }
    writer.finish()?;
    if !report.is_clean() {
        tracing::warn!(tar = %tar.location(), "not all text vectors could be taken as they are\n{report}");
    }
    Ok(report)
}

/// The members that belong to a sample and a column, in the tar's order. Their size is the report's width.
fn find(tar: &Blob, keys: &[&str], columns: &[&str], report: &mut ImportReport) -> Result<Vec<Found>, VectorsError> {
    let unusable = |reason: String| VectorsError::Reference { path: place(tar), reason };
    let io = |source| unread(tar, source);
    let rows: HashMap<&str, usize> = keys.iter().enumerate().map(|(row, key)| (*key, row)).collect();
    let endings: HashMap<String, usize> =
        columns.iter().enumerate().map(|(column, name)| (ending(name).to_ascii_lowercase(), column)).collect();
    let mut walk = Walk::new(tar).map_err(io)?;
    let mut found = Vec::new();
    let mut size = None;
    while let Some(member) = walk.next().map_err(io)? {
        let Some((key, ending)) = split(&member.name) else { continue };
        let Some(column) = endings.get(&ending.to_ascii_lowercase()).copied() else { continue };
        let Some(row) = rows.get(key).copied() else {
            report.unmatched.add(|| member.name.clone());
            continue;
        };
        let due = *size.get_or_insert(member.size);
        if member.size != due || due == 0 || due % 4 != 0 {
            let name = &member.name;
            let reason =
                format!("`{name}` has {} bytes; f32 vectors of one width are due, {due} bytes each", member.size);
            return Err(unusable(reason));
        }
        found.push(Found { offset: member.offset, column, row });
    }
    report.fault = match walk.end() {
        Some(End::NotATar) => return Err(unusable("it is no tar".to_owned())),
        Some(End::Truncated(at)) => Some(format!("it breaks off in the member at byte {at}")),
        Some(End::Damaged(at)) => Some(format!("there is no member's header at byte {at}")),
        Some(End::Whole) | None => None,
    };
    let no_match = || {
        let example = report.unmatched.examples.first().map_or(String::new(), |name| format!(", such as `{name}`"));
        unusable(format!(
            "none of its members is `KEY.{}` of one of the shard's {} samples; {} have another key{example}",
            columns.iter().map(|name| ending(name)).collect::<Vec<_>>().join("` or `KEY."),
            keys.len(),
            report.unmatched.count
        ))
    };
    report.width = usize::try_from(size.ok_or_else(no_match)? / 4)
        .map_err(|_| unusable("its members are too large".to_owned()))?;
    Ok(found)
}

fn place(tar: &Blob) -> PathBuf {
    tar.location().to_string().into()
}

fn unread(tar: &Blob, source: std::io::Error) -> VectorsError {
    VectorsError::Io { operation: "read", path: place(tar), source }
}

/// What a column's members end in: the name of the column or field that its captions are in.
fn ending(column: &str) -> &str {
    let own = column.strip_prefix('.').unwrap_or(column);
    own.strip_prefix("json:").unwrap_or(own)
}

/// A member's key and ending, as webdataset cuts them: at the first dot of the last component.
fn split(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    (dot > base).then(|| (&name[..dot], &name[dot + 1..]))
}

/// From f32 to bf16; how many numbers had to be rounded, or `None` when one is not finite.
fn convert(bytes: &[u8], vector: &mut [bf16]) -> Option<u64> {
    let mut rounded = 0;
    for (number, out) in bytes.as_chunks::<4>().0.iter().zip(vector) {
        let number = f32::from_le_bytes(*number);
        *out = bf16::from_f32(number);
        if !out.is_finite() {
            return None;
        }
        rounded += u64::from(number.to_bits() & 0xffff != 0);
    }
    Some(rounded)
}

impl Named {
    fn add(&mut self, name: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(name());
        }
    }
}

impl ImportReport {
    /// Whether every sample got its vector, and nothing was left over or rounded.
    pub fn is_clean(&self) -> bool {
        let Self { missing, duplicates, unmatched, not_finite, rounded, fault, .. } = self;
        [missing, duplicates, unmatched, not_finite].iter().all(|named| named.count == 0)
            && *rounded == 0
            && fault.is_none()
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {} vectors of width {} taken", self.taken, self.width)?;
        for (named, what) in [
            (&self.missing, "samples' captions have no vector"),
            (&self.duplicates, "members came again and were passed over"),
            (&self.unmatched, "members belong to no sample"),
            (&self.not_finite, "members hold a number that is not finite"),
        ] {
            if named.count > 0 {
                writeln!(f, "  {} {what}: {}", named.count, named.examples.join(", "))?;
            }
        }
        if self.rounded > 0 {
            writeln!(f, "  {} numbers are no bf16 and were rounded", self.rounded)?;
        }
        self.fault.iter().try_for_each(|fault| writeln!(f, "  {fault}"))
    }
}
