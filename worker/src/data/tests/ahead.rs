//! What a loader fetches from object storage before it is decoded: the next window of a block shuffle, and the text vectors
//! that belong to the images.

use super::{
    load::{config, request},
    objects::{blocks, emoji, epoch, limits, open, server},
};
use crate::{
    data::{Batch, BatchRequest, Beside, DataError, Dataset, Loader, LoaderConfig, SampleRequest},
    storage::{
        Block, Limits, Location, Storage,
        tests::{
            proxy::{Fault, Proxy},
            server::Server,
        },
    },
    vectors::{Provenance, VectorStore, VectorsError, shard_name, write_shard},
};
use common::sampler::Shuffle;
use half::bf16;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

/// Numbers a vector: a sample's are a third of its image's bytes.
const WIDTH: usize = 1024;
/// Seven windows in an epoch, each of samples of all shards.
const IN_BLOCKS: Shuffle = Shuffle::Blocks { block: 64, window: 512 };

/// Vectors that a loader fetches with its images.
#[derive(Debug)]
struct Vectors(VectorStore);

impl Beside for Vectors {
    fn storage(&self) -> Option<Arc<Storage>> {
        self.0.object_storage().cloned()
    }

    fn blocks(&self, sample: SampleRequest, each: &mut dyn FnMut(Block)) -> Result<(), DataError> {
        self.0.blocks(sample.index.0, "x", each);
        Ok(())
    }
}

fn provenance(data: &Dataset) -> Provenance {
    Provenance::named([("data", data.fingerprint().as_str())])
}

/// Writes a vector for every sample, no two alike; returns the files' lengths.
fn write_vectors(data: &Dataset, folder: &Path) -> Vec<u64> {
    let one = |(index, shard): (usize, &crate::data::Shard)| {
        let number = |i: u64| bf16::from_bits((i.wrapping_mul(0x9e37_79b9) >> 9) as u16 & 0x3fff);
        let numbers = shard.samples.clone().flat_map(|row| (0..WIDTH as u64).map(move |i| number(row * 1031 + i)));
        let path = folder.join(shard_name(index, &shard.stem));
        write_shard(&path, &provenance(data), WIDTH, &[("x".to_owned(), numbers.collect())]).unwrap();
        std::fs::metadata(path).unwrap().len()
    };
    data.shards().iter().enumerate().map(one).collect()
}

fn put_all(storage: &Storage, folder: &Path, prefix: &str) {
    for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let place = Location::parse(&format!("s3://bucket/{prefix}/{name}")).unwrap();
        storage.put(&place, std::fs::read(&file).unwrap()).unwrap();
    }
}

fn store(storage: &Arc<Storage>, folder: &Location, data: &Dataset) -> Result<VectorStore, VectorsError> {
    let shards = data.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone()));
    VectorStore::open(storage, folder, "emoji", shards, &provenance(data))
}

/// All batches of a loader, each with its samples' vectors, read as training reads them: when the batch is there.
fn run(config: LoaderConfig, vectors: &Vectors, requests: Vec<BatchRequest>) -> Vec<(Batch, Vec<bf16>)> {
    let mut loader = Loader::start(config, requests.into_iter());
    let with_vectors = |batch: Batch| {
        let mut numbers = vec![bf16::ZERO; batch.samples.len() * WIDTH];
        for (sample, out) in batch.samples.iter().zip(numbers.chunks_exact_mut(WIDTH)) {
            assert!(vectors.0.read(sample.index.0, "x", out).unwrap());
        }
        (batch, numbers)
    };
    std::iter::from_fn(|| loader.next()).map(|batch| with_vectors(batch.unwrap())).collect()
}

fn folder_of(text: &str) -> Location {
    Location::parse(text).unwrap()
}

#[test]
fn images_and_vectors_of_a_bucket_give_the_bytes_of_files_and_each_block_of_both_comes_once() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    let data = open(&storage, &folder.path().join("remote"));
    let written = folder.path().join("vectors");
    let lengths = write_vectors(&data, &written);
    put_all(&storage, &written, "vectors");
    let vector_blocks: u64 = lengths.iter().map(|length| length.div_ceil(limits().block)).sum();

    let storage = Arc::new(server.storage(limits()));
    let data = open(&storage, &folder.path().join("remote"));
    let before = storage.requests();
    let vectors = Arc::new(Vectors(store(&storage, &folder_of("s3://bucket/vectors"), &data).unwrap()));
    let opening = storage.requests() - before;
    assert_eq!(opening, 2 * lengths.len() as u64, "a look at each file, and the block with its head");
    // A window is about a shard: vectors are checked, and so read, a MiB at a time.
    let in_shards = Shuffle::Blocks { block: 512, window: 512 };
    let requests = || epoch(in_shards, 3335, 32);
    let with = LoaderConfig { beside: Some(vectors.clone()), ..config(&data, 4) };
    let remote = run(with, &vectors, requests());
    let (asked, blocks) = (storage.requests() - before, blocks("train"));
    eprintln!("{blocks} blocks of images and {vector_blocks} of vectors: {asked} requests in an epoch in blocks");
    assert!(asked <= (blocks + vector_blocks) * 11 / 10 + opening, "{asked} requests");

    let mut spec = remote_as_files();
    spec.index = common::recipe::IndexPlace::Folder(folder.path().join("local"));
    let data = Arc::new(Dataset::open(&storage, "emoji", &spec).unwrap());
    let local = Vectors(store(&storage, &written.into(), &data).unwrap());
    assert!(local.storage().is_none());
    let files = run(config(&data, 4), &local, requests());
    assert!(remote == files, "pixels or vectors depend on where they lie");
}

fn remote_as_files() -> common::recipe::DataSet {
    super::spec(&emoji("train"), 0.0)
}

/// An epoch over a store that answers `latency` later; how long it took, and of that the consumer's waiting.
fn epoch_behind(server: &Server, latency: Duration, limits: Limits, index: &Path) -> (u64, Duration, Duration) {
    let proxy = Proxy::start(server.address, move |_| Fault::Late(latency));
    let storage = Arc::new(Server::storage_through(proxy.address, limits));
    let data = open(&storage, index);
    let requests = epoch(IN_BLOCKS, data.len(), 32);
    let began = Instant::now();
    let mut loader = Loader::start(config(&data, 2), requests.into_iter());
    let samples: usize = std::iter::from_fn(|| loader.next()).map(|batch| batch.unwrap().samples.len()).sum();
    (samples as u64, began.elapsed(), loader.wait_time())
}

#[test]
fn a_store_that_answers_late_slows_nobody_at_the_edges_of_windows() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let rate = |latency: u64, ahead: u64| {
        let limits = Limits { ahead, ..limits() };
        let (samples, took, _) = epoch_behind(&server, Duration::from_millis(latency), limits, folder.path());
        assert_eq!(samples, 3335);
        samples as f64 / took.as_secs_f64()
    };
    rate(0, 0);
    let [at_once, before, after] = [rate(0, limits().ahead), rate(50, 0), rate(50, limits().ahead)];
    eprintln!(
        "2 threads, samples a second: {at_once:.0} from a store that answers at once; 50 ms later: {before:.0} without \
         fetching ahead, {after:.0} with"
    );
    assert!(after > 2.0 * before, "{after:.0} samples/s with blocks fetched ahead, {before:.0} without");
}

#[test]
fn no_more_is_fetched_ahead_than_may_be_and_a_loader_that_nobody_asks_comes_to_rest() {
    let (server, folder) = (server("train"), tempfile::tempdir().unwrap());
    let limits = Limits { ahead: 1 << 20, ..limits() };
    let storage = Arc::new(server.storage(limits.clone()));
    let data = open(&storage, folder.path());
    let before = storage.requests();
    let batches = epoch(IN_BLOCKS, data.len(), 8);
    let mut loader = Loader::start(config(&data, 2), batches.into_iter());
    let first = loader.next().unwrap().unwrap();
    assert_eq!(first.samples.len(), 8);
    drop(loader);
    // What is ahead, and what the decoders of four batches asked for themselves.
    let (asked, may) = (storage.requests() - before, (limits.ahead / limits.block) + 5 * 8);
    assert!(asked <= may, "{asked} requests, {may} at most");
}

#[test]
fn a_store_of_vectors_that_is_unavailable_or_stalls_for_a_while_costs_time_only() {
    let (server, folder) = (server("val"), tempfile::tempdir().unwrap());
    let storage = Arc::new(server.storage(limits()));
    let data = open(&storage, folder.path());
    write_vectors(&data, &folder.path().join("vectors"));
    put_all(&storage, &folder.path().join("vectors"), "vectors");
    let local = Vectors(store(&storage, &folder.path().join("vectors").into(), &data).unwrap());
    let healthy = run(config(&data, 2), &local, epoch(IN_BLOCKS, data.len(), 32));
    for fault in [Fault::Unavailable, Fault::Stall] {
        let left = Arc::new(AtomicI64::new(0));
        let spoil = left.clone();
        let proxy =
            Proxy::start(
                server.address,
                move |_| if spoil.fetch_sub(1, Ordering::SeqCst) > 0 { fault } else { Fault::None },
            );
        let attempt = Duration::from_millis(300);
        let storage = Arc::new(Server::storage_through(proxy.address, Limits { attempt, ..limits() }));
        let data = open(&storage, folder.path());
        let vectors = Arc::new(Vectors(store(&storage, &folder_of("s3://bucket/vectors"), &data).unwrap()));
        left.store(12, Ordering::SeqCst);
        let with = LoaderConfig { beside: Some(vectors.clone()), ..config(&data, 2) };
        assert!(run(with, &vectors, epoch(IN_BLOCKS, data.len(), 32)) == healthy, "{fault:?}");
        assert!(left.load(Ordering::SeqCst) < 0, "the proxy spoilt what it should");
    }
}

#[test]
fn vectors_that_are_missing_damaged_replaced_or_do_not_come_are_named() {
    let (server, folder) = (server("val"), tempfile::tempdir().unwrap());
    let ill = Arc::new(AtomicBool::new(false));
    let stalls = ill.clone();
    let proxy =
        Proxy::start(server.address, move |_| if stalls.load(Ordering::SeqCst) { Fault::Stall } else { Fault::None });
    let (attempt, deadline) = (Duration::from_millis(300), Duration::from_millis(1200));
    let limits = Limits { cache: 0, attempt, deadline, ..limits() };
    let storage = Arc::new(Server::storage_through(proxy.address, limits));
    let data = open(&storage, folder.path());
    let place = folder_of("s3://bucket/vectors");
    let name = "s3://bucket/vectors/00000-00000.vectors";
    let missing = store(&storage, &place, &data).unwrap_err().to_string();
    assert!(missing.contains(&format!("{name} is missing")), "{missing}");

    write_vectors(&data, &folder.path().join("vectors"));
    put_all(&storage, &folder.path().join("vectors"), "vectors");
    let vectors = store(&storage, &place, &data).unwrap();
    let mut out = vec![bf16::ZERO; WIDTH];
    assert!(vectors.read(3, "x", &mut out).unwrap());
    ill.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let stalled = vectors.read(3, "x", &mut out).unwrap_err().to_string();
    assert!(began.elapsed() < 4 * deadline, "{:?}", began.elapsed());
    assert!(stalled.contains(name) && stalled.contains("within 0.3 s"), "{stalled}");
    ill.store(false, Ordering::SeqCst);

    let whole = std::fs::read(folder.path().join("vectors/00000-00000.vectors")).unwrap();
    let damaged = |bytes: Vec<u8>| storage.put(&Location::parse(name).unwrap(), bytes).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    damaged(flipped);
    let replaced = vectors.read(319, "x", &mut out).unwrap_err().to_string();
    assert!(replaced.contains(name) && replaced.contains("was replaced while it was in use"), "{replaced}");
    let again = store(&storage, &place, &data).unwrap();
    let flipped = again.read(319, "x", &mut out).unwrap_err().to_string();
    assert!(flipped.contains(name) && flipped.contains("the checksum of block"), "{flipped}");
    damaged(whole[..whole.len() - 1].to_vec());
    let cut = store(&storage, &place, &data).unwrap_err().to_string();
    assert!(cut.contains(name) && cut.contains("bytes and should have"), "{cut}");
}

#[test]
fn a_panic_of_the_requests_is_the_consumers_error() {
    let (server, folder) = (server("val"), tempfile::tempdir().unwrap());
    let data = open(&Arc::new(server.storage(limits())), folder.path());
    let requests =
        (0..9).map(|tag| if tag < 8 { request(tag, tag * 8..tag * 8 + 8, 0) } else { panic!("no more of them") });
    let mut loader = Loader::start(config(&data, 2), requests);
    let error = std::iter::from_fn(|| loader.next()).find_map(Result::err).unwrap().to_string();
    assert!(error.contains("no more of them"), "{error}");
    assert!(loader.next().is_none());
}
