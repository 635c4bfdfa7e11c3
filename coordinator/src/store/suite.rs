//! What every store must do; each implementation runs it.

use super::contract::{Change, Entry, Fence, Put, Revision, Store};
use crate::store::StoreError;
use std::time::Duration;
use tokio::sync::mpsc;

/// A put without a lease.
pub(super) fn put(key: &str, value: &str, expected: Option<Revision>) -> Put {
    Put { key: key.to_owned(), value: value.as_bytes().to_vec(), expected, lease: None }
}

/// The whole contract, on an empty store.
pub(super) async fn contract<S: Store>(store: &S) {
    puts_compare(store).await;
    lists_are_by_prefix(store).await;
    watches_see_past_and_future(store).await;
    leases_take_their_keys_along(store).await;
    fences_refuse_the_deposed(store).await;
}

async fn puts_compare<S: Store>(store: &S) {
    assert_eq!(store.get("/cas").await.unwrap(), None);
    let first = store.put_if(put("/cas", "1", None)).await.unwrap();
    let conflict = store.put_if(put("/cas", "2", None)).await.unwrap_err();
    assert!(matches!(conflict, StoreError::Conflict { found: Some(found), .. } if found == first), "{conflict}");
    let second = store.put_if(put("/cas", "2", Some(first))).await.unwrap();
    assert!(second > first);
    assert!(matches!(store.put_if(put("/cas", "3", Some(first))).await, Err(StoreError::Conflict { .. })));
    let entry = store.get("/cas").await.unwrap().unwrap();
    assert_eq!(entry, Entry { key: "/cas".into(), value: b"2".to_vec(), revision: second, lease: None });
    assert!(matches!(store.delete_if("/cas", first).await, Err(StoreError::Conflict { .. })));
    store.delete_if("/cas", second).await.unwrap();
    assert_eq!(store.get("/cas").await.unwrap(), None);
    assert!(matches!(
        store.put_if(put("/cas", "4", Some(second))).await,
        Err(StoreError::Conflict { found: None, .. })
    ));
}

async fn lists_are_by_prefix<S: Store>(store: &S) {
    for key in ["/l/b", "/l/a", "/l", "/m/c"] {
        store.put_if(put(key, key, None)).await.unwrap();
    }
    let listing = store.list("/l/").await.unwrap();
    let keys: Vec<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["/l/a", "/l/b"]);
    assert!(listing.entries.iter().all(|entry| entry.revision <= listing.revision));
}

async fn next(changes: &mut mpsc::Receiver<Change>) -> Change {
    tokio::time::timeout(Duration::from_secs(10), changes.recv()).await.unwrap().unwrap()
}

async fn watches_see_past_and_future<S: Store>(store: &S) {
    let before = store.list("/").await.unwrap().revision;
    let first = store.put_if(put("/w/1", "past", None)).await.unwrap();
    store.put_if(put("/elsewhere", "x", None)).await.unwrap();
    let mut changes = store.watch("/w/", before).await.unwrap();
    let second = store.put_if(put("/w/1", "future", Some(first))).await.unwrap();
    store.delete_if("/w/1", second).await.unwrap();
    let mut told = Vec::new();
    for _ in 0..3 {
        told.push(next(&mut changes).await);
    }
    assert!(told.windows(2).all(|pair| pair[0].revision() < pair[1].revision()));
    assert!(matches!(&told[0], Change::Put(entry) if entry.value == b"past"));
    assert!(matches!(&told[1], Change::Put(entry) if entry.value == b"future"));
    assert!(matches!(&told[2], Change::Deleted { key, .. } if key == "/w/1"));
}

async fn leases_take_their_keys_along<S: Store>(store: &S) {
    let kept = store.grant(Duration::from_secs(600)).await.unwrap();
    let short = store.grant(Duration::from_millis(30)).await.unwrap();
    let mut changes = store.watch("/lease/", store.list("/").await.unwrap().revision).await.unwrap();
    store.put_if(Put { lease: Some(kept), ..put("/lease/kept", "x", None) }).await.unwrap();
    // The short lease may lapse before the put on a slow machine; then the put says so.
    let put_in_time = store.put_if(Put { lease: Some(short), ..put("/lease/short", "x", None) }).await.is_ok();
    assert!(matches!(next(&mut changes).await, Change::Put(_)));
    if put_in_time {
        assert!(matches!(next(&mut changes).await, Change::Put(_)));
        assert!(matches!(next(&mut changes).await, Change::Deleted { key, .. } if key == "/lease/short"));
        assert!(matches!(store.keep_alive(short).await, Err(StoreError::NoLease(_))));
    }
    store.keep_alive(kept).await.unwrap();
    store.revoke(kept).await.unwrap();
    assert!(matches!(next(&mut changes).await, Change::Deleted { key, .. } if key == "/lease/kept"));
    assert!(matches!(store.keep_alive(kept).await, Err(StoreError::NoLease(_))));
    let late = store.put_if(Put { lease: Some(kept), ..put("/lease/late", "x", None) }).await;
    assert!(matches!(late, Err(StoreError::NoLease(_))));
}

async fn fences_refuse_the_deposed<S: Store>(store: &S) {
    let first = store.put_if(put("/fence", "a", None)).await.unwrap();
    let holder = store.fenced(Fence { key: "/fence".into(), revision: first });
    let written = holder.put_if(put("/fenced/1", "1", None)).await.unwrap();
    store.delete_if("/fence", first).await.unwrap();
    let refused = holder.put_if(put("/fenced/1", "2", Some(written))).await.unwrap_err();
    assert!(matches!(refused, StoreError::Fenced { found: None, expected, .. } if expected == first), "{refused}");
    let second = store.put_if(put("/fence", "b", None)).await.unwrap();
    for refused in [
        holder.put_if(put("/fenced/1", "2", Some(written))).await.unwrap_err(),
        holder.put_if(put("/fenced/2", "2", None)).await.unwrap_err(),
        holder.delete_if("/fenced/1", written).await.unwrap_err(),
    ] {
        assert!(matches!(refused, StoreError::Fenced { found: Some(found), .. } if found == second), "{refused}");
    }
    let entry = holder.get("/fenced/1").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (b"1".as_slice(), written), "what it reads is not fenced");
    let successor = store.fenced(Fence { key: "/fence".into(), revision: second });
    successor.put_if(put("/fenced/1", "2", Some(written))).await.unwrap();
    assert_eq!(store.get("/fenced/2").await.unwrap(), None);
}
