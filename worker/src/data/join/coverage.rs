//! How a data set and its caption table met.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How many examples are kept of each.
const EXAMPLES: usize = 3;

/// Things that are counted, with examples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// How many.
    pub count: u64,
    /// The first of them.
    pub examples: Vec<String>,
}

impl Counted {
    /// Counts one more; `example` is asked for when it is kept.
    pub fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example());
        }
    }
}

/// One side of a join.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Those that met something on the other side.
    pub matched: u64,
    /// Those that met nothing.
    pub unmatched: Counted,
    /// Those whose value another one before had. Samples that share a row are all used; of rows the first is.
    pub duplicates: Counted,
    /// Those without a value to join by.
    pub without: Counted,
}

/// A join's report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// What of a sample is looked up.
    pub join: String,
    /// In which column of the table.
    pub key: String,
    /// The data set's samples.
    pub samples: Side,
    /// The table's rows.
    pub rows: Side,
}

impl Coverage {
    /// Whether every sample has its own row. Rows without a sample are usual: downloads fail.
    pub fn is_whole(&self) -> bool {
        let samples = &self.samples;
        samples.unmatched.count + samples.duplicates.count + samples.without.count + self.rows.duplicates.count == 0
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  joined by {} = `{}`: ", self.join, self.key)?;
        for (i, (what, side)) in [("samples", &self.samples), ("rows", &self.rows)].into_iter().enumerate() {
            write!(f, "{}{what} {} matched", if i == 0 { "" } else { "; " }, side.matched)?;
            for (word, counted) in
                [("unmatched", &side.unmatched), ("duplicate", &side.duplicates), ("without a value", &side.without)]
            {
                if counted.count > 0 {
                    write!(f, ", {} {word} ({})", counted.count, counted.examples.join(", "))?;
                }
            }
        }
        Ok(())
    }
}
