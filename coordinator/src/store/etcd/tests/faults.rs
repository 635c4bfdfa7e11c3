//! Members that are killed, stopped, and come back.

use super::{Etcd, put, several, store};
use crate::store::{Store as _, StoreError};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_leading_member_is_nobodys_error() {
    let Some(mut etcd) = Etcd::start(3).await else { return };
    let store = store(&etcd.address(""));
    let mut changes = store.watch("/k", store.list("/k").await.unwrap().revision).await.unwrap();
    let first = store.put_if(put("/k", "1", None)).await.unwrap();
    let leader = etcd.leader().await;
    etcd.kill(leader);
    let began = Instant::now();
    let second = store.put_if(put("/k", "2", Some(first))).await.unwrap();
    eprintln!("written {:.2} s after the leading member was killed", began.elapsed().as_secs_f64());
    assert_eq!(several(&mut changes, 2).await, ["/k=1", "/k=2"]);
    etcd.restart(leader);
    etcd.ready().await;
    store.put_if(put("/k", "3", Some(second))).await.unwrap();
    assert_eq!(several(&mut changes, 1).await, ["/k=3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_calls_say_so_in_time_and_with_it_they_work_again() {
    let Some(mut etcd) = Etcd::start(3).await else { return };
    let store = store(&etcd.address(""));
    let mut changes = store.watch("/k", store.list("/k").await.unwrap().revision).await.unwrap();
    let first = store.put_if(put("/k", "1", None)).await.unwrap();
    etcd.kill(0);
    etcd.kill(1);
    let began = Instant::now();
    let error = store.put_if(put("/k", "2", Some(first))).await.unwrap_err();
    assert!(matches!(error, StoreError::Deadline { .. }) && error.to_string().contains("more than half"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(matches!(store.get("/k").await, Err(StoreError::Deadline { .. })), "no answer of old is given");
    etcd.restart(0);
    etcd.restart(1);
    etcd.ready().await;
    let back = Instant::now();
    let found = store.get("/k").await.unwrap().unwrap();
    let written = store.put_if(put("/k", "3", Some(found.revision))).await.unwrap();
    eprintln!("written {:.2} s after the quorum was back", back.elapsed().as_secs_f64());
    assert_eq!(store.get("/k").await.unwrap().unwrap().revision, written);
    // The put that ran out of time may have been made.
    let between = if found.value == b"2" { vec!["/k=1", "/k=2", "/k=3"] } else { vec!["/k=1", "/k=3"] };
    assert_eq!(several(&mut changes, between.len()).await, between);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_has_what_was_put_and_its_watches_go_on() {
    let Some(mut etcd) = Etcd::start(1).await else { return };
    let store = store(&etcd.address("/p"));
    let lease = store.grant(Duration::from_secs(60)).await.unwrap();
    let mut changes = store.watch("/k", store.list("/k").await.unwrap().revision).await.unwrap();
    let first = store.put_if(put("/k", "1", None)).await.unwrap();
    etcd.kill(0);
    etcd.restart(0);
    let second = store.put_if(put("/k", "2", Some(first))).await.unwrap();
    assert!(second > first);
    assert_eq!(several(&mut changes, 2).await, ["/k=1", "/k=2"]);
    store.keep_alive(lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_an_error_in_time_and_a_stopped_member_is_passed_over() {
    let Some(etcd) = Etcd::start(1).await else { return };
    let alone = store(&etcd.address(""));
    let first = alone.put_if(put("/k", "1", None)).await.unwrap();
    let lease = alone.grant(Duration::from_secs(60)).await.unwrap();
    etcd.stop(0);
    let began = Instant::now();
    let calls = tokio::join!(
        alone.get("/k"),
        alone.list("/"),
        alone.put_if(put("/k", "2", Some(first))),
        alone.delete_if("/other", first),
        alone.watch("/k", first),
        alone.grant(Duration::from_secs(1)),
        alone.keep_alive(lease),
        alone.revoke(lease),
    );
    let (get, list, put_if, delete_if, watch, grant, keep_alive, revoke) = calls;
    for error in [
        get.unwrap_err(),
        list.unwrap_err(),
        put_if.unwrap_err(),
        delete_if.unwrap_err(),
        watch.unwrap_err(),
        grant.unwrap_err(),
        keep_alive.unwrap_err(),
        revoke.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Deadline { .. }), "{error}");
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    etcd.resume(0);
    alone.list("/").await.unwrap();

    let Some(etcd) = Etcd::start(3).await else { return };
    let store = store(&etcd.address(""));
    let first = store.put_if(put("/k", "1", None)).await.unwrap();
    let mut changes = store.watch("/k", first).await.unwrap();
    etcd.leader().await;
    // The first of the list is the one that is asked.
    etcd.stop(0);
    let began = Instant::now();
    let second = store.put_if(put("/k", "2", Some(first))).await.unwrap();
    eprintln!("written {:.2} s after the member that was asked was stopped", began.elapsed().as_secs_f64());
    assert_eq!(several(&mut changes, 1).await, ["/k=2"], "the watch leaves a member that does not answer");
    etcd.resume(0);
    store.put_if(put("/k", "3", Some(second))).await.unwrap();
    assert_eq!(several(&mut changes, 1).await, ["/k=3"]);
}
