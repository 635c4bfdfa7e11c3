//! The samples of a shard while it is being indexed, and their form in the index file.

use super::{
    Footer, IMAGE, SlotFooter,
    groups::{Encoder, GROUP, group_of},
};
use crate::data::{container::Writer, source::Stat};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

/// How many keys of duplicates are kept.
const EXAMPLES: usize = 5;
/// The unit of members' places: tars are made of blocks of this size.
const BLOCK: u64 = 512;

/// Where bytes are in their shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

/// A member's place: in a tar its block and its length in bytes; in other shards its row, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The block of 512 bytes it begins at, or the row counted from 1; never 0, which stands for no member.
    pub block: u32,
    /// Its length in bytes.
    pub length: u32,
}

impl Place {
    /// A tar's member; `None` when it lies beyond 2 TiB or is longer than 4 GiB, where nobody's samples are.
    pub fn of_member(offset: u64, length: u64) -> Option<Self> {
        let block = u32::try_from(offset / BLOCK).ok().filter(|_| offset.is_multiple_of(BLOCK) && offset > 0)?;
        Some(Self { block, length: u32::try_from(length).ok()? })
    }

    /// A row's value; `None` beyond four thousand million rows.
    pub fn of_row(row: u64, length: u64) -> Option<Self> {
        Some(Self { block: u32::try_from(row + 1).ok()?, length: u32::try_from(length).ok()? })
    }

    /// The member's bytes in a tar.
    pub fn extent(self) -> Extent {
        Extent { offset: u64::from(self.block) * BLOCK, length: u64::from(self.length) }
    }

    /// The row in a shard of rows.
    pub fn row(self) -> u64 {
        u64::from(self.block - 1)
    }

    /// The block behind its last one, in a tar.
    pub fn end(self) -> u32 {
        self.block.saturating_add(self.length.div_ceil(BLOCK as u32))
    }
}

/// What may be wrong with a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flaw {
    /// There is none.
    Missing,
    /// It has no bytes.
    Empty,
    /// Text that is no UTF-8, or far too long.
    Invalid,
    /// Text of white space alone.
    Blank,
    /// An image that cannot be decoded; found by `data verify`.
    Undecodable,
}

/// What may be wrong with a shard as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// `truncated` or `damaged`.
    pub what: String,
    /// Up to which byte it was used.
    pub used_bytes: u64,
}

/// A kind of member, by row.
#[derive(Debug, Default)]
pub struct SlotRows {
    name: &'static str,
    places: Vec<Option<Place>>,
    flaws: BTreeMap<Flaw, Vec<u32>>,
}

/// Samples in the order in which they were found.
pub struct Rows {
    keys: String,
    ends: Vec<u32>,
    by_key: HashMap<Box<str>, u32>,
    slots: Vec<SlotRows>,
    duplicates: u64,
    duplicate_examples: Vec<String>,
    hasher: blake3::Hasher,
    /// What is wrong with the shard.
    pub fault: Option<Fault>,
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            keys: String::new(),
            ends: Vec::new(),
            by_key: HashMap::new(),
            slots: vec![SlotRows { name: "image", ..SlotRows::default() }],
            duplicates: 0,
            duplicate_examples: Vec::new(),
            hasher: blake3::Hasher::new(),
            fault: None,
        }
    }
}

impl Rows {
    /// How many there are.
    pub fn count(&self) -> u32 {
        self.ends.len() as u32
    }

    /// The row of a key, added when it is new. The members of a sample need not stand together.
    pub fn row(&mut self, key: &str) -> u32 {
        let last = self.count().checked_sub(1).filter(|row| self.key(*row) == key);
        if let Some(row) = last.or_else(|| self.by_key.get(key).copied()) {
            return row;
        }
        let row = self.push(key);
        self.by_key.insert(key.into(), row);
        row
    }

    /// Adds a row whether or not its key is there.
    pub fn push(&mut self, key: &str) -> u32 {
        let row = self.count();
        self.keys.push_str(key);
        // A shard's keys fill no 4 GiB: a sample has 8 bytes of places and a header of 512 besides.
        self.ends.push(self.keys.len() as u32);
        row
    }

    /// Puts a member in its place, and its content into the fingerprint; false when the row has one already.
    ///
    /// `content` is a text, or the last bytes of an image.
    pub fn put(
        &mut self,
        row: u32,
        slot: &'static str,
        place: Option<Place>,
        content: &[u8],
        flaw: Option<Flaw>,
    ) -> bool {
        let number = self.slots.iter().position(|known| known.name == slot).unwrap_or_else(|| {
            self.slots.push(SlotRows { name: slot, ..SlotRows::default() });
            self.slots.len() - 1
        });
        let places = &mut self.slots[number].places;
        if places.len() <= row as usize {
            places.resize(row as usize + 1, None);
        }
        if places[row as usize].is_some() {
            // Metadata that are there twice spoil no sample.
            if slot == "json" {
                return false;
            }
            self.duplicates += 1;
            if self.duplicate_examples.len() < EXAMPLES {
                self.duplicate_examples.push(self.key(row).to_owned());
            }
            return false;
        }
        places[row as usize] = place;
        if let Some(flaw) = flaw {
            self.slots[number].flaws.entry(flaw).or_default().push(row);
        }
        let (key, length) = (self.key(row).len() as u64, place.map_or(0, |place| place.length));
        let mut head = [0u8; 16];
        head[..8].copy_from_slice(&key.to_le_bytes());
        head[8..12].copy_from_slice(&length.to_le_bytes());
        head[12..].copy_from_slice(&(slot.len() as u32).to_le_bytes());
        let start = self.start(row);
        self.hasher.update(&head).update(&self.keys.as_bytes()[start..start + key as usize]).update(slot.as_bytes());
        self.hasher.update(&(content.len() as u64).to_le_bytes()).update(content);
        true
    }

    /// Writes the index.
    pub fn write<W: Write>(self, kind: &str, shard: Stat, sink: W) -> io::Result<W> {
        let mut writer = Writer::new(sink)?;
        let footer = self.footer(kind, shard);
        let (mut encoder, mut starts, mut written) = (Encoder::default(), vec![0u32], 0usize);
        for first in (0..self.count()).step_by(GROUP as usize) {
            encoder.begin();
            for row in group_of(first, self.count()).1 {
                let places = self.slots.iter().map(|slot| slot.places.get(row as usize).copied().flatten());
                encoder.add(self.key(row), places);
            }
            writer.append(&encoder.bytes)?;
            written += encoder.bytes.len();
            starts.push(u32::try_from(written).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?);
        }
        for start in &starts {
            writer.append(&start.to_le_bytes())?;
        }
        writer.finish(&footer)
    }

    fn footer(&self, kind: &str, shard: Stat) -> Footer {
        let slot = |slot: &SlotRows| {
            let mut flaws = slot.flaws.clone();
            flaws.values_mut().for_each(|rows| rows.sort_unstable());
            // A flawed member is there; only what has no place and no flaw is missing.
            let flawed = |row: u32| flaws.values().any(|rows| rows.binary_search(&row).is_ok());
            let absent = |row: &u32| slot.places.get(*row as usize).copied().flatten().is_none() && !flawed(*row);
            let missing: Vec<u32> = (0..self.count()).filter(absent).collect();
            if !missing.is_empty() {
                flaws.insert(Flaw::Missing, missing);
            }
            SlotFooter { name: slot.name.to_owned(), flaws }
        };
        debug_assert_eq!(self.slots[IMAGE].name, "image");
        Footer {
            kind: kind.to_owned(),
            shard,
            rows: self.count(),
            slots: self.slots.iter().map(slot).collect(),
            duplicates: self.duplicates,
            duplicate_examples: self.duplicate_examples.clone(),
            fault: self.fault.clone(),
            fingerprint: self.hasher.finalize().to_hex().to_string(),
            verified: false,
        }
    }

    fn key(&self, row: u32) -> &str {
        &self.keys[self.start(row)..self.ends[row as usize] as usize]
    }

    fn start(&self, row: u32) -> usize {
        row.checked_sub(1).map_or(0, |before| self.ends[before as usize] as usize)
    }
}
