//! The samples of a data set in memory: tens of bytes each beside their keys and captions.

use super::{Shard, scan::Extent};
use common::{
    ids::SampleIndex,
    recipe::{CaptionColumn, DataKind},
};

/// Samples by number. All keys and captions lie in one string.
#[derive(Debug, Default)]
pub struct Index {
    images: Vec<(u32, Extent)>,
    /// Ends of the texts in `text`: a sample's key, then its captions in the order of the columns.
    ends: Vec<u64>,
    text: String,
}

impl Index {
    /// Adds a sample: its image in a shard, its key and its captions. All samples have as many texts.
    pub fn push(&mut self, shard: u32, image: Extent, texts: &[&str]) {
        self.images.push((shard, image));
        for text in texts {
            self.text.push_str(text);
            self.ends.push(self.text.len() as u64);
        }
    }

    /// How many samples there are.
    pub fn len(&self) -> u64 {
        self.images.len() as u64
    }

    /// A sample's shard, and its image's place in it.
    pub fn image(&self, sample: SampleIndex) -> (u32, Extent) {
        self.images[sample.0 as usize]
    }

    /// A text by its place among all samples' texts.
    pub fn text(&self, place: usize) -> &str {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.text[start as usize..self.ends[place] as usize]
    }

    /// BLAKE3 in hex over everything here and what it belongs to.
    pub fn fingerprint(&self, kind: DataKind, shards: &[Shard], columns: &[CaptionColumn]) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut add = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(match kind {
            DataKind::Webdataset => b"webdataset",
        });
        columns.iter().for_each(|column| add(column.name.as_bytes()));
        for shard in shards {
            add(shard.stem.as_bytes());
            add(&shard.samples.end.to_le_bytes());
        }
        for (_, image) in &self.images {
            add(&image.offset.to_le_bytes());
            add(&image.length.to_le_bytes());
        }
        self.ends.iter().for_each(|end| add(&end.to_le_bytes()));
        add(self.text.as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}
