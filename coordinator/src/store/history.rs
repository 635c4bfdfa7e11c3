//! The newest changes, for watches that begin in the past.

use super::{Change, Revision};
use std::collections::VecDeque;

/// How many changes are kept.
const CHANGES: usize = 1024;
/// Bytes of values that are kept: a job's record may have hundreds of kilobytes, and each of its changes has all of it.
const BYTES: usize = 4 << 20;

/// See the file's text.
#[derive(Debug, Default)]
pub(super) struct History {
    changes: VecDeque<Change>,
    bytes: usize,
}

impl History {
    /// Adds the newest change; what is too much of the oldest goes. The newest one stays whatever its size.
    pub(super) fn push(&mut self, change: Change) {
        self.bytes += bytes(&change);
        self.changes.push_back(change);
        while self.changes.len() > CHANGES || (self.bytes > BYTES && self.changes.len() > 1) {
            self.bytes -= self.changes.pop_front().as_ref().map_or(0, bytes);
        }
    }

    /// The oldest change that is kept; absent when there was none.
    pub(super) fn oldest(&self) -> Option<Revision> {
        self.changes.front().map(Change::revision)
    }

    /// The changes after a revision, oldest first.
    pub(super) fn after(&self, revision: Revision) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |change| change.revision() > revision)
    }
}

fn bytes(change: &Change) -> usize {
    match change {
        Change::Put(entry) => entry.value.len(),
        Change::Deleted { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;

    fn put(revision: u64, bytes: usize) -> Change {
        let (key, value) = ("k".to_owned(), vec![0; bytes]);
        Change::Put(Entry { key, value, revision: Revision(revision), lease: None })
    }

    fn kept(sizes: impl IntoIterator<Item = usize>) -> (Option<u64>, usize) {
        let mut history = History::default();
        sizes.into_iter().zip(1..).for_each(|(bytes, revision)| history.push(put(revision, bytes)));
        (history.oldest().map(|revision| revision.0), history.after(Revision(0)).count())
    }

    #[test]
    fn neither_many_changes_nor_large_ones_are_kept_for_ever_and_the_newest_always_is() {
        assert_eq!(kept([]), (None, 0));
        assert_eq!(kept(vec![10; 1030]), (Some(7), 1024));
        assert_eq!(kept(vec![1 << 20; 10]), (Some(7), 4));
        assert_eq!(kept([1, 1, 9 << 20]), (Some(3), 1));
        assert_eq!(kept([9 << 20, 1]), (Some(2), 1));
    }
}
