//! The members of a tar: names, offsets and sizes, without their contents.
//!
//! ustar, GNU long names and base-256 sizes, pax `path` and `size` (img2dataset writes a pax header before every
//! member), for one member or for all after it. Read by position and not mapped: a file that shrinks under a map would
//! kill the process.

use super::source::ReadAt;
use std::io;

const BLOCK: u64 = 512;
/// The longest extended header that is believed.
const LONGEST_HEADER: u64 = 1 << 20;

/// A regular file in a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path in the tar.
    pub name: String,
    /// Where its bytes begin.
    pub offset: u64,
    /// How many there are.
    pub size: u64,
}

/// How a tar ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With the end-of-archive mark.
    Whole,
    /// Before it: the member that begins here is not all there.
    Truncated(u64),
    /// The block here is no header.
    Damaged(u64),
    /// The first block is no header.
    NotATar,
}

/// A tar that is being walked through.
pub struct Walk<'a> {
    source: &'a dyn ReadAt,
    len: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
    end: Option<End>,
    /// What a global pax header said of all members after it.
    global: Extended,
}

/// What an extended header says of the member after it.
#[derive(Clone, Default)]
struct Extended {
    name: Option<String>,
    size: Option<u64>,
}

impl<'a> Walk<'a> {
    /// Begins at the first member.
    pub fn new(source: &'a dyn ReadAt) -> io::Result<Self> {
        let (len, global) = (source.length()?, Extended::default());
        Ok(Self { source, len, at: 0, window: Vec::new(), window_at: 0, end: None, global })
    }

    /// How the tar ends; known once [`Walk::next`] gave `None`.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The next member whose bytes are all there.
    pub fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extended = self.global.clone();
        let start = self.at;
        while self.end.is_none() {
            if self.at + BLOCK > self.len {
                return Ok(self.stop(End::Truncated(start)));
            }
            let at = self.at;
            let block: [u8; 512] = self.bytes(at, BLOCK)?.try_into().expect("a block was asked for");
            if block.iter().all(|byte| *byte == 0) {
                return Ok(self.stop(End::Whole));
            }
            let Some(header) = Header::parse(&block) else {
                return Ok(self.stop(if at == 0 { End::NotATar } else { End::Damaged(at) }));
            };
            let body = at + BLOCK;
            let own = matches!(header.kind, b'x' | b'g' | b'L' | b'K');
            let size = if own { header.size } else { extended.size.unwrap_or(header.size) };
            if size > self.len - body {
                return Ok(self.stop(End::Truncated(start)));
            }
            self.at = body + size.div_ceil(BLOCK) * BLOCK;
            match header.kind {
                b'x' | b'g' | b'L' if size <= LONGEST_HEADER => {
                    let bytes = self.bytes(body, size)?.to_vec();
                    match header.kind {
                        b'x' => extended.read_pax(&bytes),
                        b'L' => extended.name = Some(text(&bytes)),
                        _ => {
                            self.global.read_pax(&bytes);
                            extended = self.global.clone();
                        }
                    }
                }
                b'x' | b'L' | b'g' | b'K' => {}
                b'0' | 0 | b'7' => {
                    let name = extended.name.take().unwrap_or(header.name);
                    return Ok(Some(Member { name, offset: body, size }));
                }
                _ => extended = self.global.clone(),
            }
        }
        Ok(None)
    }

    /// Bytes of the tar, from the window where possible. The caller has checked that they are there.
    pub fn bytes(&mut self, at: u64, len: u64) -> io::Result<&[u8]> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let inside = at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let there = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
            self.window.resize(len.max(self.source.window().min(there)), 0);
            self.window_at = at;
            self.source.read_at(&mut self.window, at).inspect_err(|_| self.window.clear())?;
        }
        let from = (at - self.window_at) as usize;
        Ok(&self.window[from..from + len])
    }

    fn stop(&mut self, end: End) -> Option<Member> {
        self.end = Some(end);
        None
    }
}

struct Header {
    name: String,
    size: u64,
    kind: u8,
}

impl Header {
    /// `None` when the checksum or the size is wrong.
    fn parse(block: &[u8; 512]) -> Option<Self> {
        let sum: u64 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
        if number(&block[148..156])? != sum {
            return None;
        }
        let kind = block[156];
        let links = matches!(kind, b'1'..=b'6');
        let size = if links { 0 } else { number(&block[124..136])? };
        let mut name = text(&block[..100]);
        if &block[257..263] == b"ustar\0" && block[345] != 0 {
            name = format!("{}/{name}", text(&block[345..500]));
        }
        Some(Self { name, size, kind })
    }
}

impl Extended {
    /// Records `LENGTH key=value\n`; those that are damaged are not read.
    fn read_pax(&mut self, mut bytes: &[u8]) {
        while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
            let length = std::str::from_utf8(&bytes[..space]).ok().and_then(|digits| digits.parse::<usize>().ok());
            let Some(record) = length.and_then(|length| bytes.get(space + 1..length)) else { return };
            let record = text(record.strip_suffix(b"\n").unwrap_or(record));
            match record.split_once('=') {
                Some(("path", value)) => self.name = Some(value.to_owned()),
                Some(("size", value)) => self.size = value.parse().ok(),
                _ => {}
            }
            bytes = &bytes[length.unwrap_or(bytes.len())..];
        }
    }
}

/// Up to the first zero byte; what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An octal number, or one in base 256 if its first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let start = u64::from(field[0] & 0x7f);
        return field[1..].iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(**byte, 0 | b' '));
    digits.copied().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}
