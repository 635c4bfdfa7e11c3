//! The order of a job that ran: its checkpoint knows which weights the mix had, and from which step on others.

use super::OrderQuestionError;
use crate::{
    checkpoint::{CheckpointError, Shelf},
    data::Dataset,
    storage::Storage,
};
use common::{
    ids::Step,
    manifest::{DataCursor, ResumeError, Weights},
    sampler::Order,
};
use std::{path::Path, sync::Arc};

/// Where a recipe's stage keeps its checkpoints, and which one is meant.
pub(super) struct Checkpoints<'a> {
    /// What object stores are reached through.
    pub storage: &'a Arc<Storage>,
    /// Where the recipe keeps checkpoints.
    pub root: &'a Path,
    /// The stage.
    pub stage: &'a str,
    /// The one that was named; absent means the newest, if there is one.
    pub named: Option<&'a Path>,
}

/// The order that a job of the recipe has: `now`, the recipe's own, behind what its checkpoint says of the steps before. Weights that
/// the recipe has changed since hold from the checkpoint's step on, as after a resume.
///
/// Where no checkpoint was named, one of other data or of another seed is of another job: the recipe's own order is
/// listed, and that is said.
///
/// # Errors
/// When the named checkpoint has no manifest, or its order cannot be gone on with; the newest one, when its weights
/// and the recipe's give none.
pub(super) fn of_job(
    checkpoints: &Checkpoints<'_>,
    datasets: &[Dataset],
    now: Order,
) -> Result<Order, OrderQuestionError> {
    let found = checkpoints.find().map_err(|source| OrderQuestionError::Checkpoint { source })?;
    let Some((shelf, step)) = found else { return Ok(now) };
    let folder = shelf.place(step);
    let digest = |number: usize| datasets[number].fingerprint();
    let recorded = match (shelf.manifest(step), checkpoints.named) {
        (Ok(manifest), _) => manifest.data.resume(&DataCursor::new(now.spec(), 0, digest), Weights::MayChange),
        (Err(source), Some(_)) => return Err(OrderQuestionError::Checkpoint { source }),
        // It went while it was looked for.
        (Err(_), None) => return Ok(now),
    };
    match (recorded, checkpoints.named) {
        (Ok(order), _) => {
            if order.spec().segments.len() > 1 {
                eprintln!("the mix's weights changed on the way, as {} says", folder.display());
            }
            Ok(order)
        }
        (Err(ResumeError::Difference(difference)), None) => {
            let (folder, field) = (folder.display(), difference.field);
            let (written, now_is) = (difference.written, difference.now);
            eprintln!(
                "the recipe's own order is listed: {folder} is of another, {field} was {written} there and is {now_is} here"
            );
            Ok(now)
        }
        (Err(source), _) => Err(OrderQuestionError::History { folder, source }),
    }
}

impl Checkpoints<'_> {
    /// Which one is meant; absent when none was named and there is none.
    fn find(&self) -> Result<Option<(Shelf, Step)>, CheckpointError> {
        if let Some(named) = self.named {
            return Shelf::of_checkpoint(self.storage, named).map(Some);
        }
        let shelf = Shelf::open(self.storage, self.root, self.stage)?;
        Ok(shelf.committed()?.into_iter().max().map(|newest| (shelf, newest)))
    }
}
