//! A file of ours that is written once and never trusted blindly: pages with checksums, then a footer.
//!
//! Layout, all numbers little-endian:
//!
//! ```text
//! magic 8 | pages: 4092 bytes and their CRC-32 each, the last one shorter | footer, JSON
//!         | trailer: version u32, length of the footer u32, length of the stream u64, BLAKE3 of both and the footer 32, magic 8
//! ```
//!
//! The bytes of all pages together are the stream; who reads it gives positions in the stream. The trailer comes last, so
//! a file that was cut says so. A page is checked whenever it is read: opening costs one read, whatever the file's size.

use super::source::ReadAt;
use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Write};

/// Bytes of the stream in a page.
const PAGE: u64 = 4092;
/// With the checksum.
const PAGE_ON_DISK: u64 = PAGE + 4;
const MAGIC: [u8; 8] = *b"L2CPAGE\n";
const TRAILER: u64 = 4 + 4 + 8 + 32 + 8;
/// Raised when the layout here or a footer's meaning changes; other versions are written anew.
const VERSION: u32 = 2;

/// Why a file of ours is not used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is cut or no file of ours.
    #[error("it is cut, or no file of llm2clip's")]
    NotWhole,
    /// Another version wrote it.
    #[error("it has version {0}, this program writes {VERSION}")]
    Version(u32),
    /// Its footer is damaged.
    #[error("its footer is damaged")]
    Footer,
    /// Its contents do not agree with each other.
    #[error("its parts disagree")]
    Inconsistent,
    /// A page is damaged.
    #[error("its page {0} is damaged")]
    Page(u64),
    /// A position beyond the stream.
    #[error("bytes {at} to {end} are beyond its {length}")]
    Beyond {
        /// The first byte that was asked for.
        at: u64,
        /// The byte after the last.
        end: u64,
        /// The stream's length.
        length: u64,
    },
}

/// Writes a container to a sink in order.
pub struct Writer<W: Write> {
    sink: W,
    page: Vec<u8>,
    length: u64,
}

impl<W: Write> Writer<W> {
    /// Begins the file.
    pub fn new(mut sink: W) -> io::Result<Self> {
        sink.write_all(&MAGIC)?;
        Ok(Self { sink, page: Vec::with_capacity(PAGE as usize), length: 0 })
    }

    /// Where the next byte will be in the stream.
    pub fn position(&self) -> u64 {
        self.length
    }

    /// Appends to the stream.
    pub fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PAGE as usize - self.page.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.page.extend_from_slice(now);
            bytes = later;
            if self.page.len() == PAGE as usize {
                self.flush_page()?;
            }
        }
        Ok(())
    }

    /// Ends the file and returns the sink.
    pub fn finish(mut self, footer: &impl Serialize) -> io::Result<W> {
        if !self.page.is_empty() {
            self.flush_page()?;
        }
        let footer = serde_json::to_vec(footer).map_err(io::Error::other)?;
        let footer_length = u32::try_from(footer.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.sink.write_all(&footer)?;
        let mut trailer = Vec::with_capacity(TRAILER as usize);
        trailer.extend(VERSION.to_le_bytes());
        trailer.extend(footer_length.to_le_bytes());
        trailer.extend(self.length.to_le_bytes());
        trailer.extend(digest(&trailer, &footer));
        trailer.extend(MAGIC);
        self.sink.write_all(&trailer)?;
        Ok(self.sink)
    }

    fn flush_page(&mut self) -> io::Result<()> {
        self.sink.write_all(&self.page)?;
        self.sink.write_all(&crc32fast::hash(&self.page).to_le_bytes())?;
        self.page.clear();
        Ok(())
    }
}

/// An open container: its footer, and its stream by position.
pub struct Container<S> {
    source: S,
    length: u64,
}

impl<S: ReadAt> Container<S> {
    /// Reads and checks the trailer and the footer.
    pub fn open<T: DeserializeOwned>(source: S) -> Result<(Self, T), ContainerError> {
        let whole = source.length()?;
        let magic = MAGIC.len() as u64;
        let trailer_at = whole.checked_sub(TRAILER).filter(|at| *at >= magic).ok_or(ContainerError::NotWhole)?;
        let mut trailer = [0u8; TRAILER as usize];
        source.read_at(&mut trailer, trailer_at)?;
        if trailer[48..] != MAGIC {
            return Err(ContainerError::NotWhole);
        }
        let number = |from: usize, to: usize| {
            trailer[from..to].iter().rev().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        let (version, footer_length, length) = (number(0, 4), number(4, 8), number(8, 16));
        if version != u64::from(VERSION) {
            return Err(ContainerError::Version(version as u32));
        }
        let pages = length.checked_add(length.div_ceil(PAGE) * 4).ok_or(ContainerError::Inconsistent)?;
        if pages.checked_add(footer_length).and_then(|sum| sum.checked_add(magic)) != Some(trailer_at) {
            return Err(ContainerError::NotWhole);
        }
        let mut footer = vec![0u8; footer_length as usize];
        source.read_at(&mut footer, trailer_at - footer_length)?;
        if digest(&trailer[..16], &footer) != trailer[16..48] {
            return Err(ContainerError::Footer);
        }
        let footer = serde_json::from_slice(&footer).map_err(|_| ContainerError::Footer)?;
        Ok((Self { source, length }, footer))
    }

    /// The length of the stream.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What it is read from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// Reads `length` bytes of the stream at `at` into `bytes`, whose contents are replaced; every page is checked.
    pub fn read(&self, at: u64, length: u64, bytes: &mut Vec<u8>) -> Result<(), ContainerError> {
        bytes.clear();
        let end = at.checked_add(length).filter(|end| *end <= self.length);
        let end = end.ok_or(ContainerError::Beyond { at, end: at.saturating_add(length), length: self.length })?;
        let mut page = [0u8; PAGE_ON_DISK as usize];
        let mut at = at;
        while at < end {
            let number = at / PAGE;
            let held = PAGE.min(self.length - number * PAGE);
            let on_disk = &mut page[..held as usize + 4];
            self.source.read_at(on_disk, MAGIC.len() as u64 + number * PAGE_ON_DISK)?;
            let (data, sum) = on_disk.split_at(held as usize);
            if crc32fast::hash(data).to_le_bytes() != sum {
                return Err(ContainerError::Page(number));
            }
            let from = at - number * PAGE;
            let to = held.min(end - number * PAGE);
            bytes.extend_from_slice(&data[from as usize..to as usize]);
            at = number * PAGE + to;
        }
        Ok(())
    }

    /// Reads everything once, so that every page is checked.
    pub fn check(&self) -> Result<(), ContainerError> {
        let mut bytes = Vec::new();
        let step = 256 * PAGE;
        (0..self.length.div_ceil(step))
            .try_for_each(|part| self.read(part * step, step.min(self.length - part * step), &mut bytes))
    }
}

fn digest(trailer: &[u8], footer: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(trailer);
    hasher.update(footer);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(parts: &[&[u8]], footer: &str) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        parts.iter().for_each(|part| writer.append(part).unwrap());
        writer.finish(&footer).unwrap()
    }

    #[test]
    fn what_was_written_is_read_at_any_position() {
        let bytes: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        for length in [0, 1, 4091, 4092, 4093, 8184, 20_000] {
            let file = written(&[&bytes[..length / 3], &bytes[length / 3..length]], "x");
            let (container, footer) = Container::open::<String>(file).unwrap();
            assert_eq!((container.length(), footer.as_str()), (length as u64, "x"));
            let mut read = Vec::new();
            for at in [0, 1, 4090, 4092, 8000].into_iter().filter(|at| *at <= length) {
                let take = (length - at).min(5000);
                container.read(at as u64, take as u64, &mut read).unwrap();
                assert!(read == bytes[at..at + take], "{length} {at}");
            }
            assert!(matches!(container.read(1, length as u64, &mut read), Err(ContainerError::Beyond { .. })));
        }
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let file = written(&[&[7; 9000]], "a footer");
        for cut in (0..file.len()).step_by(7) {
            assert!(Container::open::<String>(file[..cut].to_vec()).is_err(), "cut at {cut}");
        }
        // The first eight bytes are for people; nothing is read from them.
        for at in 8..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            let noticed = Container::open::<String>(damaged).map_or(true, |(container, _)| container.check().is_err());
            assert!(noticed, "flip at {at}");
        }
    }
}
