//! Keys and places in few bytes: about 13 a sample of three members.
//!
//! Rows stand in groups of [`GROUP`]. A row is its key, as what it shares with the key before it and the rest, and for each
//! slot a place, as its distance from where the member before it ends, and its length; all numbers are LEB128. A group is
//! read from its start, and knows nothing of the others.

use super::rows::Place;
use std::ops::Range;

/// Rows that are read together.
pub const GROUP: u32 = 64;

/// The group that a row is in, and the rows of it.
pub fn group_of(row: u32, rows: u32) -> (u32, Range<u32>) {
    let first = row - row % GROUP;
    (row / GROUP, first..rows.min(first + GROUP))
}

/// Writes groups, one after the other.
#[derive(Debug, Default)]
pub struct Encoder {
    key: String,
    expected: u32,
    /// The bytes of the group so far.
    pub bytes: Vec<u8>,
}

impl Encoder {
    /// Begins a group.
    pub fn begin(&mut self) {
        self.key.clear();
        self.expected = 0;
        self.bytes.clear();
    }

    /// Adds a row.
    pub fn add(&mut self, key: &str, places: impl Iterator<Item = Option<Place>>) {
        let same = self.key.bytes().zip(key.bytes()).take_while(|(a, b)| a == b).count();
        let shared = (0..=same).rev().find(|at| key.is_char_boundary(*at)).unwrap_or(0);
        self.number(shared as u64);
        self.number((key.len() - shared) as u64);
        self.bytes.extend_from_slice(&key.as_bytes()[shared..]);
        key.clone_into(&mut self.key);
        for place in places {
            let Some(place) = place else {
                self.number(0);
                continue;
            };
            let distance = i64::from(place.block) - i64::from(self.expected);
            self.number(1 + ((distance << 1) ^ (distance >> 63)).cast_unsigned());
            self.number(u64::from(place.length));
            self.expected = place.end();
        }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }
}

/// Reads the rows of a group in order.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    slots: usize,
    expected: u32,
    /// The key of the row that was read last.
    pub key: String,
    /// Its places by slot.
    pub places: Vec<Option<Place>>,
}

impl<'a> Decoder<'a> {
    /// Of a group's bytes.
    pub fn new(bytes: &'a [u8], slots: usize) -> Self {
        Self { bytes, slots, expected: 0, key: String::new(), places: Vec::new() }
    }

    /// Reads the next row; `None` when the bytes are no rows.
    pub fn next(&mut self) -> Option<()> {
        let shared = usize::try_from(self.number()?).ok()?;
        let length = usize::try_from(self.number()?).ok()?;
        if !self.key.is_char_boundary(shared) {
            return None;
        }
        let (rest, bytes) = self.bytes.split_at_checked(length)?;
        self.bytes = bytes;
        self.key.truncate(shared);
        self.key.push_str(std::str::from_utf8(rest).ok()?);
        self.places.clear();
        for _ in 0..self.slots {
            let place = self.place()?;
            self.places.push(place);
        }
        Some(())
    }

    fn place(&mut self) -> Option<Option<Place>> {
        let Some(zigzag) = self.number()?.checked_sub(1) else { return Some(None) };
        let distance = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
        let block = u32::try_from(i64::from(self.expected).checked_add(distance)?).ok().filter(|block| *block > 0)?;
        let place = Place { block, length: u32::try_from(self.number()?).ok()? };
        self.expected = place.end();
        Some(Some(place))
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Option<Place>> {
        let length = prop_oneof![0u32..3000, any::<u32>()];
        let block = prop_oneof![1u32..200, 1u32..=u32::MAX];
        prop::option::of((block, length).prop_map(|(block, length)| Place { block, length }))
    }

    proptest! {
        #[test]
        fn rows_come_back(rows in prop::collection::vec(("[a-c0-9é]{0,6}", prop::array::uniform3(place())), 0..64)) {
            let mut encoder = Encoder::default();
            encoder.begin();
            rows.iter().for_each(|(key, places)| encoder.add(key, places.iter().copied()));
            let mut decoder = Decoder::new(&encoder.bytes, 3);
            for (key, places) in &rows {
                prop_assert_eq!(decoder.next(), Some(()));
                prop_assert_eq!((decoder.key.as_str(), decoder.places.as_slice()), (key.as_str(), &places[..]));
            }
            prop_assert_eq!(decoder.next(), None);
        }

        #[test]
        fn any_bytes_are_rows_or_not(bytes in prop::collection::vec(any::<u8>(), 0..400), slots in 1usize..5) {
            let mut decoder = Decoder::new(&bytes, slots);
            while decoder.next().is_some() {
                prop_assert_eq!(decoder.places.len(), slots);
            }
        }
    }

    #[test]
    fn neighbours_in_a_tar_take_few_bytes() {
        let mut encoder = Encoder::default();
        encoder.begin();
        let mut block = 1;
        for row in 0..GROUP {
            let members = [46_000, 20, 60].map(|length| {
                let place = Place { block, length };
                block = place.end() + 1;
                Some(place)
            });
            encoder.add(&format!("{row:09}"), members.into_iter());
        }
        assert!(encoder.bytes.len() < 13 * GROUP as usize, "{}", encoder.bytes.len());
    }
}
