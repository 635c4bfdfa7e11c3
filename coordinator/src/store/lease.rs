//! Leases of the stores in this process: who lapses when.

use super::{StoreError, contract::LeaseId};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    granted: BTreeMap<LeaseId, Granted>,
}

#[derive(Debug, Clone, Copy)]
struct Granted {
    ttl: Duration,
    until: Instant,
}

impl Leases {
    /// Adds a lease.
    pub(super) fn add(&mut self, lease: LeaseId, ttl: Duration, now: Instant) {
        self.granted.insert(lease, Granted { ttl, until: now + ttl });
    }

    /// Begins its time anew.
    pub(super) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), StoreError> {
        let granted = self.granted.get_mut(&lease).ok_or(StoreError::NoLease(lease))?;
        granted.until = now + granted.ttl;
        Ok(())
    }

    /// Forgets a lease.
    pub(super) fn remove(&mut self, lease: LeaseId) -> Result<(), StoreError> {
        self.granted.remove(&lease).map(|_| ()).ok_or(StoreError::NoLease(lease))
    }

    /// Whether the lease lives.
    pub(super) fn check(&self, lease: LeaseId) -> Result<(), StoreError> {
        if self.granted.contains_key(&lease) { Ok(()) } else { Err(StoreError::NoLease(lease)) }
    }

    /// When the lease lapses; absent when it is gone.
    pub(super) fn until(&self, lease: LeaseId) -> Option<Instant> {
        self.granted.get(&lease).map(|granted| granted.until)
    }
}
