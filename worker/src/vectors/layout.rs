//! The bytes of a shard's file, version 2. Pure: nothing is read or written here.
//!
//! ```text
//! 0    magic, version u32, length of the JSON u32, start of the data u64, length of the file u64   (little endian)
//! 32   BLAKE3 over bytes 0..32 and 64..start of the data
//! 64   JSON: what the vectors are and depend on
//!      per column a bitmap, bit r % 8 of byte r / 8: row r has a vector; each filled up to 8 bytes
//!      per MiB of the data its BLAKE3
//! data, at a multiple of 4,096: per column its rows, bf16, filled up to a multiple of 4,096
//! ```
//!
//! No place is stored: all of them follow from rows, width and columns, so a damaged header cannot send a reader astray.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The first bytes of a file.
const MAGIC: [u8; 8] = *b"l2c-vec\n";
const VERSION: u32 = 2;
/// Bytes before the JSON.
pub const PREFIX: usize = 64;
/// What a checksum covers.
pub const BLOCK: u64 = 1 << 20;
/// What the data and each column are aligned to: a page, and the sector of any drive.
const ALIGNMENT: u64 = 4096;
/// The widest vector that is believed; LLMs have 1,024 to 16,384.
pub const WIDEST: u64 = 1 << 20;
const DIGEST: usize = blake3::OUT_LEN;

/// What the JSON says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The only type there is.
    pub dtype: Bf16,
    /// How many vectors a column has.
    pub rows: u64,
    /// Numbers a vector.
    pub width: u64,
    /// Caption columns in the order of their data.
    pub columns: Vec<String>,
    /// What the vectors depend on.
    pub provenance: BTreeMap<String, String>,
}

/// The name of a number's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bf16 {
    /// Upper half of an IEEE single.
    #[serde(rename = "bf16")]
    Bf16,
}

/// Where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    json: usize,
    bitmap: u64,
    columns: u64,
    /// Bytes of a vector.
    pub row: u64,
    /// Bytes from the start of a column to that of the next.
    pub column: u64,
    /// The first byte of the data.
    pub data: u64,
    /// The file's length.
    pub file: u64,
}

/// Everything before the data, as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The JSON.
    pub header: Header,
    /// Where the data is.
    pub layout: Layout,
    /// Per column, which rows are there.
    pub present: Vec<Vec<u8>>,
    /// Per block of the data, its digest.
    pub digests: Vec<[u8; DIGEST]>,
}

/// How many bytes a reader must have to know all before the data; or why this is no such file.
pub fn head_length(prefix: &[u8; PREFIX], file_length: u64) -> Result<usize, String> {
    if prefix[..8] != MAGIC {
        return Err("it does not begin as one".to_owned());
    }
    let version = u32::from_le_bytes(bytes(prefix, 8));
    if version != VERSION {
        return Err(format!("it is of version {version}, and this program reads versions 1 and {VERSION}"));
    }
    let (data, file) = (u64::from_le_bytes(bytes(prefix, 16)), u64::from_le_bytes(bytes(prefix, 24)));
    if file != file_length {
        return Err(format!("it has {file_length} bytes and should have {file}"));
    }
    if data > file || data < PREFIX as u64 {
        return Err("its header is damaged".to_owned());
    }
    usize::try_from(data).map_err(|_| "its header is damaged".to_owned())
}

impl Layout {
    /// `None` when the numbers are beyond all reason.
    pub fn new(json: usize, rows: u64, width: u64, columns: usize) -> Option<Self> {
        if width == 0 || width > WIDEST || rows > u64::from(u32::MAX) {
            return None;
        }
        let columns = columns as u64;
        let row = width * 2;
        let column = rows.checked_mul(row)?.checked_next_multiple_of(ALIGNMENT)?;
        let length = column.checked_mul(columns)?;
        let bitmap = rows.div_ceil(8).next_multiple_of(8);
        let tables = bitmap.checked_mul(columns)?.checked_add(length.div_ceil(BLOCK).checked_mul(DIGEST as u64)?)?;
        let json_end = (PREFIX as u64 + json as u64).next_multiple_of(8);
        let data = json_end.checked_add(tables)?.checked_next_multiple_of(ALIGNMENT)?;
        Some(Self { json, bitmap, columns, row, column, data, file: data.checked_add(length)? })
    }

    /// The first byte of a row, counted from the start of the data.
    pub fn row_start(&self, column: usize, row: u64) -> u64 {
        column as u64 * self.column + row * self.row
    }

    /// How many blocks the data has.
    pub fn blocks(&self) -> u64 {
        (self.file - self.data).div_ceil(BLOCK)
    }

    /// The bytes of a block, counted from the start of the data.
    pub fn block(&self, block: u64) -> std::ops::Range<u64> {
        block * BLOCK..((block + 1) * BLOCK).min(self.file - self.data)
    }

    /// An empty bitmap.
    pub fn bitmap(&self) -> Vec<u8> {
        vec![0; usize::try_from(self.bitmap).expect("a bitmap fits in memory")]
    }

    fn tables(&self) -> usize {
        (PREFIX + self.json).next_multiple_of(8)
    }
}

impl Header {
    /// The JSON, and where everything lies with it.
    pub fn layout(&self) -> Option<(Vec<u8>, Layout)> {
        let json = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        let layout = Layout::new(json.len(), self.rows, self.width, self.columns.len())?;
        Some((json, layout))
    }
}

impl Head {
    /// All bytes before the data.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (json, layout) = self.header.layout().expect("the layout was made of this header");
        let mut out = vec![0; usize::try_from(layout.data).expect("a head fits in memory")];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32::try_from(json.len()).expect("names are short").to_le_bytes());
        out[16..24].copy_from_slice(&layout.data.to_le_bytes());
        out[24..32].copy_from_slice(&layout.file.to_le_bytes());
        out[PREFIX..PREFIX + json.len()].copy_from_slice(&json);
        let mut at = layout.tables();
        for table in self.present.iter().map(Vec::as_slice).chain(self.digests.iter().map(<[u8; DIGEST]>::as_slice)) {
            out[at..at + table.len()].copy_from_slice(table);
            at += table.len();
        }
        let digest = digest(&out);
        out[32..PREFIX].copy_from_slice(&digest);
        out
    }

    /// Reads what [`Head::to_bytes`] wrote; `head` has the length that [`head_length`] gave for a file of `file_length`.
    pub fn parse(head: &[u8], file_length: u64) -> Result<Self, String> {
        let damaged = || "its header is damaged".to_owned();
        if head.len() < PREFIX || digest(head) != head[32..PREFIX] {
            return Err(damaged());
        }
        let json = u32::from_le_bytes(bytes(head, 12)) as usize;
        let text = head.get(PREFIX..).and_then(|rest| rest.get(..json)).ok_or_else(damaged)?;
        let header: Header = serde_json::from_slice(text).map_err(|error| format!("its header: {error}"))?;
        let layout = Layout::new(json, header.rows, header.width, header.columns.len()).ok_or_else(damaged)?;
        if layout.data != head.len() as u64 || layout.file != file_length {
            return Err(damaged());
        }
        let (bitmaps, digests) = head[layout.tables()..].split_at((layout.bitmap * layout.columns) as usize);
        let present = bitmaps.chunks_exact(layout.bitmap.max(1) as usize).map(<[u8]>::to_vec);
        let mut present: Vec<_> = present.collect();
        // Without rows there are no bitmaps to cut.
        present.resize(header.columns.len(), Vec::new());
        let digests = digests.as_chunks::<DIGEST>().0[..layout.blocks() as usize].to_vec();
        Ok(Self { present, digests, header, layout })
    }
}

/// Whether a bitmap has a row.
pub fn has(bitmap: &[u8], row: u64) -> bool {
    bitmap.get((row / 8) as usize).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
}

/// Puts a row into a bitmap; says whether it was there.
pub fn mark(bitmap: &mut [u8], row: u64) -> bool {
    let byte = &mut bitmap[(row / 8) as usize];
    let there = *byte >> (row % 8) & 1 == 1;
    *byte |= 1 << (row % 8);
    there
}

/// Over all of a head but the digest's own place.
fn digest(head: &[u8]) -> [u8; DIGEST] {
    *blake3::Hasher::new().update(&head[..32]).update(&head[PREFIX..]).finalize().as_bytes()
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    from[at..at + N].try_into().expect("the prefix is longer")
}

/// Writes a head's digest anew: how a test gets a damaged header past it.
#[doc(hidden)]
pub fn sign(head: &mut [u8]) {
    let digest = digest(head);
    head[32..PREFIX].copy_from_slice(&digest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(rows: u64, width: u64, columns: &[&str]) -> Head {
        let header = Header {
            dtype: Bf16::Bf16,
            rows,
            width,
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            provenance: BTreeMap::from([("pooling".to_owned(), "mean".to_owned())]),
        };
        let (_, layout) = header.layout().unwrap();
        let digests = (0..layout.blocks()).map(|block| [block as u8; 32]).collect();
        let mut present = vec![layout.bitmap(); columns.len()];
        if rows > 3 {
            mark(&mut present[0], 3);
        }
        Head { header, layout, present, digests }
    }

    #[test]
    fn a_head_comes_back_and_all_is_aligned() {
        for (rows, width, columns) in
            [(10_000, 4096, &["short", "long"][..]), (1, 1, &["x"]), (9, 5, &["x"]), (0, 8, &["x", "y"])]
        {
            let written = head(rows, width, columns);
            let bytes = written.to_bytes();
            let layout = &written.layout;
            assert_eq!((layout.data % 4096, layout.column % 4096, bytes.len() as u64), (0, 0, layout.data));
            let prefix = bytes[..PREFIX].try_into().unwrap();
            assert_eq!(head_length(prefix, layout.file).unwrap(), bytes.len());
            assert_eq!(Head::parse(&bytes, layout.file).unwrap(), written);
        }
    }

    #[test]
    fn any_changed_byte_of_a_head_is_noticed() {
        let written = head(20, 64, &["x", "y"]);
        let whole = written.to_bytes();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let prefix: &[u8; PREFIX] = bytes[..PREFIX].try_into().unwrap();
            let read = head_length(prefix, written.layout.file)
                .and_then(|length| Head::parse(&bytes[..length.min(bytes.len())], written.layout.file));
            assert!(read.is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = head(1, 1, &["x"]).to_bytes();
        bytes[8] = 3;
        let error = head_length(bytes[..PREFIX].try_into().unwrap(), 8192).unwrap_err();
        assert!(error.contains("version 3"), "{error}");
    }

    #[test]
    fn numbers_beyond_reason_have_no_layout() {
        assert!(Layout::new(100, u64::MAX, 4096, 1).is_none());
        assert!(Layout::new(100, 1 << 31, 1 << 20, usize::MAX).is_none());
        assert!(Layout::new(100, 1, 0, 1).is_none());
    }
}
