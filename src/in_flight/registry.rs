//! Contains [`Registry`]: how many permits each key has, and who waits for one.
//!
//! This file must not know of requests, of services, or of limits beyond the numbers that callers
//! pass.
//!
//! # Locking behaviour
//!
//! A key's shard is locked while its permits are counted, and beside it the slot of a waiter that
//! gets one. No other lock is taken and no code of users runs under either: wakers are called, and
//! dropped, after both are released.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt, mem,
    sync::{Arc, PoisonError},
    task::{Poll, Waker},
};

use foldhash::{SharedSeed, fast::SeedableRandomState};
use smallvec::SmallVec;

use crate::{
    key::{Key, entropy},
    sync::{Mutex, MutexGuard},
};

/// The permits of all keys. A key without permits takes no memory.
pub(super) struct Registry {
    shards: Box<[Shard]>,
}

/// A power of two that `Key::select` takes.
const SHARDS: usize = if cfg!(tower_quota_loom) { 2 } else { 64 };

/// The number of places that are not worth returning.
const SMALL: usize = 64;

/// On cache lines of its own, so that threads do not wait for each other's shards.
///
/// Rejected: dashmap, which returns the memory of all its shards or none, and whose sweep a key
/// that is removed with its last permit does not need.
#[repr(align(128))]
struct Shard {
    keys: Mutex<HashMap<Key, Permits, SeedableRandomState>>,
}

/// The permits of one key.
struct Permits {
    /// How many are in use: at least one.
    in_use: u32,
    /// In the order in which they came.
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    /// The number of permits below which it gets one.
    limit: u32,
    slot: Arc<WaitSlot>,
}

/// Through which a waiter learns that it has a permit.
pub(super) struct WaitSlot {
    state: Mutex<WaitState>,
}

enum WaitState {
    Granted,
    Waiting(Option<Waker>),
}

/// Those who have got a permit, to be woken when nothing is locked.
type Woken = SmallVec<[Waker; 1]>;

/// What a caller that may wait got.
pub(super) enum Queued {
    /// A permit: one of so many.
    Acquired(u32),
    /// It waits in this slot.
    Behind(Arc<WaitSlot>),
    /// As many wait as may.
    Full,
}

impl Registry {
    pub(super) fn new() -> Self {
        let hasher = SeedableRandomState::with_seed(entropy(), SharedSeed::global_random());
        let shard = || Shard { keys: Mutex::new(HashMap::with_hasher(hasher.clone())) };
        Self { shards: (0..SHARDS).map(|_| shard()).collect() }
    }

    fn lock(&self, key: Key) -> MutexGuard<'_, HashMap<Key, Permits, SeedableRandomState>> {
        self.shards[key.select(SHARDS)].keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a permit where fewer than `limit` are in use and nobody waits. Returns how many are in
    /// use then.
    ///
    /// # Errors
    ///
    /// How many are in use, where none is left.
    #[inline(always)]
    pub(super) fn acquire(&self, key: Key, limit: u32) -> Result<u32, u32> {
        match self.lock(key).entry(key) {
            Entry::Vacant(_) if limit == 0 => Err(0),
            Entry::Vacant(entry) => {
                entry.insert(Permits { in_use: 1, waiters: VecDeque::new() });
                Ok(1)
            }
            Entry::Occupied(mut entry) => {
                let permits = entry.get_mut();
                if permits.waiters.is_empty() { permits.acquire(limit) } else { Err(permits.in_use) }
            }
        }
    }

    /// Takes a permit as [`acquire`](Self::acquire) does, and otherwise waits for one behind the
    /// waiters of the key, if they are fewer than `max_waiters`.
    pub(super) fn acquire_or_wait(&self, key: Key, limit: u32, max_waiters: usize) -> Queued {
        match self.lock(key).entry(key) {
            // A limit of zero never grants.
            _ if limit == 0 => Queued::Full,
            Entry::Vacant(entry) => {
                entry.insert(Permits { in_use: 1, waiters: VecDeque::new() });
                Queued::Acquired(1)
            }
            Entry::Occupied(mut entry) => {
                let permits = entry.get_mut();
                if permits.waiters.is_empty() {
                    if let Ok(in_use) = permits.acquire(limit) {
                        return Queued::Acquired(in_use);
                    }
                }
                if permits.waiters.len() >= max_waiters {
                    return Queued::Full;
                }
                let slot = Arc::new(WaitSlot { state: Mutex::new(WaitState::Waiting(None)) });
                let waiter = Waiter { limit, slot: Arc::clone(&slot) };
                permits.waiters.push_back(waiter);
                Queued::Behind(slot)
            }
        }
    }

    /// Returns a permit. Those who wait get it, in their order.
    #[inline(always)]
    pub(super) fn release(&self, key: Key) {
        let mut keys = self.lock(key);
        let Entry::Occupied(mut entry) = keys.entry(key) else {
            debug_assert!(false, "a permit is returned that nobody has taken");
            return;
        };
        let permits = entry.get_mut();
        if !permits.waiters.is_empty() {
            permits.in_use -= 1;
            let woken = permits.grant();
            // It is in use again: the limit of each waiter is at least one.
            debug_assert!(permits.in_use > 0);
            drop(keys);
            woken.into_iter().for_each(Waker::wake);
        } else if permits.in_use > 1 {
            permits.in_use -= 1;
        } else {
            entry.remove();
            shrink(&mut keys);
        }
    }

    /// Gives up waiting in `slot`. Returns whether the permit was there already, which the caller
    /// then has.
    pub(super) fn give_up(&self, key: Key, slot: &Arc<WaitSlot>) -> bool {
        let mut keys = self.lock(key);
        let waiting = keys.get_mut(&key).and_then(|permits| {
            let at = permits.waiters.iter().position(|waiter| Arc::ptr_eq(&waiter.slot, slot))?;
            let waiter = permits.waiters.remove(at);
            // Whoever is first now may have a larger limit.
            Some((waiter, permits.grant()))
        });
        let Some((waiter, woken)) = waiting else { return true };
        drop(keys);
        woken.into_iter().for_each(Waker::wake);
        drop(waiter);
        false
    }

    /// How many permits of the key are in use.
    pub(super) fn in_use(&self, key: Key) -> u32 {
        self.lock(key).get(&key).map_or(0, |permits| permits.in_use)
    }

    /// How many permits are in use. Locks one shard at a time.
    pub(super) fn in_use_of_all(&self) -> usize {
        let of_shard = |shard: &Shard| -> usize {
            let keys = shard.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.values().map(|permits| permits.in_use as usize).sum()
        };
        self.shards.iter().map(of_shard).sum()
    }

    /// For how many keys there is memory.
    #[cfg(all(test, not(tower_quota_loom)))]
    fn capacity(&self) -> usize {
        self.shards.iter().map(|shard| shard.keys.lock().unwrap_or_else(PoisonError::into_inner).capacity()).sum()
    }
}

impl Permits {
    #[inline(always)]
    fn acquire(&mut self, limit: u32) -> Result<u32, u32> {
        if self.in_use >= limit {
            return Err(self.in_use);
        }
        self.in_use += 1;
        Ok(self.in_use)
    }

    /// Gives permits to those who wait, as many as there are.
    #[cold]
    fn grant(&mut self) -> Woken {
        let mut woken = Woken::new();
        while let Some(Waiter { limit, .. }) = self.waiters.front() {
            let limit = *limit;
            if self.acquire(limit).is_err() {
                break;
            }
            woken.extend(self.waiters.pop_front().and_then(|waiter| waiter.slot.grant()));
        }
        woken
    }
}

impl WaitSlot {
    fn lock(&self) -> MutexGuard<'_, WaitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the permit is there, and returns how the waiter is woken.
    fn grant(&self) -> Option<Waker> {
        match mem::replace(&mut *self.lock(), WaitState::Granted) {
            WaitState::Waiting(waker) => waker,
            WaitState::Granted => None,
        }
    }

    /// Whether the permit is there. Otherwise `waker` is woken when it is.
    pub(super) fn poll_granted(&self, waker: &Waker) -> Poll<()> {
        // Cloned before and dropped after, because both run code of others.
        let mut waker = Some(waker.clone());
        match &mut *self.lock() {
            WaitState::Granted => return Poll::Ready(()),
            WaitState::Waiting(former) => mem::swap(former, &mut waker),
        }
        drop(waker);
        Poll::Pending
    }
}

/// Returns memory that is mostly unused.
#[inline(always)]
fn shrink(keys: &mut HashMap<Key, Permits, SeedableRandomState>) {
    if keys.capacity() > SMALL && keys.len() < keys.capacity() / 8 {
        keys.shrink_to(2 * keys.len());
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;
    use crate::key::{IntoKey as _, KeyHasher};

    #[test]
    fn a_key_without_requests_in_flight_takes_no_memory() {
        const KEYS: u64 = 100_000;
        let (registry, hasher) = (Registry::new(), KeyHasher::random());
        let keys = || (0..KEYS).map(|key| key.key(&hasher));
        keys().for_each(|key| registry.acquire(key, 1).map(drop).unwrap());
        assert!(registry.capacity() >= 100_000);
        keys().for_each(|key| registry.release(key));
        assert_eq!(registry.in_use_of_all(), 0);
        assert!(registry.capacity() <= 2 * SMALL * SHARDS, "there is memory for {} keys", registry.capacity());
    }
}
