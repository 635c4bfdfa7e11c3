//! Data sets on object storage: the same as of files, in few requests, and what happens when the store is ill.

use super::{
    fixtures,
    load::{all, config, request},
    spec,
};
use crate::{
    data::{
        Batch, BatchRequest, DataError, Dataset, Loader, Places,
        glob::expand_all,
        index::{Tars, open_all},
        progress::Line,
        survey::{Done, Shards, Survey},
    },
    storage::{
        Limits, Location, Storage,
        tests::{
            proxy::{Fault, Proxy},
            server::Server,
        },
    },
};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{CaptionTable, DataPath, DataSet, IndexPlace, Unmatched},
    sampler::{Shuffle, Shuffled},
};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

/// Seven tars of 2.7 MB and half of it in blocks of 64 KiB: a sample is a tenth of a block.
pub(super) fn limits() -> Limits {
    Limits {
        requests: 16,
        block: 1 << 16,
        cache: 8 << 20,
        ahead: 6 << 20,
        copy: 4 << 20,
        attempt: Duration::from_secs(10),
        deadline: Duration::from_secs(30),
        first_wait: Duration::from_millis(10),
    }
}

/// A server that holds the tars of a folder of emojis in `s3://bucket/tars`.
pub(super) fn server(of: &str) -> Server {
    let server = Server::start();
    let storage = server.storage(limits());
    for file in std::fs::read_dir(emoji(of)).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        storage.put(&at(name), std::fs::read(&path).unwrap()).unwrap();
    }
    server
}

pub(super) fn emoji(of: &str) -> std::path::PathBuf {
    fixtures().join("data/emoji/emoji-wds").join(of)
}

fn at(name: &str) -> Location {
    Location::parse(&format!("s3://bucket/tars/{name}")).unwrap()
}

/// The data set of these tars, whose index is kept in `index`.
fn remote(index: &Path) -> DataSet {
    let mut spec = spec(index, 0.0);
    spec.shards = vec!["s3://bucket/tars/*.tar".into()];
    spec.index = IndexPlace::Folder(index.to_owned());
    spec
}

pub(super) fn open(storage: &Arc<Storage>, index: &Path) -> Arc<Dataset> {
    Arc::new(Dataset::open(storage, "emoji", &remote(index)).unwrap())
}

/// Requests for one epoch in a shuffled order, `size` samples each.
pub(super) fn epoch(shuffle: Shuffle, samples: u64, size: u64) -> Vec<BatchRequest> {
    let mut order = Shuffled::new(shuffle, 7, 0, Epoch(0), samples);
    let places: Vec<u64> = (0..samples).map(|place| order.at(place).0).collect();
    (0..).zip(places.chunks(size as usize)).map(|(tag, batch)| request(tag, batch.iter().copied(), 0)).collect()
}

/// The first error of an epoch.
fn error(dataset: &Arc<Dataset>) -> DataError {
    let mut loader = Loader::start(config(dataset, 4), epoch(Shuffle::Full, dataset.len(), 32).into_iter());
    std::iter::from_fn(|| loader.next()).find_map(Result::err).expect("an error")
}

pub(super) fn blocks(of: &str) -> u64 {
    let sizes = std::fs::read_dir(emoji(of)).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    sizes.map(|size| size.div_ceil(limits().block)).sum()
}

#[test]
fn tars_on_a_store_give_the_samples_and_batches_of_the_same_files() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    let remote = open(&storage, &folder.path().join("remote"));
    let mut spec = spec(&emoji("train"), 0.0);
    spec.index = IndexPlace::Folder(folder.path().join("local"));
    let local = Arc::new(Dataset::open(&storage, "emoji", &spec).unwrap());
    assert_eq!((remote.len(), remote.fingerprint()), (3335, local.fingerprint()));
    assert_eq!(remote.shards()[3].path.to_string(), "s3://bucket/tars/00003.tar");
    for i in [0, 511, 512, 3334].map(SampleIndex) {
        assert_eq!(remote.key(i).unwrap(), local.key(i).unwrap());
        assert_eq!(remote.caption(i, 0).unwrap(), local.caption(i, 0).unwrap());
    }
    let batches = |data: &Arc<Dataset>| -> Vec<Batch> {
        all(config(data, 4), epoch(Shuffle::Full, 3335, 61).into_iter().take(12).collect())
    };
    assert!(batches(&remote) == batches(&local), "pixels depend on where the tars lie");
}

#[test]
fn indexing_reads_each_block_once_and_an_epoch_in_blocks_few_of_them_twice() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    let data = open(&storage, folder.path());
    let (samples, blocks) = (data.len(), blocks("train"));
    // The listing, and a look at each tar, because this server lists without ETags.
    let indexing = storage.requests() - 8;
    assert_eq!(indexing, blocks, "indexing is one pass");
    let open_again = Arc::new(server.storage(limits()));
    let again = open(&open_again, folder.path());
    assert_eq!((again.len(), open_again.requests()), (samples, 8), "what is indexed is not read again");

    let requests = |shuffle| {
        let storage = Arc::new(server.storage(limits()));
        let data = open(&storage, folder.path());
        let before = storage.requests();
        let batches = all(config(&data, 4), epoch(shuffle, samples, 32));
        assert_eq!(batches.iter().map(|batch| batch.samples.len() as u64).sum::<u64>(), samples);
        storage.requests() - before
    };
    // Windows of 2.9 MB, of which the cache holds two.
    let in_blocks = requests(Shuffle::Blocks { block: 64, window: 512 });
    let fully = requests(Shuffle::Full);
    eprintln!("{samples} samples, {blocks} blocks: {indexing} to index, {in_blocks} in blocks, {fully} shuffled fully");
    assert!(in_blocks <= blocks * 3 / 2, "{in_blocks} requests for {blocks} blocks");
    assert!(fully > 3 * in_blocks, "{fully} requests shuffled fully: the cache is too large for this test");
}

#[test]
fn an_index_beside_an_object_saves_other_machines_the_pass() {
    let server = server("val");
    let opened = |folder: &Path| {
        let storage = Arc::new(server.storage(limits()));
        let spec = DataSet { index: IndexPlace::Beside, ..remote(folder) };
        // What a machine has is told by its cache folder.
        let places = Places::beside_with_cache(folder.to_owned());
        let found = expand_all(&storage, &spec.shards).unwrap();
        let indices = open_all(&storage, &found, &Tars, &places, &|_| {}).unwrap();
        (indices[0].footer().clone(), storage.requests())
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (made, made_requests) = opened(one.path());
    assert!(server.bucket().join("tars/00000.tar.l2c").is_file());
    assert_eq!(made_requests, blocks("val") + 2 + 2, "the listing, the tar, a look for its index, and the copy");
    let (fetched, fetched_requests) = opened(two.path());
    assert_eq!((&fetched, fetched_requests), (&made, 2 + 2), "the listing, and the index");
    assert_eq!(opened(two.path()), (made, 2), "a machine that has it fetches nothing");
    // One that is damaged is made anew, here and there.
    std::fs::write(server.bucket().join("tars/00000.tar.l2c"), b"damaged").unwrap();
    let three = tempfile::tempdir().unwrap();
    assert_eq!(opened(three.path()).0, fetched);
    assert!(std::fs::read(server.bucket().join("tars/00000.tar.l2c")).unwrap().len() > 1000);
}

#[test]
fn a_tar_that_is_replaced_or_deleted_while_it_is_used_is_an_error_that_names_it() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(Limits { cache: 0, ..limits() }));
    let data = open(&storage, folder.path());
    // As long as it was, and other bytes: only the version tells.
    let mut bytes = std::fs::read(emoji("train").join("00003.tar")).unwrap();
    bytes[600] ^= 1;
    storage.put(&at("00003.tar"), bytes.clone()).unwrap();
    let changed = error(&data);
    assert!(matches!(changed, DataError::ShardChanged { was, is, .. } if was == is), "{changed}");
    assert!(changed.to_string().contains("s3://bucket/tars/00003.tar has changed since it was indexed"), "{changed}");
    assert!(matches!(data.caption(data_sample(&data, 3), 0), Err(DataError::ShardChanged { .. })));

    let again = open(&storage, folder.path());
    assert_eq!(again.len(), data.len());
    storage.put(&at("00003.tar"), std::fs::read(emoji("train").join("00006.tar")).unwrap()).unwrap();
    let shorter = error(&again);
    assert!(matches!(shorter, DataError::ShardChanged { was, is, .. } if was > is), "{shorter}");

    let third = open(&storage, folder.path());
    assert!(third.len() < data.len(), "what was replaced is indexed anew by the same storage");
    std::fs::remove_file(server.bucket().join("tars/00005.tar")).unwrap();
    let gone = error(&third);
    assert!(matches!(gone, DataError::ShardGone { .. }), "{gone}");
    assert!(gone.to_string().contains("s3://bucket/tars/00005.tar is gone since it was indexed"), "{gone}");
}

/// The first sample of a shard.
fn data_sample(data: &Dataset, shard: usize) -> SampleIndex {
    SampleIndex(data.shards()[shard].samples.start)
}

/// A data set behind a proxy, which spoils as many requests as is set.
fn behind_proxy(fault: Fault, limits: Limits) -> (Server, Proxy, Arc<Dataset>, Arc<AtomicI64>) {
    let (server, folder) = (server("val"), tempfile::tempdir().unwrap());
    let ill = Arc::new(AtomicI64::new(0));
    let left = ill.clone();
    let spoil = move |_| if left.fetch_sub(1, Ordering::SeqCst) > 0 { fault } else { Fault::None };
    let proxy = Proxy::start(server.address, spoil);
    let data = open(&Arc::new(Server::storage_through(proxy.address, limits)), folder.path());
    (server, proxy, data, ill)
}

#[test]
fn a_store_that_is_unavailable_for_a_while_costs_time_only() {
    let (_server, _proxy, data, ill) = behind_proxy(Fault::Unavailable, Limits { cache: 0, ..limits() });
    let requests = || epoch(Shuffle::Full, data.len(), 32).into_iter().take(3).collect();
    let healthy = all(config(&data, 4), requests());
    ill.store(9, Ordering::SeqCst);
    assert!(all(config(&data, 4), requests()) == healthy);
    assert!(ill.load(Ordering::SeqCst) < 0, "the proxy spoilt what it should");
}

#[test]
fn a_store_that_stalls_is_an_error_that_names_the_tar_within_the_deadline() {
    let limits =
        Limits { cache: 0, attempt: Duration::from_millis(400), deadline: Duration::from_millis(1500), ..limits() };
    let (_server, _proxy, data, ill) = behind_proxy(Fault::Stall, limits);
    ill.store(i64::MAX, Ordering::SeqCst);
    let started = Instant::now();
    let stalled = error(&data);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let text = stalled.to_string();
    assert!(text.contains("s3://bucket/tars/00000.tar") && text.contains("within 0.4 s"), "{text}");
}

#[test]
fn a_folder_of_a_store_is_looked_at_as_one_of_files_is() {
    let (server, folder) = (server("val"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    let open = |given: &str| {
        let (paths, index) = (vec![given.into()], IndexPlace::Folder(folder.path().to_owned()));
        Survey::open(&storage, &Shards { paths, index, ..Shards::default() })
    };
    let line = Line::new("decoding", "samples");
    for given in ["s3://bucket/tars", "s3://bucket/tars/", "s3://bucket/tars/*.tar", "s3://bucket/tars/00000.tar"] {
        let survey = open(given).unwrap();
        assert_eq!((survey.rows(), survey.stem(0).as_str()), (320, "00000"), "{given}");
        let seen = survey.look(0, &Done::new(&line, survey.rows())).unwrap();
        assert!(seen.iter().all(|seen| seen.text.is_ok() && seen.image.as_ref().unwrap().size.is_ok()), "{given}");
    }
    let folder = DataSet { shards: vec!["s3://bucket/tars".into()], ..remote(folder.path()) };
    let error = Dataset::open(&storage, "emoji", &folder).unwrap_err().to_string();
    assert!(
        error.contains("s3://bucket/tars is a folder of objects") && error.contains("s3://bucket/tars/*.tar"),
        "{error}"
    );
    for none in ["s3://bucket/other", "s3://bucket/tars/*.zip", "s3://bucket/tars/1.tar"] {
        let error = open(none).err().expect("there is nothing").to_string();
        assert!(error.contains("nothing matches s3://bucket/") && error.contains("check the path or URL"), "{error}");
    }
}

#[test]
fn a_tar_whose_metadata_are_joined_is_read_once() {
    let (server, index) = (Server::start(), tempfile::tempdir().unwrap());
    let bodies: Vec<(String, Vec<u8>)> = (0..200u32)
        .flat_map(|i| {
            let json = format!("{{\"url\": \"http://x/{i}\", \"pad\": \"{}\"}}", "y".repeat(2000));
            [(format!("{i:04}.jpg"), vec![i as u8; 6000]), (format!("{i:04}.json"), json.into_bytes())]
        })
        .collect();
    let members: Vec<(&str, &[u8])> = bodies.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    let bytes = super::tar(&members);
    let blocks = (bytes.len() as u64).div_ceil(limits().block);
    // Of the tar eight blocks are kept, so that a second pass is seen.
    let storage = Arc::new(server.storage(Limits { cache: 8 << 16, ..limits() }));
    storage.put(&at("0.tar"), bytes.clone()).unwrap();
    let table: String = (0..200).map(|i| format!("http://x/{i},caption {i}\n")).collect();
    std::fs::write(index.path().join("table.csv"), format!("url,text\n{table}")).unwrap();
    std::fs::write(index.path().join("0.tar"), bytes).unwrap();
    let open = |shards: DataPath, folder: &str| {
        let mut spec = remote(&index.path().join(folder));
        let (file, key, join) = (index.path().join("table.csv").into(), "url".to_owned(), "url".to_owned());
        spec.shards = vec![shards];
        spec.captions.table = Some(CaptionTable { file, key, join, unmatched: Unmatched::Error });
        spec.captions.columns = super::columns(&[("text", 1), (".json:url", 1)]);
        Dataset::open(&storage, "joined", &spec).unwrap()
    };
    let before = storage.requests();
    let remote = open("s3://bucket/tars/*.tar".into(), "remote");
    let asked = storage.requests() - before;
    eprintln!("{blocks} blocks: {asked} requests to index and to join");
    // The listing, and a look at the tar.
    assert_eq!(asked, blocks + 2, "the tar is read once");
    let local = open(index.path().join("0.tar").into(), "local");
    assert_eq!(remote.fingerprint(), local.fingerprint());
    for i in [0, 7, 199].map(SampleIndex) {
        for column in [0, 1] {
            assert_eq!(remote.caption(i, column).unwrap(), local.caption(i, column).unwrap());
        }
    }
    assert_eq!(remote.caption(SampleIndex(7), 0).unwrap(), "caption 7");
    // Who has the index and no join reads the metadata in the tar.
    let join = std::fs::read_dir(index.path().join("remote")).unwrap().map(|file| file.unwrap().path());
    let join: Vec<_> = join.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("join-")).collect();
    assert_eq!(join.len(), 1);
    std::fs::remove_file(&join[0]).unwrap();
    assert_eq!(open("s3://bucket/tars/*.tar".into(), "remote").fingerprint(), local.fingerprint());
}
