//! What the agent ordered: the next plan, whether to stop, manifests to create.

use super::Stop;
use crate::supervisor::ipc::Order;
use common::{
    ids::{Generation, Step},
    manifest::Manifest,
    plan::TrainPlan,
};
use std::collections::VecDeque;

/// How many orders to commit may wait.
const WAITING_MANIFESTS: usize = 16;

/// Orders that are not obeyed yet.
#[derive(Debug, Default)]
pub struct Inbox {
    plan: Option<Box<TrainPlan>>,
    /// The highest generation a plan came for; absent before the first.
    newest: Option<Generation>,
    /// The generation of the plan that was handed out last; absent before the first.
    running: Option<Generation>,
    /// Plans up to this generation are to stop; absent when none is.
    stop: Option<Generation>,
    manifests: VecDeque<(Step, Box<Manifest>)>,
}

/// What became of an order.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It will be obeyed.
    Yes,
    /// A plan of a generation that is known already.
    Repeated,
    /// A plan of a lower generation, or a stop without a plan.
    Refused,
    /// It will be obeyed; the oldest order to commit had to go, because nobody obeyed it.
    Full(Step),
}

impl Inbox {
    /// Takes an order.
    pub fn take(&mut self, order: Order) -> Taken {
        match order {
            Order::Plan(plan) if Some(plan.generation) == self.newest => Taken::Repeated,
            Order::Plan(plan) if self.newest.is_some_and(|newest| plan.generation < newest) => Taken::Refused,
            Order::Plan(plan) => {
                self.newest = Some(plan.generation);
                self.plan = Some(plan);
                Taken::Yes
            }
            Order::Stop => {
                self.stop = self.newest;
                if self.stop.is_some() { Taken::Yes } else { Taken::Refused }
            }
            Order::CommitManifest { step, manifest } => {
                let full = self.manifests.len() >= WAITING_MANIFESTS;
                let dropped = if full { self.manifests.pop_front() } else { None };
                self.manifests.push_back((step, manifest));
                dropped.map_or(Taken::Yes, |(step, _)| Taken::Full(step))
            }
        }
    }

    /// The plan that waits, which from now on runs.
    pub fn next_plan(&mut self) -> Option<TrainPlan> {
        let plan = self.plan.take()?;
        self.running = Some(plan.generation);
        Some(*plan)
    }

    /// The oldest order to commit.
    pub fn next_manifest(&mut self) -> Option<(Step, Box<Manifest>)> {
        self.manifests.pop_front()
    }

    /// Whether the plan that runs is to stop.
    pub fn stop(&self) -> Option<Stop> {
        (self.running.is_some() && self.running <= self.stop).then_some(Stop::Ordered)
    }

    /// Whether a plan waits behind the one that runs.
    pub fn is_superseded(&self) -> bool {
        self.plan.is_some() && self.running.is_some()
    }

    /// The highest generation a plan came for.
    pub fn generation(&self) -> Option<Generation> {
        self.newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::link::fixtures::{commit, plan};

    #[test]
    fn a_stop_holds_for_the_plan_it_was_ordered_for() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.take(Order::Stop), Taken::Refused);
        assert_eq!(inbox.take(plan(1)), Taken::Yes);
        assert_eq!(inbox.next_plan().unwrap().generation, Generation(1));
        assert_eq!(inbox.stop(), None);
        assert_eq!(inbox.take(Order::Stop), Taken::Yes);
        assert_eq!(inbox.stop(), Some(Stop::Ordered));
        assert_eq!(inbox.take(plan(2)), Taken::Yes);
        assert_eq!(inbox.stop(), Some(Stop::Ordered));
        inbox.next_plan().unwrap();
        assert_eq!(inbox.stop(), None);
    }

    #[test]
    fn a_repeated_plan_is_not_run_twice_and_a_lower_one_never() {
        let mut inbox = Inbox::default();
        inbox.take(plan(5));
        inbox.next_plan().unwrap();
        assert_eq!(inbox.take(plan(5)), Taken::Repeated);
        assert_eq!(inbox.take(plan(4)), Taken::Refused);
        assert_eq!(inbox.next_plan(), None);
        assert_eq!(inbox.generation(), Some(Generation(5)));
    }

    #[test]
    fn orders_to_commit_keep_their_order_within_the_bound() {
        let mut inbox = Inbox::default();
        for step in 0..WAITING_MANIFESTS as u64 {
            assert_eq!(inbox.take(commit(step)), Taken::Yes);
        }
        assert_eq!(inbox.take(commit(99)), Taken::Full(Step(0)));
        assert_eq!(inbox.next_manifest().unwrap().0, Step(1));
    }
}
