//! What the API knows of the election: whether it is this coordinator that answers.

use crate::runtime::{Authority, Handle};
use proto::leader::Term;
use tokio::sync::watch;

/// Where this coordinator sits.
#[derive(Clone)]
pub enum Seat {
    /// It leads.
    Leading(Office),
    /// It does not.
    Standby {
        /// The leader's URL; absent when there is none, or none is known.
        leader: Option<String>,
    },
}

/// What a leader answers with.
#[derive(Clone)]
pub struct Office {
    /// The loop.
    pub handle: Handle,
    /// Absent without an election.
    pub term: Option<Term>,
    /// Whether it may act.
    pub authority: Authority,
}

/// The seat as it changes; clones see the same.
#[derive(Clone)]
pub struct Seats(watch::Receiver<Seat>);

impl Seats {
    /// Of a coordinator without others beside it.
    pub fn always(handle: Handle) -> Self {
        let office = Office { handle, term: None, authority: Authority::unlimited() };
        Self(watch::channel(Seat::Leading(office)).1)
    }

    pub(super) fn of(seat: watch::Receiver<Seat>) -> Self {
        Self(seat)
    }

    /// The seat now.
    pub fn seat(&self) -> Seat {
        self.0.borrow().clone()
    }

    /// The seat after the next change; nothing when there will be none.
    pub async fn changed(&mut self) -> Option<Seat> {
        self.0.changed().await.ok()?;
        Some(self.0.borrow_and_update().clone())
    }

    /// What to answer with.
    ///
    /// # Errors
    /// When this coordinator does not lead: the leader's URL, if one is known.
    pub fn office(&self) -> Result<Office, Option<String>> {
        match &*self.0.borrow() {
            Seat::Leading(office) if office.authority.holds() => Ok(office.clone()),
            Seat::Leading(_) => Err(None),
            Seat::Standby { leader } => Err(leader.clone()),
        }
    }
}
