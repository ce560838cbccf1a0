//! Where the buckets of one policy are, and how one is held.
//!
//! Owns the choice between a map, a lock and an atomic, and the generation that makes receipts void. Knows nothing of
//! decisions over several policies.

use std::sync::{Arc, OnceLock, PoisonError};

use super::{live::LiveQuota, penalties::Penalties};
use crate::{
    bucket::{Bucket, Drawn, MOST_SLACK},
    clock::Clock,
    decision::Draw,
    key::Key,
    policy::{Charge, Policy},
    quota::Quota,
    store::{Hold, Room, Store},
    sweeper::Sweeping,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

pub(super) struct Buckets {
    kept: Kept,
    quota: LiveQuota,
    /// For how many nanoseconds requests may wait.
    slack: AtomicU64,
    /// Made with the limiter for a policy that bans, and with the first block for another.
    penalties: OnceLock<Penalties>,
    /// Advanced when backlog is cut off, which neither time nor a receipt accounts for: receipts from before are void.
    generation: AtomicU64,
}

enum Kept {
    /// One of several global policies.
    Locked(Mutex<Bucket>),
    /// The one global policy: draws go through a compare-exchange, so that the one bucket that all requests share is
    /// never locked.
    Lone(AtomicU64),
    Keyed {
        store: Arc<Store>,
        sweeping: Option<Sweeping>,
    },
}

impl Buckets {
    pub(super) fn keyed(policy: &Policy, store: Arc<Store>, sweeping: Option<Sweeping>) -> Self {
        Self::new(policy, Kept::Keyed { store, sweeping })
    }

    pub(super) fn global(policy: &Policy, lone: bool) -> Self {
        Self::new(
            policy,
            if lone { Kept::Lone(AtomicU64::new(0)) } else { Kept::Locked(Mutex::new(Bucket::default())) },
        )
    }

    fn new(policy: &Policy, kept: Kept) -> Self {
        let (quota, penalties) = (LiveQuota::new(policy.quota()), OnceLock::new());
        Self { kept, quota, slack: AtomicU64::new(0), penalties, generation: AtomicU64::new(0) }
    }

    /// The policy's own quota, as it is now.
    #[inline(always)]
    pub(super) fn quota(&self) -> Quota {
        self.quota.get()
    }

    pub(super) fn set_quota(&self, quota: Quota) {
        self.quota.set(quota);
    }

    #[inline(always)]
    pub(super) fn slack(&self) -> u64 {
        self.slack.load(Ordering::Relaxed)
    }

    /// Never less again: what was reserved stays reserved.
    pub(super) fn allow_slack(&self, nanos: u64) {
        self.slack.fetch_max(nanos.min(MOST_SLACK), Ordering::Relaxed);
    }

    /// `None` as long as nobody was ever blocked, for a policy that does not ban.
    #[inline(always)]
    pub(super) fn penalties(&self) -> Option<&Penalties> {
        self.penalties.get()
    }

    pub(super) fn penalties_or(&self, make: impl FnOnce() -> Penalties) -> &Penalties {
        self.penalties.get_or_init(make)
    }

    #[inline(always)]
    pub(super) fn hold(&self, key: Key) -> Held<'_> {
        match &self.kept {
            Kept::Keyed { store, .. } => Held::Keyed(store.hold(key)),
            Kept::Locked(bucket) => Held::Locked(lock(bucket)),
            Kept::Lone(bucket) => Held::Lone(bucket),
        }
    }

    /// Draws from a bucket that exists, where nothing but the draw is written: the way that nearly all requests of a
    /// limiter with one policy go, without the means to hold several buckets. `None` leaves everything as it is.
    #[inline(always)]
    pub(super) fn draw_alone(&self, charge: &Charge, clock: &Clock) -> Option<Alone> {
        match &self.kept {
            Kept::Keyed { store, .. } => {
                let mut bucket = store.existing(charge.key)?;
                let alone = self.draw_from(*bucket, charge, clock)?;
                if alone.drawn.is_granted() {
                    *bucket = alone.drawn.after;
                }
                Some(alone)
            }
            Kept::Lone(bucket) => loop {
                // Read before the clock, and exchanged only if nothing came between.
                let found = bucket.load(Ordering::Acquire);
                let alone = self.draw_from(Bucket::from_bits(found), charge, clock)?;
                let after = alone.drawn.after.to_bits();
                if !alone.drawn.is_granted()
                    || bucket.compare_exchange(found, after, Ordering::AcqRel, Ordering::Acquire).is_ok()
                {
                    return Some(alone);
                }
            },
            Kept::Locked(_) => None,
        }
    }

    #[inline(always)]
    fn draw_from(&self, found: Bucket, charge: &Charge, clock: &Clock) -> Option<Alone> {
        let generation = self.generation();
        let now = clock.now();
        let drawn = found.draw(now, charge.quota, charge.cells, self.slack());
        (drawn.clamped == found).then_some(Alone { drawn, now, generation })
    }

    /// The bucket of `key` as it stands; an empty one where there is none.
    pub(super) fn peek(&self, key: Key, clock: &Clock) -> (Bucket, u64) {
        match &self.kept {
            Kept::Keyed { store, .. } => {
                let bucket = store.existing(key);
                let now = clock.now();
                (bucket.map_or_else(Bucket::default, |bucket| *bucket), now)
            }
            Kept::Locked(bucket) => {
                let bucket = lock(bucket);
                (*bucket, clock.now())
            }
            Kept::Lone(bucket) => {
                let bucket = bucket.load(Ordering::Acquire);
                (Bucket::from_bits(bucket), clock.now())
            }
        }
    }

    /// Returns what time has not returned yet of a draw made at `at`. Where requests wait in line, only the last draw returns
    /// any: those behind another one keep their times, and who came next would share the last one's.
    pub(super) fn put_back(&self, draw: &Draw, at: u64, clock: &Clock) {
        let restore = |bucket: &mut Bucket| {
            // Both are read under the lock: what is void now stays void.
            let now = clock.now();
            let no_line = self.slack() == 0 || bucket.backlog(now) <= draw.trial.quota.burst_nanos();
            if (no_line || *bucket == draw.left) && self.generation() == draw.generation {
                *bucket = bucket.put_back(draw.added, now.saturating_sub(at));
            }
        };
        match &self.kept {
            Kept::Keyed { store, .. } if draw.from_overflow => restore(&mut store.overflow(draw.key)),
            // A bucket that is gone owed nothing.
            Kept::Keyed { store, .. } => {
                if let Some(mut bucket) = store.existing(draw.key) {
                    restore(&mut bucket);
                }
            }
            Kept::Locked(bucket) => restore(&mut lock(bucket)),
            Kept::Lone(bucket) => {
                // The closure never returns `None`, so neither arm can fail.
                let _ = bucket.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
                    let mut bucket = Bucket::from_bits(bits);
                    restore(&mut bucket);
                    Some(bucket.to_bits())
                });
            }
        }
    }

    /// Charges what a request has cost beyond its draw, where that was drawn from.
    pub(super) fn debit(&self, draw: &Draw, cells: u32, clock: &Clock) {
        if draw.from_overflow {
            if let Kept::Keyed { store, .. } = &self.kept {
                let mut bucket = store.overflow(draw.key);
                *bucket = bucket.debit(clock.now(), draw.trial.quota, cells, self.slack());
            }
        } else {
            self.charge(draw.key, draw.trial.quota, cells, clock);
        }
    }

    /// Charges `cells` whether or not they are there. Returns the bucket then, and when that was.
    pub(super) fn charge(&self, key: Key, quota: Quota, cells: u32, clock: &Clock) -> (Bucket, u64) {
        let mut held = self.hold(key);
        let tracked = !matches!(held.room(), Room::Refused | Room::Untracked);
        let (after, now) = loop {
            let found = held.bucket();
            let now = clock.now();
            let after = found.debit(now, quota, cells, self.slack());
            // What owes nothing needs no bucket.
            if after.is_idle(now) || held.write(found, after) {
                break (after, now);
            }
        };
        (if tracked { after } else { Bucket::default() }, now)
    }

    /// Forgets what `key` owes, and makes its receipts void. True if it owed anything.
    pub(super) fn reset(&self, key: Key, clock: &Clock) -> bool {
        let empty = |bucket: &mut Bucket| {
            // Under the lock: who draws after it has the new generation and a bucket that is not emptied again.
            self.advance_generation();
            !std::mem::take(bucket).is_idle(clock.now())
        };
        match &self.kept {
            Kept::Keyed { store, .. } => store.existing(key).is_some_and(|mut bucket| empty(&mut bucket)),
            Kept::Locked(bucket) => empty(&mut lock(bucket)),
            Kept::Lone(bucket) => loop {
                let found = bucket.load(Ordering::Acquire);
                let owed = empty(&mut Bucket::from_bits(found));
                if bucket.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    break owed;
                }
            },
        }
    }

    #[inline(always)]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// To be called under the lock of the bucket that is cut, or before it is exchanged.
    pub(super) fn advance_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn press(&self) {
        if let Kept::Keyed { sweeping: Some(sweeping), .. } = &self.kept {
            sweeping.press();
        }
    }

    pub(super) fn store(&self) -> Option<&Store> {
        match &self.kept {
            Kept::Keyed { store, .. } => Some(store),
            Kept::Locked(_) | Kept::Lone(_) => None,
        }
    }
}

/// What [`Buckets::draw_alone`] came to.
#[derive(Clone, Copy)]
pub(super) struct Alone {
    pub(super) drawn: Drawn,
    pub(super) now: u64,
    pub(super) generation: u64,
}

/// One bucket, exclusively, except for the lone global one.
pub(super) enum Held<'a> {
    Keyed(Hold<'a>),
    Locked(MutexGuard<'a, Bucket>),
    Lone(&'a AtomicU64),
    Nothing,
}

impl Held<'_> {
    #[inline(always)]
    pub(super) fn bucket(&self) -> Bucket {
        match self {
            Self::Keyed(hold) => hold.bucket(),
            Self::Locked(bucket) => **bucket,
            Self::Lone(bucket) => Bucket::from_bits(bucket.load(Ordering::Acquire)),
            Self::Nothing => Bucket::default(),
        }
    }

    #[inline(always)]
    pub(super) fn room(&self) -> Room {
        match self {
            Self::Keyed(hold) => hold.room(),
            Self::Locked(_) | Self::Lone(_) | Self::Nothing => Room::Own,
        }
    }

    /// Writes, unless the bucket has no lock and is no longer as it was `found`. True where it was written.
    #[inline(always)]
    pub(super) fn write(&mut self, found: Bucket, bucket: Bucket) -> bool {
        match self {
            Self::Keyed(hold) => hold.write(bucket),
            Self::Locked(locked) => **locked = bucket,
            Self::Lone(lone) => {
                let (found, bucket) = (found.to_bits(), bucket.to_bits());
                return lone.compare_exchange(found, bucket, Ordering::AcqRel, Ordering::Acquire).is_ok();
            }
            Self::Nothing => {}
        }
        true
    }
}

/// A bucket is one number: no panic can leave it half-written.
fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use loom::thread;

    use super::*;
    use crate::clock::ManualClock;

    fn lone(burst: u32) -> (Arc<Buckets>, Clock, Charge) {
        let quota = Quota::per_hour(1).burst(burst);
        let buckets = Arc::new(Buckets::global(&Policy::global(quota), true));
        let charge = Charge { key: Key::GLOBAL, quota, cells: 1, shadow: false };
        (buckets, ManualClock::new().into(), charge)
    }

    fn draw(buckets: &Buckets, charge: &Charge, clock: &Clock) -> Option<Draw> {
        let Alone { drawn, now, generation } = buckets.draw_alone(charge, clock).unwrap();
        let trial = crate::decision::Trial::of(0, charge.quota, drawn.after, drawn, now);
        let (cells, added) = (charge.cells, charge.quota.cell_nanos());
        drawn.is_granted().then_some(Draw {
            trial,
            key: charge.key,
            cells,
            added,
            generation,
            left: drawn.after,
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
    fn loom_two_threads_draw_the_last_cell_once() {
        loom::model(|| {
            let (buckets, clock, charge) = lone(2);
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            let draws = move |buckets: &Buckets, clock: &Clock| {
                (0..2).filter(|_| draw(buckets, &charge, clock).is_some()).count()
            };
            let (a, b) = on_two_threads(move || draws(&other, &its_clock), || draws(&buckets, &clock));
            assert_eq!(a + b, 2);
        });
    }

    /// What is put back while another thread draws comes back once, and nothing of a draw that a reset has forgotten.
    #[test]
    fn loom_a_put_back_beside_a_draw_and_a_reset_returns_no_cell_twice() {
        loom::model(|| {
            let (buckets, clock, charge) = lone(3);
            let receipt = draw(&buckets, &charge, &clock).unwrap();
            draw(&buckets, &charge, &clock).unwrap();
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            on_two_threads(move || other.put_back(&receipt, 0, &its_clock), || buckets.reset(Key::GLOBAL, &clock));
            // Before the reset or after it: the bucket is empty, and not emptier.
            assert_eq!(buckets.peek(Key::GLOBAL, &clock).0, Bucket::default());
            let after = draw(&buckets, &charge, &clock).unwrap();
            buckets.put_back(&receipt, 0, &clock);
            assert_eq!(buckets.peek(Key::GLOBAL, &clock).0, after.left, "a receipt from before the reset is void");
        });
    }

    /// A reset between a draw and its put-back: the cells of who draws after it are its own.
    #[test]
    fn loom_a_reset_beside_a_draw_leaves_its_receipt_or_its_cells_and_not_both() {
        loom::model(|| {
            let (buckets, clock, charge) = lone(2);
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            let (receipt, _) = on_two_threads(
                move || draw(&other, &charge, &its_clock).unwrap(),
                || buckets.reset(Key::GLOBAL, &clock),
            );
            let owed_before = buckets.peek(Key::GLOBAL, &clock).0;
            let later = draw(&buckets, &charge, &clock).unwrap();
            buckets.put_back(&receipt, 0, &clock);
            let owed = buckets.peek(Key::GLOBAL, &clock).0.backlog(0);
            // What is owed is at least the later draw, which nobody has put back.
            assert!(owed >= later.added, "{owed} is owed after {owed_before:?}");
        });
    }
}
