//! A watch that outlives connections: it goes on behind the last change it told, and where etcd no longer keeps what follows,
//! it lists anew and tells the difference.

use super::{
    members::Peer,
    request,
    store::{EtcdStore, MAX_ANSWER_BYTES},
};
use crate::store::{Listing, Revision, StoreError, contract::Change};
use common::daemon::backoff::Backoff;
use proto::etcd::{
    Event, WatchCreateRequest, WatchRequest, WatchResponse, event::EventType, watch_client::WatchClient,
    watch_request::RequestUnion,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::mpsc, time::sleep};
use tonic::{Response, Status, Streaming};

/// How many changes may wait for the reader.
const QUEUE: usize = 256;
/// How long a full queue may stay so before the watch ends.
const READER: Duration = Duration::from_secs(30);
/// Waits before it begins again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What is known of the keys, and told.
#[derive(Debug)]
pub(super) struct Told {
    /// The keys that live.
    keys: BTreeSet<String>,
    /// The last change that was told, or a later one that is no key's of ours.
    last: Revision,
}

impl Told {
    pub(super) fn new(keys: BTreeSet<String>, last: Revision) -> Self {
        Self { keys, last }
    }

    /// What etcd tells, unless it was told before.
    fn event(&mut self, event: Event, prefix: &str) -> Option<Change> {
        let kind = event.r#type();
        let found = event.kv?;
        let revision = request::revision(found.mod_revision);
        if revision <= self.last {
            return None;
        }
        Some(match kind {
            EventType::Put => {
                let entry = request::entry(found, prefix);
                self.keys.insert(entry.key.clone());
                Change::Put(entry)
            }
            EventType::Delete => {
                let key = request::name(&found.key, prefix);
                self.keys.remove(&key);
                Change::Deleted { key, revision }
            }
        })
    }

    /// One answer of etcd's. All changes of one revision come in one.
    fn events(&mut self, events: Vec<Event>, prefix: &str) -> Vec<Change> {
        let changes: Vec<Change> = events.into_iter().filter_map(|event| self.event(event, prefix)).collect();
        self.last = changes.last().map_or(self.last, Change::revision);
        changes
    }

    /// What a listing says that was not told: puts in their order, then deletions, whose own revisions are lost.
    pub(super) fn difference(&mut self, listing: Listing) -> Vec<Change> {
        let now: BTreeSet<String> = listing.entries.iter().map(|entry| entry.key.clone()).collect();
        let revision = listing.revision;
        let deleted = self.keys.difference(&now).map(|key| Change::Deleted { key: key.clone(), revision });
        let deleted: Vec<Change> = deleted.collect();
        let mut changes: Vec<Change> =
            listing.entries.into_iter().filter(|entry| entry.revision > self.last).map(Change::Put).collect();
        changes.sort_by_key(Change::revision);
        changes.extend(deleted);
        (self.keys, self.last) = (now, revision.max(self.last));
        changes
    }
}

/// Why a stream of changes ended.
enum Ended {
    /// Nobody reads, or too slowly.
    Reader,
    /// What comes next is no longer kept.
    Compacted,
    /// The connection, or the member.
    Broken,
}

/// The task behind a watch.
pub(super) struct Watcher {
    store: EtcdStore,
    below: String,
    told: Told,
    queue: mpsc::Sender<Change>,
}

impl Watcher {
    /// Begins behind a change. It ends with its reader.
    pub(super) fn start(
        store: EtcdStore,
        below: String,
        keys: BTreeSet<String>,
        after: Revision,
    ) -> mpsc::Receiver<Change> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let watcher = Self { store, below, told: Told::new(keys, after), queue };
        tokio::spawn(watcher.run());
        receiver
    }

    async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let before = self.told.last;
            let ended = match self.follow().await {
                Ended::Compacted => self.list_again().await,
                ended => ended,
            };
            if matches!(ended, Ended::Reader) || self.queue.is_closed() {
                return;
            }
            if self.told.last > before {
                backoff.reset();
            }
            tokio::select! {
                () = self.queue.closed() => return,
                () = sleep(backoff.next(0.5)) => {}
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Ended {
        let create = WatchCreateRequest {
            key: self.below.clone().into_bytes(),
            range_end: request::behind(&self.below),
            start_revision: request::number(self.told.last).max(0) + 1,
        };
        let ask = |peer: Peer| {
            let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create.clone())) };
            async move { open(peer, create).await }
        };
        let (mut changes, peer, _keep) = match self.store.members().call("watch keys", ask).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%error, "no watch, trying again until there is one");
                return Ended::Broken;
            }
        };
        loop {
            let reply = tokio::select! {
                () = self.queue.closed() => return Ended::Reader,
                reply = changes.message() => reply,
            };
            match reply {
                Ok(Some(WatchResponse { canceled: true, compact_revision, .. })) if compact_revision > 0 => {
                    return Ended::Compacted;
                }
                Ok(Some(WatchResponse { canceled: false, events, .. })) => {
                    let told = self.told.events(events, self.store.prefix());
                    if !self.tell(told).await {
                        return Ended::Reader;
                    }
                }
                Ok(_) | Err(_) => {
                    self.store.members().leave_peer(&peer);
                    return Ended::Broken;
                }
            }
        }
    }

    /// Tells what a listing has and the watch missed.
    async fn list_again(&mut self) -> Ended {
        match self.store.below(&self.below).await {
            Ok(listing) => {
                tracing::info!(after = %self.told.last, "history is no longer kept: listed again");
                let told = self.told.difference(listing);
                if self.tell(told).await { Ended::Broken } else { Ended::Reader }
            }
            Err(error @ StoreError::Deadline { .. }) => {
                tracing::warn!(%error, "could not list again, trying until it works");
                Ended::Broken
            }
            Err(error) => {
                tracing::error!(%error, "could not list again");
                Ended::Broken
            }
        }
    }

    /// Hands changes on; false when the reader is gone or too slow.
    async fn tell(&self, changes: Vec<Change>) -> bool {
        for change in changes {
            if self.queue.send_timeout(change, READER).await.is_err() {
                return false;
            }
        }
        true
    }
}

type Opened = (Streaming<WatchResponse>, Peer, mpsc::Sender<WatchRequest>);

/// Opens a stream and waits until etcd says that it watches. The sender keeps the stream open.
async fn open(peer: Peer, create: WatchRequest) -> Result<Response<Opened>, Status> {
    let (requests, outgoing) = mpsc::channel(1);
    requests.try_send(create).map_err(|_| Status::internal("the first request did not fit its queue"))?;
    let outgoing = peer.request(tokio_stream::wrappers::ReceiverStream::new(outgoing));
    let mut client = WatchClient::new(peer.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut changes = client.watch(outgoing).await?.into_inner();
    match changes.message().await? {
        Some(WatchResponse { created: true, canceled: false, .. }) => Ok(Response::new((changes, peer, requests))),
        Some(reply) => Err(Status::unavailable(format!("no watch was made: {}", reply.cancel_reason))),
        None => Err(Status::unavailable("the stream ended before the watch was made")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;
    use proto::etcd::KeyValue;

    fn entry(key: &str, revision: u64) -> Entry {
        Entry { key: key.into(), value: vec![1], revision: Revision(revision), lease: None }
    }

    fn event(kind: EventType, key: &str, revision: i64) -> Event {
        let kv =
            KeyValue { key: format!("/p{key}").into(), mod_revision: revision, value: vec![1], ..KeyValue::default() };
        Event { r#type: kind.into(), kv: Some(kv) }
    }

    #[test]
    fn a_change_is_told_once_and_those_of_one_revision_together() {
        let mut told = Told::new(["/a".to_owned(), "/b".to_owned()].into(), Revision(4));
        let events = vec![
            event(EventType::Put, "/a", 4),
            event(EventType::Put, "/c", 5),
            event(EventType::Delete, "/a", 6),
            event(EventType::Delete, "/b", 6),
        ];
        let deleted = |key: &str| Change::Deleted { key: key.into(), revision: Revision(6) };
        let expected = [Change::Put(entry("/c", 5)), deleted("/a"), deleted("/b")];
        assert_eq!(told.events(events.clone(), "/p"), expected);
        assert_eq!((told.last, told.keys.len()), (Revision(6), 1));
        assert_eq!(told.events(events, "/p"), []);
    }

    #[test]
    fn a_listing_tells_what_was_missed_and_nothing_twice() {
        let mut told = Told::new(["/gone".to_owned(), "/same".to_owned(), "/new".to_owned()].into(), Revision(10));
        let listing = Listing {
            entries: vec![entry("/added", 14), entry("/new", 12), entry("/same", 9)],
            revision: Revision(20),
        };
        let expected = [
            Change::Put(entry("/new", 12)),
            Change::Put(entry("/added", 14)),
            Change::Deleted { key: "/gone".into(), revision: Revision(20) },
        ];
        assert_eq!(told.difference(listing.clone()), expected);
        assert_eq!(told.difference(listing), []);
        assert_eq!(told.last, Revision(20));
    }
}
