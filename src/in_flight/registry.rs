//! Contains [`Registry`]: how many permits each key has, and who waits for one.
//!
//! This file must not know of requests, of services, or of limits beyond the numbers that callers
//! pass.
//!
//! # Locking behaviour
//!
//! A key's shard is locked while its permits are counted, and beside it the signal of the waiter
//! that gets one. No other lock is taken, and no code of users runs, under either: a waker is
//! called and dropped when both are unlocked.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt, mem,
    sync::{Arc, PoisonError},
    task::{Poll, Waker},
};

use foldhash::{SharedSeed, fast::SeedableRandomState};

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

/// The capacity of a shard that is too small to shrink.
const SMALL: usize = 64;

/// One lock, on cache lines of its own, so that threads do not wait for each other's shards.
///
/// Rejected: dashmap, which cannot shrink a single shard.
#[repr(align(128))]
struct Shard {
    keys: Mutex<HashMap<Key, Permits, SeedableRandomState>>,
}

/// The permits of one key.
struct Permits {
    /// How many are in use: at least one.
    in_use: u32,
    /// In the order in which they came. The limit of each is at most `in_use`: otherwise it would
    /// have a permit.
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    limit: u32,
    signal: Arc<GrantSignal>,
}

/// Tells a waiter that it has a permit.
pub(super) struct GrantSignal {
    state: Mutex<SignalState>,
}

enum SignalState {
    /// A permit is there: one of so many in use.
    Granted(u32),
    Waiting(Option<Waker>),
}

/// The answer to a caller that may wait.
pub(super) enum Queued {
    /// A permit is taken: one of so many in use.
    Acquired(u32),
    /// The caller waits for this signal.
    Behind(Arc<GrantSignal>),
    /// As many callers wait as may, and so many permits are in use.
    Full(u32),
}

/// How a wait ends that its caller ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WaitEnd {
    /// A permit was there already, one of so many in use. The caller has it.
    Granted(u32),
    /// The caller has none, and so many are in use.
    Left(u32),
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

    /// Takes a permit if fewer than `limit` are in use. Returns how many are in use then.
    ///
    /// It passes only waiters with smaller limits: each of the others has a permit by now.
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
            Entry::Occupied(mut entry) => entry.get_mut().acquire(limit),
        }
    }

    /// Takes a permit as [`acquire`](Self::acquire) does, and otherwise waits for one, if fewer
    /// than `max_waiters` of the key do.
    pub(super) fn acquire_or_wait(&self, key: Key, limit: u32, max_waiters: usize) -> Queued {
        match self.lock(key).entry(key) {
            Entry::Vacant(_) if limit == 0 => Queued::Full(0),
            Entry::Vacant(entry) => {
                entry.insert(Permits { in_use: 1, waiters: VecDeque::new() });
                Queued::Acquired(1)
            }
            Entry::Occupied(mut entry) => {
                let permits = entry.get_mut();
                match permits.acquire(limit) {
                    Ok(in_use) => Queued::Acquired(in_use),
                    // A limit of zero never grants.
                    Err(in_use) if limit == 0 || permits.waiters.len() >= max_waiters => Queued::Full(in_use),
                    Err(_) => {
                        let signal = Arc::new(GrantSignal { state: Mutex::new(SignalState::Waiting(None)) });
                        permits.waiters.push_back(Waiter { limit, signal: Arc::clone(&signal) });
                        Queued::Behind(signal)
                    }
                }
            }
        }
    }

    /// Returns a permit. The first waiter gets it whose limit allows one more.
    #[inline(always)]
    pub(super) fn release(&self, key: Key) {
        let mut keys = self.lock(key);
        let Entry::Occupied(mut entry) = keys.entry(key) else {
            debug_assert!(false, "a permit is returned that was never taken");
            return;
        };
        let permits = entry.get_mut();
        if !permits.waiters.is_empty() {
            let waker = permits.pass_on();
            drop(keys);
            if let Some(waker) = waker {
                waker.wake();
            }
        } else if permits.in_use > 1 {
            permits.in_use -= 1;
        } else {
            entry.remove();
            shrink(&mut keys);
        }
    }

    /// Stops waiting for `signal`.
    pub(super) fn leave(&self, key: Key, signal: &Arc<GrantSignal>) -> WaitEnd {
        let mut keys = self.lock(key);
        let found = keys.get_mut(&key).and_then(|permits| {
            let at = permits.waiters.iter().position(|waiter| Arc::ptr_eq(&waiter.signal, signal))?;
            Some((permits.waiters.remove(at), permits.in_use))
        });
        drop(keys);
        // Its waker is dropped here, while nothing is locked.
        match found {
            Some((_waiter, in_use)) => WaitEnd::Left(in_use),
            None => WaitEnd::Granted(signal.granted().unwrap_or_default()),
        }
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

    /// Gives a permit that is returned to the first waiter whose limit allows it, and returns how
    /// that one is woken.
    #[cold]
    fn pass_on(&mut self) -> Option<Waker> {
        // One at most: the limits of the waiters are no larger than what was in use.
        debug_assert!(self.waiters.iter().all(|waiter| waiter.limit <= self.in_use));
        let Some(at) = self.waiters.iter().position(|waiter| waiter.limit >= self.in_use) else {
            self.in_use -= 1;
            return None;
        };
        self.waiters.remove(at)?.signal.grant(self.in_use)
    }
}

impl GrantSignal {
    fn lock(&self) -> MutexGuard<'_, SignalState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the waiter that it has a permit, one of so many in use, and returns how it is woken.
    fn grant(&self, in_use: u32) -> Option<Waker> {
        match mem::replace(&mut *self.lock(), SignalState::Granted(in_use)) {
            SignalState::Waiting(waker) => waker,
            SignalState::Granted(_) => None,
        }
    }

    fn granted(&self) -> Option<u32> {
        if let SignalState::Granted(in_use) = *self.lock() { Some(in_use) } else { None }
    }

    /// Ready when a permit is there, with how many are in use then. Otherwise `waker` is woken when
    /// one is.
    pub(super) fn poll_granted(&self, waker: &Waker) -> Poll<u32> {
        // Cloned before the lock and dropped after it: both are code of others.
        let mut waker = Some(waker.clone());
        match &mut *self.lock() {
            SignalState::Granted(in_use) => return Poll::Ready(*in_use),
            SignalState::Waiting(former) => mem::swap(former, &mut waker),
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
