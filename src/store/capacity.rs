//! Contains the cap of a store: how many keys it may have, how many of one network, and where
//! further keys are counted.
//!
//! This file must not know of the map.
//!
//! A bucket with a backlog is never evicted: forgetting it would give its client a fresh burst. So
//! a full store takes no new keys until time has emptied some. An attacker must not be able to fill
//! it by itself. Therefore one coarse network (IPv4 /16, IPv6 /40) may have at most 1/64 of the
//! cap, or most of a small map, unless its policy says otherwise. New keys beyond that, and
//! all new keys at the cap, share the slots of a fixed table: one for each network, or for each
//! hash where a key contains no address. A flood from one network uses that network's slot and no
//! other.

use std::{
    hash::{BuildHasher, Hash},
    sync::{OnceLock, PoisonError},
};

use super::expiring::Expiring;
use crate::{
    key::{Key, KeyHasher},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

/// What happens to a new key when its policy has as many keys as it may.
///
/// Keys that are in the map already keep their own bucket in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum AtCap {
    /// Its requests pass uncounted. An attacker who can create keys can disable the policy for new
    /// ones.
    Allow,
    /// Its requests are denied, without `Retry-After`.
    Deny,
    /// It shares a bucket with other keys of its network (for keys without an address: of its
    /// hash), under the policy's own quota, never a plan's.
    #[default]
    Overflow,
}

/// How many keys a store may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cap {
    pub(crate) max_keys: usize,
    /// `None` for the default.
    pub(crate) per_network: Option<usize>,
    pub(crate) beyond: AtCap,
}

impl Cap {
    pub(crate) fn new(max_keys: usize, beyond: AtCap) -> Self {
        Self { max_keys, per_network: None, beyond }
    }

    /// The number of keys that one coarse network may have: unless set, a 64th, and at least 4,096,
    /// so that a small map serves the clients of one network. But at most three quarters, so that
    /// there is room for others.
    fn share(self) -> u32 {
        let some = self.max_keys.div_ceil(4).saturating_mul(3).min(4_096);
        let share = self.per_network.unwrap_or((self.max_keys / 64).max(some));
        u32::try_from(share).unwrap_or(u32::MAX)
    }
}

pub(crate) struct Capacity {
    max: usize,
    /// The number of keys that one coarse network may have.
    share: u32,
    live: AtomicUsize,
    /// Live keys by coarse network. Networks are hashed into this table under a secret seed, so
    /// that an attacker cannot choose whose count is shared.
    networks: Box<[AtomicU32]>,
}

impl Capacity {
    pub(super) fn new(cap: Cap) -> Self {
        Self {
            max: cap.max_keys,
            share: cap.share(),
            live: AtomicUsize::new(0),
            networks: (0..NETWORKS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Whether over 80 % are used.
    pub(super) fn is_near(&self) -> bool {
        // At most 2^32 keys, so this cannot overflow. Divided first, a map for four keys would be
        // near its cap with one.
        self.live() as u64 * 5 > self.max as u64 * 4
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Counts `key` in, or returns false where there is no place. Counted before the key is
    /// inserted, so that the map never exceeds the cap.
    pub(super) fn reserve(&self, hasher: &impl BuildHasher, key: Key) -> bool {
        // Read first, so that a flood at the cap writes nothing that others read.
        if self.live() >= self.max {
            return false;
        }
        let network = self.network(hasher, key);
        if network.is_some_and(|network| network.fetch_add(1, Ordering::AcqRel) >= self.share) {
            network.inspect(|network| _ = network.fetch_sub(1, Ordering::AcqRel));
            return false;
        }
        let counted =
            self.live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |live| (live < self.max).then_some(live + 1));
        if counted.is_err() {
            network.inspect(|network| _ = network.fetch_sub(1, Ordering::AcqRel));
        }
        counted.is_ok()
    }

    pub(super) fn release(&self, hasher: &impl BuildHasher, key: Key) {
        self.live.fetch_sub(1, Ordering::AcqRel);
        if let Some(network) = self.network(hasher, key) {
            network.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn network(&self, hasher: &impl BuildHasher, key: Key) -> Option<&AtomicU32> {
        key.network().map(|network| &self.networks[network_slot(hasher, network)])
    }
}

/// Many also for a small map: a network whose count is that of a full one has no keys of its own.
const NETWORKS: usize = if cfg!(tower_quota_loom) { 64 } else { 16_384 };

#[allow(clippy::cast_possible_truncation, reason = "less than `NETWORKS`")]
fn network_slot(hasher: &impl BuildHasher, network: impl Hash) -> usize {
    (hasher.hash_one(network) % NETWORKS as u64) as usize
}

/// The numbers that keys without a place of their own share. They are allocated in chunks when
/// first needed, because other threads may wait for the allocation.
pub(super) struct Overflow<V> {
    len: usize,
    chunks: Box<[Chunk<V>]>,
}

impl<V: Expiring> Overflow<V> {
    pub(super) fn new(max_keys: usize) -> Self {
        let len = (max_keys / 16).clamp(1, MAX_SLOTS);
        Self { len, chunks: (0..len.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    pub(super) fn lock(&self, hasher: &KeyHasher, key: Key) -> MutexGuard<'_, V> {
        self.lock_slot(overflow_slot(hasher, key, self.len))
    }

    /// Locks the slot at this index, which is less than [`len`](Self::len).
    pub(super) fn lock_slot(&self, index: usize) -> MutexGuard<'_, V> {
        let chunk = self.chunks[index / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Mutex::new(V::default())).collect());
        // No panic can leave a number half-written.
        chunk[index % CHUNK].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Shows every number to `see` with its index, under its lock.
    pub(super) fn see_all(&self, mut see: impl FnMut(usize, V)) {
        let chunks = self.chunks.iter().enumerate().filter_map(|(index, chunk)| Some((index, chunk.get()?)));
        let slots = chunks.flat_map(|(index, chunk)| (index * CHUNK..).zip(chunk));
        for (index, slot) in slots {
            see(index, *slot.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

type Chunk<V> = OnceLock<Box<[Mutex<V>]>>;

const CHUNK: usize = if cfg!(tower_quota_loom) { 1 } else { 1_024 };

/// At 16 bytes each.
const MAX_SLOTS: usize = 1 << 20;

/// By the secret of the keys, so that the slot is the same in the next process; another hash than
/// that of [`network_slot`], so that a network whose count is that of a flooded one has another
/// slot, but by chance.
#[allow(clippy::cast_possible_truncation, reason = "less than `len`")]
fn overflow_slot(hasher: &KeyHasher, key: Key, len: usize) -> usize {
    (hasher.spread(key) % len as u64) as usize
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::{
        collections::HashSet,
        hash::RandomState,
        net::{Ipv4Addr, Ipv6Addr},
    };

    use super::*;
    use crate::{bucket::Bucket, key::IntoKey as _};

    #[test]
    fn every_reservation_is_released_completely() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        let capacity = Capacity::new(Cap { per_network: Some(64), ..Cap::new(1_000, AtCap::Deny) });
        let key = |network: u32, host: u32| Ipv4Addr::from_bits(network << 16 | host).key(&keys);
        for _round in 0..3 {
            let mut reserved = Vec::new();
            for network in 0..100 {
                for host in 0..100 {
                    // Fails by the share first and by the cap later: neither may leave a count
                    // behind.
                    let key = key(network, host);
                    if capacity.reserve(&hasher, key) {
                        reserved.push(key);
                    }
                }
            }
            assert_eq!((reserved.len(), capacity.live()), (1_000, 1_000));
            for key in reserved {
                capacity.release(&hasher, key);
            }
            assert_eq!(capacity.live(), 0);
            assert!(capacity.networks.iter().all(|count| count.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn over_80_percent_is_near_the_cap_even_of_a_small_map() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        for (max, near) in [(1, 1), (4, 4), (5, 5), (10, 9), (100, 81)] {
            let capacity = Capacity::new(Cap::new(max, AtCap::Deny));
            let taken = (0..max as u64).take_while(|n| !capacity.is_near() && capacity.reserve(&hasher, n.key(&keys)));
            assert_eq!(taken.count(), near, "of {max}");
        }
    }

    #[test]
    fn the_whole_overflow_table_is_used() {
        let keys = KeyHasher::random();
        let overflow = Overflow::<Bucket>::new(16 * 4_096);
        let slot = |n: u64| std::ptr::from_ref::<Bucket>(&overflow.lock(&keys, n.key(&keys)));
        let slots: HashSet<_> = (0..100_000).map(slot).collect();
        // Of 4,096, each is missed with a probability of e^-24.
        assert!(slots.len() > 4_000, "{}", slots.len());
    }

    #[test]
    fn networks_that_share_a_count_do_not_share_their_overflow() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        let key = |network: u32| Ipv6Addr::from_bits(u128::from(network) << 88).key(&keys);
        let count = |key: Key| network_slot(&hasher, key.network().unwrap());
        let flooded = key(0);
        let counted_alike: Vec<_> = (1..1_000_000).map(key).filter(|other| count(*other) == count(flooded)).collect();
        let slot = |key: Key| overflow_slot(&keys, key, 256);
        let alike = counted_alike.iter().filter(|other| slot(**other) == slot(flooded)).count();
        // About 61 of them, and each by chance of 1/256.
        assert!(alike < 8, "{alike} of {}", counted_alike.len());
    }

    #[test]
    fn a_share_is_a_64th_or_most_of_a_small_map_unless_set() {
        let share = |max| Cap::new(max, AtCap::Deny).share();
        assert_eq!([1, 100, 1_000, 10_000, 1_000_000].map(share), [3, 75, 750, 4_096, 15_625]);
        assert_eq!(Cap { per_network: Some(7), ..Cap::new(1_000_000, AtCap::Deny) }.share(), 7);
    }
}
