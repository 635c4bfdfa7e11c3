//! The coordinator and the agent, as they are, in a simulated cluster: one seed decides a network with latency, cuts and holds,
//! crashes, clocks that jump, a store that is slow or silent, trainers that die; and what must hold is looked at all the while.
//!
//! `make sim SEEDS=1000` runs so many seeds, `make sim SEED=7` replays one aloud. Real are: the coordinator's loop, sessions,
//! API and election, the agent with its state and session, gRPC over HTTP/2. Simulated are: the network and time (turmoil), the
//! store, trainers, shared storage, wall clocks. Nothing in here reads a clock or a random number of this machine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bugs;
mod check;
mod faults;
mod group;
mod hosts;
mod life;
mod network;
mod records;
mod run;
mod scenario;
mod storage;
mod trace;
mod trainer;
mod user;
mod world;

use bugs::Bug;
use run::{Outcome, run};
use scenario::Class;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

/// How many seeds `make test` runs.
const SEEDS: u64 = 200;
/// Within how many seeds every known bug must be found.
const FOUND_WITHIN: u64 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

/// Runs seeds on all cores, in order; the outcomes by seed.
fn sweep(seeds: std::ops::Range<u64>, bug: Bug, until: impl Fn(&Outcome) -> bool + Sync) -> Vec<Outcome> {
    let next = AtomicU64::new(seeds.start);
    let end = AtomicU64::new(seeds.end);
    let work = || {
        let mut outcomes = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= end.load(Ordering::SeqCst) {
                return outcomes;
            }
            let outcome = run(seed, bug, false);
            if until(&outcome) {
                end.fetch_min(seed + 1, Ordering::SeqCst);
            }
            outcomes.push(outcome);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_by_key(|outcome| outcome.seed);
    all
}

fn report(outcome: &Outcome) -> String {
    let Outcome { seed, violation, virtual_time, last, .. } = outcome;
    let violation = violation.as_deref().unwrap_or("nothing");
    let at = virtual_time.as_secs_f64();
    format!("seed {seed}, at {at:.2} s: {violation}\nthe last events:\n{last}\nreplay: make sim SEED={seed}")
}

#[test]
fn whatever_happens_what_must_hold_holds_and_then_the_job_ends() {
    if let Some(seed) = number("SEED") {
        let outcome = run(seed, Bug::None, true);
        eprintln!("digest {:016x}", outcome.digest);
        assert!(outcome.violation.is_none(), "{}", report(&outcome));
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let first = number("FIRST").unwrap_or(0);
    let began = Instant::now();
    let all = sweep(first..first + seeds, Bug::None, |_| false);
    let broken: Vec<&Outcome> = all.iter().filter(|outcome| outcome.violation.is_some()).collect();
    let mut hit: BTreeMap<Class, u64> = BTreeMap::new();
    all.iter().flat_map(|outcome| &outcome.hit).for_each(|(class, count)| *hit.entry(*class).or_default() += count);
    let hours = all.iter().map(|outcome| outcome.virtual_time.as_secs_f64()).sum::<f64>() / 3600.0;
    let whole = |outcome: &&Outcome| outcome.succeeded && outcome.violation.is_none();
    let succeeded = all.iter().filter(whole).count();
    let generations: u64 = all.iter().map(|outcome| outcome.generations).sum();
    let unknowns: u64 = all.iter().map(|outcome| outcome.unknowns).sum();
    let fenced: u64 = all.iter().map(|outcome| outcome.fenced).sum();
    eprintln!(
        "{seeds} seeds, {hours:.1} simulated hours in {:.0} s: {succeeded} jobs succeeded, {} ended with a reason, {generations} \
         generations, {unknowns} writes of unknown outcome, {fenced} of leaders that were none any more; faults that hit: {hit:?}",
        began.elapsed().as_secs_f64(),
        all.len() - succeeded - broken.len(),
    );
    for outcome in &broken {
        eprintln!("seed {}: {}", outcome.seed, outcome.violation.as_deref().unwrap_or_default());
    }
    assert!(broken.is_empty(), "{} of {seeds} seeds failed; the first:\n{}", broken.len(), report(broken[0]));
    if seeds >= SEEDS {
        let missing: Vec<&Class> = Class::ALL.iter().filter(|class| !hit.contains_key(class)).collect();
        assert!(missing.is_empty(), "these faults never hit: {missing:?}");
    }
}

#[test]
fn a_seed_is_the_same_history_every_time_and_beside_others() {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let over = &over;
            scope.spawn(move || {
                let beside = (500 + 100 * number..).take_while(|_| !over.load(Ordering::SeqCst));
                beside.for_each(|seed| drop(run(seed, Bug::None, false)));
            });
        }
        let same = || {
            for seed in [3, 17, 42, 101] {
                let first = run(seed, Bug::None, false);
                for _ in 0..6 {
                    let again = run(seed, Bug::None, false);
                    let differs = || format!("seed {seed}:\n{}\n--- again:\n{}", first.last, again.last);
                    (first.digest == again.digest).then_some(()).ok_or_else(differs)?;
                }
            }
            Ok::<_, String>(())
        };
        let found = same();
        over.store(true, Ordering::SeqCst);
        found.unwrap_or_else(|differs| panic!("{differs}"));
    });
}

/// What may grow, at one moment of a long run.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    record_bytes: usize,
    store: [usize; 4],
    reports: usize,
}

#[test]
fn nothing_grows_over_an_hour_of_failures() {
    let mut sizes: Vec<Sizes> = Vec::new();
    let job = "demo-1".parse().unwrap();
    let outcome = run::run_scenario(1, scenario::Scenario::hour(1), Bug::None, false, &mut |world| {
        if world.now.as_secs() >= 300 * (sizes.len() as u64 + 1) {
            let record = check::record(world, &job).map(|state| coordinator::job::encode(&state).len());
            let reports = world.machines.iter().flat_map(|machine| machine.processes.values());
            let reports = reports.map(|process| process.link.kept()).sum();
            sizes.push(Sizes { record_bytes: record.unwrap_or_default(), store: world.records.sizes(), reports });
        }
    });
    eprintln!("{:.0} s, {} generations: {sizes:?}", outcome.virtual_time.as_secs_f64(), outcome.generations);
    assert!(outcome.violation.is_none(), "{}", report(&outcome));
    assert!(outcome.virtual_time.as_secs() >= 3000 && outcome.generations > 30 && sizes.len() >= 9);
    // Half of the time fills what is bounded; the other half must not grow it.
    let (first, last) = (sizes[sizes.len() / 2], sizes[sizes.len() - 1]);
    // A job's record is its history: at most 1000 events and 200 failures, each of a few hundred bytes.
    assert!(last.record_bytes < 1200 * 400, "a job's record grows: {sizes:?}");
    assert!(last.store.iter().zip(first.store).all(|(last, first)| *last <= first + 8), "the store grows: {sizes:?}");
    assert!(last.reports <= 3 * 64, "{sizes:?}");
}

#[test]
fn every_known_bug_is_found() {
    for bug in Bug::ALL {
        let all = sweep(0..FOUND_WITHIN, bug, |outcome| outcome.violation.is_some());
        let found = all.iter().find(|outcome| outcome.violation.is_some());
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found within {FOUND_WITHIN} seeds"));
        eprintln!("{bug:?}: seed {}, {}", found.seed, found.violation.as_deref().unwrap_or_default());
    }
}
