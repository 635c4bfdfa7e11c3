//! What a healthy server gives.

use super::{at, contents, limits, server::Server};
use crate::storage::{Limits, StorageError};
use std::time::Duration;

#[test]
fn what_is_put_is_listed_and_read_by_ranges_across_blocks() {
    let server = Server::start();
    let storage = server.storage(limits());
    let whole = contents(3500);
    for name in ["b.tar", "a.tar", "c.txt"] {
        storage.put(&at(&format!("s3://bucket/x/{name}")), whole.clone()).unwrap();
    }
    storage.put(&at("s3://bucket/x/deeper/d.tar"), whole.clone()).unwrap();
    let found = storage.list(&at("s3://bucket/x/*.tar")).unwrap();
    let names: Vec<_> = found.iter().map(|entry| (entry.location.to_string(), entry.size)).collect();
    assert_eq!(names, [("s3://bucket/x/a.tar".to_owned(), 3500), ("s3://bucket/x/b.tar".to_owned(), 3500)]);
    assert_eq!(storage.stat(&found[0].location).unwrap(), found[0], "a listing and a look agree");
    assert_eq!(storage.list(&found[1].location).unwrap(), found[1..]);

    let mut bytes = Vec::new();
    for (offset, length) in [(0, 3500), (990, 20), (3499, 1), (1000, 1000), (5, 0)] {
        storage.read_range(&found[0].location, offset, length, &mut bytes).unwrap();
        assert_eq!(bytes, whole[offset as usize..][..length], "{length} from {offset} on");
    }
    let several = storage.read_ranges(&found[0].location, &[3000..3400, 10..20, 900..2100]).unwrap();
    assert_eq!(several, [&whole[3000..3400], &whole[10..20], &whole[900..2100]]);
}

#[test]
fn what_is_not_there_is_named() {
    let server = Server::start();
    let storage = server.storage(limits());
    let here = at("s3://bucket/x.tar");
    storage.put(&here, contents(1500)).unwrap();
    let mut bytes = Vec::new();
    for (offset, length) in [(1400, 101), (900, 700), (1500, 1), (2000, 1), (90_000, 10)] {
        let error = storage.read_range(&here, offset, length, &mut bytes).unwrap_err();
        let end = offset + length as u64;
        assert!(
            matches!(error, StorageError::PastEnd { offset: o, end: e, size: 1500, .. } if o == offset && e == end),
            "{error}"
        );
    }
    let missing = at("s3://bucket/no.tar");
    for error in [
        storage.stat(&missing).unwrap_err(),
        storage.read_range(&missing, 0, 1, &mut bytes).unwrap_err(),
        storage.list(&missing).unwrap_err(),
        storage.list(&at("s3://bucket/no/*.tar")).unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("s3://bucket/no"), "{text}");
        assert!(matches!(error, StorageError::NotFound { .. } | StorageError::NoMatch { .. }), "{text}");
    }
}

#[test]
fn a_listing_of_several_pages_is_whole() {
    let server = Server::start();
    std::fs::create_dir(server.bucket().join("many")).unwrap();
    for number in 0..1203 {
        std::fs::write(server.bucket().join(format!("many/{number:05}.tar")), b"x").unwrap();
    }
    let storage = server.storage(limits());
    let found = storage.list(&at("s3://bucket/many/*.tar")).unwrap();
    assert_eq!(found.len(), 1203);
    assert!(found.is_sorted());
    assert!(found.iter().all(|entry| entry.size == 1));
}

#[test]
fn an_object_that_is_there_is_not_written_over_by_put_if_absent() {
    let server = Server::start();
    let storage = server.storage(limits());
    let here = at("s3://bucket/manifest.json");
    assert!(storage.put_if_absent(&here, b"first".to_vec()).unwrap());
    assert!(!storage.put_if_absent(&here, b"second".to_vec()).unwrap());
    let mut bytes = Vec::new();
    storage.read_range(&here, 0, 5, &mut bytes).unwrap();
    assert_eq!(bytes, b"first");
}

#[test]
fn threads_that_want_the_same_blocks_ask_for_each_once() {
    let server = Server::start();
    let whole = contents(20_500);
    std::fs::write(server.bucket().join("x.tar"), &whole).unwrap();
    let storage = server.storage(limits());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (storage, whole) = (&storage, &whole);
            scope.spawn(move || {
                let mut bytes = Vec::new();
                for i in 0..41 {
                    let offset = (i * 17 + thread * 5) % 41 * 500;
                    storage.read_range(&at("s3://bucket/x.tar"), offset, 500, &mut bytes).unwrap();
                    assert_eq!(bytes, whole[offset as usize..][..500]);
                }
            });
        }
    });
    assert_eq!(storage.requests(), 21);
}

#[test]
fn blocks_that_were_pushed_out_are_asked_for_again() {
    let server = Server::start();
    std::fs::write(server.bucket().join("x.tar"), contents(10_000)).unwrap();
    let storage = server.storage(Limits { cache: 3000, ..limits() });
    let mut bytes = Vec::new();
    // The last three are still there the second time.
    for requests in [10, 17] {
        storage.read_range(&at("s3://bucket/x.tar"), 0, 10_000, &mut bytes).unwrap();
        assert_eq!(bytes, contents(10_000));
        assert_eq!(storage.requests(), requests);
    }
}

#[test]
fn an_object_that_is_replaced_while_it_is_read_is_noticed() {
    let server = Server::start();
    let storage = server.storage(limits());
    let here = at("s3://bucket/x.tar");
    storage.put(&here, contents(2000)).unwrap();
    let mut bytes = Vec::new();
    storage.read_range(&here, 0, 10, &mut bytes).unwrap();
    storage.put(&here, vec![7; 2000]).unwrap();
    let error = storage.read_range(&here, 1000, 10, &mut bytes).unwrap_err();
    assert!(matches!(error, StorageError::Changed { .. }), "{error}");
}

#[test]
fn a_wrong_secret_is_said_at_once_and_not_tried_again() {
    let server = Server::start();
    let storage = server.stranger(Limits { first_wait: Duration::from_secs(600), ..limits() });
    let error = storage.put(&at("s3://bucket/x"), b"x".to_vec()).unwrap_err();
    assert!(matches!(error, StorageError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/x"), "{error}");
    assert_eq!(storage.requests(), 1);
}
