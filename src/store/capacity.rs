//! How many keys a store holds, who may hold how many, and where the rest is counted.
//!
//! Owns the cap, the share that one coarse network may hold, and the overflow table. Knows nothing of the map.
//!
//! A bucket that owes something is never evicted: forgetting it would hand its client a fresh burst. So a full store
//! takes no new keys until time has emptied some, and the question is who can fill it. One coarse network (IPv4 /16,
//! IPv6 /40) may hold at most 1/64 of the cap, or 64 keys if that is more; new keys beyond that, and all new keys at
//! the cap, share buckets of a fixed table: one for each network, or for each hash where a key has no address in it.
//! Whoever floods the store from one network spends that network's slot and nobody else's.

use std::{
    hash::{BuildHasher, Hash},
    sync::{OnceLock, PoisonError},
};

use crate::{
    bucket::Bucket,
    key::Key,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

/// What becomes of a new key when its policy holds as many keys as it may.
///
/// Keys that are already held keep their own bucket in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum AtCap {
    /// Its requests pass uncounted. An attacker who can make keys can switch the policy off for new ones.
    Allow,
    /// Its requests are refused, with no time to come back at.
    Deny,
    /// It shares a bucket with other keys of its network (for keys without an address: of its hash), under the policy's
    /// own quota, never a plan's.
    #[default]
    Overflow,
}

pub(super) struct Capacity {
    max: usize,
    /// What one coarse network may hold.
    share: u32,
    live: AtomicUsize,
    /// Live keys by coarse network. Networks are hashed into it under a secret seed, so that an attacker cannot choose
    /// whose count is shared.
    networks: Box<[AtomicU32]>,
}

impl Capacity {
    pub(super) fn new(max: usize) -> Self {
        let networks = max.clamp(64, 16_384).next_power_of_two();
        Self {
            max,
            share: share(max),
            live: AtomicUsize::new(0),
            networks: (0..networks).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    pub(super) fn is_near(&self) -> bool {
        // Of at most 2^32 keys. Divided first, a map for four keys would be near its cap with one.
        self.live() as u64 * 5 > self.max as u64 * 4
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Counts `key` in, or says that there is no room. Counted before the key is inserted, so that the map never holds
    /// more than the cap.
    pub(super) fn reserve(&self, hasher: &impl BuildHasher, key: Key) -> bool {
        // Looked at first, so that a flood at the cap writes nothing that others read.
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
        key.network().map(|network| &self.networks[slot(hasher, network, self.networks.len())])
    }
}

/// A 64th, but not so few that a small map is of no use to the clients of one network.
fn share(max: usize) -> u32 {
    u32::try_from(max / 64).unwrap_or(u32::MAX).max(64)
}

/// Buckets that keys without one of their own share. Made a chunk at a time when first needed, for others may wait while
/// they are made.
pub(super) struct Overflow {
    len: usize,
    chunks: Box<[Chunk]>,
}

impl Overflow {
    pub(super) fn new(max_keys: usize) -> Self {
        let len = (max_keys / 16).clamp(1, MOST_SLOTS);
        Self { len, chunks: (0..len.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    pub(super) fn hold(&self, hasher: &impl BuildHasher, key: Key) -> MutexGuard<'_, Bucket> {
        let index = match key.network() {
            Some(network) => slot(hasher, network, self.len),
            None => slot(hasher, key, self.len),
        };
        let chunk =
            self.chunks[index / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Mutex::new(Bucket::default())).collect());
        // No panic can leave a bucket half-written: it is one number.
        chunk[index % CHUNK].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Chunk = OnceLock<Box<[Mutex<Bucket>]>>;

const CHUNK: usize = if cfg!(tower_quota_loom) { 1 } else { 1_024 };

/// Of 16 bytes each.
const MOST_SLOTS: usize = 1 << 20;

fn slot(hasher: &impl BuildHasher, value: impl Hash, len: usize) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "less than `len`")]
    let slot = (hasher.hash_one(value) % len as u64) as usize;
    slot
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::{collections::HashSet, hash::RandomState, net::Ipv4Addr};

    use super::*;
    use crate::key::{IntoKey as _, KeyHasher};

    #[test]
    fn what_is_reserved_is_given_back_whole() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        let capacity = Capacity::new(1_000);
        let key = |network: u32, host: u32| Ipv4Addr::from_bits(network << 16 | host).into_key(&keys);
        for _round in 0..3 {
            let mut held = Vec::new();
            for network in 0..100 {
                for host in 0..100 {
                    // Refused by the share first, later by the cap: neither may leave a count behind.
                    let key = key(network, host);
                    if capacity.reserve(&hasher, key) {
                        held.push(key);
                    }
                }
            }
            assert_eq!((held.len(), capacity.live()), (1_000, 1_000));
            for key in held {
                capacity.release(&hasher, key);
            }
            assert_eq!(capacity.live(), 0);
            assert!(capacity.networks.iter().all(|count| count.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn over_80_percent_are_near_the_cap_also_of_a_small_one() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        for (max, near) in [(1, 1), (4, 4), (5, 5), (10, 9), (100, 81)] {
            let capacity = Capacity::new(max);
            let taken =
                (0..max as u64).take_while(|n| !capacity.is_near() && capacity.reserve(&hasher, n.into_key(&keys)));
            assert_eq!(taken.count(), near, "of {max}");
        }
    }

    #[test]
    fn the_overflow_is_used_as_a_whole() {
        let (hasher, keys) = (RandomState::new(), KeyHasher::random());
        let overflow = Overflow::new(16 * 4_096);
        let slot = |n: u64| std::ptr::from_ref::<Bucket>(&overflow.hold(&hasher, n.into_key(&keys)));
        let slots: HashSet<_> = (0..100_000).map(slot).collect();
        // Of 4,096, each is missed with a probability of e^-24.
        assert!(slots.len() > 4_000, "{}", slots.len());
    }

    #[test]
    fn a_share_is_a_64th_and_at_least_64() {
        assert_eq!([1, 100, 4_096, 1_000_000].map(share), [64, 64, 64, 15_625]);
    }
}
