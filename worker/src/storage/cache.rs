//! Blocks of objects, shared by all threads: bounded, and each is asked for once.

use super::ObjectUrl;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A block of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its bytes; fewer than the block's size only at the object's end.
    pub bytes: Bytes,
    /// The object's length.
    pub object_size: u64,
}

/// An object, and which version of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Object {
    /// Its name.
    pub url: ObjectUrl,
    /// Its version; absent means the one that it has when it is first read.
    pub version: Option<String>,
}

/// Which block.
pub type Key = (Arc<Object>, u64);

/// When `capacity` bytes are exceeded, blocks go that were said to be of no use any more, then the least recently used.
#[derive(Debug)]
pub struct BlockCache {
    capacity: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Slot>,
    // By age, oldest first; below zero are those that were let go.
    ready: BTreeMap<i64, Key>,
    bytes: u64,
    clock: i64,
    let_go: i64,
}

#[derive(Debug)]
enum Slot {
    Loading,
    Ready { block: Block, age: i64 },
}

/// What a thread that wants a block has to do.
#[derive(Debug)]
pub enum Claim {
    /// Nothing: here it is.
    Ready(Block),
    /// Load it, for all.
    Mine(Ticket),
    /// Another thread loads it.
    Theirs,
}

/// The duty to load a block. Dropped without a block, the next thread that wants it gets the duty.
#[derive(Debug)]
pub struct Ticket {
    cache: Arc<BlockCache>,
    key: Option<Key>,
}

impl BlockCache {
    /// An empty cache of `capacity` bytes. A single block that is larger is given out and not kept.
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Asks for a block.
    pub fn claim(self: &Arc<Self>, key: &Key) -> Claim {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get(key) {
            return match slot {
                Slot::Loading => Claim::Theirs,
                Slot::Ready { .. } => Claim::Ready(state.touch(key)),
            };
        }
        state.slots.insert(key.clone(), Slot::Loading);
        Claim::Mine(Ticket { cache: self.clone(), key: Some(key.clone()) })
    }

    /// Nobody will want this block soon: it is the first to go.
    pub fn let_go(&self, key: &Key) {
        let mut state = self.lock();
        state.let_go -= 1;
        let age = state.let_go;
        state.give_age(key, age);
    }

    /// Waits until nobody loads the block any more, or `longest` has passed. What then is, [`BlockCache::claim`] says.
    pub fn wait(&self, key: &Key, longest: Duration) {
        let loading = |state: &mut State| matches!(state.slots.get(key), Some(Slot::Loading));
        let _ = self.changed.wait_timeout_while(self.lock(), longest, loading);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn kept(&self) -> (usize, u64) {
        let state = self.lock();
        (state.ready.len(), state.bytes)
    }
}

impl State {
    /// A block that is there, which is young again.
    fn touch(&mut self, key: &Key) -> Block {
        self.clock += 1;
        self.give_age(key, self.clock).expect("the caller looked")
    }

    fn give_age(&mut self, key: &Key, new: i64) -> Option<Block> {
        let Some(Slot::Ready { block, age }) = self.slots.get_mut(key) else { return None };
        let key = self.ready.remove(age).expect("what is ready has an age");
        *age = new;
        self.ready.insert(new, key);
        Some(block.clone())
    }

    fn insert(&mut self, key: Key, block: Block, capacity: u64) {
        self.clock += 1;
        self.bytes += block.bytes.len() as u64;
        self.ready.insert(self.clock, key.clone());
        self.slots.insert(key, Slot::Ready { block, age: self.clock });
        while self.bytes > capacity {
            let Some((_, oldest)) = self.ready.pop_first() else { break };
            if let Some(Slot::Ready { block, .. }) = self.slots.remove(&oldest) {
                self.bytes -= block.bytes.len() as u64;
            }
        }
    }
}

impl Ticket {
    /// The block has come.
    pub fn fulfil(mut self, block: Block) {
        if let Some(key) = self.key.take() {
            self.cache.lock().insert(key, block, self.cache.capacity);
            self.cache.changed.notify_all();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.cache.lock().slots.remove(&key);
            self.cache.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Scheme;

    fn key(block: u64) -> Key {
        let url = ObjectUrl { scheme: Scheme::S3, bucket: "b".to_owned(), key: "k".to_owned() };
        (Arc::new(Object { url, version: None }), block)
    }

    fn block(length: usize) -> Block {
        Block { bytes: Bytes::from(vec![1; length]), object_size: 1000 }
    }

    fn load(cache: &Arc<BlockCache>, number: u64, length: usize) {
        let Claim::Mine(ticket) = cache.claim(&key(number)) else { panic!("block {number} is there already") };
        ticket.fulfil(block(length));
    }

    #[test]
    fn the_block_that_was_not_used_for_longest_goes_first() {
        let cache = BlockCache::new(25);
        load(&cache, 0, 10);
        load(&cache, 1, 10);
        assert!(matches!(cache.claim(&key(0)), Claim::Ready(_)));
        load(&cache, 2, 10);
        assert_eq!(cache.kept(), (2, 20));
        assert!(matches!(cache.claim(&key(0)), Claim::Ready(_)));
        assert!(matches!(cache.claim(&key(1)), Claim::Mine(_)));
    }

    #[test]
    fn a_block_that_was_let_go_goes_before_older_ones_unless_it_is_used_again() {
        let cache = BlockCache::new(30);
        (0..3).for_each(|number| load(&cache, number, 10));
        cache.let_go(&key(1));
        cache.let_go(&key(2));
        cache.let_go(&key(9));
        assert!(matches!(cache.claim(&key(1)), Claim::Ready(_)));
        load(&cache, 3, 10);
        assert!(matches!(cache.claim(&key(0)), Claim::Ready(_)));
        assert!(matches!(cache.claim(&key(1)), Claim::Ready(_)));
        assert!(matches!(cache.claim(&key(2)), Claim::Mine(_)));
    }

    #[test]
    fn a_block_larger_than_the_cache_is_not_kept() {
        let cache = BlockCache::new(5);
        load(&cache, 0, 10);
        assert_eq!(cache.kept(), (0, 0));
    }

    #[test]
    fn a_loader_that_fails_leaves_the_duty_to_who_waits() {
        let cache = BlockCache::new(100);
        let Claim::Mine(ticket) = cache.claim(&key(0)) else { panic!("nobody else is here") };
        assert!(matches!(cache.claim(&key(0)), Claim::Theirs));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                cache.wait(&key(0), Duration::from_secs(60));
                matches!(cache.claim(&key(0)), Claim::Mine(_))
            });
            drop(ticket);
            assert!(waiting.join().unwrap());
        });
    }
}
