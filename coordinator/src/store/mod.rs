//! Where the coordinator keeps what must survive it: keys with revisions, compare-and-put, watches and leases.
//!
//! It knows bytes and keys, never what they mean. [`Store`] is shaped so that etcd fits it; [`RedbStore`] is one file
//! for one coordinator, [`EtcdStore`] is shared by several, [`MemoryStore`] forgets. [`Faulty`] has its user die at a write on purpose.

mod contract;
mod engine;
mod error;
mod etcd;
mod faults;
mod history;
mod lease;
mod memory;
mod redb;
#[cfg(test)]
mod suite;

pub use self::{
    contract::{Change, Entry, Fence, LeaseId, Listing, Put, Revision, Store},
    error::StoreError,
    etcd::{EtcdAddress, EtcdStore, EtcdTls},
    faults::Faulty,
    memory::MemoryStore,
    redb::{FILE_NAME, RedbStore},
};
