//! Contains [`Store`], the numbers of one keyed policy: its buckets, or the ends of its blocks.
//!
//! This folder contains the sharded map from keys to numbers, its cap, the overflow table behind
//! the cap, and the locks: reading or changing a number takes its [`StoreGuard`], which is
//! exclusive. It must not know of quotas, of requests, or of other policies.
//!
//! # Locking behaviour
//!
//! [`Store::guard`] locks one shard, or one slot of the overflow table, until the guard is dropped.
//! A thread that locks several stores takes their guards in the order of their policies, and may
//! then lock an entry of a policy's pauses, under which nothing more is locked. Nothing else ever
//! takes two, and no user code runs under one. The clock is read after the guards are
//! taken, so that every bucket sees time go forward.

mod capacity;
mod expiring;
#[cfg(tower_quota_loom)]
mod model;
mod packed_key;
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
pub(crate) use self::capacity::{Cap, Capacity};
#[cfg(tower_quota_loom)]
use self::model::{DashMap, Entry, RefMut, VacantEntry};
use self::{capacity::Overflow, packed_key::PackedKey};
pub(crate) use self::{expiring::Expiring, sweep::Sweepable};
use crate::{
    bucket::Bucket,
    clock::Clock,
    key::{Key, KeyHasher, entropy},
    sync::MutexGuard,
};

pub(crate) struct Store<V = Bucket> {
    map: DashMap<PackedKey, V, SeedableRandomState>,
    capacity: Capacity,
    overflow: Overflow<V>,
    /// Chooses the slots of the overflow table.
    keys: KeyHasher,
    at_cap: AtCap,
    clock: Clock,
}

impl<V: Expiring> Store<V> {
    /// For keys that have a place, or none: a store with an overflow table chooses its slots
    /// [by the secret](Self::with_overflow) of the keys.
    pub(crate) fn new(cap: Cap, clock: Clock) -> Self {
        Self::with_overflow(cap, clock, KeyHasher::random())
    }

    pub(crate) fn with_overflow(cap: Cap, clock: Clock, keys: KeyHasher) -> Self {
        let Cap { max_keys, beyond: at_cap, .. } = cap;
        let hasher = SeedableRandomState::with_seed(entropy(), SharedSeed::global_random());
        Self {
            map: DashMap::with_hasher_and_shard_amount(hasher, shards(max_keys)),
            capacity: Capacity::new(cap),
            overflow: Overflow::new(max_keys),
            keys,
            at_cap,
            clock,
        }
    }

    /// Locks the number of `key`. A new key reserves a place in the map if there is one, and
    /// releases it again unless something is written.
    #[inline(always)]
    pub(crate) fn guard(&self, key: Key) -> StoreGuard<'_, V> {
        // Rejected: asking for the map's entry at once, which is three times as large as a
        // reference.
        match self.map.get_mut(&key.into()) {
            Some(value) => StoreGuard::Own(value),
            None => self.guard_new(key),
        }
    }

    #[inline(never)]
    fn guard_new(&self, key: Key) -> StoreGuard<'_, V> {
        match self.map.entry(key.into()) {
            // Another thread has inserted the key since.
            Entry::Occupied(entry) => return StoreGuard::Own(entry.into_ref()),
            // Under the shard's lock, so that one key never competes with itself for a place.
            Entry::Vacant(entry) if self.capacity.reserve(self.map.hasher(), key) => {
                let reservation = ReservedPlace { store: self, key, used: false };
                return StoreGuard::New(NewEntry { reservation, entry: Some(entry) });
            }
            // Unlocked, because a slot of the overflow table is never locked beside a shard.
            Entry::Vacant(entry) => drop(entry),
        }
        match self.at_cap {
            AtCap::Allow => StoreGuard::Untracked,
            AtCap::Deny => StoreGuard::Full,
            AtCap::Overflow => StoreGuard::Overflow(self.overflow_slot(key)),
        }
    }

    /// Locks the number of `key` if there is one.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key) -> Option<RefMut<'_, PackedKey, V>> {
        self.map.get_mut(&key.into())
    }

    /// Locks the slot of the overflow table that `key` uses.
    pub(crate) fn overflow_slot(&self, key: Key) -> MutexGuard<'_, V> {
        self.overflow.lock(&self.keys, key)
    }

    /// Lists `limit` keys from position `from` on, shard by shard.
    pub(crate) fn list(&self, from: usize, limit: usize) -> Vec<(Key, V)> {
        self.map.iter().skip(from).take(limit).map(|entry| ((*entry.key()).into(), *entry.value())).collect()
    }

    /// Shows every number to `see`, also those in the overflow table. Locks one shard, or one slot,
    /// at a time.
    pub(crate) fn see_all(&self, mut see: impl FnMut(V)) {
        self.map.iter().for_each(|entry| see(*entry.value()));
        self.overflow.see_all(|_, value| see(value));
    }

    /// Shows every key with its number to `see`, without those in the overflow table. Locks one
    /// shard at a time.
    pub(crate) fn see_keys(&self, mut see: impl FnMut(Key, V)) {
        self.map.iter().for_each(|entry| see((*entry.key()).into(), *entry.value()));
    }

    /// Shows every number in the overflow table to `see`, with its index. Locks one slot at a time.
    pub(crate) fn see_overflow(&self, see: impl FnMut(usize, V)) {
        self.overflow.see_all(see);
    }

    /// Locks the slot of the overflow table at this index, which is less than
    /// [`overflow_len`](Self::overflow_len).
    pub(crate) fn lock_overflow(&self, index: usize) -> MutexGuard<'_, V> {
        self.overflow.lock_slot(index)
    }

    /// The number of slots in the overflow table.
    pub(crate) fn overflow_len(&self) -> usize {
        self.overflow.len()
    }

    /// Returns every key with its number that means something.
    pub(crate) fn all(&self) -> Vec<(Key, V)> {
        let now = self.clock.now();
        let mut all = Vec::with_capacity(self.len());
        self.see_keys(|key, value| {
            if !value.is_over(now) {
                all.push((key, value));
            }
        });
        all
    }

    /// The number of keys in the map.
    pub(crate) fn len(&self) -> usize {
        self.capacity.live()
    }
}

/// One number, locked until this is dropped.
pub(crate) enum StoreGuard<'a, V: Expiring = Bucket> {
    /// The map is full, and the policy denies new keys.
    Full,
    /// The key has no number yet, and a reserved place for one.
    New(NewEntry<'a, V>),
    /// The key shares a slot of the overflow table.
    Overflow(MutexGuard<'a, V>),
    /// The key's own number.
    Own(RefMut<'a, PackedKey, V>),
    /// The map is full, and the policy lets new keys pass uncounted.
    Untracked,
}

impl<V: Expiring> StoreGuard<'_, V> {
    #[inline(always)]
    pub(crate) fn value(&self) -> V {
        match self {
            Self::Own(value) => **value,
            Self::Overflow(slot) => **slot,
            Self::Full | Self::New(_) | Self::Untracked => V::default(),
        }
    }

    #[inline(always)]
    pub(crate) fn write(&mut self, value: V) {
        match self {
            Self::Own(own) => **own = value,
            Self::Overflow(slot) => **slot = value,
            Self::New(entry) => entry.insert(value),
            Self::Full | Self::Untracked => {}
        }
    }

    /// Writes what `change` makes of the number.
    #[inline(always)]
    pub(crate) fn change(&mut self, change: impl FnOnce(V) -> V) {
        match self {
            Self::Own(own) => **own = change(**own),
            Self::Overflow(slot) => **slot = change(**slot),
            Self::New(entry) => entry.insert(change(V::default())),
            Self::Full | Self::Untracked => {}
        }
    }

    #[inline(always)]
    pub(crate) fn placement(&self) -> Placement {
        match self {
            Self::New(_) | Self::Own(_) => Placement::Own,
            Self::Overflow(_) => Placement::Overflow,
            Self::Full => Placement::Full,
            Self::Untracked => Placement::Untracked,
        }
    }
}

/// Where a key is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Nowhere, and its requests are denied.
    Full,
    /// In a slot of the overflow table.
    Overflow,
    /// In a place of its own.
    Own,
    /// Nowhere, and its requests pass.
    Untracked,
}

/// A key that is about to enter the map.
pub(crate) struct NewEntry<'a, V: Expiring> {
    // First, so that an unused reservation is released before the shard is unlocked: the count is
    // never below the size of the map.
    reservation: ReservedPlace<'a, V>,
    /// `None` after the insertion.
    entry: Option<VacantEntry<'a, PackedKey, V>>,
}

impl<V: Expiring> NewEntry<'_, V> {
    fn insert(&mut self, value: V) {
        if let Some(entry) = self.entry.take() {
            self.reservation.used = true;
            entry.insert(value);
        }
    }
}

/// A reserved place in the map, released when dropped unused.
struct ReservedPlace<'a, V: Expiring> {
    store: &'a Store<V>,
    key: Key,
    used: bool,
}

impl<V: Expiring> Drop for ReservedPlace<'_, V> {
    fn drop(&mut self) {
        if !self.used {
            self.store.capacity.release(self.store.map.hasher(), self.key);
        }
    }
}

/// The number of shards: 4,096 to 8,192 keys a shard at the cap. A growing or a swept shard blocks
/// others for some 100 µs.
///
/// Rejected: fewer keys a shard, because the shards themselves then take the cache that the buckets
/// need, and because allocators retain small tables; more keys a shard, because of the waits.
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
        let store = Store::new(Cap::new(10, AtCap::Deny), ManualClock::new().into());
        for key in 0..9_u64 {
            assert!(!store.is_near_cap(), "{key}");
            store.guard(key.key(&KeyHasher::random())).write(Bucket::from_bits(7));
        }
        assert!(store.is_near_cap());
    }

    /// What a thread sees whose lookup came before the insertion by another thread.
    #[test]
    fn a_key_that_another_thread_has_inserted_first_keeps_its_place() {
        let store = Store::new(Cap::new(1, AtCap::Deny), ManualClock::new().into());
        let key = 1_u64.key(&KeyHasher::random());
        store.guard(key).write(Bucket::from_bits(7));
        let late = store.guard_new(key);
        assert_eq!((late.placement(), late.value()), (Placement::Own, Bucket::from_bits(7)));
        drop(late);
        assert_eq!(store.len(), 1);
    }
}
