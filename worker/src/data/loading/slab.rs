//! The memory of batches: one piece a batch, written by several threads, each its own part, and used again.

use bytes::BytesMut;
use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// Pieces of memory that wait for the next batch; a few at most.
#[derive(Debug)]
pub struct Shelf {
    free: Mutex<Vec<BytesMut>>,
    most: usize,
}

impl Shelf {
    /// Keeps `most` pieces at most.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), most })
    }

    /// A piece of `length` bytes, whatever they are.
    pub fn take(&self, length: usize) -> BytesMut {
        let kept = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(mut piece) if piece.capacity() >= length => {
                piece.resize(length, 0);
                piece
            }
            _ => BytesMut::zeroed(length),
        }
    }

    fn give(&self, piece: BytesMut) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < self.most && piece.capacity() > 0 {
            free.push(piece);
        }
    }
}

/// A batch's bytes. Dropping it gives its memory back to the loader.
#[derive(Debug)]
pub struct Slab {
    bytes: BytesMut,
    shelf: Option<Arc<Shelf>>,
}

impl Slab {
    /// Joins the parts of a piece of a shelf; those that lie side by side in their order are not copied.
    pub fn join(parts: impl Iterator<Item = BytesMut>, shelf: &Arc<Shelf>) -> Self {
        let join = |mut all: BytesMut, part| {
            all.unsplit(part);
            all
        };
        Self { bytes: parts.fold(BytesMut::new(), join), shelf: Some(shelf.clone()) }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(shelf) = &self.shelf {
            shelf.give(std::mem::take(&mut self.bytes));
        }
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Clone for Slab {
    fn clone(&self) -> Self {
        Self { bytes: self.bytes.clone(), shelf: None }
    }
}

impl PartialEq for Slab {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Slab {}

impl From<Vec<u8>> for Slab {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.as_slice().into(), shelf: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(shelf: &Arc<Shelf>, value: u8) -> Slab {
        let mut piece = shelf.take(12);
        let mut parts: Vec<BytesMut> = (0..3).map(|_| piece.split_to(4)).collect();
        std::thread::scope(|scope| {
            for (i, part) in parts.iter_mut().enumerate() {
                scope.spawn(move || part.fill(value + i as u8));
            }
        });
        Slab::join(parts.into_iter(), shelf)
    }

    #[test]
    fn parts_become_one_piece_without_a_copy_and_the_piece_is_used_again() {
        let shelf = Shelf::new(1);
        let first = filled(&shelf, 1);
        let place = first.as_ptr();
        assert_eq!(first[..], [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]);
        let kept = first.clone();
        drop(first);
        let second = filled(&shelf, 5);
        assert_eq!(second.as_ptr(), place, "the memory is not used again");
        assert_eq!(second[..], [5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7]);
        assert_eq!(kept[..4], [1; 4], "a copy shares the memory");
        let third = filled(&shelf, 9);
        assert_ne!(third.as_ptr(), second.as_ptr(), "memory that is in use is given out");
        drop((second, third));
        assert_eq!(shelf.free.lock().unwrap().len(), 1, "more is kept than may be");
        let mut shorter = shelf.take(8);
        shorter.fill(0);
        assert_eq!(shorter.len(), 8);
    }
}
