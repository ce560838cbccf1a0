//! Contains [`Bucket`], the state of one policy for one key, and its arithmetic.
//!
//! The arithmetic is pure functions of (bucket, now, quota, cells). governor decides: this is the
//! only file that knows it. This file must not know where buckets are stored, what is locked, or
//! how many buckets take part in a decision.
//!
//! A bucket is one number: the theoretical arrival time (TAT) of GCRA on the limiter's clock. Its
//! *backlog* is `max(0, TAT − now)`: the time that the acquired cells take to come back.
//!
//! governor decides on the backlog: for each evaluation a `RateLimiter` is built on the stack, over
//! a state that contains the backlog, with a clock that stands at zero. So any quota can be applied
//! to any bucket at any time, and governor never sees an absolute time.
//!
//! # A change of quota keeps the count
//!
//! A backlog is time, and so many cells of the quota that the bucket was last decided by. A
//! decision by another quota first [converts](Bucket::converted) it: the same cells, in the time of
//! the other quota.
//!
//! - A conversion never cuts. What is used stays used, in whatever way quotas alternate.
//! - A slower quota that denies leaves the bucket as it is, to its faster quota: otherwise the
//!   denial would make the wait longer.
//! - A faster quota takes over also when it denies, so that its wait is accurate.
//!
//! # Windows
//!
//! The bucket of a window is the same number: the start of the window, and one nanosecond for each
//! cell that is used. It is decided at the window's start by a quota whose cells take a nanosecond,
//! so that nothing comes back before the next window: see [`stands_in`](Bucket::stands_in). Windows
//! start on whole minutes, and a minute has more nanoseconds than a limit and a debt have cells. So
//! the number says which window it belongs to, and in an older one nothing is used of this
//! one.

#![deny(clippy::arithmetic_side_effects)]

use std::{cell::Cell, num::NonZeroU32};

use governor::{
    RateLimiter, clock,
    middleware::NoOpMiddleware,
    nanos::Nanos as GovernorNanos,
    state::{NotKeyed, StateStore},
};

use crate::{
    clock::{Nanos, Timestamp},
    quota::Quota,
};

/// A theoretical arrival time. The default is a bucket from which nothing was acquired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bucket(Timestamp);

/// What acquiring cells from a bucket would do. Nothing is written yet: the caller writes one of
/// the two buckets, as the other policies decide.
///
/// A struct of numbers instead of an enum with fields, because each decision takes it apart several
/// times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evaluation {
    /// The bucket after the cells are acquired, where they are granted.
    pub(crate) after: Bucket,
    /// The bucket without the cells, and without what exceeds the horizon.
    pub(crate) clamped: Bucket,
    /// The time until the cells are there: [`Self::NOW`], [`Self::NEVER`], or between.
    pub(crate) wait: Nanos,
}

impl Evaluation {
    /// The cells are granted.
    pub(crate) const NOW: Nanos = Nanos::ZERO;
    /// The cells exceed the burst, so no wait helps.
    pub(crate) const NEVER: Nanos = Nanos::MAX;

    #[inline(always)]
    pub(crate) fn is_granted(self) -> bool {
        self.wait.is_zero()
    }

    /// Makes the wait of a denial the rest of the window, in which nothing comes back.
    #[inline(always)]
    pub(crate) fn wait_until_end(&mut self, left: Nanos) {
        if self.wait != Self::NOW && self.wait != Self::NEVER {
            self.wait = left.max(Nanos::new(1));
        }
    }

    /// Grants without acquiring anything.
    #[inline(always)]
    pub(crate) fn granted_for_free(bucket: Bucket) -> Self {
        Self { after: bucket, clamped: bucket, wait: Self::NOW }
    }

    #[inline(always)]
    pub(crate) fn denied(bucket: Bucket, wait: Nanos) -> Self {
        Self { after: bucket, clamped: bucket, wait }
    }
}

/// What acquiring cells would do by a quota other than the one that the bucket was last decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConvertedEvaluation {
    /// In the time of the quota that is asked. Only the wait of a denial is in that of the faster
    /// of the two.
    pub(crate) evaluation: Evaluation,
    /// Whether a denial converts the bucket.
    pub(crate) takes_over: bool,
    /// The time until the cells are there, once the bucket is converted.
    pub(crate) wait_converted: Nanos,
}

impl Bucket {
    /// Whether the bucket equals no bucket at all, now and at any later time.
    #[inline(always)]
    pub(crate) fn is_idle(self, now: Timestamp) -> bool {
        self.0 <= now
    }

    /// The time until the bucket is full again.
    #[inline(always)]
    pub(crate) fn backlog(self, now: Timestamp) -> Nanos {
        self.0.since(now)
    }

    /// A bucket with this backlog.
    pub(crate) fn with_backlog(now: Timestamp, backlog: Nanos) -> Self {
        Self(now.saturating_add(backlog))
    }

    /// Where the bucket of a window is decided: at the start of the current window, or at its own
    /// where that is later, because another process's clock is ahead.
    #[inline(always)]
    pub(crate) fn stands_in(self, start: Timestamp) -> Timestamp {
        if self.0.since(start) < Nanos::MINUTE { start } else { self.own_start() }
    }

    /// The start of the window in which cells of this bucket were last used.
    #[inline]
    pub(crate) fn own_start(self) -> Timestamp {
        self.0.start_of_minute()
    }

    /// The bucket, never further ahead than this. It cuts what a faulty clock left
    /// behind, so that it locks no client out for longer.
    #[inline(always)]
    pub(crate) fn clamped(self, now: Timestamp, horizon: Nanos) -> Self {
        Self(self.0.min(now.saturating_add(horizon)))
    }

    /// The bucket with as many cells of `to` as it has of `from`, both given by the time of a cell.
    /// A part of a cell is rounded up.
    #[inline]
    pub(crate) fn converted(self, now: Timestamp, from: Nanos, to: Nanos) -> Self {
        if from == to { self } else { self.convert(now, from, to) }
    }

    #[cold]
    #[allow(clippy::arithmetic_side_effects, reason = "products of 64 bits in 128; no cell takes no time")]
    fn convert(self, now: Timestamp, from: Nanos, to: Nanos) -> Self {
        let [backlog, from, to] = [self.backlog(now), from, to].map(|nanos| u128::from(nanos.get()));
        let from = from.max(1);
        let converted = backlog / from * to + (backlog % from * to).div_ceil(from);
        // The bound is more than any burst.
        let converted = u64::try_from(converted).unwrap_or(u64::MAX).min(MAX_HORIZON);
        Self(now.saturating_add(Nanos::new(converted)))
    }

    /// Evaluates acquiring `cells` from a bucket that was last decided by a quota whose cells take
    /// `from`.
    pub(crate) fn evaluate_converted(
        self,
        now: Timestamp,
        from: Nanos,
        quota: Quota,
        cells: u32,
        horizon: Nanos,
    ) -> ConvertedEvaluation {
        let clamped = self.clamped(now, horizon);
        let mut evaluation = clamped.converted(now, from, quota.cell_nanos()).decide(now, quota, cells);
        let wait_converted = evaluation.wait;
        let denied = !evaluation.is_granted() && evaluation.wait != Evaluation::NEVER;
        let slower = quota.cell_nanos() > from;
        if denied && slower {
            // When so much of the burst is left as is asked for, in cells of the faster quota.
            let enough = from.saturating_mul(quota.burst_size().saturating_sub(cells).into());
            evaluation.wait = clamped.backlog(now).saturating_sub(enough).max(Nanos::new(1));
        }
        ConvertedEvaluation { evaluation, takes_over: denied && !slower, wait_converted }
    }

    /// Evaluates acquiring `cells`. Zero cells are always granted.
    #[inline(always)]
    pub(crate) fn evaluate(self, now: Timestamp, quota: Quota, cells: u32, horizon: Nanos) -> Evaluation {
        self.clamped(now, horizon).decide(now, quota, cells)
    }

    /// Evaluates acquiring `cells` from a bucket within the horizon.
    #[inline(always)]
    fn decide(self, now: Timestamp, quota: Quota, cells: u32) -> Evaluation {
        let clamped = self;
        let Some(cells) = NonZeroU32::new(cells) else { return Evaluation::granted_for_free(clamped) };
        // Checked before governor is asked, whose product of cells and period wraps in a release
        // build.
        if cells.get() > quota.burst_size() {
            return Evaluation::denied(clamped, Evaluation::NEVER);
        }
        let backlog = Backlog(Cell::new(clamped.backlog(now)));
        // The types are written out, because the default of the last one depends on governor's
        // features.
        let quota_of_governor = governor_quota(quota);
        let governor =
            RateLimiter::<_, _, _, NoOpMiddleware<GovernorNanos>>::new(quota_of_governor, &backlog, Standstill);
        // For one cell governor has a shorter path to the same result.
        let verdict = match cells.get() {
            1 => governor.check(),
            _ => match governor.check_n(cells) {
                Ok(verdict) => verdict,
                Err(_above_the_burst) => return Evaluation::denied(clamped, Evaluation::NEVER),
            },
        };
        match verdict {
            Ok(()) => match now.checked_add(backlog.0.get()) {
                Some(after) => Evaluation { after: Self(after), clamped, wait: Evaluation::NOW },
                // The clock is within one burst of its end, 584 years after its origin.
                None => Evaluation::denied(clamped, quota.cell_nanos()),
            },
            Err(not_until) => Evaluation::denied(clamped, Nanos::new(not_until.earliest_possible().as_u64())),
        }
    }

    /// The bucket after `cells` are acquired that will be there later, for a request that waits for
    /// them. `None` where the bucket would be further ahead than `quota` allows.
    pub(crate) fn reserve(self, now: Timestamp, quota: Quota, cells: u32, slack: Nanos) -> Option<Self> {
        let ahead = self.backlog(now).saturating_add(quota.cost(cells));
        let after = now.checked_add(ahead)?;
        (ahead <= furthest(quota.burst_nanos(), slack)).then_some(Self(after))
    }

    /// Charges cells that cost so much whether or not they are there. Missing cells become debt, up
    /// to `furthest` ahead. A backlog that is longer already stays as it is.
    pub(crate) fn charge(self, now: Timestamp, cost: Nanos, furthest: Nanos) -> Self {
        let charged = Self(self.0.max(now).saturating_add(cost)).clamped(now, furthest);
        Self(self.0.max(charged.0))
    }

    /// The bucket, so much further ahead. One from which nothing is acquired stays as it is.
    pub(crate) fn later(self, now: Timestamp, by: Nanos) -> Self {
        if self.is_idle(now) { self } else { Self(self.0.saturating_add(by)) }
    }

    /// When the bucket is full.
    pub(crate) fn full_at(self) -> Timestamp {
        self.0
    }

    /// Refunds cells that added `added` to the backlog `elapsed` ago. Time has returned a part
    /// already. Refunding that part too would admit more than the quota.
    pub(crate) fn refund(self, added: Nanos, elapsed: Nanos) -> Self {
        Self(self.0.saturating_sub(added.saturating_sub(elapsed)))
    }

    /// For storage in an atomic.
    #[inline(always)]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(Timestamp::from_nanos(bits))
    }

    #[inline(always)]
    pub(crate) fn to_bits(self) -> u64 {
        self.0.as_nanos()
    }
}

/// How many requests of `cost` fit into a burst of which `backlog` is used. `None` for requests
/// that cost nothing.
#[inline(always)]
pub(crate) fn requests_left(burst: Nanos, backlog: Nanos, cost: Nanos) -> Option<u64> {
    burst.saturating_sub(backlog).get().checked_div(cost.get())
}

/// How far a bucket may be ahead under a quota whose burst takes `burst` to come back: one burst
/// and a debt of one burst, or one burst and `slack` where requests may wait for so long. At most
/// [`MAX_HORIZON`]. The horizon of buckets that several quotas decide is that of the longest burst.
#[inline(always)]
pub(crate) fn furthest(burst: Nanos, slack: Nanos) -> Nanos {
    burst.saturating_add(burst.max(slack))
}

/// How far a bucket may be ahead that only `quota` decides, and that no request waits for.
#[inline(always)]
pub(crate) fn horizon(quota: Quota) -> Nanos {
    furthest(quota.burst_nanos(), Nanos::ZERO)
}

/// See [`Quota`] and [`MAX_SLACK`].
const MAX_HORIZON: u64 = 1 << 63;

/// The longest slack; a burst takes no longer to come back either.
pub(crate) const MAX_SLACK: Nanos = Nanos::new(1 << 62);

/// Not `From`, which would make governor a part of the public API.
#[inline(always)]
fn governor_quota(quota: Quota) -> governor::Quota {
    let burst = NonZeroU32::new(quota.burst_size()).unwrap_or(NonZeroU32::MIN);
    // Neither fallback is reachable: a `Quota` contains no zero.
    governor::Quota::with_period(quota.cell_period())
        .unwrap_or(governor::Quota::per_second(NonZeroU32::MIN))
        .allow_burst(burst)
}

/// The state that governor decides on: the backlog, at a clock that stands at zero.
struct Backlog(Cell<Nanos>);

impl StateStore for &Backlog {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<GovernorNanos>) -> Result<(T, GovernorNanos), E>,
    {
        let (outcome, next) = decide(Some(self.0.get().get().into()))?;
        self.0.set(Nanos::new(next.as_u64()));
        Ok(outcome)
    }
}

#[derive(Clone, Copy)]
struct Standstill;

impl clock::Clock for Standstill {
    type Instant = GovernorNanos;

    fn now(&self) -> GovernorNanos {
        GovernorNanos::default()
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a model in 128 bits, checked by debug assertions"
)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const Q: Quota = Quota::per_second(10).burst(5); // T = 100 ms
    const START: Timestamp = Timestamp::ORIGIN;

    fn ms(millis: u64) -> Nanos {
        Nanos::new(millis * 1_000_000)
    }

    fn ahead(backlog: Nanos) -> Bucket {
        Bucket::with_backlog(START, backlog)
    }

    #[test]
    fn a_refund_returns_what_time_has_not_returned_already() {
        let Evaluation { after, .. } = Bucket::default().evaluate(START, Q, 3, horizon(Q));
        let added = ms(300);
        assert_eq!(after, ahead(added));
        assert_eq!(after.refund(added, Nanos::ZERO), ahead(Nanos::ZERO));
        assert_eq!(after.refund(added, ms(120)), ahead(ms(120)));
        assert_eq!(after.refund(added, ms(301)), after);
    }

    #[test]
    fn a_charge_goes_one_burst_into_debt_and_no_further() {
        let charge = |bucket: Bucket, cells| bucket.charge(START, Q.cost(cells), horizon(Q));
        let bucket = charge(Bucket::default(), 5);
        assert_eq!(bucket, ahead(ms(500)));
        assert_eq!(charge(bucket, 3), ahead(ms(800)));
        assert_eq!(charge(bucket, u32::MAX), ahead(ms(1_000)));
    }

    #[test]
    fn a_charge_never_lessens_the_backlog_of_a_slower_quota() {
        assert_eq!(ahead(ms(60_000)).charge(START, Q.cost(1), horizon(Q)), ahead(ms(60_000)));
    }

    #[test]
    fn nothing_is_reserved_further_ahead_than_the_clamp() {
        let reserve = |backlog, slack| ahead(ms(backlog)).reserve(START, Q, 1, ms(slack));
        assert_eq!(reserve(900, 0), Some(ahead(ms(1_000))));
        assert_eq!(reserve(901, 0), None);
        assert_eq!(reserve(2_400, 2_000), Some(ahead(ms(2_500))));
        assert_eq!(reserve(2_401, 2_000), None);
    }

    #[test]
    fn a_far_future_bucket_heals_within_two_bursts() {
        let now = Timestamp::from_nanos(7);
        let Evaluation { clamped, wait, .. } = Bucket::from_bits(u64::MAX).evaluate(now, Q, 1, horizon(Q));
        assert_eq!(clamped, Bucket::with_backlog(now, ms(1_000)));
        assert_eq!(wait, ms(600)); // until the backlog is 400 ms
    }

    #[test]
    fn denies_and_does_not_wrap_at_the_end_of_the_clock() {
        for left in (0..1_000).map(ms) {
            let now = Timestamp::from_nanos(u64::MAX).saturating_sub(left);
            let evaluation = Bucket::default().evaluate(now, Q, 5, horizon(Q));
            assert_eq!(evaluation.is_granted(), left >= ms(500), "{left:?} before the end");
        }
    }

    #[test]
    fn requests_left_are_those_that_fit() {
        assert_eq!(requests_left(ms(100), ms(41), ms(20)), Some(2));
        assert_eq!(requests_left(ms(100), ms(101), ms(20)), Some(0));
        assert_eq!(requests_left(ms(100), ms(0), ms(0)), None);
    }

    /// The same rules in 128 bits, without governor.
    fn model(bucket: u64, now: u64, quota: Quota, cells: u32, slack: u64) -> Evaluation {
        let (t, burst) = (u128::from(quota.cell_nanos().get()), u128::from(quota.burst_size()));
        let furthest = t * burst + (t * burst).max(slack.into());
        let ahead = u128::from(bucket.saturating_sub(now)).min(furthest);
        let clamped = Bucket::from_bits(bucket.min((u128::from(now) + furthest).min(u128::from(u64::MAX)) as u64));
        let next = ahead + t * u128::from(cells);
        if cells == 0 {
            Evaluation::granted_for_free(clamped)
        } else if u128::from(cells) > burst {
            Evaluation::denied(clamped, Evaluation::NEVER)
        } else if next > t * burst {
            Evaluation::denied(clamped, Nanos::new((next - t * burst) as u64))
        } else if u128::from(now) + next > u128::from(u64::MAX) {
            Evaluation::denied(clamped, Nanos::new(t as u64))
        } else {
            Evaluation { after: Bucket::from_bits((u128::from(now) + next) as u64), clamped, wait: Evaluation::NOW }
        }
    }

    /// Mostly the values where arithmetic goes wrong.
    fn edgy(max: u64) -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            Just(1),
            Just(max),
            0..=max,
            (0..=63_u32).prop_map(move |bit| (1_u64 << bit).min(max)),
            (0..=1_000_u64).prop_map(move |below| max - below.min(max)),
        ]
    }

    /// Quotas up to the longest ones.
    fn quotas() -> impl Strategy<Value = Quota> {
        let cells = edgy(1 << 62).prop_map(|cell| cell.max(1));
        cells.prop_flat_map(|cell| {
            let most = ((1 << 62) / cell).min(u64::from(u32::MAX));
            edgy(most).prop_map(move |burst| Quota::every(Duration::from_nanos(cell)).burst(burst.max(1) as u32))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(50_000))]

        #[test]
        fn ari01_decides_as_128_bit_arithmetic_does(
            quota in quotas(),
            cells in edgy(u64::from(u32::MAX)),
            now in edgy(u64::MAX),
            ahead in edgy(u64::MAX),
            near in any::<bool>(),
            slack in prop_oneof![Just(0), edgy(MAX_SLACK.get())],
        ) {
            // Mostly within the burst, where cells are granted.
            let cells = if near { cells % (u64::from(quota.burst_size()) + 2) } else { cells } as u32;
            let ahead = if near { ahead % (2 * quota.burst_nanos().get() + 2) } else { ahead };
            let bucket = now.saturating_add(ahead);
            let evaluation =
                Bucket::from_bits(bucket).evaluate(Timestamp::from_nanos(now), quota, cells, furthest(quota.burst_nanos(), Nanos::new(slack)));
            prop_assert_eq!(evaluation, model(bucket, now, quota, cells, slack));
        }
    }
}
