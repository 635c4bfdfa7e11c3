//! The decisions of one who would lead. Pure: times are arguments, counted by a monotonic clock from the process's start.

use crate::store::LeaseId;
use proto::leader::Term;
use std::time::Duration;

/// A moment: monotonic time since the process began.
pub(super) type Moment = Duration;

/// Who leads, as the election's key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its term.
    pub term: Term,
    /// Where it is; absent when the record cannot be read.
    pub url: Option<String>,
}

/// Times of a leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long the lease lives without being kept alive. The store may let it live longer, never shorter.
    pub ttl: Duration,
}

impl Timing {
    /// How long a leader acts after it last asked for its lease to be kept alive, and it was.
    pub fn hold(self) -> Duration {
        self.ttl * 2 / 3
    }

    /// How often it asks.
    pub fn renew(self) -> Duration {
        self.ttl / 6
    }
}

/// Where one stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Does not lead.
    Standby {
        /// Who does; absent when nobody does or nothing is known yet.
        leader: Option<Leader>,
        /// A try to lead is under way.
        trying: bool,
    },
    /// Leads.
    Leading {
        /// Its term.
        term: Term,
        /// What its key hangs on.
        lease: LeaseId,
        /// When it stops to act unless the lease is kept alive.
        until: Moment,
        /// When it next asks for that.
        renew_at: Moment,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// What the key says.
    Key {
        /// Whose it is.
        leader: Option<Leader>,
        /// As of which revision of the store, as a term.
        at: Term,
    },
    /// A try to lead put the key.
    Won {
        /// The revision it put it at.
        term: Term,
        /// What it hangs on.
        lease: LeaseId,
        /// When the lease was asked for.
        asked: Moment,
    },
    /// A try to lead came to nothing.
    NotWon,
    /// The lease was kept alive.
    Renewed {
        /// Which.
        lease: LeaseId,
        /// When that was asked for.
        asked: Moment,
    },
    /// The lease is gone.
    LeaseGone(LeaseId),
    /// The leader's work ended by itself: the store refused a write, or could not be reached.
    WorkEnded(Term),
    /// Time passed.
    Tick,
}

/// Why a leader steps down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Its lease was not kept alive in time.
    NotRenewed,
    /// Its lease is gone.
    LeaseGone,
    /// The key is another's, or nobody's.
    KeyLost,
    /// Its work ended by itself.
    WorkEnded,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Try to lead: ask for a lease, then put the key.
    Try,
    /// Begin the leader's work.
    Lead(Term),
    /// Ask for the lease to be kept alive.
    Renew(LeaseId),
    /// End the work at once, and answer no call any more.
    StepDown(Reason),
    /// Give the lease back, so that nobody need wait for it to lapse.
    GiveBack(LeaseId),
}

impl State {
    /// At the start.
    pub(super) fn new() -> Self {
        Self::Standby { leader: None, trying: false }
    }

    /// When to look again though nothing happens.
    pub(super) fn wake(&self) -> Option<Moment> {
        match self {
            Self::Standby { .. } => None,
            Self::Leading { until, renew_at, .. } => Some(*until.min(renew_at)),
        }
    }
}

/// What an event leads to.
pub(super) fn decide(state: State, event: Event, now: Moment, timing: Timing) -> (State, Vec<Action>) {
    match state {
        State::Standby { leader, trying } => standby(leader, trying, event, now, timing),
        State::Leading { term, lease, until, renew_at } => {
            let held = Held { term, lease, until, renew_at };
            match held.ends(&event, now) {
                Some((reason, leader)) => held.step_down(reason, leader),
                None => held.goes_on(&event, now, timing),
            }
        }
    }
}

fn standby(leader: Option<Leader>, trying: bool, event: Event, now: Moment, timing: Timing) -> (State, Vec<Action>) {
    let stands_by = |leader, trying, actions| (State::Standby { leader, trying }, actions);
    match event {
        Event::Key { leader: None, .. } if !trying => stands_by(None, true, vec![Action::Try]),
        Event::Key { leader, .. } => stands_by(leader, trying, Vec::new()),
        Event::NotWon => stands_by(leader, false, Vec::new()),
        Event::Won { term, lease, asked } => {
            let until = asked + timing.hold();
            if now < until && leader.as_ref().is_none_or(|known| known.term <= term) {
                (State::Leading { term, lease, until, renew_at: asked + timing.renew() }, vec![Action::Lead(term)])
            } else {
                // The store took so long that the lease may lapse under the first acts.
                stands_by(leader, false, vec![Action::GiveBack(lease)])
            }
        }
        Event::Renewed { .. } | Event::LeaseGone(_) | Event::WorkEnded(_) | Event::Tick => {
            stands_by(leader, trying, Vec::new())
        }
    }
}

/// A leadership.
struct Held {
    term: Term,
    lease: LeaseId,
    until: Moment,
    renew_at: Moment,
}

impl Held {
    /// Why it is over, if it is, and who leads then. Time first: nothing that comes too late revives it.
    fn ends(&self, event: &Event, now: Moment) -> Option<(Reason, Option<Leader>)> {
        match event {
            Event::Key { leader: Some(leader), .. } if leader.term > self.term => {
                Some((Reason::KeyLost, Some(leader.clone())))
            }
            _ if now >= self.until => Some((Reason::NotRenewed, None)),
            // What the key was before it became ours may be told late.
            Event::Key { leader: None, at } if *at > self.term => Some((Reason::KeyLost, None)),
            Event::LeaseGone(lease) if *lease == self.lease => Some((Reason::LeaseGone, None)),
            Event::WorkEnded(term) if *term == self.term => Some((Reason::WorkEnded, None)),
            _ => None,
        }
    }

    fn step_down(self, reason: Reason, leader: Option<Leader>) -> (State, Vec<Action>) {
        let gone = matches!(reason, Reason::LeaseGone | Reason::KeyLost);
        let mut actions = vec![Action::StepDown(reason)];
        if !gone {
            actions.push(Action::GiveBack(self.lease));
        }
        // With the key gone and nobody's, the next try may begin; else the key's end will say so.
        let trying = gone && leader.is_none();
        if trying {
            actions.push(Action::Try);
        }
        (State::Standby { leader, trying }, actions)
    }

    fn goes_on(mut self, event: &Event, now: Moment, timing: Timing) -> (State, Vec<Action>) {
        if let Event::Renewed { lease, asked } = event
            && *lease == self.lease
        {
            self.until = self.until.max(*asked + timing.hold());
        }
        let mut actions = Vec::new();
        if now >= self.renew_at {
            self.renew_at = now + timing.renew();
            actions.push(Action::Renew(self.lease));
        }
        let Self { term, lease, until, renew_at } = self;
        (State::Leading { term, lease, until, renew_at }, actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { ttl: Duration::from_secs(6) };
    const LEASE: LeaseId = LeaseId(5);

    fn s(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn leader(term: u64) -> Leader {
        Leader { term: Term(term), url: Some("http://other:1".into()) }
    }

    fn leading(until: u64, renew_at: u64) -> State {
        State::Leading { term: Term(10), lease: LEASE, until: s(until), renew_at: s(renew_at) }
    }

    fn stands_by(leader: Option<Leader>, trying: bool) -> State {
        State::Standby { leader, trying }
    }

    fn key(leader: Option<Leader>, at: u64) -> Event {
        Event::Key { leader, at: Term(at) }
    }

    fn check(state: State, event: Event, now: u64, expected: State, actions: &[Action]) {
        let found = decide(state.clone(), event.clone(), s(now), TIMING);
        assert_eq!(found, (expected, actions.to_vec()), "{state:?} + {event:?} at {now} s");
    }

    #[test]
    fn a_standby_tries_once_when_the_key_is_nobodys() {
        check(State::new(), key(None, 1), 0, stands_by(None, true), &[Action::Try]);
        check(stands_by(None, true), key(None, 1), 0, stands_by(None, true), &[]);
        check(stands_by(None, true), key(Some(leader(9)), 9), 0, stands_by(Some(leader(9)), true), &[]);
        check(stands_by(Some(leader(9)), true), Event::NotWon, 1, stands_by(Some(leader(9)), false), &[]);
        check(stands_by(Some(leader(9)), false), Event::Tick, 99, stands_by(Some(leader(9)), false), &[]);
        check(stands_by(Some(leader(9)), false), key(None, 12), 99, stands_by(None, true), &[Action::Try]);
    }

    #[test]
    fn who_wins_leads_from_when_the_lease_was_asked_for() {
        let won = Event::Won { term: Term(10), lease: LEASE, asked: s(1) };
        check(stands_by(None, true), won.clone(), 2, leading(5, 2), &[Action::Lead(Term(10))]);
        check(stands_by(None, true), won.clone(), 5, stands_by(None, false), &[Action::GiveBack(LEASE)]);
        // The key was lost before the answer to its put came.
        let expected = stands_by(Some(leader(11)), false);
        check(stands_by(Some(leader(11)), true), won, 2, expected, &[Action::GiveBack(LEASE)]);
    }

    #[test]
    fn a_leader_renews_and_goes_on_from_when_it_asked() {
        check(leading(5, 2), Event::Tick, 1, leading(5, 2), &[]);
        check(leading(5, 2), Event::Tick, 2, leading(5, 3), &[Action::Renew(LEASE)]);
        check(leading(5, 3), Event::Renewed { lease: LEASE, asked: s(2) }, 2, leading(6, 3), &[]);
        check(leading(6, 3), Event::Renewed { lease: LEASE, asked: s(1) }, 2, leading(6, 3), &[]);
        check(leading(6, 3), Event::Renewed { lease: LeaseId(4), asked: s(2) }, 2, leading(6, 3), &[]);
        check(leading(6, 3), key(Some(Leader { term: Term(10), url: None }), 10), 2, leading(6, 3), &[]);
    }

    #[test]
    fn a_leader_stops_before_its_lease_can_lapse_and_no_late_answer_revives_it() {
        let down = [Action::StepDown(Reason::NotRenewed), Action::GiveBack(LEASE)];
        check(leading(5, 6), Event::Tick, 5, stands_by(None, false), &down);
        check(leading(5, 6), Event::Renewed { lease: LEASE, asked: s(4) }, 5, stands_by(None, false), &down);
        check(stands_by(None, false), Event::Renewed { lease: LEASE, asked: s(4) }, 5, stands_by(None, false), &[]);
        assert!(TIMING.hold() < TIMING.ttl && TIMING.renew() * 3 < TIMING.hold());
    }

    #[test]
    fn a_leader_that_is_told_it_is_none_steps_down_at_once() {
        let down = |reason| Action::StepDown(reason);
        let after = stands_by(Some(leader(11)), false);
        check(leading(5, 6), key(Some(leader(11)), 11), 2, after.clone(), &[down(Reason::KeyLost)]);
        check(leading(5, 6), key(Some(leader(11)), 11), 9, after, &[down(Reason::KeyLost)]);
        check(leading(5, 6), key(None, 11), 2, stands_by(None, true), &[down(Reason::KeyLost), Action::Try]);
        check(leading(5, 6), key(None, 9), 2, leading(5, 6), &[]);
        check(leading(5, 6), key(Some(leader(8)), 8), 2, leading(5, 6), &[]);
        let gone = Event::LeaseGone(LEASE);
        check(leading(5, 6), gone, 2, stands_by(None, true), &[down(Reason::LeaseGone), Action::Try]);
        check(leading(5, 6), Event::LeaseGone(LeaseId(4)), 2, leading(5, 6), &[]);
    }

    #[test]
    fn a_leader_whose_work_ended_gives_its_lease_back_and_waits_for_the_key() {
        let actions = [Action::StepDown(Reason::WorkEnded), Action::GiveBack(LEASE)];
        check(leading(5, 6), Event::WorkEnded(Term(10)), 2, stands_by(None, false), &actions);
        check(leading(5, 6), Event::WorkEnded(Term(9)), 2, leading(5, 6), &[]);
    }
}
