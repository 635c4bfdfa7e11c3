//! What becomes of samples whose images cannot be decoded. How many are too many is not judged here: a loader sees one
//! rank's samples.

use super::SampleRequest;
use crate::data::SkipReason;
use common::{ids::SampleIndex, sampler::Order};
use std::{fmt::Debug, sync::Arc};

/// Samples that may stand in for others.
pub trait Reserve: Debug + Send + Sync {
    /// What is tried in place of `wanted` at an attempt, from 0; absent when nothing more is to be tried. It depends on
    /// the arguments alone.
    fn reserve(&self, wanted: SampleRequest, attempt: u64) -> Option<SampleIndex>;
}

impl Reserve for Order {
    fn reserve(&self, wanted: SampleRequest, attempt: u64) -> Option<SampleIndex> {
        Order::reserve(self, wanted.source as usize, wanted.epoch, wanted.index, attempt)
    }
}

/// What to do about a broken image.
#[derive(Debug, Clone)]
pub enum OnBroken {
    /// Another sample stands in for it.
    Replace(Arc<dyn Reserve>),
    /// Its pixels are black; who asked for it leaves it out.
    LeaveOut,
}

/// A sample that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenSample {
    /// What was asked for.
    pub wanted: SampleRequest,
    /// Its key.
    pub key: String,
    /// Why it was not used.
    pub reason: SkipReason,
    /// What the decoder said.
    pub detail: String,
}
