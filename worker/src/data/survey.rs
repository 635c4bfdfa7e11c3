//! Every sample of some shards, looked at once: what `data inspect` and `data verify` share.

use super::{
    DataError,
    blob::Found,
    dataset::reader,
    files::Files,
    glob,
    images::{Images, ParquetImages},
    index::{Flaw, IMAGE, Places, ShardIndex, open_all},
    pixels::{Decoder, ImageKind},
    progress::Line,
    storage::{Location, Storage},
};
use common::{
    recipe::{Captions, DataKind, DataPath, DataSet, IndexPlace, RowRange},
    sampler::Shuffle,
};
use std::sync::Arc;

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
    /// Opens the indices of files, folders and patterns; those that are missing are made.
    pub fn open(storage: &Arc<Storage>, given: &[DataPath], place: &IndexPlace) -> Result<Self, DataError> {
        let mut found = Vec::new();
        for path in given {
            found.extend(shards(storage, path)?);
        }
        let paths: Vec<Location> = found.iter().map(Found::location).collect();
        let parquet = paths.iter().all(|path| path.name().ends_with(".parquet"));
        let kind = if parquet { DataKind::Parquet } else { DataKind::Webdataset };
        let spec = spec(kind, place);
        let line = Line::new("indexing", "shards");
        let made = std::sync::Mutex::new((0, 0));
        let progress = |progress: super::index::Progress| {
            line.indexed(progress);
            let mut made = made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            *made = (made.0.max(progress.read), made.1.max(progress.read_bytes));
        };
        let indices = open_all(storage, &found, reader(&spec).as_ref(), &Places::new(place), &progress)?;
        let stats = indices.iter().map(|index| index.footer().shard.clone());
        let files = Files::new(storage, found.into_iter().zip(stats).collect());
        let images = if parquet { Images::Parquets(ParquetImages::new(None)) } else { Images::Tars };
        let (made, made_bytes) = made.into_inner().unwrap_or_default();
        Ok(Self { paths, indices, made, made_bytes, files, images })
    }

    /// What a shard is called.
    pub fn stem(&self, shard: usize) -> String {
        self.paths[shard].stem()
    }

    /// Samples in all shards, broken ones included.
    pub fn rows(&self) -> u64 {
        self.indices.iter().map(|index| u64::from(index.footer().rows)).sum()
    }

    /// Decodes a shard's images on all cores; the samples are in order.
    pub fn look(&self, shard: usize) -> Result<Vec<Seen>, DataError> {
        let rows = self.indices[shard].footer().rows;
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let share = rows.div_ceil(threads).max(1);
        let work = |rows: std::ops::Range<u32>| -> Result<Vec<Seen>, DataError> {
            let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
            rows.map(|row| self.one(shard, row, &mut decoder, &mut bytes)).collect()
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

    fn one(&self, shard: usize, row: u32, decoder: &mut Decoder, bytes: &mut Vec<u8>) -> Result<Seen, DataError> {
        let index = &self.indices[shard];
        let found = index.place(row, IMAGE)?;
        let image = match found {
            Some(place) if place.length > 0 => {
                self.images.read(&self.files, shard as u32, index, row, bytes)?;
                let size = decoder.decode(bytes).map(|image| (image.width, image.height)).map_err(|e| e.to_string());
                Some(SeenImage { kind: ImageKind::of(bytes), bytes: bytes.len() as u64, size })
            }
            _ => None,
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
        let empty = image.is_none() && found.is_some();
        Ok(Seen { key: index.key(row)?, image, empty, text })
    }
}

/// The shards that a path or URL on the command line means: itself, its matches, or a folder's tars, else its parquet
/// files. An URL is a folder's when its last part has no ending.
fn shards(storage: &Storage, given: &DataPath) -> Result<Vec<Found>, DataError> {
    let inside = |pattern: &str| -> DataPath {
        match given {
            DataPath::Path(folder) => folder.join(pattern).into(),
            DataPath::Url(folder) => DataPath::Url(format!("{}/{pattern}", folder.trim_end_matches('/'))),
        }
    };
    let is_folder = match given {
        DataPath::Path(path) => path.is_dir(),
        DataPath::Url(url) => !url.rsplit('/').next().unwrap_or_default().contains(['.', '*', '?']),
    };
    if !is_folder {
        return glob::expand(storage, given);
    }
    match glob::expand(storage, &inside("*.tar")) {
        Err(none @ DataError::NoMatch { .. }) => glob::expand(storage, &inside("*.parquet")).map_err(|_| none),
        other => other,
    }
}

fn spec(kind: DataKind, place: &IndexPlace) -> DataSet {
    DataSet {
        kind,
        shards: Vec::new(),
        captions: Captions { table: None, columns: Vec::new() },
        broken_limit: 1.0,
        images: None,
        image_column: None,
        rows: RowRange::default(),
        only: std::collections::BTreeMap::new(),
        index: place.clone(),
        shuffle: Shuffle::Full,
    }
}
