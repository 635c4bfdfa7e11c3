//! Every sample of some shards, looked at once: what `data inspect` and `data verify` share.

mod captions;
mod shards;

pub use captions::split;
pub use shards::Shards;

use super::{
    DataError,
    blob::Found,
    dataset::{images, reader},
    files::Files,
    images::Images,
    index::{Flaw, IMAGE, Place, Places, ShardIndex, open_all},
    pixels::{Decoder, ImageKind},
    progress::Line,
};
use crate::storage::{Location, Storage};
use common::recipe::DataKind;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Shards that are looked at, with their indices.
pub struct Survey {
    /// The shards.
    pub paths: Vec<Location>,
    /// Their indices.
    pub indices: Vec<ShardIndex>,
    /// How many indices had to be made.
    pub made: u64,
    /// The bytes of the shards that were read for them.
    pub made_bytes: u64,
    /// How they are laid out.
    pub kind: DataKind,
    image_column: Option<String>,
    files: Files,
    images: Images,
}

/// A sample that was looked at.
pub struct Seen {
    /// Its key.
    pub key: String,
    /// Its image, unless it has none or one of zero bytes.
    pub image: Option<SeenImage>,
    /// Whether it has an image of zero bytes.
    pub empty: bool,
    /// Its `.txt`, or what is wrong with it.
    pub text: Result<String, Flaw>,
}

/// An image that was looked at.
pub struct SeenImage {
    /// What its first bytes say.
    pub kind: Option<ImageKind>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Width and height, or what the decoder said.
    pub size: Result<(u32, u32), String>,
}

impl Survey {
    /// Opens the indices of shards; those that are missing are made.
    pub fn open(storage: &Arc<Storage>, given: &Shards) -> Result<Self, DataError> {
        let (found, spec) = given.find(storage)?;
        let paths: Vec<Location> = found.iter().map(Found::location).collect();
        let line = Line::new("indexing", "shards");
        let made = std::sync::Mutex::new((0, 0));
        let progress = |progress: super::index::Progress| {
            line.indexed(progress);
            let mut made = made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *made = (made.0.max(progress.read), made.1.max(progress.read_bytes));
        };
        let indices = open_all(storage, &found, reader(&spec).as_ref(), &Places::new(&given.index), &progress)?;
        let images = images(&spec, &found)?;
        let stats = indices.iter().map(|index| index.footer().shard.clone());
        let files = Files::new(storage, found.into_iter().zip(stats).collect());
        let (made, made_bytes) = made.into_inner().unwrap_or_default();
        Ok(Self { paths, indices, made, made_bytes, kind: spec.kind, image_column: spec.image_column, files, images })
    }

    /// What a shard is called.
    pub fn stem(&self, shard: usize) -> String {
        self.paths[shard].stem()
    }

    /// Samples in all shards, broken ones included.
    pub fn rows(&self) -> u64 {
        self.indices.iter().map(|index| u64::from(index.footer().rows)).sum()
    }

    /// Decodes a shard's images on all cores; the samples are in order. `done` counts on what was looked at.
    pub fn look(&self, shard: usize, done: &Done<'_>) -> Result<Vec<Seen>, DataError> {
        let rows = self.indices[shard].footer().rows;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let share = rows.div_ceil(threads).max(1);
        let work = |rows: std::ops::Range<u32>| -> Result<Vec<Seen>, DataError> {
            let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
            rows.map(|row| {
                let seen = self.one(shard, row, &mut decoder, &mut bytes)?;
                done.add(seen.image.as_ref().map_or(0, |image| image.bytes));
                Ok(seen)
            })
            .collect()
        };
        let parts = std::thread::scope(|scope| {
            let starts = (0..rows).step_by(share as usize);
            let work = &work;
            let threads: Vec<_> =
                starts.map(|start| scope.spawn(move || work(start..rows.min(start + share)))).collect();
            let joined = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// Reads the bytes of a sample's image; false when it has none.
    pub fn read_image(&self, shard: usize, row: u32, bytes: &mut Vec<u8>) -> Result<bool, DataError> {
        let index = &self.indices[shard];
        // Of a list nobody has looked how long its images are.
        let there = |place: &Place| place.length > 0 || self.kind == DataKind::List;
        let found = index.place(row, IMAGE)?.filter(there).is_some();
        if found {
            self.images.read(&self.files, shard as u32, index, row, bytes)?;
        }
        Ok(found)
    }

    fn one(&self, shard: usize, row: u32, decoder: &mut Decoder, bytes: &mut Vec<u8>) -> Result<Seen, DataError> {
        let index = &self.indices[shard];
        let image = match self.read_image(shard, row, bytes) {
            Ok(false) => None,
            Ok(true) => {
                let size = decoder.decode(bytes).map(|image| (image.width, image.height)).map_err(|e| e.to_string());
                Some(SeenImage { kind: ImageKind::of(bytes), bytes: bytes.len() as u64, size })
            }
            // A file that a list names and that is not there is one bad sample.
            Err(error) if self.kind == DataKind::List => {
                Some(SeenImage { kind: None, bytes: 0, size: Err(error.to_string()) })
            }
            Err(error) => return Err(error),
        };
        let text = match index.slot("txt") {
            None => Err(Flaw::Missing),
            Some(slot) => match index.place(row, slot)? {
                None => Err(Flaw::Missing),
                Some(place) => {
                    let extent = place.extent();
                    self.files.read(shard as u32, extent.offset, extent.length.min(1 << 20) as usize, bytes)?;
                    String::from_utf8(bytes.clone()).map_err(|_| Flaw::Invalid)
                }
            },
        };
        let empty = image.is_none() && index.place(row, IMAGE)?.is_some();
        Ok(Seen { key: index.key(row)?, image, empty, text })
    }
}

/// How many samples were looked at, and the bytes of their images, shown on a line.
pub struct Done<'a> {
    line: &'a Line,
    of: u64,
    samples: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Done<'a> {
    /// Nothing yet.
    pub fn new(line: &'a Line, of: u64) -> Self {
        Self { line, of, samples: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn add(&self, bytes: u64) {
        let samples = self.samples.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // The line has a clock to look at: not for every sample.
        if samples.is_multiple_of(64) {
            self.line.show(samples, self.of, bytes);
        }
    }
}
