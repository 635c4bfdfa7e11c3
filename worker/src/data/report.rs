//! What is broken in a data set: counted by reason, with examples.

use super::join::Coverage;
use crate::storage::Location;
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// How many examples of a reason are named.
const EXAMPLES: usize = 5;

/// Why a sample is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// The tar has a caption or metadata of this key, but no image.
    NoImage,
    /// The image has no bytes.
    EmptyImage,
    /// The image cannot be decoded.
    BrokenImage,
    /// The key has no `.txt` in the tar.
    NoText,
    /// The `.txt` is no UTF-8.
    InvalidUtf8,
    /// The caption table has no row with this key.
    NoRow,
    /// A caption that would be drawn is null or empty.
    EmptyCaption,
    /// The tar has this member a second time; the first is used.
    Duplicate,
    /// The sample lacks the field that the table is joined by.
    NoJoinField,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SkipReason::NoImage => "no image",
            SkipReason::EmptyImage => "image of zero bytes",
            SkipReason::BrokenImage => "image that cannot be decoded",
            SkipReason::NoText => "no .txt",
            SkipReason::InvalidUtf8 => "caption is no UTF-8",
            SkipReason::NoRow => "no row in the caption table",
            SkipReason::EmptyCaption => "empty caption",
            SkipReason::Duplicate => "member that is there twice",
            SkipReason::NoJoinField => "no field to join by",
        })
    }
}

/// The samples skipped for one reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// How many.
    pub count: u64,
    /// The first of them, as `shard/key`.
    pub examples: Vec<String>,
}

/// A shard that could be read in part only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShardFault {
    /// The shard.
    pub path: Location,
    /// What is wrong: `truncated` or `damaged`.
    pub fault: String,
    /// Up to which byte it was used.
    pub used_bytes: u64,
}

/// What was left out of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Skipped samples by reason.
    pub skipped: BTreeMap<SkipReason, Skipped>,
    /// Shards that were used up to a point.
    pub faults: Vec<ShardFault>,
    /// Rows of the caption table whose key came before; the first row counts.
    pub duplicate_rows: u64,
    /// Samples that the recipe leaves out by `rows`, `only` and `captions.unmatched`; they are not broken.
    pub left_out: u64,
    /// How samples and the caption table's rows met; absent without a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Coverage>,
}

impl Report {
    /// How many samples are not used.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().map(|skipped| skipped.count).sum()
    }

    /// Whether there is nothing to tell.
    pub fn is_clean(&self) -> bool {
        let joined_whole = self.join.as_ref().is_none_or(Coverage::is_whole);
        self.skipped.is_empty()
            && self.faults.is_empty()
            && self.duplicate_rows == 0
            && self.left_out == 0
            && joined_whole
    }

    pub(super) fn skip(&mut self, reason: SkipReason, shard: &str, key: &str) {
        if self.skip_more(reason, 1) {
            self.example(reason, shard, key);
        }
    }

    /// Counts; true when examples of the reason are still wanted.
    pub(super) fn skip_more(&mut self, reason: SkipReason, count: u64) -> bool {
        let skipped = self.skipped.entry(reason).or_default();
        skipped.count += count;
        skipped.examples.len() < EXAMPLES
    }

    pub(super) fn example(&mut self, reason: SkipReason, shard: &str, key: &str) {
        let examples = &mut self.skipped.entry(reason).or_default().examples;
        if examples.len() < EXAMPLES {
            examples.push(format!("{shard}/{key}"));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for (reason, skipped) in &self.skipped {
            let more = if skipped.count > skipped.examples.len() as u64 { ", ..." } else { "" };
            lines.push(format!("  {} x {reason}: {}{more}", skipped.count, skipped.examples.join(", ")));
        }
        for fault in &self.faults {
            lines.push(format!("  {} is {}: used up to byte {}", fault.path, fault.fault, fault.used_bytes));
        }
        if self.duplicate_rows > 0 {
            lines.push(format!("  {} rows of the caption table repeat a key: the first is used", self.duplicate_rows));
        }
        if self.left_out > 0 {
            lines.push(format!("  {} samples are left out, as the recipe says", self.left_out));
        }
        if let Some(join) = self.join.as_ref().filter(|join| !join.is_whole()) {
            lines.push(join.to_string());
        }
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_all_and_names_five() {
        let mut report = Report::default();
        (0..7).for_each(|i| report.skip(SkipReason::NoImage, "00000", &format!("k{i}")));
        report.skip(SkipReason::NoRow, "00001", "x");
        assert_eq!(report.skipped_total(), 8);
        let text = report.to_string();
        assert!(text.contains("7 x no image: 00000/k0, 00000/k1, 00000/k2, 00000/k3, 00000/k4, ..."), "{text}");
        assert!(text.contains("1 x no row in the caption table: 00001/x"), "{text}");
    }
}
