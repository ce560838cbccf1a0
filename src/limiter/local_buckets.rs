//! Contains the buckets in memory: [`LocalBuckets`] of all policies, [`PolicyBuckets`] of one.
//!
//! This file selects between a map, a mutex and an atomic, and counts the generations that make
//! receipts void. It must not know of decisions over several policies.

use std::sync::{Arc, PoisonError, Weak};

use super::policy_set::PolicySet;
use crate::{
    bucket::{Bucket, Evaluation, MAX_SLACK},
    clock::{Clock, Nanos, Timestamp},
    decision::Receipt,
    key::Key,
    observe::metrics::DecidedBy,
    policy::{Demand, Policy},
    quota::Quota,
    store::{Placement, Store, StoreGuard},
    sweeper::{self, Sweeping},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

/// The buckets of a limiter's policies in memory.
pub(crate) struct LocalBuckets {
    /// One for each policy, in the limiter's order.
    pub(super) each: Box<[PolicyBuckets]>,
    /// The label of their decisions.
    pub(super) decided_by: DecidedBy,
}

impl LocalBuckets {
    /// Names what it sweeps by the policies, with `suffix`.
    pub(crate) fn new(set: &PolicySet, decided_by: DecidedBy, suffix: &str) -> Self {
        let lone = set.policies().iter().filter(|policy| policy.is_global()).count() == 1;
        let each = set.policies().iter().map(|policy| {
            if policy.is_global() {
                return PolicyBuckets::global(lone);
            }
            let store = Arc::new(Store::new(policy.cap(), set.clock().clone()));
            let sweeping = set.swept_as(policy).map(|name| {
                let name = if suffix.is_empty() { name } else { format!("{name}{suffix}").into() };
                start_sweeping(name, &store, policy)
            });
            PolicyBuckets::new(Storage::Keyed { store, sweeping })
        });
        Self { each: each.collect(), decided_by }
    }

    /// Lets requests wait for as long, now and later.
    pub(super) fn allow_slack(&self, slack: Nanos) {
        self.each.iter().for_each(|buckets| buckets.allow_slack(slack));
    }

    /// Refunds what was acquired at `at`, less what time has returned since.
    pub(crate) fn refund(&self, receipt: &Receipt, at: Timestamp, clock: &Clock) {
        self.each[receipt.outcome.policy].refund(receipt, at, clock);
    }

    /// Charges what a request has cost beyond its receipt.
    pub(crate) fn charge_beyond(&self, receipt: &Receipt, cells: u32, clock: &Clock) {
        self.each[receipt.outcome.policy].charge_beyond(receipt, cells, clock);
    }
}

/// Sweeps the buckets of a policy in the background.
pub(crate) fn start_sweeping(name: Arc<str>, store: &Arc<Store>, policy: &Policy) -> Sweeping {
    let store: Weak<Store> = Arc::downgrade(store);
    Sweeping::start(name, store, sweeper::period(policy.quota().time_to_fill()))
}

/// The buckets of one policy.
pub(super) struct PolicyBuckets {
    storage: Storage,
    /// How long requests may wait.
    slack: AtomicU64,
    /// Advanced when a backlog is cut, which neither time nor a receipt accounts for. Receipts of
    /// an earlier generation are void.
    generation: AtomicU64,
}

enum Storage {
    /// The bucket of the only global policy. It changes by compare-exchange, so that the one bucket
    /// that all requests share is never locked.
    Atomic(AtomicU64),
    Keyed {
        store: Arc<Store>,
        sweeping: Option<Sweeping>,
    },
    /// The bucket of one of several global policies.
    Locked(Mutex<Bucket>),
}

/// What the fast path found.
#[derive(Clone, Copy)]
pub(super) struct FastPath {
    pub(super) evaluation: Evaluation,
    pub(super) now: Timestamp,
    pub(super) generation: u64,
}

impl PolicyBuckets {
    /// `lone` says whether there is no other global policy.
    fn global(lone: bool) -> Self {
        Self::new(if lone {
            Storage::Atomic(AtomicU64::new(0))
        } else {
            Storage::Locked(Mutex::new(Bucket::default()))
        })
    }

    fn new(storage: Storage) -> Self {
        Self { storage, slack: AtomicU64::new(0), generation: AtomicU64::new(0) }
    }

    #[inline(always)]
    pub(super) fn slack(&self) -> Nanos {
        Nanos::new(self.slack.load(Ordering::Relaxed))
    }

    /// The slack never shrinks, so that what is reserved stays reserved.
    fn allow_slack(&self, slack: Nanos) {
        self.slack.fetch_max(slack.min(MAX_SLACK).get(), Ordering::Relaxed);
    }

    #[inline(always)]
    pub(super) fn guard(&self, key: Key) -> BucketGuard<'_> {
        match &self.storage {
            Storage::Atomic(bucket) => BucketGuard::Atomic(bucket),
            Storage::Keyed { store, .. } => BucketGuard::Keyed(store.guard(key)),
            Storage::Locked(bucket) => BucketGuard::Locked(lock(bucket)),
        }
    }

    /// Acquires from a bucket that exists, where nothing but the cells has to be written. Nearly
    /// all requests of a limiter with one policy take this path, which does not need the means to
    /// lock several buckets. `None` leaves everything as it is.
    #[inline(always)]
    pub(super) fn fast_path(&self, demand: &Demand, clock: &Clock) -> Option<FastPath> {
        match &self.storage {
            Storage::Keyed { store, .. } => {
                let mut bucket = store.get(demand.key)?;
                let found = self.evaluate(*bucket, demand, clock)?;
                if found.evaluation.is_granted() {
                    *bucket = found.evaluation.after;
                }
                Some(found)
            }
            Storage::Atomic(bucket) => loop {
                // Read before the clock, and exchanged only if it has not changed since.
                let bits = bucket.load(Ordering::Acquire);
                let found = self.evaluate(Bucket::from_bits(bits), demand, clock)?;
                let after = found.evaluation.after.to_bits();
                if !found.evaluation.is_granted()
                    || bucket.compare_exchange(bits, after, Ordering::AcqRel, Ordering::Acquire).is_ok()
                {
                    return Some(found);
                }
            },
            Storage::Locked(_) => None,
        }
    }

    #[inline(always)]
    fn evaluate(&self, bucket: Bucket, demand: &Demand, clock: &Clock) -> Option<FastPath> {
        let generation = self.generation();
        let now = clock.now();
        let evaluation = bucket.evaluate(now, demand.quota, demand.cells, self.slack());
        (evaluation.clamped == bucket).then_some(FastPath { evaluation, now, generation })
    }

    /// The bucket of `key` as it is; an empty one where there is none.
    pub(super) fn peek(&self, key: Key, clock: &Clock) -> (Bucket, Timestamp) {
        match &self.storage {
            Storage::Atomic(bucket) => {
                let bucket = bucket.load(Ordering::Acquire);
                (Bucket::from_bits(bucket), clock.now())
            }
            Storage::Keyed { store, .. } => {
                let bucket = store.get(key);
                let now = clock.now();
                (bucket.map_or_else(Bucket::default, |bucket| *bucket), now)
            }
            Storage::Locked(bucket) => {
                let bucket = lock(bucket);
                (*bucket, clock.now())
            }
        }
    }

    /// Refunds what was acquired at `at`, less what time has returned since. Where requests wait in
    /// line, only the last one is refunded: the requests behind another one keep their times, and a
    /// new request would be served at the same time as the last one.
    pub(super) fn refund(&self, receipt: &Receipt, at: Timestamp, clock: &Clock) {
        let refund = |bucket: &mut Bucket| {
            // Both are read under the lock: a receipt that is void stays void.
            let now = clock.now();
            let no_line = self.slack().is_zero() || bucket.backlog(now) <= receipt.outcome.quota.burst_nanos();
            if (no_line || *bucket == receipt.after) && self.generation() == receipt.generation {
                *bucket = bucket.refund(receipt.added, now.since(at));
            }
        };
        match &self.storage {
            Storage::Atomic(bucket) => {
                // The closure never returns `None`, so this cannot fail.
                let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                    let mut bucket = Bucket::from_bits(bits);
                    refund(&mut bucket);
                    Some(bucket.to_bits())
                });
            }
            Storage::Keyed { store, .. } if receipt.from_overflow => refund(&mut store.overflow_slot(receipt.key)),
            // A bucket that was swept is full.
            Storage::Keyed { store, .. } => {
                if let Some(mut bucket) = store.get(receipt.key) {
                    refund(&mut bucket);
                }
            }
            Storage::Locked(bucket) => refund(&mut lock(bucket)),
        }
    }

    /// Charges what a request has cost beyond its receipt, to the same bucket.
    fn charge_beyond(&self, receipt: &Receipt, cells: u32, clock: &Clock) {
        let quota = receipt.outcome.quota;
        match &self.storage {
            Storage::Keyed { store, .. } if receipt.from_overflow => {
                let mut bucket = store.overflow_slot(receipt.key);
                *bucket = bucket.charge(clock.now(), quota, cells, self.slack());
            }
            _ => drop(self.charge(receipt.key, quota, cells, clock)),
        }
    }

    /// Charges `cells` whether or not they are there. Returns the bucket afterwards, and when that
    /// was.
    pub(super) fn charge(&self, key: Key, quota: Quota, cells: u32, clock: &Clock) -> (Bucket, Timestamp) {
        let mut guard = self.guard(key);
        let tracked = !matches!(guard.placement(), Placement::Full | Placement::Untracked);
        let (after, now) = loop {
            let found = guard.bucket();
            let now = clock.now();
            let after = found.charge(now, quota, cells, self.slack());
            // A full bucket needs no place.
            if after.is_idle(now) || guard.write(found, after) {
                break (after, now);
            }
        };
        (if tracked { after } else { Bucket::default() }, now)
    }

    /// Fills the bucket of `key`, and makes the policy's receipts void. True if it was not full.
    pub(super) fn reset(&self, key: Key, clock: &Clock) -> bool {
        let empty = |bucket: &mut Bucket| {
            // Under the lock: a later request has the new generation and a bucket that is not reset
            // again.
            self.advance_generation();
            !std::mem::take(bucket).is_idle(clock.now())
        };
        match &self.storage {
            Storage::Atomic(bucket) => loop {
                let bits = bucket.load(Ordering::Acquire);
                let was_used = empty(&mut Bucket::from_bits(bits));
                if bucket.compare_exchange(bits, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    break was_used;
                }
            },
            Storage::Keyed { store, .. } => store.get(key).is_some_and(|mut bucket| empty(&mut bucket)),
            Storage::Locked(bucket) => empty(&mut lock(bucket)),
        }
    }

    #[inline(always)]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Called under the lock of the bucket that is cut, or before it is exchanged.
    pub(super) fn advance_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Requests an early sweep of a full map.
    pub(super) fn request_sweep(&self) {
        if let Storage::Keyed { sweeping: Some(sweeping), .. } = &self.storage {
            sweeping.request();
        }
    }

    pub(super) fn store(&self) -> Option<&Store> {
        match &self.storage {
            Storage::Keyed { store, .. } => Some(store),
            Storage::Atomic(_) | Storage::Locked(_) => None,
        }
    }
}

/// One bucket, locked, unless it is the atomic one.
pub(super) enum BucketGuard<'a> {
    Atomic(&'a AtomicU64),
    Keyed(StoreGuard<'a>),
    Locked(MutexGuard<'a, Bucket>),
    /// No bucket, for a request that cannot have one.
    Nothing,
}

impl BucketGuard<'_> {
    #[inline(always)]
    pub(super) fn bucket(&self) -> Bucket {
        match self {
            Self::Atomic(bucket) => Bucket::from_bits(bucket.load(Ordering::Acquire)),
            Self::Keyed(guard) => guard.value(),
            Self::Locked(bucket) => **bucket,
            Self::Nothing => Bucket::default(),
        }
    }

    #[inline(always)]
    pub(super) fn placement(&self) -> Placement {
        match self {
            Self::Keyed(guard) => guard.placement(),
            Self::Atomic(_) | Self::Locked(_) | Self::Nothing => Placement::Own,
        }
    }

    /// Writes, unless the bucket is atomic and no longer as it was `found`. True where it was
    /// written.
    #[inline(always)]
    pub(super) fn write(&mut self, found: Bucket, bucket: Bucket) -> bool {
        match self {
            Self::Atomic(atomic) => {
                let (found, bucket) = (found.to_bits(), bucket.to_bits());
                return atomic.compare_exchange(found, bucket, Ordering::AcqRel, Ordering::Acquire).is_ok();
            }
            Self::Keyed(guard) => guard.write(bucket),
            Self::Locked(locked) => **locked = bucket,
            Self::Nothing => {}
        }
        true
    }
}

/// No panic can leave a bucket half-written, because it is one number.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use ::loom::thread;

    use super::*;
    use crate::{clock::ManualClock, decision::PolicyOutcome};

    const START: Timestamp = Timestamp::ORIGIN;

    fn lone(burst: u32) -> (Arc<PolicyBuckets>, Clock, Demand) {
        let quota = Quota::per_hour(1).burst(burst);
        let demand = Demand { key: Key::GLOBAL, quota, cells: 1, shadow: false };
        (Arc::new(PolicyBuckets::global(true)), ManualClock::new().into(), demand)
    }

    fn acquire(buckets: &PolicyBuckets, demand: &Demand, clock: &Clock) -> Option<Receipt> {
        let FastPath { evaluation, now, generation } = buckets.fast_path(demand, clock).unwrap();
        evaluation.is_granted().then(|| Receipt {
            outcome: PolicyOutcome::of(0, demand, evaluation.after, evaluation, now),
            key: demand.key,
            cells: demand.cells,
            added: demand.quota.cell_nanos(),
            generation,
            after: evaluation.after,
            from_overflow: false,
        })
    }

    fn on_two_threads<A: Send + 'static, B>(
        first: impl FnOnce() -> A + Send + 'static,
        second: impl FnOnce() -> B,
    ) -> (A, B) {
        let first = thread::spawn(first);
        let second = second();
        (first.join().unwrap(), second)
    }

    #[test]
    fn loom_two_threads_acquire_the_last_cell_once() {
        ::loom::model(|| {
            let (buckets, clock, demand) = lone(2);
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            let acquired = move |buckets: &PolicyBuckets, clock: &Clock| {
                (0..2).filter(|_| acquire(buckets, &demand, clock).is_some()).count()
            };
            let (a, b) = on_two_threads(move || acquired(&other, &its_clock), || acquired(&buckets, &clock));
            assert_eq!(a + b, 2);
        });
    }

    /// A refund beside another thread returns cells once, and none of a receipt from before a
    /// reset.
    #[test]
    fn loom_a_refund_beside_a_reset_returns_no_cell_twice() {
        ::loom::model(|| {
            let (buckets, clock, demand) = lone(3);
            let receipt = acquire(&buckets, &demand, &clock).unwrap();
            acquire(&buckets, &demand, &clock).unwrap();
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            on_two_threads(move || other.refund(&receipt, START, &its_clock), || buckets.reset(Key::GLOBAL, &clock));
            // Before the reset or after it: the bucket is full, and not fuller.
            assert_eq!(buckets.peek(Key::GLOBAL, &clock).0, Bucket::default());
            let later = acquire(&buckets, &demand, &clock).unwrap();
            buckets.refund(&receipt, START, &clock);
            assert_eq!(buckets.peek(Key::GLOBAL, &clock).0, later.after, "a receipt from before the reset is void");
        });
    }

    /// A reset between an acquisition and its refund: later requests keep their cells.
    #[test]
    fn loom_a_reset_beside_an_acquisition_leaves_its_receipt_or_its_cells_and_not_both() {
        ::loom::model(|| {
            let (buckets, clock, demand) = lone(2);
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            let (receipt, _) = on_two_threads(
                move || acquire(&other, &demand, &its_clock).unwrap(),
                || buckets.reset(Key::GLOBAL, &clock),
            );
            let before = buckets.peek(Key::GLOBAL, &clock).0;
            let later = acquire(&buckets, &demand, &clock).unwrap();
            buckets.refund(&receipt, START, &clock);
            let backlog = buckets.peek(Key::GLOBAL, &clock).0.backlog(START);
            // At least the later cells, which nobody has refunded.
            assert!(backlog >= later.added, "a backlog of {backlog:?} after {before:?}");
        });
    }
}
