//! Where trainers run, as the agent sees it. [`super::Supervisor`] runs them as processes of this machine; a simulation brings
//! its own.

use super::{Assignment, Found, SupervisorError, ipc::Order, start::Supervisor, trainer::Handle};
use common::ids::Generation;
use std::{path::Path, time::Duration};

/// Starts trainers, and finds those of the agent before this one. What happens to them is told as
/// [`super::SupervisorEvent`]s over a channel that the agent holds the other end of.
pub trait Host {
    /// The way to a trainer.
    type Handle: Steer;

    /// Starts a trainer.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, assignment: &Assignment) -> Result<Self::Handle, SupervisorError>;

    /// Takes up the trainers of the agent before this one.
    ///
    /// # Errors
    /// When what is remembered of them cannot be read.
    fn adopt(&self) -> Result<Vec<Found<Self::Handle>>, SupervisorError>;
}

/// Steers one trainer. None of these waits, and none says whether it had an effect: what the trainer does is told as an event.
/// Dropping it leaves the trainer running by itself.
pub trait Steer {
    /// Its process.
    fn pid(&self) -> u32;

    /// Its log.
    fn log(&self) -> &Path;

    /// Sends an order; what the trainer's present connection loses is sent again on the next one, as far as it matters.
    fn order(&self, order: Order);

    /// Writes down what a restarted daemon has to know.
    fn remember(&self, generation: Generation, peer: Option<String>);

    /// Sends SIGTERM, and SIGKILL if the process is still there after the grace.
    fn end(&self, grace: Duration);

    /// Keeps the stacks of its threads, then kills it.
    fn end_stuck(&self);
}

impl Host for Supervisor {
    type Handle = Handle;

    fn start(&self, assignment: &Assignment) -> Result<Handle, SupervisorError> {
        Supervisor::start(self, assignment)
    }

    fn adopt(&self) -> Result<Vec<Found>, SupervisorError> {
        Supervisor::adopt(self)
    }
}

impl Steer for Handle {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn log(&self) -> &Path {
        &self.log
    }

    fn order(&self, order: Order) {
        Handle::order(self, order);
    }

    fn remember(&self, generation: Generation, peer: Option<String>) {
        Handle::remember(self, generation, peer);
    }

    fn end(&self, grace: Duration) {
        Handle::end(self, grace);
    }

    fn end_stuck(&self) {
        Handle::end_stuck(self);
    }
}
