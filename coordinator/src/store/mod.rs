//! Where the coordinator keeps what must survive it: keys with revisions, compare-and-put, watches and leases.
//!
//! It knows bytes and keys, never what they mean. [`Store`] is shaped so that etcd fits it; [`RedbStore`] is one file
//! for one coordinator, [`MemoryStore`] forgets.

mod engine;
mod error;
mod lease;
mod memory;
mod redb;
mod contract;
#[cfg(test)]
mod suite;

pub use self::{
    error::StoreError,
    memory::MemoryStore,
    redb::{FILE_NAME, RedbStore},
    contract::{Change, Entry, LeaseId, Listing, Put, Revision, Store},
};
