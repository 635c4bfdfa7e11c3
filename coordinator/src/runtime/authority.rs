//! How long a coordinator may act, by its own clock.

use super::RuntimeError;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Says whether one may act now. A single coordinator always may; one of several until its lease must be taken as lapsed. A
/// process that was stopped and goes on finds its authority over before it does anything.
#[derive(Debug, Clone)]
pub struct Authority(Option<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    began: Instant,
    /// Microseconds from `began` on; 0 for an end.
    until: AtomicU64,
}

impl Authority {
    /// Of one that nobody else can replace.
    pub fn unlimited() -> Self {
        Self(None)
    }

    /// Of one of several; it holds from the first [`Self::extend`] on.
    pub(crate) fn limited(began: Instant) -> Self {
        Self(Some(Arc::new(Limit { began, until: AtomicU64::new(0) })))
    }

    /// Moves the end, never back.
    pub(crate) fn extend(&self, until: Duration) {
        if let Some(limit) = &self.0 {
            let until = u64::try_from(until.as_micros()).unwrap_or(u64::MAX);
            limit.until.fetch_max(until, Ordering::SeqCst);
        }
    }

    /// Ends it at once. Its owner extends it no more.
    pub(crate) fn end(&self) {
        if let Some(limit) = &self.0 {
            limit.until.store(0, Ordering::SeqCst);
        }
    }

    /// Whether one may act.
    pub fn holds(&self) -> bool {
        let Some(limit) = &self.0 else { return true };
        limit.began.elapsed() < Duration::from_micros(limit.until.load(Ordering::SeqCst))
    }

    /// Asks for [`Self::holds`].
    ///
    /// # Errors
    /// [`RuntimeError::Deposed`] when one may not act.
    pub fn check(&self) -> Result<(), RuntimeError> {
        if self.holds() { Ok(()) } else { Err(RuntimeError::Deposed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_the_clock_without_anybodys_doing() {
        let began = Instant::now().checked_sub(Duration::from_secs(4)).unwrap();
        let authority = Authority::limited(began);
        assert!(!authority.holds() && Authority::unlimited().holds());
        authority.extend(Duration::from_secs(3600));
        authority.extend(Duration::from_secs(3));
        assert!(authority.holds(), "its end is never moved back");
        authority.end();
        assert!(!authority.holds());
        let over = Authority::limited(began);
        over.extend(Duration::from_secs(3));
        assert!(matches!(over.check(), Err(RuntimeError::Deposed)), "3 s of it are over after 4");
    }
}
