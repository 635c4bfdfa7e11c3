//! LLM2CLIP's own text vectors: a tar per shard, `X_text_embeddings.tar`, with a member `KEY.COLUMN` of raw
//! little-endian f32 per sample and caption column.
//!
//! Samples are matched by key, in whatever order they come; what is missing, there twice or of no sample is counted and
//! named. The reference computes in bf16 and only stores in f32, so a number's lower half is zero and nothing is lost
//! here; numbers for which that does not hold are rounded to the nearest bf16, ties to even, and counted.

use super::{Provenance, ShardWriter, VectorsError, layout::WIDEST};
use crate::data::{
    Blob,
    tar::{End, Member, Walk},
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
    let rows: HashMap<&str, usize> = keys.iter().enumerate().map(|(row, key)| (*key, row)).collect();
    let mut taking = Taking { tar, keys: &keys, rows, columns, report: ImportReport::default(), writer: None };
    // One pass: each vector is taken when its member is met, so that an object is read once and in its order.
    let io = |source| unread(tar, source);
    let mut walk = Walk::new(tar).map_err(io)?;
    while let Some(member) = walk.next().map_err(io)? {
        taking.take(&member, &mut walk, (provenance, out))?;
    }
    taking.finish(walk.end())
}

/// A tar that is being read.
struct Taking<'a> {
    tar: &'a Blob,
    keys: &'a [&'a str],
    rows: HashMap<&'a str, usize>,
    columns: &'a [&'a str],
    report: ImportReport,
    /// Begun by the first vector, which says how wide all are.
    writer: Option<ShardWriter>,
}

impl Taking<'_> {
    /// Takes a member, if it is a vector of a sample and a column.
    fn take(
        &mut self,
        member: &Member,
        walk: &mut Walk<'_>,
        (provenance, out): (&Provenance, &Path),
    ) -> Result<(), VectorsError> {
        let Some((key, end)) = split(&member.name) else { return Ok(()) };
        let Some(column) = self.columns.iter().position(|name| ending(name).eq_ignore_ascii_case(end)) else {
            return Ok(());
        };
        let Some(row) = self.rows.get(key).copied() else {
            self.report.unmatched.add(|| member.name.clone());
            return Ok(());
        };
        let writer = match &mut self.writer {
            Some(writer) if member.size == self.report.width as u64 * 4 => writer,
            None if member.size > 0 && member.size.is_multiple_of(4) && member.size / 4 <= WIDEST => {
                self.report.width = (member.size / 4) as usize;
                let size = [self.keys.len(), self.report.width];
                self.writer.insert(ShardWriter::create(out, provenance, size, self.columns)?)
            }
            _ => return Err(self.unusable(self.misfit(member))),
        };
        let name = || format!("{key}.{}", ending(self.columns[column]));
        if writer.has(column, row) {
            self.report.duplicates.add(name);
            return Ok(());
        }
        let bytes = walk.bytes(member.offset, member.size).map_err(|source| unread(self.tar, source))?;
        let mut vector = vec![bf16::ZERO; self.report.width];
        match convert(bytes, &mut vector) {
            Some(rounded) => {
                writer.put(column, row, &vector)?;
                self.report.taken += 1;
                self.report.rounded += rounded;
            }
            None => self.report.not_finite.add(name),
        }
        Ok(())
    }

    /// Why a member's size is not that of a vector.
    fn misfit(&self, member: &Member) -> String {
        let (name, size) = (&member.name, member.size);
        match self.report.width {
            0 => format!("`{name}` has {size} bytes; a f32 vector has 4 to {}, a multiple of 4", WIDEST * 4),
            width => format!("`{name}` has {size} bytes; f32 vectors of one width are due, {} bytes each", width * 4),
        }
    }

    fn unusable(&self, reason: String) -> VectorsError {
        VectorsError::Reference { path: place(self.tar), reason }
    }

    /// Counts what is missing, and gives the file its name.
    fn finish(mut self, end: Option<End>) -> Result<ImportReport, VectorsError> {
        self.report.fault = match end {
            Some(End::NotATar) => return Err(self.unusable("it is no tar".to_owned())),
            Some(End::Truncated(at)) => Some(format!("it breaks off in the member at byte {at}")),
            Some(End::Damaged(at)) => Some(format!("there is no member's header at byte {at}")),
            Some(End::Whole) | None => None,
        };
        let Some(writer) = self.writer.take() else { return Err(self.unusable(self.no_match())) };
        for (row, key) in self.keys.iter().enumerate() {
            for (_, name) in self.columns.iter().enumerate().filter(|(column, _)| !writer.has(*column, row)) {
                self.report.missing.add(|| format!("{key}.{}", ending(name)));
            }
        }
        writer.finish()?;
        if !self.report.is_clean() {
            let report = &self.report;
            tracing::warn!(tar = %self.tar.location(), "not all text vectors could be taken as they are\n{report}");
        }
        Ok(self.report)
    }

    fn no_match(&self) -> String {
        let unmatched = &self.report.unmatched;
        let example = unmatched.examples.first().map_or(String::new(), |name| format!(", such as `{name}`"));
        format!(
            "none of its members is `KEY.{}` of one of the shard's {} samples; {} have another key{example}",
            self.columns.iter().map(|name| ending(name)).collect::<Vec<_>>().join("` or `KEY."),
            self.keys.len(),
            unmatched.count
        )
    }
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
