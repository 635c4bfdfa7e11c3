//! The store itself.

use super::{
    address::EtcdAddress,
    members::{Members, Peer},
    request::{self, Outcome, Write},
    watch::Watcher,
};
use crate::store::{Entry, Fence, LeaseId, Listing, Put, Revision, Store, StoreError, contract::Change};
use proto::etcd::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse,
    kv_client::KvClient, lease_client::LeaseClient,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tonic::{Response, Status};

/// The largest answer: a page of records, each of at most etcd's 1.5 MiB a request.
pub(super) const MAX_ANSWER_BYTES: usize = 256 << 20;
/// How many keys a page has.
const PAGE: i64 = 64;
/// What etcd says of a lease that is gone.
const NO_LEASE: &str = "requested lease not found";
/// What etcd says of history that is gone.
const COMPACTED: &str = "revision has been compacted";

/// A store in an etcd cluster; clones share its connections. Every call has a deadline ([`StoreError::Deadline`]).
#[derive(Clone)]
pub struct EtcdStore {
    members: Arc<Members>,
    prefix: Arc<str>,
    fence: Option<Fence>,
}

impl EtcdStore {
    /// Connects when it is first used. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the address, or a file that belongs to it, cannot be used.
    pub fn new(address: &EtcdAddress) -> Result<Self, StoreError> {
        Ok(Self { members: Arc::new(Members::new(address)?), prefix: address.prefix().into(), fence: None })
    }

    /// The members' URLs, for people.
    pub fn endpoints(&self) -> String {
        self.members.endpoints()
    }

    async fn range(&self, operation: &'static str, range: RangeRequest) -> Result<RangeResponse, StoreError> {
        let ask = |peer: Peer| {
            let request = peer.request(range.clone());
            async move { KvClient::new(peer.channel).max_decoding_message_size(MAX_ANSWER_BYTES).range(request).await }
        };
        self.members.call(operation, ask).await
    }

    /// Everything below a full prefix, as of a change (0: now), page by page of one moment.
    async fn pages(&self, below: &str, as_of: Revision, keys_only: bool) -> Result<Listing, StoreError> {
        let mut at = request::number(as_of);
        let (mut from, range_end) = (below.as_bytes().to_vec(), request::behind(below));
        let mut entries = Vec::new();
        loop {
            let page = RangeRequest { key: from, range_end: range_end.clone(), limit: PAGE, revision: at, keys_only };
            let page = self.range("list keys", page).await?;
            if at == 0 {
                at = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().map(|last| last.key.clone());
            entries.extend(page.kvs.into_iter().map(|found| request::entry(found, &self.prefix)));
            match last {
                Some(last) if page.more => from = [last.as_slice(), &[0]].concat(),
                _ => return Ok(Listing { entries, revision: request::revision(at) }),
            }
        }
    }

    /// Runs a transaction; true with the answer when an earlier try of it may have been carried out.
    async fn transact(&self, operation: &'static str, request: TxnRequest) -> Result<(TxnResponse, bool), StoreError> {
        let ask = |peer: Peer| {
            let (again, request) = (peer.again, peer.request(request.clone()));
            async move {
                let reply =
                    KvClient::new(peer.channel).max_decoding_message_size(MAX_ANSWER_BYTES).txn(request).await?;
                Ok(Response::new((reply.into_inner(), again)))
            }
        };
        self.members.call(operation, ask).await
    }

    fn write<'a>(&'a self, key: &'a str, expected: Option<Revision>) -> Write<'a> {
        Write { prefix: &self.prefix, key, expected, fence: self.fence.as_ref() }
    }
}

/// An error about a lease, as the contract names it.
fn about_lease(error: StoreError, lease: LeaseId) -> StoreError {
    match error {
        StoreError::Etcd { message, .. } if message.contains(NO_LEASE) => StoreError::NoLease(lease),
        other => other,
    }
}

impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = [&self.prefix, key].concat().into_bytes();
        let found = self.range("read a key", RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(found.kvs.into_iter().next().map(|found| request::entry(found, &self.prefix)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.pages(&[&self.prefix, prefix].concat(), Revision(0), false).await
    }

    async fn put_if(&self, put: Put) -> Result<Revision, StoreError> {
        let write = self.write(&put.key, put.expected);
        let reply = self.transact("write a key", write.put(&put)).await;
        let (reply, again) = reply.map_err(|error| match put.lease {
            Some(lease) => about_lease(error, lease),
            None => error,
        })?;
        match write.outcome(reply) {
            Outcome::Done(revision) => Ok(revision),
            // A try whose answer was lost has put it; what was put says so.
            Outcome::Conflict(Some(found)) if again && found.value == put.value && found.lease == put.lease => {
                Ok(found.revision)
            }
            outcome => Err(write.refused(outcome)),
        }
    }

    async fn delete_if(&self, key: &str, expected: Revision) -> Result<Revision, StoreError> {
        let write = self.write(key, Some(expected));
        let (reply, again) = self.transact("delete a key", write.delete()).await?;
        let now = request::revision(reply.header.as_ref().map_or(0, |header| header.revision));
        match write.outcome(reply) {
            Outcome::Done(revision) => Ok(revision),
            Outcome::Conflict(None) if again => Ok(now),
            outcome => Err(write.refused(outcome)),
        }
    }

    fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<mpsc::Receiver<Change>, StoreError> {
        let below = [&self.prefix, prefix].concat();
        // The first change of a store makes revision 2.
        let known = self.pages(&below, after.max(Revision(1)), true).await.map_err(|error| match error {
            StoreError::Etcd { message, .. } if message.contains(COMPACTED) => {
                StoreError::Compacted { after, oldest: None }
            }
            other => other,
        })?;
        let keys = known.entries.into_iter().map(|entry| entry.key).collect();
        Ok(Watcher::start(self.clone(), below, keys, after))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let ask = |peer: Peer| {
            let request = peer.request(LeaseGrantRequest { ttl: seconds, id: 0 });
            async move { LeaseClient::new(peer.channel).lease_grant(request).await }
        };
        let granted = self.members.call("grant a lease", ask).await?;
        Ok(LeaseId(u64::try_from(granted.id).unwrap_or(0)))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let ask = |peer: Peer| async move {
            let one = tokio_stream::iter([LeaseKeepAliveRequest { id: request::lease_number(lease) }]);
            let request = peer.request(one);
            let mut replies = LeaseClient::new(peer.channel).lease_keep_alive(request).await?.into_inner();
            let reply = replies.message().await?;
            reply.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended without an answer"))
        };
        let kept = self.members.call("keep a lease alive", ask).await.map_err(|error| about_lease(error, lease))?;
        if kept.ttl > 0 { Ok(()) } else { Err(StoreError::NoLease(lease)) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let ask = |peer: Peer| {
            let (again, request) = (peer.again, peer.request(LeaseRevokeRequest { id: request::lease_number(lease) }));
            async move {
                match LeaseClient::new(peer.channel).lease_revoke(request).await {
                    // A try whose answer was lost has ended it.
                    Err(status) if again && status.message().contains(NO_LEASE) => Ok(Response::new(())),
                    reply => reply.map(|reply| reply.map(drop)),
                }
            }
        };
        self.members.call("revoke a lease", ask).await.map_err(|error| about_lease(error, lease))
    }
}

impl EtcdStore {
    /// The cluster, for a watch.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// Before every key.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Has the cluster forget what was before a change.
    #[cfg(test)]
    pub(super) async fn compact(&self, revision: Revision) {
        let request = proto::etcd::CompactionRequest { revision: request::number(revision), physical: true };
        let ask = |peer: Peer| {
            let request = peer.request(request);
            async move { KvClient::new(peer.channel).compact(request).await }
        };
        self.members.call("compact", ask).await.unwrap();
    }

    /// Everything below a full prefix, now.
    pub(super) async fn below(&self, below: &str) -> Result<Listing, StoreError> {
        self.pages(below, Revision(0), false).await
    }
}
