//! One tar's samples: members grouped by key, their texts looked at, their images not.

use super::{
    DataError,
    index::{Fault, Flaw, Place, Rows},
    source::ReadAt,
    tar::{End, Member, Walk},
};
use crate::storage::Location;
use std::io;

/// The longest text that is believed, in bytes.
const LONGEST_TEXT: u64 = 1 << 20;
/// The longest metadata that are read into the fingerprint, in bytes.
const LONGEST_METADATA: u64 = 1 << 24;
/// How much of an image's end goes into the fingerprint. It lies before the next header, so it costs no read of its own.
const TAIL: u64 = 64;

/// Reads a tar's headers and texts.
///
/// # Errors
/// When it cannot be read, or is no tar from its first byte on. A tar that breaks off later is used up to there.
pub fn scan(source: &dyn ReadAt, path: &Location) -> Result<Rows, DataError> {
    scan_with(source, path, &mut |_, _| {})
}

/// As [`scan`]; `metadata` gets the `.json` of each row that has one.
pub fn scan_with(
    source: &dyn ReadAt,
    path: &Location,
    metadata: &mut dyn FnMut(u32, &[u8]),
) -> Result<Rows, DataError> {
    let io = |source| DataError::io("read", path, source);
    if source.length().map_err(io)? == 0 {
        return Err(DataError::EmptyFile { path: path.clone() });
    }
    let mut walk = Walk::new(source).map_err(io)?;
    let mut rows = Rows::default();
    while let Some(member) = walk.next().map_err(io)? {
        add(&mut rows, &mut walk, &member, metadata).map_err(io)?;
    }
    let fault = |what: &str, used_bytes| Some(Fault { what: what.to_owned(), used_bytes });
    rows.fault = match walk.end() {
        Some(End::Truncated(at)) => fault("truncated", at),
        Some(End::Damaged(at)) => fault("damaged", at),
        Some(End::NotATar) => return Err(DataError::NotATar { path: path.clone() }),
        Some(End::Whole) | None => None,
    };
    Ok(rows)
}

fn add(rows: &mut Rows, walk: &mut Walk<'_>, member: &Member, metadata: &mut dyn FnMut(u32, &[u8])) -> io::Result<()> {
    let Some((key, extension)) = split(&member.name) else { return Ok(()) };
    // What an image really is its first bytes say.
    let slot = match extension.as_str() {
        "jpg" | "jpeg" | "png" | "webp" => "image",
        "txt" => "txt",
        "json" => "json",
        "cls" => "cls",
        _ => return Ok(()),
    };
    let row = rows.row(key);
    let place = Place::of_member(member.offset, member.size);
    let (content, flaw) = match slot {
        "image" => {
            let tail = member.size.min(TAIL);
            let flaw = if member.size == 0 { Some(Flaw::Empty) } else { None };
            (walk.bytes(member.offset + member.size - tail, tail)?, flaw)
        }
        "json" => (walk.bytes(member.offset, member.size.min(LONGEST_METADATA))?, None),
        _ if member.size > LONGEST_TEXT => (&[][..], Some(Flaw::Invalid)),
        _ => {
            let bytes = walk.bytes(member.offset, member.size)?;
            let flaw = match std::str::from_utf8(bytes) {
                Err(_) => Some(Flaw::Invalid),
                Ok(text) if text.trim().is_empty() => Some(Flaw::Blank),
                Ok(_) => None,
            };
            (bytes, flaw)
        }
    };
    let flaw = flaw.or(if place.is_none() { Some(Flaw::Undecodable) } else { None });
    let first = rows.put(row, slot, place, content, flaw);
    if first && slot == "json" && place.is_some() && member.size <= LONGEST_METADATA {
        metadata(row, content);
    }
    Ok(())
}

/// A member's key and lower-case extension; `None` for names without a dot and for macOS's `._` files.
fn split(name: &str) -> Option<(&str, String)> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].find('.')?;
    if dot == base {
        return None;
    }
    Some((&name[..dot], name[dot + 1..].to_ascii_lowercase()))
}
