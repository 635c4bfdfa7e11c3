//! The data record of a checkpoint: where the data stands, and all that the order of samples depends on.

use crate::{
    ids::Step,
    sampler::{
        AUGMENTATION_VERSION, ORDER_VERSION, Order, OrderError, OrderSource, OrderSpec, Policy, Segment, Shuffle, Tail,
    },
};
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// How many digits of an index's digest are kept: 128 bits, enough to tell one from another.
const DIGITS: usize = 32;

/// Where the data stands. With one segment and eight data sets it is below 1 KB of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataCursor {
    /// The version of the order ([`ORDER_VERSION`]).
    pub order: u32,
    /// The version of what is drawn for a sample ([`AUGMENTATION_VERSION`]), the same for all data sets.
    pub augmentation: u32,
    /// The seed.
    pub seed: u64,
    /// Samples consumed by the stage.
    pub position: u64,
    /// Pairs per step.
    pub global_batch: u64,
    /// How a global batch is composed.
    pub policy: Policy,
    /// What happens at the end of a data set.
    pub tail: Tail,
    /// Every data set of the mix.
    pub sources: Vec<SourceFingerprint>,
    /// The weights over time.
    pub segments: Vec<Segment>,
}

/// One data set of the mix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFingerprint {
    /// The data set's name in the recipe.
    pub name: String,
    /// How many samples its index has.
    pub samples: u64,
    /// The first 128 bits, in hexadecimal, of the digest of its index.
    pub fingerprint: String,
    /// How its samples are shuffled; absent means fully.
    #[serde(default, skip_serializing_if = "Shuffle::is_full")]
    pub shuffle: Shuffle,
}

impl SourceFingerprint {
    /// The record of a data set, of whose index `digest` is the digest.
    pub fn new(name: String, samples: u64, shuffle: Shuffle, digest: &str) -> Self {
        Self { name, samples, fingerprint: digest.chars().take(DIGITS).collect(), shuffle }
    }
}

/// What a resume may do about weights that the recipe has changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Refuse to go on.
    #[default]
    AsWritten,
    /// Go on with the new ones, as a new segment that begins at the resume's step.
    MayChange,
}

/// Why a stage cannot go on from a checkpoint: the samples would come in another order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the checkpoint cannot be resumed: {field} was {written} when it was written and is {now} now, so the samples would \
     come in another order. Undo the change, or start a new job with another `output`"
)]
pub struct CursorDifference {
    /// What differs.
    pub field: String,
    /// Its value in the checkpoint.
    pub written: String,
    /// Its value now.
    pub now: String,
}

/// Why there is no order to go on in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResumeError {
    /// It would be another one.
    #[error(transparent)]
    Difference(#[from] CursorDifference),
    /// The new weights give none.
    #[error("the weights of the mix cannot be changed: {0}")]
    Weights(#[source] OrderError),
    /// The checkpoint's own record gives none.
    #[error("the checkpoint's data record gives no order: {0}")]
    Record(#[source] OrderError),
}

impl DataCursor {
    /// The record of an order at a position; `digest` gives the digest of a data set's index by its number.
    pub fn new(spec: &OrderSpec, position: u64, digest: impl Fn(usize) -> String) -> Self {
        let source = |(number, source): (usize, &OrderSource)| {
            SourceFingerprint::new(source.name.clone(), source.samples, source.shuffle, &digest(number))
        };
        Self {
            order: ORDER_VERSION,
            augmentation: AUGMENTATION_VERSION,
            seed: spec.seed,
            position,
            global_batch: spec.global_batch,
            policy: spec.policy,
            tail: spec.tail,
            sources: spec.sources.iter().enumerate().map(source).collect(),
            segments: spec.segments.clone(),
        }
    }

    /// The order that the record describes.
    pub fn spec(&self) -> OrderSpec {
        let source = |source: &SourceFingerprint| OrderSource {
            name: source.name.clone(),
            samples: source.samples,
            shuffle: source.shuffle,
        };
        OrderSpec {
            seed: self.seed,
            global_batch: self.global_batch,
            sources: self.sources.iter().map(source).collect(),
            policy: self.policy,
            tail: self.tail,
            segments: self.segments.clone(),
        }
    }

    /// The weights that hold at the end of the record.
    pub fn weights(&self) -> Option<&[u32]> {
        self.segments.last().and_then(|segment| segment.weights.as_deref())
    }

    /// Compares a checkpoint's record with that of the recipe and the data as they are now; of the weights, the newest ones.
    /// The position is not compared.
    ///
    /// # Errors
    /// The first thing that would change the order.
    pub fn refuse_difference(&self, now: &DataCursor) -> Result<(), CursorDifference> {
        self.refuse_other_data(now)?;
        let text = |weights: Option<&[u32]>| {
            weights.map_or_else(|| "in proportion to the sizes".to_owned(), |weights| format!("{weights:?}"))
        };
        same("`mix.weights`", text(self.weights()), text(now.weights()))
    }

    /// The order in which a stage goes on from this record, given that of the recipe and the data as they are now. What
    /// comes before the record's position is as it was.
    ///
    /// # Errors
    /// When anything but the weights differs, or they do and may not, or the new ones give no order.
    pub fn resume(&self, now: &DataCursor, weights: Weights) -> Result<Order, ResumeError> {
        self.refuse_other_data(now)?;
        let order = Order::new(self.spec()).map_err(ResumeError::Record)?;
        match weights {
            Weights::MayChange if self.weights() != now.weights() => {
                let step = Step(self.position / self.global_batch.max(1));
                order.with_weights_from(step, now.weights().map(<[u32]>::to_vec)).map_err(ResumeError::Weights)
            }
            _ => {
                self.refuse_difference(now)?;
                Ok(order)
            }
        }
    }

    fn refuse_other_data(&self, now: &DataCursor) -> Result<(), CursorDifference> {
        let names = |cursor: &DataCursor| {
            let names: Vec<&str> = cursor.sources.iter().map(|source| source.name.as_str()).collect();
            format!("[{}]", names.join(", "))
        };
        same("the version of the order", self.order, now.order)?;
        same("the version of crops and caption choice", self.augmentation, now.augmentation)?;
        same("`seed`", self.seed, now.seed)?;
        same("`global_batch`", self.global_batch, now.global_batch)?;
        same("`mix.policy`", word(&self.policy), word(&now.policy))?;
        same("`tail`", word(&self.tail), word(&now.tail))?;
        same("the list of data sets", names(self), names(now))?;
        for (then, now) in self.sources.iter().zip(&now.sources) {
            let field = |what: &str| format!("{what} of data set `{}`", then.name);
            same(field("the number of samples"), then.samples, now.samples)?;
            same(field("`shuffle`"), word(&then.shuffle), word(&now.shuffle))?;
            same(field("the fingerprint of the index"), &then.fingerprint, &now.fingerprint)?;
        }
        Ok(())
    }
}

/// A value as a recipe has it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a plain value is JSON")
}

fn same<T: Display + PartialEq>(field: impl Into<String>, written: T, now: T) -> Result<(), CursorDifference> {
    if written == now {
        Ok(())
    } else {
        Err(CursorDifference { field: field.into(), written: written.to_string(), now: now.to_string() })
    }
}

#[cfg(test)]
mod tests;
