//! The store against a real etcd: the contract, and what a network and a cluster can do to it.

mod faults;
mod proxy;
mod server;
mod service;

use super::{EtcdAddress, EtcdStore};
use crate::store::{
    Change, Revision, Store as _,
    suite::{self, put},
};
use proxy::Proxy;
use server::Etcd;
use std::time::Duration;
use tokio::sync::mpsc;

/// A store of this address, which gives up soon.
fn store(address: &str) -> EtcdStore {
    let address = EtcdAddress::parse(address).unwrap();
    EtcdStore::new(&address.with_deadlines(Duration::from_secs(4), Duration::from_millis(800))).unwrap()
}

async fn next(changes: &mut mpsc::Receiver<Change>) -> Change {
    tokio::time::timeout(Duration::from_secs(20), changes.recv()).await.expect("a change in time").unwrap()
}

/// `key=value`, or `key gone`.
fn told(change: &Change) -> String {
    match change {
        Change::Put(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
        Change::Deleted { key, .. } => format!("{key} gone"),
    }
}

/// The next changes, and that each is later than the one before or told with it.
async fn several(changes: &mut mpsc::Receiver<Change>, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    let mut last = Revision(0);
    for _ in 0..count {
        let change = next(changes).await;
        assert!(change.revision() >= last, "{change:?} after {last}");
        last = change.revision();
        all.push(told(&change));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract_below_every_prefix() {
    let Some(etcd) = Etcd::start(1).await else { return };
    suite::contract(&store(&etcd.address(""))).await;
    // Another prefix is another store; the first one's keys lie beside it.
    suite::contract(&store(&etcd.address("/team/a"))).await;
    let all = store(&etcd.address("")).list("/team/a/w/").await.unwrap();
    assert!(all.entries.is_empty(), "the contract deletes what it watches");
    assert!(!store(&etcd.address("")).list("/team/a/l/").await.unwrap().entries.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_many_pages_is_of_one_moment_and_whole() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = store(&etcd.address("/p"));
    for number in 0..150 {
        store.put_if(put(&format!("/many/{number:03}"), "x", None)).await.unwrap();
    }
    let listing = store.list("/many/").await.unwrap();
    let keys: Vec<String> = listing.entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, (0..150).map(|number| format!("/many/{number:03}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_over_a_cut_connection_tells_every_change_once() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let proxy = Proxy::to(etcd.port(0)).await;
    let (near, far) = (store(&etcd.address("")), store(&format!("etcd://127.0.0.1:{}", proxy.port)));
    let mut changes = far.watch("/w/", far.list("/w/").await.unwrap().revision).await.unwrap();
    let mut revision = near.put_if(put("/w/a", "0", None)).await.unwrap();
    assert_eq!(several(&mut changes, 1).await, ["/w/a=0"]);
    for round in 1..4 {
        proxy.cut();
        for value in [format!("{round}-1"), format!("{round}-2")] {
            revision = near.put_if(put("/w/a", &value, Some(revision))).await.unwrap();
        }
        proxy.mend();
        assert_eq!(several(&mut changes, 2).await, [format!("/w/a={round}-1"), format!("/w/a={round}-2")]);
    }
    near.delete_if("/w/a", revision).await.unwrap();
    assert_eq!(several(&mut changes, 1).await, ["/w/a gone"], "nothing was told twice before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_history_was_compacted_tells_the_difference_once() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let proxy = Proxy::to(etcd.port(0)).await;
    let (near, far) = (store(&etcd.address("")), store(&format!("etcd://127.0.0.1:{}", proxy.port)));
    let first = near.put_if(put("/w/changed", "1", None)).await.unwrap();
    let gone = near.put_if(put("/w/gone", "1", None)).await.unwrap();
    near.put_if(put("/w/same", "1", None)).await.unwrap();
    let mut changes = far.watch("/w/", far.list("/w/").await.unwrap().revision).await.unwrap();
    proxy.cut();
    let second = near.put_if(put("/w/changed", "2", Some(first))).await.unwrap();
    let third = near.put_if(put("/w/changed", "3", Some(second))).await.unwrap();
    near.put_if(put("/w/new", "1", None)).await.unwrap();
    near.delete_if("/w/gone", gone).await.unwrap();
    let last = near.put_if(put("/elsewhere", "x", None)).await.unwrap();
    near.compact(last).await;
    proxy.mend();
    assert_eq!(several(&mut changes, 3).await, ["/w/changed=3", "/w/new=1", "/w/gone gone"]);
    near.put_if(put("/w/changed", "4", Some(third))).await.unwrap();
    assert_eq!(several(&mut changes, 1).await, ["/w/changed=4"], "it goes on, and nothing came between");

    let late = near.watch("/w/", first).await.unwrap_err();
    assert!(matches!(late, crate::store::StoreError::Compacted { .. }), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_lives_while_it_is_kept_alive_and_takes_its_keys_along() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let store = store(&etcd.address(""));
    let lease = store.grant(Duration::from_secs(2)).await.unwrap();
    let mut changes = store.watch("/l", store.list("/l").await.unwrap().revision).await.unwrap();
    let leased = |key: &str| crate::store::Put { lease: Some(lease), ..put(key, "x", None) };
    store.put_if(leased("/l1")).await.unwrap();
    store.put_if(leased("/l2")).await.unwrap();
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        store.keep_alive(lease).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(
        several(&mut changes, 2).await,
        ["/l1=x", "/l2=x"],
        "no deletion in two and a half times its time to live"
    );
    let mut gone = several(&mut changes, 2).await;
    gone.sort();
    assert_eq!(gone, ["/l1 gone", "/l2 gone"]);
    eprintln!("lapsed {:.1} s after the last keep-alive", began.elapsed().as_secs_f64() - 5.0);
    assert!(matches!(store.keep_alive(lease).await, Err(crate::store::StoreError::NoLease(_))));
}
