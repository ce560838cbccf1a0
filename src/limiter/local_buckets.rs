//! Contains the buckets in memory: [`LocalBuckets`] of all policies, [`PolicyBuckets`] of one.
//!
//! This file selects between a map, a mutex and an atomic, and counts the generations that make
//! receipts void. It must not know of decisions over several policies.

use std::sync::{Arc, OnceLock, Weak};

use super::{
    atomic_bucket::AtomicBucket,
    bucket_guard::{BucketGuard, chosen, lock},
    error::LimitError,
    keyed_buckets::{KeyedBuckets, KeyedGuard},
    moment::Moment,
    pauses::{Pause, Pauses},
    policy_set::PolicySet,
    resets::Resets,
    window_clock::WindowClock,
};
use crate::{
    bucket::{Bucket, Evaluation, MAX_SLACK, furthest},
    clock::{Clock, Nanos, Timestamp},
    decision::{DecidedLimit, Level, Receipt, ReceiptOrigin, WindowLeft},
    key::Key,
    limit::Limit,
    observe::metrics::DecidedBy,
    policy::{Basis, Demand, Policy},
    quota::Quota,
    snapshot::ResetMark,
    store::{Placement, Sweepable},
    sweeper::{self, Sweeping},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The buckets of a limiter's policies in memory.
pub(crate) struct LocalBuckets {
    /// One for each policy, in the limiter's order.
    pub(super) each: Box<[Arc<PolicyBuckets>]>,
    /// Whether any policy has windows.
    pub(super) has_windows: bool,
    /// The label of their decisions.
    pub(super) decided_by: DecidedBy,
}

impl LocalBuckets {
    /// Names what it sweeps by the policies, with `suffix`.
    pub(crate) fn new(set: &PolicySet, decided_by: DecidedBy, suffix: &str) -> Self {
        let each = set.policies().iter().map(|policy| Arc::new(PolicyBuckets::of(set, policy, suffix)));
        Self { each: each.collect(), has_windows: has_windows(set), decided_by }.that_know_penalties(set)
    }

    /// The buckets of a set whose policies continue former ones: `origins` are their numbers. A
    /// global policy that was the only one stays an atomic, beside others that are locked.
    pub(super) fn successor(&self, former: &PolicySet, set: &PolicySet, origins: &[Option<usize>]) -> Self {
        let each = set.policies().iter().zip(origins).map(|(policy, origin)| {
            let Some(origin) = *origin else { return Arc::new(PolicyBuckets::of(set, policy, "")) };
            let buckets = &self.each[origin];
            buckets.allow_quota(policy.basis());
            buckets.set_window(policy.limit());
            buckets.forget_plans(|quota| policy.keeps_plan(former.policy(origin), quota));
            Arc::clone(buckets)
        });
        let (has_windows, decided_by) = (has_windows(set), self.decided_by);
        Self { each: each.collect(), has_windows, decided_by }.that_know_penalties(set)
    }

    fn that_know_penalties(self, set: &PolicySet) -> Self {
        for (index, buckets) in self.each.iter().enumerate() {
            if set.penalties(index).is_some() {
                buckets.know_penalties();
            }
        }
        self
    }

    /// What a policy's buckets are decided by under this limit of a key.
    ///
    /// # Errors
    ///
    /// When it is a rate and the policy has windows, or the reverse, or windows of another period.
    #[cfg(feature = "redis")]
    pub(crate) fn basis_of(&self, index: usize, policy: &Policy, limit: &Limit) -> Result<Quota, LimitError> {
        self.each[index].basis_of(policy, limit)
    }

    /// A share of what a policy's buckets are decided by, at least one cell of what is not zero.
    #[cfg(feature = "redis")]
    pub(crate) fn share_of(&self, policy: usize, quota: Quota, share: f64) -> Quota {
        match self.each[policy].window() {
            Some(_) if quota.burst_size() == 0 => quota,
            Some(_) => Quota::of_window(quota.scaled(share).burst_size()),
            None => quota.scaled(share),
        }
    }

    /// Sets the window of a policy that has windows.
    #[cfg(feature = "redis")]
    pub(crate) fn set_window(&self, policy: usize, limit: &Limit) {
        self.each[policy].set_window(limit);
    }

    /// Lets requests of a policy wait for as long, now and later.
    pub(crate) fn allow_slack(&self, policy: usize, slack: Slack) {
        self.each[policy].allow_slack(slack);
    }

    /// Refunds what was acquired at `at`, less what time has returned since.
    pub(crate) fn refund(&self, receipt: &Receipt, at: Timestamp, clock: &Clock) {
        self.each[receipt.outcome.policy].refund(receipt, at, clock);
    }

    /// Pauses a key under a policy for `time` from now on. False where there is no place for
    /// another key.
    pub(crate) fn pause(&self, set: &PolicySet, policy: usize, key: Key, time: Nanos) -> bool {
        let swept_as = set.swept_as(&set.policies()[policy]);
        self.each[policy].pause(key, time, set.clock(), swept_as.as_ref())
    }

    /// Ends the pause of a key under a policy.
    #[cfg(feature = "redis")]
    pub(crate) fn end_pause(&self, set: &PolicySet, policy: usize, key: Key) {
        if let Some(pauses) = self.each[policy].pauses() {
            pauses.end(key, set.now());
        }
    }

    /// The pauses of a key under a policy.
    pub(crate) fn pause_of(&self, policy: usize, key: Key) -> Pause {
        self.each[policy].pause_of(key)
    }

    /// Charges what a request has cost beyond its receipt.
    pub(crate) fn charge_beyond(&self, receipt: &Receipt, cells: u32, clock: &Clock) {
        self.each[receipt.outcome.policy].charge_beyond(receipt, cells, clock);
    }
}

fn has_windows(set: &PolicySet) -> bool {
    set.policies().iter().any(|policy| policy.limit().window().is_some())
}

/// Sweeps the buckets of a policy in the background.
pub(crate) fn start_sweeping<S: Sweepable + 'static>(name: Arc<str>, buckets: &Arc<S>, policy: &Policy) -> Sweeping {
    let buckets: Weak<S> = Arc::downgrade(buckets);
    Sweeping::start(name, buckets, sweeper::period(policy.time_to_fill()))
}

/// How long requests of a policy may wait for their cells.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Slack {
    /// In a layer that delays requests: debts may be as long.
    OfLayer(Nanos),
    /// By a caller that has reserved cells.
    OfReservation(Nanos),
}

/// The buckets of one policy.
pub(super) struct PolicyBuckets {
    storage: Storage,
    /// Whether a key may be blocked or paused, so that a decision has to look for more than cells.
    knows_exceptions: AtomicBool,
    /// Made with the first pause of a key.
    pauses: OnceLock<Pauses>,
    /// How long requests may wait.
    slack: AtomicU64,
    /// How long debts may be beyond the burst.
    debt: AtomicU64,
    /// The time that the longest burst of all quotas so far takes to come back.
    longest_burst: AtomicU64,
    /// The current window of a policy that has windows.
    window: Option<Arc<WindowClock>>,
    /// Follows the wall clock where no sweep of a map does.
    _following: Option<Sweeping>,
    /// Made with the first reset, for snapshots.
    resets: OnceLock<Resets>,
}

/// Each has a generation, or many. It is advanced when a backlog is converted, cut or reset, which
/// neither time nor a receipt accounts for. Receipts of an earlier generation are void.
enum Storage {
    /// The bucket of a global policy that was the only one when it came, and whose quota did not
    /// depend on the request.
    Atomic { bucket: AtomicBucket, generation: AtomicU64 },
    Keyed {
        buckets: Arc<KeyedBuckets>,
        sweeping: Option<Sweeping>,
        /// Shared by keys, so that a change for one client makes few receipts of others void.
        generations: Box<[AtomicU64; GENERATIONS]>,
    },
    /// The bucket of a global policy, with the quota by which it was last decided.
    Locked { bucket: Mutex<(Bucket, Basis)>, generation: AtomicU64 },
}

/// What the fast path found.
#[derive(Clone, Copy)]
pub(super) struct FastPath<M> {
    pub(super) evaluation: Evaluation,
    pub(super) moment: M,
    pub(super) now: Timestamp,
    /// Meaningful where the cells are granted, and a receipt is wanted.
    pub(super) generation: u64,
}

/// Asks a bucket for nothing, where only its number is read.
const UNASKED: Basis = Basis { quota: Quota::per_second(1), planned: false };

/// How many generations the keys of a policy share.
const GENERATIONS: usize = if cfg!(tower_quota_loom) { 2 } else { 256 };

impl PolicyBuckets {
    /// Names what it sweeps by the policy, with `suffix`.
    fn of(set: &PolicySet, policy: &Policy, suffix: &str) -> Self {
        let window = policy.limit().window();
        let window = window.map(|window| Arc::new(WindowClock::new(policy.shared_name(), window, set.clock())));
        let swept_as = set.swept_as(policy);
        let swept_as = swept_as.map(|name| if suffix.is_empty() { name } else { format!("{name}{suffix}").into() });
        if policy.is_global() {
            let following = swept_as.zip(window.as_ref()).map(|(name, window)| start_sweeping(name, window, policy));
            let buckets = Self::global(policy.basis(), set.has_atomic(policy));
            return Self { window, _following: following, ..buckets };
        }
        let buckets = KeyedBuckets::new(policy.cap(), set.clock().clone(), set.hasher().clone(), window.clone());
        let sweeping = swept_as.map(|name| start_sweeping(name, &buckets, policy));
        let generations = Box::new([(); GENERATIONS].map(|()| AtomicU64::new(0)));
        Self { window, ..Self::new(policy.basis(), Storage::Keyed { buckets, sweeping, generations }) }
    }

    /// Lets buckets forget that their quota was chosen, unless it `stays` so.
    fn forget_plans(&self, stays: impl Fn(Quota) -> bool) {
        match &self.storage {
            Storage::Atomic { .. } => {}
            Storage::Keyed { buckets, .. } => buckets.quotas().forget_plans(stays),
            Storage::Locked { bucket, .. } => {
                let (_, basis) = &mut *lock(bucket);
                basis.planned &= stays(basis.quota);
            }
        }
    }

    /// `atomic` says whether there is no other global policy, and one quota for all requests.
    fn global(quota: Quota, atomic: bool) -> Self {
        let generation = AtomicU64::new(0);
        let storage = if atomic {
            Storage::Atomic { bucket: AtomicBucket::new(quota.cell_nanos()), generation }
        } else {
            let basis = Basis { quota, planned: false };
            Storage::Locked { bucket: Mutex::new((Bucket::default(), basis)), generation }
        };
        Self::new(quota, storage)
    }

    fn new(quota: Quota, storage: Storage) -> Self {
        let longest_burst = AtomicU64::new(quota.burst_nanos().get());
        Self {
            storage,
            knows_exceptions: AtomicBool::new(false),
            pauses: OnceLock::new(),
            slack: AtomicU64::new(0),
            debt: AtomicU64::new(0),
            longest_burst,
            window: None,
            _following: None,
            resets: OnceLock::new(),
        }
    }

    /// Replaces the window of a policy that has windows.
    pub(super) fn set_window(&self, limit: &Limit) {
        if let (Some(clock), Some(window)) = (&self.window, limit.window()) {
            clock.set(window);
        }
    }

    /// What buckets are decided by under this limit of a key.
    ///
    /// # Errors
    ///
    /// When it is a rate and the policy has windows, or the reverse, or windows of another period.
    pub(super) fn basis_of(&self, policy: &Policy, limit: &Limit) -> Result<Quota, LimitError> {
        let window = self.window.as_ref().map(|clock| clock.window());
        let fits = match (&window, limit.window()) {
            (None, None) => true,
            (Some(own), Some(other)) => own.has_bounds_of(other),
            _ => false,
        };
        if fits { Ok(limit.basis()) } else { Err(LimitError::misfit(policy, limit.clone())) }
    }

    #[inline(always)]
    pub(super) fn window(&self) -> Option<&WindowClock> {
        self.window.as_deref()
    }

    /// When a bucket is decided that was read before `now`, and the rest of its window.
    fn stands_at(&self, bucket: Bucket, now: Timestamp, pause: Pause) -> (Timestamp, Option<WindowLeft>) {
        let Some(window) = &self.window else { return (pause.stands_at(now), None) };
        let (stands_at, left) = window.stands_at(bucket, now);
        (stands_at, Some(left))
    }

    /// The backlog of a bucket that was decided at `now`.
    #[inline(always)]
    pub(super) fn backlog(&self, bucket: Bucket, now: Timestamp) -> Nanos {
        bucket.backlog(self.stands_at(bucket, now, Pause::default()).0)
    }

    /// How a bucket is shown that has this backlog when it is decided.
    fn level(quota: Quota, backlog: Nanos, window: Option<WindowLeft>, pause: Pause, now: Timestamp) -> Level {
        match window {
            Some(window) => pause.shown_in_window(quota, backlog, window, now),
            None => Level { limit: DecidedLimit::Rate(quota), backlog: pause.shown(backlog, quota, now) },
        }
    }

    #[inline(always)]
    pub(super) fn slack(&self) -> Nanos {
        Nanos::new(self.slack.load(Ordering::Relaxed))
    }

    /// How far a bucket may be ahead.
    #[inline(always)]
    pub(super) fn horizon(&self) -> Nanos {
        furthest(Nanos::new(self.longest_burst.load(Ordering::Relaxed)), self.slack())
    }

    /// The slack never shrinks, so that what is reserved stays reserved. A request never waits for
    /// a window.
    pub(super) fn allow_slack(&self, slack: Slack) {
        if self.window.is_some() {
            return;
        }
        let (Slack::OfLayer(time) | Slack::OfReservation(time)) = slack;
        let time = time.min(MAX_SLACK).get();
        self.slack.fetch_max(time, Ordering::Relaxed);
        if matches!(slack, Slack::OfLayer(_)) {
            self.debt.fetch_max(time, Ordering::Relaxed);
        }
    }

    /// How far a charge may take a bucket ahead that has this backlog, and whose burst takes so
    /// long to come back. Behind a line of those who wait, as far as the line may grow.
    fn deepest_debt(&self, burst: Nanos, backlog: Nanos) -> Nanos {
        let debt = Nanos::new(self.debt.load(Ordering::Relaxed));
        furthest(burst, if backlog > burst { self.slack() } else { debt })
    }

    /// Prepares for decisions by this quota. The horizon never shrinks, because what was used under
    /// a longer burst stays used.
    pub(super) fn allow_quota(&self, quota: Quota) {
        self.allow_burst(quota.burst_nanos());
    }

    /// Prepares for buckets that are ahead by this burst, and by a debt as deep.
    pub(super) fn allow_burst(&self, burst: Nanos) {
        let burst = burst.min(MAX_SLACK).get();
        if self.longest_burst.load(Ordering::Relaxed) < burst {
            self.longest_burst.fetch_max(burst, Ordering::Relaxed);
        }
    }

    /// Whether no key was ever blocked or paused, and none is ever banned.
    #[inline(always)]
    pub(super) fn has_cells_only(&self) -> bool {
        !self.knows_exceptions.load(Ordering::Acquire)
    }

    /// From now on keys may be blocked.
    pub(super) fn know_penalties(&self) {
        self.knows_exceptions.store(true, Ordering::Release);
    }

    /// Whether a key was ever paused.
    #[inline(always)]
    pub(super) fn knows_pauses(&self) -> bool {
        self.pauses.get().is_some()
    }

    pub(super) fn pauses(&self) -> Option<&Pauses> {
        self.pauses.get()
    }

    pub(super) fn pause_of(&self, key: Key) -> Pause {
        self.pauses.get().map(|pauses| pauses.of(key)).unwrap_or_default()
    }

    /// The pauses of `key` as far as its bucket has moved with them: a slot that keys share has
    /// not.
    fn pause_of_bucket(&self, key: Key, placement: Placement) -> Pause {
        if placement == Placement::Own { self.pause_of(key) } else { Pause::default() }
    }

    /// Remembers until then by how much the pauses of `key` have grown.
    pub(super) fn remember_pause(&self, key: Key, until: Timestamp) {
        if let Some(pauses) = self.pauses.get() {
            pauses.remember(key, until);
        }
    }

    /// Pauses `key` for `time` from now on. False where there is no place for another key. The
    /// bucket moves by as much, so that whoever waits for its cells stays in line.
    pub(super) fn pause(&self, key: Key, time: Nanos, clock: &Clock, swept_as: Option<&Arc<str>>) -> bool {
        let pauses = self.pauses_or_new(clock, swept_as);
        let mut has_place = false;
        // The bucket afterwards, if the pause is longer than before.
        let mut pause = |bucket: Bucket, now: Timestamp| {
            let (before, after) = pauses.extend(key, now, time)?;
            has_place = true;
            // A window ends when it ends.
            let by = if self.window.is_some() { Nanos::ZERO } else { after.since(before.total) };
            let moved = bucket.later(before.stands_at(now), by);
            pauses.remember(key, moved.full_at());
            (!by.is_zero()).then_some(moved)
        };
        if let Storage::Atomic { bucket, .. } = &self.storage {
            // Before the bucket is closed: a clock of the user's may panic.
            let now = clock.now();
            bucket.change_closed(|found| pause(found, now));
            return has_place;
        }
        let mut guard = self.guard(key);
        // A slot that keys share does not move for one of them.
        let is_own = guard.placement() == Placement::Own;
        let found = if is_own { guard.read(UNASKED).0 } else { Bucket::default() };
        if let Some(moved) = pause(found, clock.now()).filter(|moved| *moved != found) {
            guard.write(found, moved, None);
        }
        has_place
    }

    pub(super) fn pauses_or_new(&self, clock: &Clock, swept_as: Option<&Arc<str>>) -> &Pauses {
        let pauses = self.pauses.get_or_init(|| Pauses::new(clock, swept_as));
        self.knows_exceptions.store(true, Ordering::Release);
        pauses
    }

    /// Until when a bucket that means nothing is full: now, or the start of the current window.
    pub(super) fn idle_until(&self, now: Timestamp) -> Timestamp {
        self.window.as_ref().map_or(now, |window| window.start_at(now))
    }

    /// The bucket of a global policy, and a quota with the time of its cells.
    pub(super) fn read_global(&self) -> Option<(Bucket, Basis)> {
        match &self.storage {
            Storage::Keyed { .. } => None,
            Storage::Locked { bucket, .. } => Some(*lock(bucket)),
            Storage::Atomic { bucket, .. } => {
                let (bucket, cell) = bucket.read();
                Some((bucket, Basis { quota: Quota::of_cell(cell), planned: false }))
            }
        }
    }

    #[inline(always)]
    pub(super) fn guard(&self, key: Key) -> BucketGuard<'_> {
        match &self.storage {
            Storage::Atomic { bucket, .. } => BucketGuard::Atomic(bucket),
            Storage::Keyed { buckets, .. } => BucketGuard::Keyed(buckets.guard(key)),
            Storage::Locked { bucket, .. } => BucketGuard::Locked(lock(bucket)),
        }
    }

    /// Acquires from a bucket that exists and was last decided by the same quota, where nothing but
    /// the cells has to be written. Nearly all requests of a limiter with one policy take this
    /// path, which does not need the means to lock several buckets. `None` leaves everything as it
    /// is.
    #[inline(always)]
    pub(super) fn fast_path<M: Moment>(
        &self,
        demand: &Demand,
        clock: &Clock,
        wants_receipt: bool,
    ) -> Option<FastPath<M>> {
        match &self.storage {
            Storage::Keyed { buckets, generations, .. } => {
                let mut entry = buckets.store().get(demand.key)?;
                let numbered = *entry;
                if !buckets.quotas().is(numbered.quota(), demand.basis()) {
                    return None;
                }
                let (evaluation, moment, now) = self.evaluate::<M>(numbered.bucket(), demand, clock)?;
                let mut generation = 0;
                if evaluation.is_granted() {
                    if wants_receipt {
                        generation = generations[demand.key.select(GENERATIONS)].load(Ordering::Acquire);
                    }
                    *entry = numbered.with_bucket(evaluation.after);
                }
                Some(FastPath { evaluation, moment, now, generation })
            }
            Storage::Atomic { bucket: atomic, generation } => loop {
                // In this order: a cut in between makes the receipt void too early, and never too
                // late.
                let generation = generation.load(Ordering::Acquire);
                // Read before the clock, and exchanged only if it has not changed since.
                let (bucket, cell) = atomic.read_unchecked();
                if cell != demand.quota.cell_nanos() {
                    return None;
                }
                // A closed bucket is beyond the horizon.
                let (evaluation, moment, now) = self.evaluate::<M>(bucket, demand, clock)?;
                // A denial writes nothing, and so does not see whether what was read belongs
                // together: the other path reads it again.
                if !evaluation.is_granted() && !atomic.is(bucket) {
                    return None;
                }
                if !evaluation.is_granted() || atomic.exchange(bucket, evaluation.after) {
                    return Some(FastPath { evaluation, moment, now, generation });
                }
            },
            Storage::Locked { .. } => None,
        }
    }

    #[inline(always)]
    fn evaluate<M: Moment>(
        &self,
        bucket: Bucket,
        demand: &Demand,
        clock: &Clock,
    ) -> Option<(Evaluation, M, Timestamp)> {
        let now = clock.now();
        let moment = M::of(self.window(), bucket, now);
        let mut evaluation = bucket.evaluate(moment.stands_at(now), demand.quota, demand.cells, self.horizon());
        if let Some(window) = moment.window() {
            evaluation.wait_until_end(window.left);
        }
        (evaluation.clamped == bucket).then_some((evaluation, moment, now))
    }

    /// How the bucket of `key` stands, by the quota that is asked for if it was chosen, and else by
    /// the one that was chosen for the key before, or by the policy's own; a full one where there
    /// is none. Writes nothing.
    pub(super) fn peek(&self, key: Key, asked: Basis, clock: &Clock) -> Level {
        let own = asked.quota;
        // What a bucket remembers: the quota that was chosen, and the time of a cell.
        let (bucket, plan, cell) = match &self.storage {
            // Without a guard, which would reserve a place for a key that has none.
            Storage::Keyed { buckets, .. } => match buckets.store().get(key) {
                Some(numbered) => {
                    let basis = buckets.quotas().get(numbered.quota());
                    (numbered.bucket(), chosen(basis), basis.map(|basis| basis.quota.cell_nanos()))
                }
                None => (Bucket::default(), None, None),
            },
            Storage::Locked { bucket, .. } => {
                let (bucket, basis) = *lock(bucket);
                (bucket, chosen(Some(basis)), Some(basis.quota.cell_nanos()))
            }
            Storage::Atomic { bucket, .. } => {
                let (bucket, cell) = bucket.read();
                (bucket, None, Some(cell))
            }
        };
        let (now, pause) = (clock.now(), self.pause_of(key));
        let (at, window) = self.stands_at(bucket, now, pause);
        let bucket = bucket.clamped(at, self.horizon());
        let quota = plan.filter(|_| !asked.planned && !bucket.is_idle(at)).unwrap_or(own);
        let cell = cell.unwrap_or(quota.cell_nanos());
        let backlog = bucket.converted(at, cell, quota.cell_nanos()).backlog(at);
        Self::level(quota, backlog, window, pause, now)
    }

    /// The guard of the bucket that a receipt is for.
    fn guard_of(&self, receipt: &Receipt) -> BucketGuard<'_> {
        match &self.storage {
            Storage::Keyed { buckets, .. } if receipt.origin == ReceiptOrigin::Overflow => {
                BucketGuard::Keyed(KeyedGuard::overflow(buckets, receipt.key))
            }
            _ => self.guard(receipt.key),
        }
    }

    /// Refunds what was acquired at `at`, less what time has returned since. Where requests wait in
    /// line, only the last one is refunded: the requests behind another one keep their times, and a
    /// new request would be served at the same time as the last one.
    pub(super) fn refund(&self, receipt: &Receipt, at: Timestamp, clock: &Clock) {
        let quota = receipt.outcome.quota();
        let mut guard = self.guard_of(receipt);
        loop {
            let (found, remembered) = guard.read(Basis { quota, planned: false });
            // All are read under the lock: a receipt that is void stays void.
            let (now, pause) = (clock.now(), self.pause_of_bucket(receipt.key, guard.placement()));
            let (now, window) = self.stands_at(found, now, pause);
            // Of a window, everything comes back when the next one starts, and nothing before.
            let (at, paused) = match window {
                Some(_) => (receipt.after.own_start(), Nanos::ZERO),
                None => (at, pause.since(receipt.paused)),
            };
            let valid =
                self.generation(receipt.key) == receipt.generation && remembered.cell(quota) == quota.cell_nanos();
            let no_line = self.slack().is_zero() || found.backlog(now) <= quota.burst_nanos();
            // A bucket that was swept is full.
            // Whoever waits has moved with the pauses since.
            let is_last = || found.full_at() == receipt.after.full_at().saturating_add(paused);
            if !valid || !(no_line || is_last()) || found.is_idle(now) {
                if guard.is(found) {
                    return;
                }
                continue;
            }
            if guard.write(found, found.refund(receipt.added, now.since(at).saturating_sub(paused)), None) {
                return;
            }
        }
    }

    /// Charges what a request has cost beyond its receipt, to the same bucket. Another quota that
    /// has decided since stays: cells are cells.
    fn charge_beyond(&self, receipt: &Receipt, cells: u32, clock: &Clock) {
        let quota = receipt.outcome.quota();
        let guard = self.guard_of(receipt);
        // A slot that keys share is nobody's plan.
        let planned = receipt.planned && guard.placement() == Placement::Own;
        let basis = |_plan| Basis { quota, planned };
        self.charge_guarded(guard, receipt.key, cells, clock, basis, (quota, true));
    }

    /// Charges `cells` whether or not they are there, and returns how the bucket stands afterwards.
    /// The quota is as in [`peek`](Self::peek).
    pub(super) fn charge(&self, key: Key, cells: u32, own: Quota, clock: &Clock) -> Level {
        let guard = self.guard(key);
        let tracked = !matches!(guard.placement(), Placement::Full | Placement::Untracked);
        let basis = |plan: Option<Quota>| Basis { quota: plan.unwrap_or(own), planned: plan.is_some() };
        let level = self.charge_guarded(guard, key, cells, clock, basis, (own, false));
        if tracked { level } else { Level { backlog: Nanos::ZERO, ..level } }
    }

    /// Charges by what `choose` returns for the quota that was chosen for the key. `own` is what a
    /// bucket counts by that remembers nothing. `stays` says whether the quota of a bucket stays of
    /// which something is used.
    fn charge_guarded(
        &self,
        mut guard: BucketGuard<'_>,
        key: Key,
        cells: u32,
        clock: &Clock,
        choose: impl Fn(Option<Quota>) -> Basis,
        (own, stays): (Quota, bool),
    ) -> Level {
        loop {
            let (found, remembered) = guard.read(Basis { quota: own, planned: false });
            let (read_at, pause) = (clock.now(), self.pause_of_bucket(key, guard.placement()));
            let (now, window) = self.stands_at(found, read_at, pause);
            let used = !found.is_idle(now);
            let basis = choose(guard.plan().filter(|_| used || stays));
            let (quota, cell) = (basis.quota, remembered.cell(own));
            self.allow_quota(quota);
            // A slower quota charges cells of the faster one, and does not take over: a charge is
            // no reason for cells to take longer.
            let keeps = used && (stays || quota.cell_nanos() > cell);
            let (bucket, after_cell) = if keeps {
                (found, cell)
            } else {
                (found.converted(now, cell, quota.cell_nanos()), quota.cell_nanos())
            };
            let [cost, burst] = [cells, quota.burst_size()].map(|cells| after_cell.saturating_mul(cells.into()));
            // The cells may take longer than those of any quota with this burst, and are not cut.
            self.allow_burst(burst);
            let after = bucket.charge(now, cost, self.deepest_debt(burst, bucket.backlog(now)));
            let backlog = after.converted(now, after_cell, quota.cell_nanos()).backlog(now);
            let level = Self::level(quota, backlog, window, pause, read_at);
            // A full bucket needs no place.
            if after.is_idle(now) {
                return level;
            }
            if after_cell != cell {
                self.advance_generation(key);
            }
            if guard.write(found, after, (!keeps).then_some(basis)) {
                return level;
            }
        }
    }

    /// Fills the bucket of `key`, ends its pause, and makes the receipts of its generation void.
    /// True if it was not full, or paused.
    pub(super) fn reset(&self, key: Key, clock: &Clock) -> bool {
        let end_pause = |now| self.pauses.get().is_some_and(|pauses| pauses.end(key, now));
        if let Storage::Atomic { bucket, .. } = &self.storage {
            // Before the bucket is closed: a clock of the user's may panic.
            let now = clock.now();
            let (mut was_paused, mut was_used) = (false, false);
            bucket.change_closed(|found| {
                was_paused = end_pause(now);
                let (now, _) = self.stands_at(found, now, Pause::default());
                was_used = !found.is_idle(now);
                if was_used {
                    // A later request has the new generation and a bucket that is not reset again.
                    self.advance_generation(key);
                }
                // Not as it was before the first request: a thread that has read that would
                // exchange it.
                was_used.then(|| Bucket::with_backlog(now, Nanos::ZERO))
            });
            return was_paused | was_used;
        }
        let mut guard = self.guard(key);
        let now = clock.now();
        let was_paused = end_pause(now);
        if guard.placement() != Placement::Own {
            // A slot that keys share.
            return was_paused;
        }
        let (found, _) = guard.read(UNASKED);
        let was_used = !found.is_idle(self.stands_at(found, now, Pause::default()).0);
        if was_used {
            // Not for others' sake, who share the generation, where there is nothing to reset.
            self.advance_generation(key);
            guard.write(found, Bucket::default(), None);
        }
        was_paused | was_used
    }

    /// Remembers what was reset, so that no snapshot from before brings it back.
    pub(super) fn remember_reset(&self, key: Key, mark: ResetMark, set: &PolicySet, policy: &Policy) {
        let swept_as = set.swept_as(policy);
        self.resets.get_or_init(|| Resets::new(set.clock(), swept_as.as_ref())).remember(key, mark);
    }

    pub(super) fn reset_mark(&self, key: Key) -> ResetMark {
        self.resets.get().map(|resets| resets.of(key)).unwrap_or_default()
    }

    pub(super) fn resets(&self) -> Option<&Resets> {
        self.resets.get()
    }

    /// Until when a bucket of now may say something: a snapshot from before a reset matters for as
    /// long.
    pub(super) fn forgotten_at(&self, now: Timestamp) -> Timestamp {
        let window = self.window.as_ref().map(|window| window.window().longest());
        now.saturating_add(window.unwrap_or_else(|| self.horizon()))
    }

    #[inline(always)]
    fn generation_of(&self, key: Key) -> &AtomicU64 {
        match &self.storage {
            Storage::Keyed { generations, .. } => &generations[key.select(GENERATIONS)],
            Storage::Atomic { generation, .. } | Storage::Locked { generation, .. } => generation,
        }
    }

    #[inline(always)]
    pub(super) fn generation(&self, key: Key) -> u64 {
        self.generation_of(key).load(Ordering::Acquire)
    }

    /// Returns the new generation. Called under the lock of the bucket that is changed, or before
    /// it is exchanged.
    pub(super) fn advance_generation(&self, key: Key) -> u64 {
        self.generation_of(key).fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// Requests an early sweep of a full map.
    pub(super) fn request_sweep(&self) {
        if let Storage::Keyed { sweeping: Some(sweeping), .. } = &self.storage {
            sweeping.request();
        }
    }

    pub(super) fn keyed(&self) -> Option<&KeyedBuckets> {
        match &self.storage {
            Storage::Keyed { buckets, .. } => Some(buckets),
            Storage::Atomic { .. } | Storage::Locked { .. } => None,
        }
    }
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use ::loom::thread;

    use super::*;
    use crate::{clock::ManualClock, decision::PolicyOutcome, limiter::moment::WithWindows};

    const START: Timestamp = Timestamp::ORIGIN;

    fn lone(burst: u32) -> (Arc<PolicyBuckets>, Clock, Demand) {
        let quota = Quota::per_hour(1).burst(burst);
        let demand = Demand { key: Key::GLOBAL, quota, cells: 1, planned: false, shadow: false };
        (Arc::new(PolicyBuckets::global(quota, true)), ManualClock::new().into(), demand)
    }

    fn acquire(buckets: &PolicyBuckets, demand: &Demand, clock: &Clock) -> Option<Receipt> {
        let FastPath { evaluation, moment, now, generation } = loop {
            match buckets.fast_path::<WithWindows>(demand, clock, true) {
                Some(found) => break found,
                // It is closed: waits until it is not.
                None => drop(buckets.peek(Key::GLOBAL, demand.basis(), clock)),
            }
        };
        evaluation.is_granted().then(|| Receipt {
            outcome: PolicyOutcome::of(0, demand, evaluation.after, evaluation, moment.stands_at(now), moment.window()),
            key: demand.key,
            cells: demand.cells,
            planned: demand.planned,
            added: demand.quota.cell_nanos(),
            generation,
            after: evaluation.after,
            paused: Nanos::ZERO,
            origin: ReceiptOrigin::Own,
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
            assert_eq!(buckets.peek(Key::GLOBAL, demand.basis(), &clock).backlog, Nanos::ZERO);
            let later = acquire(&buckets, &demand, &clock).unwrap();
            buckets.refund(&receipt, START, &clock);
            let backlog = buckets.peek(Key::GLOBAL, demand.basis(), &clock).backlog;
            assert_eq!(backlog, later.after.backlog(START), "a receipt from before the reset is void");
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
            let before = buckets.peek(Key::GLOBAL, demand.basis(), &clock).backlog;
            let later = acquire(&buckets, &demand, &clock).unwrap();
            buckets.refund(&receipt, START, &clock);
            let backlog = buckets.peek(Key::GLOBAL, demand.basis(), &clock).backlog;
            // At least the later cells, which nobody has refunded.
            assert!(backlog >= later.added, "a backlog of {backlog:?} after {before:?}");
        });
    }

    /// One cell is used, of ten or of fifty: nobody is denied.
    #[test]
    fn loom_a_denial_beside_a_conversion_is_by_one_quota() {
        ::loom::model(|| {
            let [old, new] = [Quota::per_hour(10), Quota::per_hour(1_000).burst(50)];
            let (buckets, clock) = (Arc::new(PolicyBuckets::global(old, true)), Clock::from(ManualClock::new()));
            let demand = |quota| Demand { key: Key::GLOBAL, quota, cells: 1, planned: false, shadow: false };
            assert!(buckets.fast_path::<WithWindows>(&demand(old), &clock, true).unwrap().evaluation.is_granted());
            let (other, its_clock) = (Arc::clone(&buckets), clock.clone());
            on_two_threads(
                move || other.charge(Key::GLOBAL, 0, new, &its_clock),
                || {
                    // `None` is for the other path.
                    let found = buckets.fast_path::<WithWindows>(&demand(new), &clock, true);
                    assert!(found.is_none_or(|found| found.evaluation.is_granted()));
                },
            );
        });
    }
}
