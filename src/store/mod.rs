//! [`Store`]: the buckets of one keyed policy.
//!
//! Owns the sharded map of key to bucket, its cap, the overflow table behind the cap, and the locks: whoever looks at a
//! bucket or changes one holds its [`Hold`], an exclusive guard. Knows nothing of quotas, of requests, or of other
//! policies.
//!
//! # Locking behaviour
//!
//! [`Store::hold`] locks one shard, or one slot of the overflow table, until the hold is dropped. A thread that holds
//! buckets of several stores takes them in the order of their policies; nothing else ever holds two, and no user code
//! runs under one. The clock is read after the holds are taken: so every bucket sees time go forward.

mod capacity;
#[cfg(tower_quota_loom)]
mod model;
mod sweep;

#[cfg(not(tower_quota_loom))]
use dashmap::{
    DashMap,
    mapref::{
        entry::{Entry, VacantEntry},
        one::RefMut,
    },
};
use foldhash::{SharedSeed, fast::SeedableRandomState};

pub use self::capacity::AtCap;
use self::capacity::{Capacity, Overflow};
#[cfg(tower_quota_loom)]
use self::model::{DashMap, Entry, RefMut, VacantEntry};
use crate::{
    bucket::Bucket,
    clock::Clock,
    key::{Key, entropy},
    sync::MutexGuard,
};

pub(crate) struct Store {
    map: DashMap<Key, Bucket, SeedableRandomState>,
    capacity: Capacity,
    overflow: Overflow,
    at_cap: AtCap,
    clock: Clock,
}

impl Store {
    pub(crate) fn new(max_keys: usize, at_cap: AtCap, clock: Clock) -> Self {
        let hasher = SeedableRandomState::with_seed(entropy(), SharedSeed::global_random());
        Self {
            map: DashMap::with_hasher_and_shard_amount(hasher, shards(max_keys)),
            capacity: Capacity::new(max_keys),
            overflow: Overflow::new(max_keys),
            at_cap,
            clock,
        }
    }

    /// Takes the bucket of `key`, exclusively. A key without one gets a place if there is room, and loses it again
    /// unless something is written.
    #[inline(always)]
    pub(crate) fn hold(&self, key: Key) -> Hold<'_> {
        // Refused: asking for the entry at once, which is three times as large to move about as a reference.
        match self.map.get_mut(&key) {
            Some(bucket) => Hold::Own(bucket),
            None => self.hold_new(key),
        }
    }

    #[inline(never)]
    fn hold_new(&self, key: Key) -> Hold<'_> {
        match self.map.entry(key) {
            // Another thread was faster.
            Entry::Occupied(entry) => return Hold::Own(entry.into_ref()),
            // Under the lock, so that one key never competes with itself for a place.
            Entry::Vacant(entry) if self.capacity.reserve(self.map.hasher(), key) => {
                return Hold::New(Newcomer { place: Place { store: self, key, taken: false }, entry: Some(entry) });
            }
            // Released: the slots of the overflow table are locked alone.
            Entry::Vacant(entry) => drop(entry),
        }
        match self.at_cap {
            AtCap::Allow => Hold::Untracked,
            AtCap::Deny => Hold::Refused,
            AtCap::Overflow => Hold::Overflow(self.overflow.hold(self.map.hasher(), key)),
        }
    }

    /// Takes the bucket of `key` only if there is one.
    pub(crate) fn existing(&self, key: Key) -> Option<RefMut<'_, Key, Bucket>> {
        self.map.get_mut(&key)
    }

    /// Takes the slot of the overflow table that `key` draws from.
    pub(crate) fn overflow(&self, key: Key) -> MutexGuard<'_, Bucket> {
        self.overflow.hold(self.map.hasher(), key)
    }

    /// `limit` of the keys, from the place `from` on, shard by shard.
    pub(crate) fn list(&self, from: usize, limit: usize) -> Vec<(Key, Bucket)> {
        self.map.iter().skip(from).take(limit).map(|entry| (*entry.key(), *entry.value())).collect()
    }

    /// The keys that it may hold.
    pub(crate) fn max_keys(&self) -> usize {
        self.capacity.max()
    }

    /// Whether over 80 % of the cap are taken.
    pub(crate) fn is_near_cap(&self) -> bool {
        self.capacity.is_near()
    }

    pub(crate) fn len(&self) -> usize {
        self.capacity.live()
    }
}

/// One bucket, held exclusively until this is dropped.
pub(crate) enum Hold<'a> {
    /// The key has no bucket yet, and a place for one.
    New(Newcomer<'a>),
    /// The key shares a slot of the overflow table.
    Overflow(MutexGuard<'a, Bucket>),
    /// The key's own bucket.
    Own(RefMut<'a, Key, Bucket>),
    /// The map is full, and the policy says to refuse.
    Refused,
    /// The map is full, and the policy says to let pass uncounted.
    Untracked,
}

impl Hold<'_> {
    #[inline(always)]
    pub(crate) fn bucket(&self) -> Bucket {
        match self {
            Self::Own(bucket) => **bucket,
            Self::Overflow(slot) => **slot,
            Self::New(_) | Self::Refused | Self::Untracked => Bucket::default(),
        }
    }

    #[inline(always)]
    pub(crate) fn write(&mut self, bucket: Bucket) {
        match self {
            Self::Own(own) => **own = bucket,
            Self::Overflow(slot) => **slot = bucket,
            Self::New(newcomer) => newcomer.insert(bucket),
            Self::Refused | Self::Untracked => {}
        }
    }

    #[inline(always)]
    pub(crate) fn room(&self) -> Room {
        match self {
            Self::New(_) | Self::Own(_) => Room::Own,
            Self::Overflow(_) => Room::Overflow,
            Self::Refused => Room::Refused,
            Self::Untracked => Room::Untracked,
        }
    }
}

/// Where a key is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// In a bucket of its own.
    Own,
    /// In a bucket of the overflow table.
    Overflow,
    /// Nowhere: it is refused.
    Refused,
    /// Nowhere: it passes.
    Untracked,
}

/// A key that is about to enter the map.
pub(crate) struct Newcomer<'a> {
    // First, so that on a refusal the count falls before the shard is released: the count is never below the map.
    place: Place<'a>,
    /// `None` once it has entered.
    entry: Option<VacantEntry<'a, Key, Bucket>>,
}

impl Newcomer<'_> {
    fn insert(&mut self, bucket: Bucket) {
        if let Some(entry) = self.entry.take() {
            self.place.taken = true;
            entry.insert(bucket);
        }
    }
}

/// A reserved place, given back when dropped untaken.
struct Place<'a> {
    store: &'a Store,
    key: Key,
    taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.store.capacity.release(self.store.map.hasher(), self.key);
        }
    }
}

/// 4,096 to 8,192 keys a shard at the cap: what a growing or a swept shard makes others wait for, some 100 µs. Refused: fewer,
/// for the shards themselves then take up the cache that the buckets need, and for small tables are what an allocator keeps
/// when they are freed; more, for the waits.
fn shards(max_keys: usize) -> usize {
    (max_keys / 8_192).next_power_of_two().max(64)
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;
    use crate::{
        clock::ManualClock,
        key::{IntoKey as _, KeyHasher},
    };

    #[test]
    fn a_key_with_its_bucket_takes_24_bytes() {
        assert_eq!(size_of::<(Key, Bucket)>(), 24);
    }

    #[test]
    fn it_is_near_its_cap_above_four_fifths() {
        let store = Store::new(10, AtCap::Deny, ManualClock::new().into());
        for key in 0..9_u64 {
            assert!(!store.is_near_cap(), "{key}");
            store.hold(key.into_key(&KeyHasher::random())).write(Bucket::from_bits(7));
        }
        assert!(store.is_near_cap());
    }

    /// What a thread meets whose look-up was too early to see the key that another one has just brought in.
    #[test]
    fn a_key_that_another_thread_has_inserted_first_keeps_its_place() {
        let store = Store::new(1, AtCap::Deny, ManualClock::new().into());
        let key = 1_u64.into_key(&KeyHasher::random());
        store.hold(key).write(Bucket::from_bits(7));
        let late = store.hold_new(key);
        assert_eq!((late.room(), late.bucket()), (Room::Own, Bucket::from_bits(7)));
        drop(late);
        assert_eq!(store.len(), 1);
    }
}
