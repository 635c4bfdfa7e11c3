//! Requests until they work, or until a deadline.

use super::StorageError;
use common::daemon::backoff::Backoff;
use object_store::Error;
use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

/// The longest part of an answer that is shown.
const SHOWN: usize = 400;

/// When to try again, and when to give up.
#[derive(Debug, Clone)]
pub struct Patience {
    /// The longest that all tries and the waits between them may take.
    pub deadline: Duration,
    /// The first wait; it doubles from try to try.
    pub first_wait: Duration,
}

/// Why a try failed.
#[derive(Debug)]
pub enum Failure {
    /// It may work the next time.
    Passing(String),
    /// It will not.
    Final(Refusal),
}

/// An answer that will not change.
#[derive(Debug)]
pub enum Refusal {
    /// There is no such object.
    NotFound,
    /// There is one already, or it is another one than expected.
    Precondition,
    /// Anything else that trying again does not mend.
    Answer(String),
    /// The caller has the error already.
    Known(Box<StorageError>),
}

/// How it ended.
#[derive(Debug)]
pub enum GivenUp {
    /// At an answer that will not change.
    Refused(Refusal),
    /// At the deadline.
    Late {
        /// How often was tried.
        attempts: u32,
        /// How long.
        took: Duration,
        /// What the last try brought.
        answer: String,
    },
}

/// One try: it fails when it takes longer than `longest`.
pub async fn within<T>(longest: Duration, request: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::Passing(format!("nothing, or not all of it, within {:.1} s", longest.as_secs_f64()));
    timeout(longest, request).await.unwrap_or_else(|_| Err(late()))
}

/// Tries until it works. `attempt` is called with the number of tries before; it is bounded by [`within`], and may
/// first wait for its turn.
pub async fn until_it_works<T, F: Future<Output = Result<T, Failure>>>(
    patience: &Patience,
    mut attempt: impl FnMut(u32) -> F,
) -> Result<T, GivenUp> {
    let started = Instant::now();
    let end = started + patience.deadline;
    let mut backoff = Backoff::new(patience.first_wait, patience.deadline / 8);
    let mut attempts = 0;
    let mut answer = "nothing".to_owned();
    loop {
        attempts += 1;
        answer = match timeout_at(end, attempt(attempts - 1)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::Final(refusal))) => return Err(GivenUp::Refused(refusal)),
            Ok(Err(Failure::Passing(answer))) => answer,
            Err(_) => return Err(GivenUp::Late { attempts, took: started.elapsed(), answer }),
        };
        let next = Instant::now() + backoff.next(spread(attempts));
        if next >= end {
            return Err(GivenUp::Late { attempts, took: started.elapsed(), answer });
        }
        tracing::debug!(attempts, answer, "a request for an object failed and is tried again");
        sleep_until(next).await;
    }
}

/// Sorts an error of `object_store`, whose own retries are off, into those that pass and those that stay.
pub fn sort(error: &Error) -> Failure {
    let answer = shown(&chain(error));
    match error {
        Error::NotFound { .. } => Failure::Final(Refusal::NotFound),
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Failure::Final(Refusal::Precondition),
        Error::Generic { .. } if !is_client_error(&answer) => Failure::Passing(answer),
        Error::JoinError { .. } => Failure::Passing(answer),
        _ => Failure::Final(Refusal::Answer(answer)),
    }
}

/// 4xx but those that ask to come again. The status is in no public type, only in the text.
fn is_client_error(answer: &str) -> bool {
    let Some((_, status)) = answer.split_once("status code: ") else { return false };
    status.starts_with('4') && !["408", "425", "429"].iter().any(|again| status.starts_with(again))
}

/// An error and its causes, as far as each says more than the one before.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

fn shown(answer: &str) -> String {
    let line = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= SHOWN { line } else { line.chars().take(SHOWN).chain(['…']).collect() }
}

/// 0 to 1, another one for every caller, so that they do not all come back at once.
fn spread(attempts: u32) -> f64 {
    RandomState::new().hash_one(attempts) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience { deadline: Duration::from_secs(60), first_wait: Duration::from_millis(100) }
    }

    fn passing() -> Failure {
        Failure::Passing("503".to_owned())
    }

    // Time is tokio's and stands still: it jumps to the next thing that is waited for.
    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(future)
    }

    #[test]
    fn what_passes_is_tried_again_until_it_works() {
        let done =
            run(until_it_works(&patience(), |tries| async move { if tries < 4 { Err(passing()) } else { Ok(tries) } }));
        assert_eq!(done.unwrap(), 4);
    }

    #[test]
    fn a_server_that_stays_ill_is_given_up_at_the_deadline_with_its_last_answer() {
        let outcome = run(until_it_works(&patience(), |_| async { Err::<(), _>(passing()) }));
        let Err(GivenUp::Late { attempts, took, answer }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(answer, "503");
        assert!(took <= Duration::from_secs(60) && took >= Duration::from_secs(45), "{took:?}");
        assert!((10..100).contains(&attempts), "waits double: {attempts} tries");
    }

    #[test]
    fn a_server_that_never_answers_is_given_up_at_the_deadline() {
        let never = || std::future::pending::<Result<(), Failure>>();
        let outcome = run(until_it_works(&patience(), |_| within(Duration::from_secs(5), never())));
        let Err(GivenUp::Late { attempts, took, answer }) = outcome else { panic!("{outcome:?}") };
        assert!(took <= Duration::from_secs(60) && attempts > 5, "{attempts} tries in {took:?}");
        assert!(answer.contains("within 5.0 s"), "{answer}");
        let unbounded = run(until_it_works(&patience(), |_| never()));
        assert!(matches!(unbounded, Err(GivenUp::Late { attempts: 1, .. })), "{unbounded:?}");
    }

    #[test]
    fn a_refusal_is_not_tried_again() {
        let no = |tries| async move {
            assert_eq!(tries, 0);
            Err::<(), _>(Failure::Final(Refusal::NotFound))
        };
        let outcome = run(until_it_works(&patience(), no));
        assert!(matches!(outcome, Err(GivenUp::Refused(Refusal::NotFound))), "{outcome:?}");
    }

    #[test]
    fn statuses_that_ask_to_come_again_are_told_from_those_that_do_not() {
        for (status, passes) in [("503 Slow", true), ("500", true), ("429", true), ("408", true), ("400 Bad", false)] {
            let text = format!("Server returned non-2xx status code: {status}");
            let error = Error::Generic { store: "S3", source: text.into() };
            assert_eq!(matches!(sort(&error), Failure::Passing(_)), passes, "{status}");
        }
        let broken = Error::Generic { store: "S3", source: "connection reset".into() };
        assert!(matches!(sort(&broken), Failure::Passing(_)));
    }
}
