//! [`Bucket`]: the state of one policy for one key, and everything that can happen to it.
//!
//! Owns the arithmetic of a bucket as pure functions of (bucket, now, quota, cells). The verdict itself is governor's:
//! this is the only file that knows it. Knows nothing of where buckets are kept, of locks, or of how many take part in a
//! decision.
//!
//! A bucket is one number: the theoretical arrival time (TAT) of GCRA, in nanoseconds on the limiter's clock. Its
//! *backlog* is `max(0, TAT − now)`: the time that what was drawn takes to come back.
//!
//! governor decides over what is *left*: for each draw a `RateLimiter` is built on the stack over a state that holds the
//! backlog, with a clock that stands at zero. So any quota can be applied to any bucket at any time, and governor never
//! sees an absolute time.

#![deny(clippy::arithmetic_side_effects)]

use std::{cell::Cell, num::NonZeroU32, time::Duration};

use governor::{
    RateLimiter, clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{NotKeyed, StateStore},
};

use crate::quota::Quota;

/// A theoretical arrival time. The default is a bucket that nothing was drawn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bucket(u64);

/// What a draw comes to. Nothing is written yet: the caller writes one of the buckets as the other policies decide.
///
/// Numbers, and no variants with fields of their own: these are taken apart several times in each decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawn {
    /// With the cells drawn, where they are granted.
    pub(crate) after: Bucket,
    /// With nothing drawn, and nothing owed beyond what the quota lets be owed.
    pub(crate) clamped: Bucket,
    /// Nanoseconds until the cells are there: [`Self::NOW`], [`Self::NEVER`], or between.
    pub(crate) wait: u64,
}

impl Drawn {
    /// The cells are granted.
    pub(crate) const NOW: u64 = 0;
    /// The cells exceed the burst: no wait helps.
    pub(crate) const NEVER: u64 = u64::MAX;

    #[inline(always)]
    pub(crate) fn is_granted(self) -> bool {
        self.wait == Self::NOW
    }

    /// Granted, with nothing drawn.
    #[inline(always)]
    pub(crate) fn nothing(bucket: Bucket) -> Self {
        Self { after: bucket, clamped: bucket, wait: Self::NOW }
    }

    #[inline(always)]
    pub(crate) fn refused(bucket: Bucket, wait: u64) -> Self {
        Self { after: bucket, clamped: bucket, wait }
    }
}

impl Bucket {
    /// Whether it is the same as no bucket at all, now and at any later time.
    pub(crate) fn is_idle(self, now: u64) -> bool {
        self.0 <= now
    }

    /// Nanoseconds until nothing is owed.
    #[inline(always)]
    pub(crate) fn backlog(self, now: u64) -> u64 {
        self.0.saturating_sub(now)
    }

    /// The bucket as `quota` allows it to stand: never further ahead than one burst, and a debt of one burst, or `slack`
    /// nanoseconds where requests may wait for so long. What a larger quota or a fault of the clock left behind is cut off
    /// here, so that no change locks a client out for longer.
    #[inline(always)]
    pub(crate) fn clamped(self, now: u64, quota: Quota, slack: u64) -> Self {
        Self(self.0.min(now.saturating_add(furthest(quota, slack))))
    }

    /// What drawing `cells` comes to. Zero cells ask for nothing and are always granted.
    #[inline(always)]
    pub(crate) fn draw(self, now: u64, quota: Quota, cells: u32, slack: u64) -> Drawn {
        let clamped = self.clamped(now, quota, slack);
        let Some(cells) = NonZeroU32::new(cells) else { return Drawn::nothing(clamped) };
        // Before governor is asked, whose product of cells and period would wrap in a release build.
        if cells.get() > quota.burst_size() {
            return Drawn::refused(clamped, Drawn::NEVER);
        }
        let backlog = Backlog(Cell::new(clamped.0.saturating_sub(now)));
        // Spelled out, for the default of the last parameter depends on governor's features.
        let governor = RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(quota.into(), &backlog, Standstill);
        // One cell takes governor's shorter way to the same verdict.
        let verdict = match cells.get() {
            1 => governor.check(),
            _ => match governor.check_n(cells) {
                Ok(verdict) => verdict,
                Err(_above_the_burst) => return Drawn::refused(clamped, Drawn::NEVER),
            },
        };
        match verdict {
            Ok(()) => match now.checked_add(backlog.0.get()) {
                Some(after) => Drawn { after: Self(after), clamped, wait: Drawn::NOW },
                // The clock is within one bucket of its end, 584 years from its origin.
                None => Drawn::refused(clamped, quota.cell_nanos()),
            },
            Err(not_until) => Drawn::refused(clamped, not_until.earliest_possible().as_u64()),
        }
    }

    /// The bucket with `cells` drawn that will be there in a while, for whoever waits for them. `None` where it would be
    /// further ahead than a bucket ever is.
    pub(crate) fn reserve(self, now: u64, quota: Quota, cells: u32, slack: u64) -> Option<Self> {
        let ahead = self.backlog(now).saturating_add(quota.cell_nanos().saturating_mul(u64::from(cells)));
        let after = now.checked_add(ahead)?;
        (ahead <= furthest(quota, slack)).then_some(Self(after))
    }

    /// Charges `cells` whether or not they are there; what is not becomes debt, as far as the clamp lets it. What is owed
    /// already, under a slower quota perhaps, is never less for it.
    pub(crate) fn debit(self, now: u64, quota: Quota, cells: u32, slack: u64) -> Self {
        let charge = quota.cell_nanos().saturating_mul(u64::from(cells));
        let charged = Self(self.0.max(now).saturating_add(charge)).clamped(now, quota, slack);
        Self(self.0.max(charged.0))
    }

    /// Returns what is left of a draw that `added` nanoseconds of backlog `elapsed` nanoseconds ago. Time has already
    /// given back the rest; to return it a second time would admit more than the quota.
    pub(crate) fn put_back(self, added: u64, elapsed: u64) -> Self {
        Self(self.0.saturating_sub(added.saturating_sub(elapsed)))
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }
}

/// At most 2⁶³ nanoseconds: see [`Quota`], and [`MOST_SLACK`].
#[inline(always)]
fn furthest(quota: Quota, slack: u64) -> u64 {
    quota.burst_nanos().saturating_add(quota.burst_nanos().max(slack))
}

/// What a burst takes to come back at most, too.
pub(crate) const MOST_SLACK: u64 = 1 << 62;

impl From<Quota> for governor::Quota {
    fn from(quota: Quota) -> Self {
        let burst = NonZeroU32::new(quota.burst_size()).unwrap_or(NonZeroU32::MIN);
        // Neither fallback can be reached: a `Quota` has no zero in it.
        governor::Quota::with_period(Duration::from_nanos(quota.cell_nanos()))
            .unwrap_or(governor::Quota::per_second(NonZeroU32::MIN))
            .allow_burst(burst)
    }
}

/// The state that governor decides over: the time still to run, at a clock that stands at zero.
struct Backlog(Cell<u64>);

impl StateStore for &Backlog {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, next) = decide(Some(self.0.get().into()))?;
        self.0.set(next.as_u64());
        Ok(outcome)
    }
}

#[derive(Clone, Copy)]
struct Standstill;

impl clock::Clock for Standstill {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::default()
    }
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a model in 128 bits, where debug assertions watch"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const Q: Quota = Quota::per_second(10).burst(5); // T = 100 ms
    const MS: u64 = 1_000_000;

    #[test]
    fn put_back_returns_what_time_has_not_given_back_already() {
        let Drawn { after, .. } = Bucket::default().draw(0, Q, 3, 0);
        let added = 300 * MS;
        assert_eq!(after.to_bits(), added);
        assert_eq!(after.put_back(added, 0).to_bits(), 0);
        assert_eq!(after.put_back(added, 120 * MS).to_bits(), 120 * MS);
        assert_eq!(after.put_back(added, 301 * MS), after);
    }

    #[test]
    fn debit_goes_one_burst_into_debt_and_no_further() {
        let bucket = Bucket::default().debit(0, Q, 5, 0);
        assert_eq!(bucket.to_bits(), 500 * MS);
        assert_eq!(bucket.debit(0, Q, 3, 0).to_bits(), 800 * MS);
        assert_eq!(bucket.debit(0, Q, u32::MAX, 0).to_bits(), 1_000 * MS);
    }

    #[test]
    fn debit_never_lessens_what_is_owed_under_a_slower_quota() {
        let owed = Bucket::from_bits(60_000 * MS);
        assert_eq!(owed.debit(0, Q, 1, 0), owed);
    }

    #[test]
    fn nothing_is_reserved_further_ahead_than_a_bucket_ever_is() {
        let ahead = |ms| Bucket::from_bits(ms * MS).reserve(0, Q, 1, 0);
        assert_eq!(ahead(900), Some(Bucket::from_bits(1_000 * MS)));
        assert_eq!(ahead(901), None);
        let with_slack = |ms| Bucket::from_bits(ms * MS).reserve(0, Q, 1, 2_000 * MS);
        assert_eq!(with_slack(2_400), Some(Bucket::from_bits(2_500 * MS)));
        assert_eq!(with_slack(2_401), None);
    }

    #[test]
    fn a_far_future_bucket_heals_within_two_bursts() {
        let Drawn { clamped, wait, .. } = Bucket::from_bits(u64::MAX).draw(7, Q, 1, 0);
        assert_eq!(clamped.to_bits(), 7 + 1_000 * MS);
        assert_eq!(wait, 600 * MS); // until 400 ms of backlog are left
    }

    #[test]
    fn refuses_and_does_not_wrap_at_the_end_of_the_clock() {
        for k in 0..1_000 {
            let drawn = Bucket::default().draw(u64::MAX - k * MS, Q, 5, 0);
            let fits = k * MS >= 500 * MS;
            assert_eq!(drawn.is_granted(), fits, "{k} ms before the end");
        }
    }

    /// The same rules in 128 bits, without governor.
    fn model(bucket: u64, now: u64, quota: Quota, cells: u32, slack: u64) -> Drawn {
        let (t, burst) = (u128::from(quota.cell_nanos()), u128::from(quota.burst_size()));
        let furthest = t * burst + (t * burst).max(slack.into());
        let ahead = u128::from(bucket.saturating_sub(now)).min(furthest);
        let clamped = Bucket(bucket.min((u128::from(now) + furthest).min(u128::from(u64::MAX)) as u64));
        let next = ahead + t * u128::from(cells);
        if cells == 0 {
            Drawn::nothing(clamped)
        } else if u128::from(cells) > burst {
            Drawn::refused(clamped, Drawn::NEVER)
        } else if next > t * burst {
            Drawn::refused(clamped, (next - t * burst) as u64)
        } else if u128::from(now) + next > u128::from(u64::MAX) {
            Drawn::refused(clamped, t as u64)
        } else {
            Drawn { after: Bucket((u128::from(now) + next) as u64), clamped, wait: Drawn::NOW }
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

    /// Quotas up to the longest that there are.
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
            slack in prop_oneof![Just(0), edgy(MOST_SLACK)],
        ) {
            // Mostly within the burst, where requests are granted.
            let cells = if near { cells % (u64::from(quota.burst_size()) + 2) } else { cells } as u32;
            let ahead = if near { ahead % (2 * quota.burst_nanos() + 2) } else { ahead };
            let bucket = now.saturating_add(ahead);
            prop_assert_eq!(Bucket(bucket).draw(now, quota, cells, slack), model(bucket, now, quota, cells, slack));
        }
    }
}
