//! The store of several coordinators: etcd, over its v3 API.
//!
//! `members` asks whoever of the cluster answers, within a deadline; `request` builds transactions and reads what comes back;
//! `watch` follows changes over lost connections and compactions. The client is our own, over the wire types of crate
//! `proto`: `etcd-client` runs protoc when it is built, which this project does without.

mod address;
mod members;
mod request;
mod store;
#[cfg(test)]
mod tests;
mod watch;

pub use self::{
    address::{EtcdAddress, EtcdTls},
    store::EtcdStore,
};
