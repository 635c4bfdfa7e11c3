//! An object that is read once, from its beginning to its end, with blocks ahead under way. Nothing of it is kept, and nothing that was
//! kept is taken for it.

use super::{
    Entry, Location, ObjectUrl, StorageError,
    remote::Remote,
    request::{Loaded, block_of},
};
use bytes::Bytes;
use std::{collections::VecDeque, ops::Range, sync::mpsc::Receiver};

/// Blocks under way, and in memory.
const UNDER_WAY: usize = 8;

/// See the file's text.
#[derive(Debug)]
pub struct Download<'a> {
    remote: &'a Remote,
    url: ObjectUrl,
    version: String,
    /// Blocks that are still to be asked for.
    later: Range<u64>,
    under_way: VecDeque<Receiver<Result<Loaded, StorageError>>>,
}

impl<'a> Download<'a> {
    /// Of an object as it was when it was looked at. Nothing is asked for yet.
    pub(super) fn new(remote: &'a Remote, url: &ObjectUrl, entry: &Entry) -> Self {
        let later = 0..entry.size.div_ceil(remote.shared.limits.block);
        Self { remote, url: url.clone(), version: entry.version.clone(), later, under_way: VecDeque::new() }
    }

    fn block(&mut self, begun: Receiver<Result<Loaded, StorageError>>) -> Result<Bytes, StorageError> {
        let Loaded { block, version } = self.remote.finish("read", &self.url, begun)?;
        if version == self.version {
            return Ok(block.bytes);
        }
        let location = Location::Object(self.url.clone());
        Err(StorageError::Changed { location, before: self.version.clone(), now: version })
    }
}

impl Iterator for Download<'_> {
    type Item = Result<Bytes, StorageError>;

    /// The next bytes. After an error there is nothing more to be had.
    fn next(&mut self) -> Option<Self::Item> {
        while self.under_way.len() < UNDER_WAY
            && let Some(number) = self.later.next()
        {
            self.under_way.push_back(self.remote.begin("read", &self.url, block_of(&self.url, number)));
        }
        let next = self.under_way.pop_front()?;
        let block = self.block(next);
        if block.is_err() {
            self.later = 0..0;
            self.under_way.clear();
        }
        Some(block)
    }
}
