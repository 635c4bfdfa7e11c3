//! Parquet files, caption tables, lists and texts on object storage: what they are as files.

use super::{columns, fixtures, objects::limits, spec};
use crate::{
    data::{DataError, Dataset, Documents, Places},
    storage::{
        Limits, Location, Storage, StorageError,
        tests::{
            proxy::{Fault, Proxy},
            server::Server,
        },
    },
};
use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use common::{
    ids::SampleIndex,
    recipe::{CaptionTable, DataKind, DataPath, DataSet, IndexPlace, Unmatched},
};
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    file::properties::{WriterProperties, WriterPropertiesBuilder},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

fn golden() -> PathBuf {
    fixtures().join("golden/shards")
}

fn put(storage: &Storage, name: &str, bytes: Vec<u8>) {
    storage.put(&Location::parse(&format!("s3://bucket/{name}")).unwrap(), bytes).unwrap();
}

fn at(name: &str) -> DataPath {
    DataPath::Url(format!("s3://bucket/{name}"))
}

/// Where a file of the golden shards is.
type Place<'a> = dyn Fn(&str) -> DataPath + 'a;

fn data_set(kind: DataKind, shard: DataPath, index: &Path) -> DataSet {
    DataSet { kind, shards: vec![shard], index: IndexPlace::Folder(index.to_owned()), ..spec(index, 1.0) }
}

/// All captions of the first column and all images.
fn contents(data: &Dataset) -> Vec<(String, Vec<u8>)> {
    let one = |i| {
        let mut bytes = Vec::new();
        data.read_image(SampleIndex(i), &mut bytes).unwrap();
        (data.caption(SampleIndex(i), 0).unwrap(), bytes)
    };
    (0..data.len()).map(one).collect()
}

/// Incompressible bytes of row `i`.
fn body(i: u64, length: usize) -> Vec<u8> {
    let mut state = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// 400 rows: 4 kB of what stands for an image, 8 kB of what nobody asks for.
fn wide() -> Vec<u8> {
    wide_in(WriterProperties::builder())
}

/// The same, written in another way.
fn wide_in(properties: WriterPropertiesBuilder) -> Vec<u8> {
    let binary = |length| -> ArrayRef {
        let bodies: Vec<Vec<u8>> = (0..400).map(|i| body(i, length)).collect();
        Arc::new(bodies.iter().map(|body| Some(body.as_slice())).collect::<BinaryArray>())
    };
    let texts: StringArray = (0..400).map(|i| Some(format!("caption {i}"))).collect();
    let columns = [("jpg", binary(4000)), ("other", binary(8000)), ("txt", Arc::new(texts) as ArrayRef)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = properties.set_compression(Compression::UNCOMPRESSED).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn parquet_files_and_joined_tables_on_a_store_give_the_same_samples() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    for name in ["images.parquet", "pax.tar", "table.csv", "table.parquet"] {
        put(&storage, &format!("golden/{name}"), std::fs::read(golden().join(name)).unwrap());
    }
    let both = |make: &dyn Fn(&Place<'_>) -> DataSet| {
        let remote = Dataset::open(&storage, "golden", &make(&|name| at(&format!("golden/{name}")))).unwrap();
        let local = Dataset::open(&storage, "golden", &make(&|name| golden().join(name).into())).unwrap();
        assert_eq!((remote.len(), remote.fingerprint()), (local.len(), local.fingerprint()));
        assert!(contents(&remote) == contents(&local));
        remote.len()
    };
    let images = |place: &Place<'_>| {
        let mut spec = data_set(DataKind::Parquet, place("images.parquet"), cache.path());
        spec.captions.columns = columns(&[(".caption", 1)]);
        spec
    };
    assert_eq!(both(&images), 4);
    for (file, key, column) in [("table.csv", "Image Path", "longSV_captions"), ("table.parquet", "url", "org_caption")]
    {
        let joined = |place: &Place<'_>| {
            let mut spec = data_set(DataKind::Webdataset, place("pax.tar"), cache.path());
            let (file, key, join) = (place(file), key.to_owned(), "url".to_owned());
            spec.captions.table = Some(CaptionTable { file, key, join, unmatched: Unmatched::Error });
            spec.captions.columns = columns(&[(column, 1)]);
            spec
        };
        assert_eq!(both(&joined), 5);
    }
}

#[test]
fn lists_name_objects_beside_them_in_a_folder_or_by_url() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    for i in 0..3 {
        put(&storage, &format!("coco/val/{i}.jpg"), body(i, 90_000 * i as usize));
    }
    let line = |prefix: &str, i: u64| format!("{{\"image\": \"{prefix}{i}.jpg\", \"caption\": \"c{i}\"}}\n");
    let list = |prefix: &str| (0..3).map(|i| line(prefix, i)).collect::<String>().into_bytes();
    put(&storage, "coco/list.jsonl", list("val/"));
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("names.jsonl"), list("")).unwrap();
    std::fs::write(files.path().join("urls.jsonl"), list("s3://bucket/coco/val/")).unwrap();
    let expected: Vec<_> = (0..3).map(|i| (format!("c{i}"), body(i, 90_000 * i as usize))).collect();
    for (list, images) in [
        (at("coco/list.jsonl"), None),
        (files.path().join("names.jsonl").into(), Some(at("coco/val/"))),
        (files.path().join("urls.jsonl").into(), None),
    ] {
        let mut spec = DataSet { images, ..data_set(DataKind::List, list, cache.path()) };
        spec.captions.columns = columns(&[(".caption", 1)]);
        let data = Dataset::open(&storage, "coco", &spec).unwrap();
        assert!(contents(&data) == expected, "{:?}", spec.shards);
        std::fs::rename(server.bucket().join("coco/val/2.jpg"), server.bucket().join("coco/hidden")).unwrap();
        let fresh = Arc::new(server.storage(limits()));
        let data = Dataset::open(&fresh, "coco", &spec).unwrap();
        let error = data.read_image(SampleIndex(2), &mut Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "s3://bucket/coco/val/2.jpg does not exist");
        std::fs::rename(server.bucket().join("coco/hidden"), server.bucket().join("coco/val/2.jpg")).unwrap();
    }
}

#[test]
fn of_a_parquet_file_the_footer_and_the_wanted_columns_are_fetched() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let bytes = wide();
    let blocks = (bytes.len() as u64).div_ceil(limits().block);
    put(&server.storage(limits()), "wide.parquet", bytes);
    let storage = Arc::new(server.storage(limits()));
    let mut spec = data_set(DataKind::Parquet, at("wide.parquet"), cache.path());
    spec.captions.columns = columns(&[(".txt", 0)]);
    let data = Dataset::open(&storage, "wide", &spec).unwrap();
    let indexing = storage.requests();
    assert!(contents(&data).iter().enumerate().all(|(i, (_, image))| *image == body(i as u64, 4000)));
    eprintln!("{blocks} blocks: {indexing} requests to index, {} with an epoch", storage.requests());
    assert!(indexing < blocks / 2, "{indexing} requests for a third of {blocks} blocks");
    assert!(storage.requests() <= indexing + 4, "an epoch in order asked for {}", storage.requests() - indexing);
}

#[test]
fn a_parquet_file_that_is_replaced_or_does_not_answer_is_an_error_that_names_it() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    put(&server.storage(limits()), "wide.parquet", wide());
    let ill = Arc::new(AtomicBool::new(false));
    let stalls = ill.clone();
    let fault = move |_| if stalls.load(Ordering::SeqCst) { Fault::Stall } else { Fault::None };
    let proxy = Proxy::start(server.address, fault);
    let (attempt, deadline) = (Duration::from_millis(400), Duration::from_millis(1500));
    let limits = Limits { cache: 0, attempt, deadline, ..limits() };
    let storage = Arc::new(Server::storage_through(proxy.address, limits));
    let spec = data_set(DataKind::Parquet, at("wide.parquet"), cache.path());
    let spec = DataSet { captions: common::recipe::Captions { table: None, columns: columns(&[(".txt", 0)]) }, ..spec };
    let data = Dataset::open(&storage, "wide", &spec).unwrap();
    let mut bytes = Vec::new();
    data.read_image(SampleIndex(7), &mut bytes).unwrap();
    ill.store(true, Ordering::SeqCst);
    let started = Instant::now();
    let stalled = data.read_image(SampleIndex(300), &mut bytes).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(matches!(stalled, DataError::Storage(StorageError::GaveUp { .. })), "{stalled}");
    assert!(stalled.to_string().contains("s3://bucket/wide.parquet"), "{stalled}");
    ill.store(false, Ordering::SeqCst);
    put(&storage, "wide.parquet", vec![0; 5000]);
    let changed = data.read_image(SampleIndex(300), &mut bytes).unwrap_err();
    assert!(matches!(changed, DataError::ShardChanged { is: 5000, .. }), "{changed}");
    std::fs::remove_file(server.bucket().join("wide.parquet")).unwrap();
    let gone = data.read_image(SampleIndex(100), &mut bytes).unwrap_err();
    assert!(matches!(gone, DataError::ShardGone { .. }), "{gone}");
}

#[test]
fn texts_without_images_are_copied_from_a_store_once() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    put(&storage, "text/0.parquet", std::fs::read(fixtures().join("data/emoji/text-validation.parquet")).unwrap());
    let places = Places::new(&IndexPlace::Folder(cache.path().to_owned()));
    let open = |pattern| Documents::open(&storage, &[pattern], "text", &places).unwrap();
    let remote = open(at("text/*.parquet"));
    let local = open(fixtures().join("data/emoji/text-validation.parquet").into());
    assert_eq!((remote.len(), remote.fingerprint()), (local.len(), local.fingerprint()));
    let before = storage.requests();
    assert_eq!(open(at("text/*.parquet")).text(3).unwrap(), local.text(3).unwrap());
    assert_eq!(storage.requests() - before, 2, "the listing, and a look because this server lists without ETags");
}

#[test]
fn a_parquet_file_is_fetched_ahead_of_who_reads_it_in_order_and_nothing_else_of_it() {
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    // Pages of a quarter of a block, as those of a MB are of one of 4 MiB: each is read when the one before it is decoded.
    let pages = WriterProperties::builder().set_data_page_size_limit(1 << 14).set_write_batch_size(4);
    put(&server.storage(limits()), "wide.parquet", wide_in(pages.set_dictionary_enabled(false)));
    let index = |ahead: u64| {
        let proxy = Proxy::start(server.address, |_| Fault::Late(Duration::from_millis(50)));
        let storage = Arc::new(Server::storage_through(proxy.address, Limits { ahead, ..limits() }));
        let mut spec = data_set(DataKind::Parquet, at("wide.parquet"), &cache.path().join(ahead.to_string()));
        spec.captions.columns = columns(&[(".txt", 1)]);
        let began = Instant::now();
        let data = Dataset::open(&storage, "wide", &spec).unwrap();
        (began.elapsed(), storage.requests(), data.fingerprint())
    };
    let (one_by_one, ahead) = (index(0), index(limits().ahead));
    eprintln!("to index 400 rows, 50 ms a request: {:?}, {:?} with blocks fetched ahead", one_by_one.0, ahead.0);
    assert_eq!((one_by_one.1, &one_by_one.2), (ahead.1, &ahead.2), "requests and what comes are the same");
    assert!(ahead.0 < one_by_one.0 * 2 / 3, "{:?} and {:?}", ahead.0, one_by_one.0);
}
