//! What a rank does with its peers, broken off from another thread: a membership that lost a rank must not hold the others up.

use crate::collective::Collective;
use std::sync::{Arc, Mutex, PoisonError};

/// A handle to break off with. It is asked at most once a plan.
#[derive(Default)]
pub struct Interrupt(Mutex<State>);

#[derive(Default)]
struct State {
    /// Why; absent while nobody asked.
    asked: Option<String>,
    /// What the rank waits in; absent while it waits in nothing.
    collective: Option<Arc<dyn Collective>>,
}

impl Interrupt {
    /// A new plan begins, for which nobody has asked.
    pub fn reset(&self) {
        *self.lock() = State::default();
    }

    /// The collective that is to be aborted; at once, if somebody has asked already.
    pub fn watch(&self, collective: &Arc<dyn Collective>) {
        let mut state = self.lock();
        if let Some(reason) = &state.asked {
            collective.abort(reason);
        }
        state.collective = Some(collective.clone());
    }

    /// Breaks off.
    pub fn ask(&self, reason: String) {
        let mut state = self.lock();
        if let Some(collective) = &state.collective {
            collective.abort(&reason);
        }
        state.asked.get_or_insert(reason);
    }

    /// Whether somebody asked.
    pub fn is_asked(&self) -> bool {
        self.lock().asked.is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("asked", &self.is_asked()).finish_non_exhaustive()
    }
}
