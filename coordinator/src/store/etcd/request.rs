//! Between the store's contract and etcd's messages. Pure.

use crate::store::{Entry, Fence, LeaseId, Put, Revision, StoreError};
use proto::etcd::{
    Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};

/// A revision as etcd counts it.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A revision as the contract has it.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

/// A lease as etcd counts it.
pub(super) fn lease_number(lease: LeaseId) -> i64 {
    i64::try_from(lease.0).unwrap_or(i64::MAX)
}

/// What a key holds; its name is without our prefix.
pub(super) fn entry(found: KeyValue, prefix: &str) -> Entry {
    Entry {
        key: name(&found.key, prefix),
        revision: revision(found.mod_revision),
        lease: u64::try_from(found.lease).ok().filter(|lease| *lease > 0).map(LeaseId),
        value: found.value,
    }
}

/// A key's name without our prefix.
pub(super) fn name(key: &[u8], prefix: &str) -> String {
    let key = String::from_utf8_lossy(key);
    key.strip_prefix(prefix).unwrap_or(&key).to_owned()
}

/// The first key behind all that begin with a prefix.
pub(super) fn behind(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // To the end of all keys.
    vec![0]
}

/// A write with what must hold for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write<'a> {
    /// Before every key.
    pub(super) prefix: &'a str,
    /// The key.
    pub(super) key: &'a str,
    /// Its revision; absent means that it must not exist.
    pub(super) expected: Option<Revision>,
    /// Who may write.
    pub(super) fence: Option<&'a Fence>,
}

/// What a transaction came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was carried out, at this revision.
    Done(Revision),
    /// The key is not as expected; what it holds.
    Conflict(Option<Entry>),
    /// The fence does not hold; the revision of its key.
    Fenced(Option<Revision>),
}

impl Write<'_> {
    /// The transaction that puts.
    pub(super) fn put(self, put: &Put) -> TxnRequest {
        let (key, lease) = (self.full(self.key), put.lease.map_or(0, lease_number));
        self.transaction(Request::RequestPut(PutRequest { key, value: put.value.clone(), lease }))
    }

    /// The transaction that deletes.
    pub(super) fn delete(self) -> TxnRequest {
        let key = self.full(self.key);
        self.transaction(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end: Vec::new() }))
    }

    fn full(self, key: &str) -> Vec<u8> {
        [self.prefix, key].concat().into_bytes()
    }

    /// Compares the key and the fence; where one differs, reads both.
    fn transaction(self, write: Request) -> TxnRequest {
        let mut compare = vec![match self.expected {
            Some(revision) => modified(self.full(self.key), revision),
            None => created(self.full(self.key), Revision(0)),
        }];
        let mut failure = vec![read(self.full(self.key))];
        if let Some(fence) = self.fence {
            let key = self.full(&fence.key);
            // Its holder writes it once: what created it is also what wrote it last.
            compare.push(created(key.clone(), fence.revision));
            compare.push(modified(key.clone(), fence.revision));
            failure.push(read(key));
        }
        TxnRequest { compare, success: vec![RequestOp { request: Some(write) }], failure }
    }

    /// Reads the answer to one of these transactions.
    pub(super) fn outcome(self, reply: TxnResponse) -> Outcome {
        if reply.succeeded {
            return Outcome::Done(revision(reply.header.map_or(0, |header| header.revision)));
        }
        let mut found = reply.responses.into_iter().map(|operation| match operation.response {
            Some(Response::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        let key = found.next().flatten();
        if let Some(fence) = self.fence {
            let holds = |holder: &KeyValue| {
                [holder.create_revision, holder.mod_revision] == [number(fence.revision), number(fence.revision)]
            };
            let holder = found.next().flatten();
            if !holder.as_ref().is_some_and(holds) {
                return Outcome::Fenced(holder.map(|holder| revision(holder.mod_revision)));
            }
        }
        Outcome::Conflict(key.map(|key| entry(key, self.prefix)))
    }

    /// The error of a transaction that was not carried out.
    pub(super) fn refused(self, outcome: Outcome) -> StoreError {
        let key = self.key.to_owned();
        match (outcome, self.fence) {
            (Outcome::Fenced(found), Some(fence)) => {
                StoreError::Fenced { key, fence: fence.key.clone(), expected: fence.revision, found }
            }
            (Outcome::Conflict(found), _) => {
                StoreError::Conflict { key, expected: self.expected, found: found.map(|entry| entry.revision) }
            }
            (Outcome::Fenced(found), None) => StoreError::Conflict { key, expected: self.expected, found },
            (Outcome::Done(found), _) => StoreError::Conflict { key, expected: self.expected, found: Some(found) },
        }
    }
}

fn compare(key: Vec<u8>, target: CompareTarget, union: TargetUnion) -> Compare {
    Compare { result: CompareResult::Equal.into(), target: target.into(), key, target_union: Some(union) }
}

fn created(key: Vec<u8>, revision: Revision) -> Compare {
    compare(key, CompareTarget::Create, TargetUnion::CreateRevision(number(revision)))
}

fn modified(key: Vec<u8>, revision: Revision) -> Compare {
    compare(key, CompareTarget::Mod, TargetUnion::ModRevision(number(revision)))
}

fn read(key: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::RequestRange(RangeRequest { key, ..RangeRequest::default() })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(behind("/a/"), b"/a0");
        assert_eq!(behind("a\u{7f}"), [b'a', 0x80]);
        assert_eq!(behind(""), [0]);
    }

    #[test]
    fn a_fenced_write_compares_the_key_and_both_revisions_of_the_fence() {
        let fence = Fence { key: "/leader".into(), revision: Revision(7) };
        let write = Write { prefix: "/p", key: "/k", expected: Some(Revision(9)), fence: Some(&fence) };
        let put = Put { key: "/k".into(), value: vec![1], expected: Some(Revision(9)), lease: None };
        let compares = [
            modified(b"/p/k".to_vec(), Revision(9)),
            created(b"/p/leader".to_vec(), Revision(7)),
            modified(b"/p/leader".to_vec(), Revision(7)),
        ];
        assert_eq!(write.put(&put).compare, compares);
        assert_eq!(write.put(&put).failure.len(), 2);
        let absent = Write { expected: None, fence: None, ..write };
        assert_eq!(absent.delete().compare, [created(b"/p/k".to_vec(), Revision(0))]);
    }
}
