//! Newtypes for what is named and counted.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A name that is not one: what was wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{value}` is no {what}: it must be 1 to 64 letters, digits, `-`, `_` or `.`, and begin with a letter or a digit"
)]
pub struct InvalidName {
    what: &'static str,
    value: String,
}

fn checked(what: &'static str, value: &str) -> Result<String, InvalidName> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let whole = (1..=64).contains(&value.len()) && value.chars().all(legal);
    if whole && value.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(value.to_owned())
    } else {
        Err(InvalidName { what, value: value.to_owned() })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                checked($what, value).map(Self)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }
    };
}

name!(
    /// A job: the recipe's name and a short random tail, such as `demo-7k3q`.
    JobId, "job id"
);
name!(
    /// A worker daemon: one machine (or one share of it).
    WorkerId, "worker id"
);

macro_rules! count {
    ($(#[$doc:meta])* $type:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub $inner);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl FromStr for $type {
            type Err = std::num::ParseIntError;
            fn from_str(value: &str) -> Result<Self, Self::Err> {
                value.parse().map(Self)
            }
        }
    };
}

count!(
    /// One membership of a running stage. It only grows; everything that carries a lower one is refused.
    Generation(u64)
);
count!(
    /// A trainer's place among the ranks of its generation, from 0.
    Rank(u32)
);
count!(
    /// How many ranks a generation has.
    WorldSize(u32)
);
count!(
    /// How many optimizer steps of the stage are committed.
    Step(u64)
);
count!(
    /// How many times the data set was gone through before.
    Epoch(u64)
);
count!(
    /// A sample's place in the index of its data set.
    SampleIndex(u64)
);
count!(
    /// A trainer's place on its worker, from 0.
    Slot(u32)
);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl WorldSize {
    /// All ranks, in order.
    pub fn ranks(self) -> impl Iterator<Item = Rank> {
        (0..self.0).map(Rank)
    }
}
