//! What is written, copied, deleted and read back as a whole, on a server that is healthy and through a proxy that spoils answers.

use super::{
    at, contents, limits,
    proxy::{Fault, Proxy},
    server::Server,
};
use crate::storage::{Location, ObjectUrl, Storage, StorageError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes of a part.
const PART: usize = 8 << 20;

fn url(text: &str) -> ObjectUrl {
    match at(text) {
        Location::Object(url) => url,
        Location::Local(_) => panic!("{text} is no object"),
    }
}

/// Sends `whole` in pieces of an odd length.
fn upload(storage: &Storage, to: &ObjectUrl, whole: &[u8]) -> Result<(), StorageError> {
    let mut upload = storage.upload(to, whole.len() as u64)?;
    whole.chunks(1_000_003).try_for_each(|piece| upload.write(piece))?;
    upload.finish()
}

#[test]
fn an_upload_of_any_length_is_the_object_that_was_sent() {
    let server = Server::start();
    let storage = server.storage(limits());
    let longest = contents(5 * PART + 17);
    for length in [0, 1, PART - 1, PART, PART + 1, 2 * PART, 5 * PART + 17] {
        let to = url(&format!("s3://bucket/up/{length}"));
        upload(&storage, &to, &longest[..length]).unwrap();
        assert!(std::fs::read(server.bucket().join(format!("up/{length}"))).unwrap() == longest[..length], "{length}");
        // Over what is there.
        upload(&storage, &to, &longest[..length]).unwrap();
        assert_eq!(storage.stat(&Location::Object(to)).unwrap().size, length as u64);
    }
}

#[test]
fn an_upload_that_is_dropped_leaves_no_object_and_no_part() {
    let server = Server::start();
    let storage = server.storage(limits());
    let to = url("s3://bucket/up/half");
    let mut begun = storage.upload(&to, 3 * PART as u64).unwrap();
    begun.write(&contents(2 * PART + 1)).unwrap();
    let parts = || {
        let root = server.bucket().parent().unwrap().to_owned();
        let names = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("part")).count()
    };
    let end = Instant::now() + Duration::from_secs(20);
    while parts() < 2 {
        assert!(Instant::now() < end, "the server keeps parts elsewhere");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    drop(begun);
    while parts() > 0 {
        assert!(Instant::now() < end, "the parts were not given up");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(!storage.exists(&Location::Object(to)).unwrap());
}

#[test]
fn an_upload_is_whole_whichever_request_fails_or_loses_its_answer() {
    let server = Server::start();
    let whole = contents(2 * PART + 5);
    for fault in [Fault::Unavailable, Fault::Lost] {
        // Begin, three parts, finish, look: each is spoiled once, and the try after it is not.
        for spoiled in 0..6 {
            let happened = Arc::new(AtomicBool::new(false));
            let seen = happened.clone();
            let proxy = Proxy::start(server.address, move |number| {
                if number != spoiled {
                    return Fault::None;
                }
                seen.store(true, Ordering::Relaxed);
                fault
            });
            let storage = Server::storage_through(proxy.address, limits());
            let name = format!("up/{fault:?}-{spoiled}");
            let to = url(&format!("s3://bucket/{name}"));
            upload(&storage, &to, &whole).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(happened.load(Ordering::Relaxed), "{name}");
            assert!(std::fs::read(server.bucket().join(&name)).unwrap() == whole, "{name}");
        }
    }
}

#[test]
fn an_upload_to_whom_nobody_answers_is_an_error_with_its_name() {
    let server = Server::start();
    let proxy = Proxy::start(server.address, |number| if number < 2 { Fault::None } else { Fault::Unavailable });
    let short = super::Limits { deadline: Duration::from_millis(300), ..limits() };
    let storage = Server::storage_through(proxy.address, short);
    let error = upload(&storage, &url("s3://bucket/up/never"), &contents(3 * PART)).unwrap_err();
    assert!(matches!(error, StorageError::GaveUp { .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/up/never"), "{error}");
    assert!(!server.bucket().join("up/never").exists());
}

#[test]
fn a_download_is_the_whole_object_in_order_and_of_one_version() {
    let server = Server::start();
    let storage = server.storage(limits());
    for length in [0, 1, 999, 1000, 1001, 30_500] {
        let place = at(&format!("s3://bucket/down/{length}"));
        storage.put(&place, contents(length)).unwrap();
        let entry = storage.stat(&place).unwrap();
        let blocks = storage.download(&url(&place.to_string()), &entry).unwrap();
        let whole: Vec<u8> = blocks.flat_map(|block| block.unwrap().to_vec()).collect();
        assert_eq!(whole, contents(length), "{length}");
    }
    let (place, from) = (at("s3://bucket/down/30500"), url("s3://bucket/down/30500"));
    let entry = storage.stat(&place).unwrap();
    storage.put(&place, contents(30_400)).unwrap();
    let mut blocks = storage.download(&from, &entry).unwrap();
    let error = blocks.next().unwrap().unwrap_err();
    assert!(matches!(error, StorageError::Changed { .. }), "{error}");
    assert!(blocks.next().is_none());
}

#[test]
fn an_object_is_copied_by_the_store_and_a_long_one_through_here() {
    let server = Server::start();
    let storage = server.storage(limits());
    for length in [0, 3 << 20, 9 << 20] {
        let (from, to) = (url(&format!("s3://bucket/a/{length}")), url(&format!("s3://bucket/b/{length}")));
        storage.put(&Location::Object(from.clone()), contents(length)).unwrap();
        storage.copy(&from, &to).unwrap();
        assert!(std::fs::read(server.bucket().join(format!("b/{length}"))).unwrap() == contents(length), "{length}");
    }
    let missing = storage.copy(&url("s3://bucket/a/no"), &url("s3://bucket/b/no")).unwrap_err();
    assert!(matches!(missing, StorageError::NotFound { .. }), "{missing}");
}

#[test]
fn a_folder_has_objects_and_folders_in_it_and_what_is_deleted_is_gone() {
    let server = Server::start();
    let storage = server.storage(limits());
    for name in ["f/x", "f/a", "f/deeper/y", "f/deeper/z", "f2/w", "g"] {
        storage.put(&at(&format!("s3://bucket/{name}")), b"1".to_vec()).unwrap();
    }
    let children = storage.children(&url("s3://bucket/f")).unwrap();
    assert_eq!(children.folders, ["deeper"]);
    assert_eq!(children.objects, ["a", "x"]);
    storage.delete(&url("s3://bucket/f/a")).unwrap();
    storage.delete(&url("s3://bucket/f/a")).unwrap();
    assert_eq!(storage.children(&url("s3://bucket/f")).unwrap().objects, ["x"]);
    let nothing = storage.children(&url("s3://bucket/nothing")).unwrap();
    assert!(nothing.folders.is_empty() && nothing.objects.is_empty());
}

#[test]
fn an_object_is_got_as_it_is_now_whatever_was_read_of_it_before() {
    let server = Server::start();
    let storage = server.storage(limits());
    let (place, mut bytes) = (at("s3://bucket/manifest.json"), Vec::new());
    for text in ["first", "another"] {
        storage.put(&place, text.as_bytes().to_vec()).unwrap();
        storage.read_all(&place, &mut bytes).unwrap();
        assert_eq!(storage.get(&url("s3://bucket/manifest.json")).unwrap(), text.as_bytes());
    }
    assert!(matches!(storage.get(&url("s3://bucket/no")), Err(StorageError::NotFound { .. })));
}
