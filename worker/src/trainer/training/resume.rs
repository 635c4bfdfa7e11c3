//! Where a training goes on: what a rank holds in memory, else the newest checkpoint that is whole on storage. All ranks agree.

use crate::{
    checkpoint::{CheckpointError, Loaded, Shelf},
    storage::{Limits, Storage},
    trainer::{
        agreement,
        commits::Teller,
        context::Context,
        error::TrainerError,
        held::{self, Held},
    },
};
use common::{
    alarm::Trouble,
    ids::{Rank, Step},
    manifest::{Manifest, Weights},
    plan::ResumePoint,
};
use std::{sync::Arc, time::Duration};

/// How long an object store may take to show what is nice to see.
const GLANCE: Duration = Duration::from_secs(2);

/// Where a training goes on.
pub(super) enum From {
    /// What a rank holds.
    Memory {
        /// Which.
        holder: Rank,
        /// After how many steps.
        step: Step,
    },
    /// A checkpoint whose every byte was verified.
    Storage(Box<Loaded>),
    /// Nothing was done yet.
    Beginning,
}

impl From {
    /// How many steps were carried out.
    pub(super) fn step(&self) -> Step {
        match self {
            Self::Memory { step, .. } => *step,
            Self::Storage(loaded) => loaded.manifest.step,
            Self::Beginning => Step(0),
        }
    }

    /// Which rank has the parameters right; from storage all have.
    pub(super) fn holder(&self) -> Rank {
        match self {
            Self::Memory { holder, .. } => *holder,
            Self::Storage(_) | Self::Beginning => Rank(0),
        }
    }

    /// What says where the data stood, and whether the weights of a mix may have changed since; absent at the beginning.
    ///
    /// # Errors
    /// When the plan's checkpoint has no manifest.
    pub(super) fn manifest(&self, context: &Context<'_>) -> Result<Option<(Manifest, Weights)>, CheckpointError> {
        let Some(point) = &context.plan.resume else { return Ok(None) };
        let manifest = match self {
            Self::Storage(loaded) => loaded.manifest.clone(),
            // Without it the order is not known.
            Self::Memory { .. } | Self::Beginning if point.weights == Weights::MayChange => {
                context.shelf(context.stage_kind())?.manifest(point.step)?
            }
            // Storage is not needed for what is in memory: the order is the recipe's. One that is away holds nobody up.
            Self::Memory { .. } | Self::Beginning => match glance(context)?.manifest(point.step) {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::warn!(%error, "goes on from memory without a look at the newest checkpoint");
                    return Ok(None);
                }
            },
        };
        Ok(Some((manifest, point.weights)))
    }
}

/// The stage's checkpoints for who has not much time.
fn glance(context: &Context<'_>) -> Result<Shelf, CheckpointError> {
    let limits = Limits { attempt: GLANCE, deadline: GLANCE, ..Limits::default() };
    let (storage, recipe) = (Arc::new(Storage::from_environment(limits)), &context.plan.recipe);
    Shelf::open(&storage, recipe.checkpoint_root(), context.stage_kind())
}

/// Where to go on: from the memory of a rank where the plan says that one holds the state, else from the plan's checkpoint, else from
/// the beginning. All ranks call it.
///
/// # Errors
/// When a peer fails, or no checkpoint is whole.
pub(super) fn choose(context: &Context<'_>, held: Option<&Held>) -> Result<From, TrainerError> {
    let resume = context.plan.resume.as_ref();
    if context.plan.from_memory {
        let at_least = resume.map_or(Step(0), |point| point.step);
        if let Some((holder, step)) = held::newest(context.collective, held, at_least)? {
            tracing::info!(step = step.0, holder = holder.0, "goes on from what a rank holds in memory");
            return Ok(From::Memory { holder, step });
        }
    }
    let Some(point) = resume else { return Ok(From::Beginning) };
    Ok(From::Storage(Box::new(newest_whole(context, point)?)))
}

/// The plan's checkpoint, verified by every rank. When one of them finds that it is damaged, all take the one before it, and say so
/// loudly, unless a user named this one. That storage does not answer says nothing of a checkpoint, and is the end of this try.
fn newest_whole(context: &Context<'_>, point: &ResumePoint) -> Result<Loaded, TrainerError> {
    let shelf = context.shelf(context.stage_kind())?;
    let (mut step, mut first) = (point.step, None);
    loop {
        context.activity(&format!("loading the checkpoint of step {step}"));
        let loaded = own(context, &shelf, step);
        if !agreement::agree(context.collective, loaded.is_err())? {
            return Ok(loaded?);
        }
        let here = loaded.err();
        if let Some(error) = &here {
            tracing::error!(step = step.0, %error, "a checkpoint does not verify");
        }
        let unseen = agreement::agree(context.collective, here.as_ref().is_some_and(CheckpointError::is_unseen))?;
        // Rank 0 says which is the one before: the others' view of the folder may be older.
        let asked = context.speaks() && !point.chosen && !unseen;
        let before = asked.then(|| committed_before(&shelf, step)).flatten();
        let said = agreement::sums(context.collective, &[before.map_or(0, |step| step.0.cast_signed() + 1)])?[0];
        let Some(before) = u64::try_from(said - 1).ok().map(Step) else {
            return Err(match first.or(here) {
                Some(error) => error.into(),
                None => elsewhere(context, step),
            });
        };
        if let Some(error) = &here {
            tell(context, step, error, before);
        }
        first = first.or(here);
        step = before;
    }
}

/// A checkpoint of this job's stage.
fn own(context: &Context<'_>, shelf: &Shelf, step: Step) -> Result<Loaded, CheckpointError> {
    let loaded = shelf.read(step)?;
    let (job, stage) = (loaded.manifest.job.clone(), loaded.manifest.stage.clone());
    if job != context.plan.job || stage != context.stage_kind() {
        return Err(CheckpointError::Foreign { folder: shelf.place(step), job, stage });
    }
    Ok(loaded)
}

fn committed_before(shelf: &Shelf, step: Step) -> Option<Step> {
    let committed =
        shelf.committed().inspect_err(|error| tracing::error!(%error, "cannot look for an earlier checkpoint"));
    committed.ok()?.into_iter().rfind(|earlier| *earlier < step)
}

fn tell(context: &Context<'_>, step: Step, error: &CheckpointError, instead: Step) {
    let teller = Teller {
        link: context.link.clone(),
        committed: context.committed.clone(),
        generation: context.plan.generation,
        rank: context.rank(),
    };
    teller.trouble(step, error, Trouble::Damaged { message: error.to_string(), instead });
}

/// Another rank says what is wrong, and its end is this one's.
fn elsewhere(context: &Context<'_>, step: Step) -> TrainerError {
    match context.collective.barrier() {
        Err(error) => error.into(),
        Ok(()) => CheckpointError::Elsewhere { step }.into(),
    }
}
