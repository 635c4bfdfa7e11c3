//! The manifest: what makes a rank's files a checkpoint, and the first thing of it that goes.

use super::{CheckpointError, Shelf, watch::Watch};
use common::{
    ids::{Generation, Rank, Step},
    manifest::{Manifest, paths, retention},
};

impl Shelf {
    /// Creates `manifest.json`. That it exists already with the same content is no error: the order to commit may come twice. `mine` is
    /// the rank that creates it: what it has written is to be there.
    ///
    /// # Errors
    /// When it exists with another content, the checkpoint was given up meanwhile, or it cannot be written.
    pub fn create_manifest(&self, watch: &Watch, mine: Rank, manifest: &Manifest) -> Result<(), CheckpointError> {
        let step = manifest.step;
        if let Some(part) = manifest.parts.iter().find(|part| part.rank == mine)
            && !self.0.exists(step, &part.file)?
        {
            return Err(CheckpointError::GivenUp { share: self.place(step).join(&part.file) });
        }
        let text = manifest.to_text();
        if self.0.create_manifest(watch, step, &text)? || self.0.manifest(step)?.is_some_and(|there| there == text) {
            return Ok(());
        }
        Err(CheckpointError::Exists { path: self.place(step).join(paths::MANIFEST_FILE) })
    }

    /// Removes a checkpoint, or what was written of one. Its manifest goes first, for good: whatever happens on the way, what is left
    /// is no checkpoint.
    ///
    /// # Errors
    /// The first thing that cannot be removed; the rest is left.
    pub fn remove(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        self.0.delete_manifest(watch, step)?;
        self.0.files(step)?.iter().try_for_each(|name| self.0.delete(watch, step, name))?;
        self.0.delete_folder(watch, step)
    }

    /// As [`Shelf::remove`], of what has no manifest: one with a manifest is another's, or whole.
    ///
    /// # Errors
    /// As [`Shelf::remove`], and when it cannot be looked at.
    pub fn discard(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        if self.0.exists(step, paths::MANIFEST_FILE)? { Ok(()) } else { self.remove(watch, step) }
    }

    /// After the commit of `newest`: removes checkpoints that are too many, what others before it have left that were never
    /// committed and never will be, and shares of earlier memberships beside its own. What cannot be removed is told of and left.
    pub fn retire(&self, watch: &Watch, newest: Step, keep: usize) {
        if let Err(error) = self.remove_strays(watch, newest) {
            tracing::warn!(step = newest.0, %error, "could not delete what an earlier membership wrote of a checkpoint");
        }
        let due = match self.due(newest, keep) {
            Ok(due) => due,
            Err(error) => return tracing::warn!(%error, "could not look for old checkpoints to delete"),
        };
        for step in due {
            if let Err(error) = self.remove(watch, step) {
                tracing::warn!(step = step.0, %error, "could not delete an old checkpoint");
            }
        }
    }

    /// What of the stage is to be deleted after the commit of `newest`.
    fn due(&self, newest: Step, keep: usize) -> Result<Vec<Step>, CheckpointError> {
        let old = retention::to_delete(&self.committed()?, keep);
        let given_up = |step: &Step| {
            // One that cannot be looked at is not known to be none.
            *step < newest && self.0.exists(*step, paths::MANIFEST_FILE).is_ok_and(|there| !there)
        };
        Ok(old.into_iter().chain(self.0.steps()?.into_iter().filter(given_up)).collect())
    }

    /// Removes what a manifest does not list. All ranks' shares were in before it was made: whoever still writes has no place any more.
    fn remove_strays(&self, watch: &Watch, step: Step) -> Result<(), CheckpointError> {
        let manifest = self.manifest(step)?;
        let listed = |name: &str| name == paths::MANIFEST_FILE || manifest.parts.iter().any(|part| part.file == name);
        let files = self.0.files(step)?;
        files.iter().filter(|name| !listed(name)).try_for_each(|name| self.0.delete(watch, step, name))
    }

    /// The steps that have a valid manifest, oldest first. Their files' bytes are not looked at.
    ///
    /// # Errors
    /// When storage cannot be asked.
    pub fn committed(&self) -> Result<Vec<Step>, CheckpointError> {
        let mut committed = Vec::new();
        for step in self.0.steps()? {
            if self.0.manifest(step)?.is_some_and(|text| Manifest::parse(&text, step).is_ok()) {
                committed.push(step);
            }
        }
        Ok(committed)
    }

    /// Moves whatever lies after `step` out of the way: steps that are computed again would mix with it. It becomes
    /// `discarded-gen-00007-step-000001200` and is left to the user.
    ///
    /// # Errors
    /// When storage refuses.
    pub fn set_aside(&self, step: Step, generation: Generation) -> Result<(), CheckpointError> {
        for later in self.0.steps()?.into_iter().filter(|later| *later > step) {
            let name = format!("discarded-gen-{:05}-{}", generation.0, paths::step_folder(later));
            self.0.set_aside(later, &name)?;
            tracing::warn!(step = later.0, to = name, "set a later checkpoint aside: its steps are computed again");
        }
        Ok(())
    }
}
