//! What requests share: clients, limits, the versions that were seen; and the requests themselves.

use super::{
    Children, Entry, Limits, Location, ObjectUrl, Scheme, StorageError,
    cache::{Block, Object},
    credentials::{Client, Environment},
    pattern,
    retry::{Failure, GivenUp, Refusal, sort},
};
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, multipart::MultipartStore, path::Path,
};
use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;

/// The most objects in one listing.
const LISTED: usize = 10_000_000;

/// What requests under way need.
#[derive(Debug)]
pub struct Shared {
    pub limits: Limits,
    pub environment: Environment,
    pub clients: Mutex<HashMap<(Scheme, String), Client>>,
    pub slots: Semaphore,
    pub requests: AtomicU64,
    /// The versions of objects of several blocks of which any was wanted: what they had when they were first read.
    pub versions: Mutex<HashMap<ObjectUrl, String>>,
}

/// A block and the version of the object that it is of.
pub struct Loaded {
    pub block: Block,
    pub version: String,
}

/// A block that comes.
pub type BlockFuture = Pin<Box<dyn Future<Output = Result<Loaded, Failure>> + Send>>;

impl Shared {
    /// Whether a block is of the version that is wanted. Of an object that is a single block, any will do.
    pub fn check_version(&self, object: &Object, loaded: &Loaded) -> Result<(), StorageError> {
        let now = &loaded.version;
        let before = match &object.version {
            Some(wanted) => wanted.clone(),
            None if loaded.block.object_size <= self.limits.block => return Ok(()),
            None => lock(&self.versions).entry(object.url.clone()).or_insert_with(|| now.clone()).clone(),
        };
        if before == *now {
            return Ok(());
        }
        let location = Location::Object(object.url.clone());
        Err(StorageError::Changed { location, before, now: now.clone() })
    }

    /// The client of an object's bucket, and the object's name in it.
    pub fn client(&self, url: &ObjectUrl) -> Result<(Arc<dyn ObjectStore>, Path), Failure> {
        self.of_bucket(url).map(|(client, path)| (client.objects, path))
    }

    /// As [`Shared::client`], of objects that come in parts.
    pub fn parts(&self, url: &ObjectUrl) -> Result<(Arc<dyn MultipartStore>, Path), Failure> {
        self.of_bucket(url).map(|(client, path)| (client.parts, path))
    }

    fn of_bucket(&self, url: &ObjectUrl) -> Result<(Client, Path), Failure> {
        let refused = |error| Failure::Final(Refusal::Known(Box::new(error)));
        let path = Path::parse(&url.key).map_err(|error| Failure::Final(Refusal::Answer(error.to_string())))?;
        let mut clients = lock(&self.clients);
        let place = (url.scheme, url.bucket.clone());
        if let Some(client) = clients.get(&place) {
            return Ok((client.clone(), path));
        }
        let client = self.environment.client(url, self.limits.attempt).map_err(refused)?;
        clients.insert(place, client.clone());
        Ok((client, path))
    }

    pub fn error(&self, operation: &'static str, url: ObjectUrl, end: GivenUp) -> StorageError {
        let hint = self.environment.hint(url.scheme);
        let location = Location::Object(url);
        match end {
            GivenUp::Refused(Refusal::Known(error)) => *error,
            GivenUp::Refused(Refusal::NotFound) => StorageError::NotFound { location },
            GivenUp::Refused(Refusal::Precondition) => {
                StorageError::Refused { operation, location, answer: "it is there already".to_owned() }
            }
            GivenUp::Refused(Refusal::Answer(answer)) => {
                StorageError::Refused { operation, location, answer: answer + &hint }
            }
            GivenUp::Late { attempts, took, answer } => {
                let (seconds, answer) = (took.as_secs_f64(), answer + &hint);
                StorageError::GaveUp { operation, location, attempts, seconds, answer }
            }
        }
    }
}

/// An attempt to get a block. What comes has the length that the object's size says, or it is no answer.
pub fn block_of(url: &ObjectUrl, number: u64) -> impl FnMut(Arc<Shared>, u32) -> BlockFuture + Send + 'static {
    let wanted = url.clone();
    move |shared, _| Box::pin(get_block(shared, wanted.clone(), number))
}

async fn get_block(shared: Arc<Shared>, url: ObjectUrl, number: u64) -> Result<Loaded, Failure> {
    let (client, path) = shared.client(&url)?;
    let start = number * shared.limits.block;
    let range = Some(GetRange::Bounded(start..start + shared.limits.block));
    let got = client.get_opts(&path, GetOptions { range, ..GetOptions::default() }).await;
    let got = match got {
        Err(error) if is_past_the_end(&error) => {
            let size = client.head(&path).await.map_err(|error| sort(&error))?.size;
            let location = Location::Object(url);
            let past = StorageError::PastEnd { location, offset: start, end: start + 1, size };
            return Err(Failure::Final(Refusal::Known(Box::new(past))));
        }
        got => got.map_err(|error| sort(&error))?,
    };
    let (meta, range) = (got.meta.clone(), got.range.clone());
    let bytes = got.bytes().await.map_err(|error| sort(&error))?;
    let due = meta.size.min(start + shared.limits.block).saturating_sub(start);
    if range.start != start || bytes.len() as u64 != due {
        let text = format!("{} bytes from {} on, where {due} from {start} on are due", bytes.len(), range.start);
        return Err(Failure::Passing(text));
    }
    Ok(Loaded { block: Block { bytes, object_size: meta.size }, version: version(&meta) })
}

/// Adds the objects of a folder that match to `found`, those behind the last one that is there.
pub async fn list_after(
    shared: Arc<Shared>,
    url: ObjectUrl,
    found: Arc<Mutex<Vec<ObjectMeta>>>,
) -> Result<(), Failure> {
    let (client, _) = shared.client(&url)?;
    let folder = url.folder().map(Path::from);
    let depth = url.key.split('/').count();
    // Only one kind of bucket does not list in order: S3's directory buckets, which have this ending.
    if url.bucket.ends_with("--x-s3") {
        lock(&found).clear();
    }
    let mut listing = match lock(&found).last() {
        Some(last) => client.list_with_offset(folder.as_ref(), &last.location),
        None => client.list(folder.as_ref()),
    };
    while let Some(object) = listing.next().await {
        let object = object.map_err(|error| sort(&error))?;
        let name = object.location.filename().unwrap_or_default();
        if object.location.parts_count() == depth && pattern::matches(url.name(), name) {
            let mut found = lock(&found);
            found.push(object);
            if found.len() > LISTED {
                let text = format!("more than {LISTED} objects match; split the data set");
                return Err(Failure::Final(Refusal::Answer(text)));
            }
        }
    }
    Ok(())
}

/// What lies directly in a folder.
pub async fn children_of(shared: Arc<Shared>, url: ObjectUrl) -> Result<Children, Failure> {
    let (client, folder) = shared.client(&url)?;
    let listed = client.list_with_delimiter(Some(&folder)).await.map_err(|error| sort(&error))?;
    let name = |path: &Path| path.filename().map(str::to_owned);
    let mut children = Children {
        folders: listed.common_prefixes.iter().filter_map(name).collect(),
        objects: listed.objects.iter().filter_map(|object| name(&object.location)).collect(),
    };
    children.folders.sort_unstable();
    children.objects.sort_unstable();
    Ok(children)
}

/// Whether a folder holds an object; the rest of it is not listed.
pub async fn anything_in(shared: Arc<Shared>, url: ObjectUrl) -> Result<bool, Failure> {
    let (client, folder) = shared.client(&url)?;
    let first = client.list(Some(&folder)).next().await.transpose();
    Ok(first.map_err(|error| sort(&error))?.is_some())
}

/// Whether a range begins behind the object's end: 416, which `object_store` tells only in words.
fn is_past_the_end(error: &object_store::Error) -> bool {
    error.to_string().contains("status code: 416")
}

pub fn entry(url: ObjectUrl, meta: &ObjectMeta) -> Entry {
    Entry { location: Location::Object(url), size: meta.size, version: version(meta) }
}

/// The ETag without its quotes: Azure's listings leave them out.
fn version(meta: &ObjectMeta) -> String {
    let tag = meta.e_tag.as_deref().map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
    tag.unwrap_or_else(|| meta.last_modified.to_rfc3339())
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_same_however_a_store_writes_the_tag() {
        let of = |tag: &str| {
            let (location, last_modified, e_tag) = (Path::from("x"), Default::default(), Some(tag.to_owned()));
            version(&ObjectMeta { location, last_modified, size: 1, e_tag, version: None })
        };
        assert_eq!([of("\"0x8D\""), of("0x8D"), of("W/\"0x8D\"")], ["0x8D"; 3]);
    }
}
