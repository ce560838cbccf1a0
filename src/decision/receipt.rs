//! Contains the result of one policy in a decision ([`PolicyOutcome`]), and the [`Receipt`] for
//! what it granted.
//!
//! Each decision moves several of these, so this file also contains how they are stored meanwhile.
//! It must not know of the decision over all policies.

use std::{
    ops::{Deref, DerefMut},
    slice,
};

use smallvec::SmallVec;

use super::standing::{DecidedLimit, Level, Standing, Verdict, WindowLeft};
use crate::{
    bucket::{Bucket, Evaluation},
    clock::{Nanos, Timestamp},
    key::Key,
    policy::{Demand, Policy},
    quota::Quota,
};

/// What one policy was asked, and its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PolicyOutcome {
    /// The policy's index in its limiter.
    pub(crate) policy: usize,
    /// Whether the policy only reports.
    pub(crate) shadow: bool,
    pub(crate) limit: DecidedLimit,
    /// After the request if it is allowed, and before it otherwise.
    pub(crate) backlog: Nanos,
    pub(crate) verdict: Verdict,
}

impl PolicyOutcome {
    /// The outcome of the policy at this index, whose bucket is now `bucket`, and was decided at
    /// `stands_at`.
    #[inline(always)]
    pub(crate) fn of(
        policy: usize,
        demand: &Demand,
        bucket: Bucket,
        evaluation: Evaluation,
        stands_at: Timestamp,
        window: Option<WindowLeft>,
    ) -> Self {
        let Demand { quota, shadow, .. } = *demand;
        let (limit, backlog) = (DecidedLimit::of(quota, window), bucket.backlog(stands_at));
        Self { policy, shadow, limit, backlog, verdict: Verdict::of(evaluation.wait) }
    }

    /// The outcome of a policy of requests in flight, of which there are `in_flight`.
    pub(crate) fn of_permits(demand: &Demand, in_flight: u32, verdict: Verdict) -> Self {
        let limit = DecidedLimit::InFlight(demand.quota.burst_size());
        Self { policy: 0, shadow: demand.shadow, limit, backlog: Nanos::new(in_flight.into()), verdict }
    }

    pub(crate) fn standing<'a>(&self, policies: &'a [Policy]) -> Standing<'a> {
        Standing { policy: policies[self.policy].name(), ..self.unnamed() }
    }

    /// The standing without the policy's name, for a caller that knows it.
    pub(crate) fn unnamed(&self) -> Standing<'static> {
        Standing { policy: "", shadow: self.shadow, level: self.level(), verdict: self.verdict }
    }

    pub(crate) fn level(&self) -> Level {
        Level { limit: self.limit, backlog: self.backlog }
    }

    /// What the policy's bucket was decided by.
    #[inline(always)]
    pub(crate) fn quota(&self) -> Quota {
        self.limit.quota()
    }

    /// The outcome, so much later: of a rate cells have come back, and of a window less is left.
    pub(crate) fn pass(&mut self, time: Nanos) {
        match &mut self.limit {
            DecidedLimit::InFlight(_) => {}
            DecidedLimit::Rate(_) => self.backlog = self.backlog.saturating_sub(time),
            DecidedLimit::Window { left, .. } => *left = left.saturating_sub(time).max(Nanos::new(1)),
        }
    }

    /// Whether the policy denies the request.
    #[inline(always)]
    pub(crate) fn denies(&self) -> bool {
        self.verdict != Verdict::Granted && !self.shadow
    }
}

/// Stores two inline, because [`Denied`](super::Denied) is moved by value, and most limiters have
/// one policy or two.
pub(crate) type PolicyOutcomes = SmallVec<[PolicyOutcome; 2]>;

/// What a policy granted: it can be refunded, or charged beyond.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) outcome: PolicyOutcome,
    pub(crate) key: Key,
    pub(crate) cells: u32,
    /// Whether the quota was chosen for the request.
    pub(crate) planned: bool,
    /// The backlog that the cells added.
    pub(crate) added: Nanos,
    /// The generation of the policy's buckets when the cells were acquired.
    pub(crate) generation: u64,
    /// The bucket afterwards.
    pub(crate) after: Bucket,
    /// The length of the key's pauses until then.
    pub(crate) paused: Nanos,
    pub(crate) origin: ReceiptOrigin,
}

impl Receipt {
    /// The receipt of cells that are there only after `wait`.
    pub(crate) fn later_by(&self, wait: Nanos) -> Self {
        let origin = match self.origin {
            #[cfg(feature = "redis")]
            ReceiptOrigin::Redis { at } => ReceiptOrigin::Redis { at: at.saturating_add(wait) },
            origin => origin,
        };
        #[cfg(not(feature = "redis"))]
        let _ = wait;
        Self { origin, ..*self }
    }
}

/// Which bucket has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiptOrigin {
    /// The key's own, in memory.
    Own,
    /// A slot of the overflow table, in memory.
    Overflow,
    /// One in Redis.
    #[cfg(feature = "redis")]
    Redis {
        /// When, on the server's clock.
        at: Timestamp,
    },
}

/// The receipts of a decision, in the policies' order, those of four policies without an
/// allocation.
///
/// A single receipt is written directly where it stays, because a collection would copy it, and it
/// is large.
#[derive(Debug, Default)]
#[expect(clippy::large_enum_variant, reason = "an allocation would cost more than a copy")]
pub(crate) enum Receipts {
    #[default]
    None,
    One(Receipt),
    Many(SmallVec<[Receipt; 4]>),
}

impl Receipts {
    #[inline(always)]
    pub(crate) fn push(&mut self, receipt: Receipt) {
        match self {
            Self::None => *self = Self::One(receipt),
            Self::One(first) => *self = Self::Many(SmallVec::from_iter([*first, receipt])),
            Self::Many(receipts) => receipts.push(receipt),
        }
    }

    /// A copy of these.
    pub(crate) fn of(receipts: &[Receipt]) -> Self {
        match receipts {
            [] => Self::None,
            [receipt] => Self::One(*receipt),
            several => Self::Many(SmallVec::from_slice(several)),
        }
    }

    /// Sorts them into the policies' order.
    #[cfg(feature = "redis")]
    pub(crate) fn sort(&mut self) {
        if let Self::Many(receipts) = self {
            receipts.sort_unstable_by_key(|receipt| receipt.outcome.policy);
        }
    }
}

impl Extend<Receipt> for Receipts {
    #[inline(always)]
    fn extend<I: IntoIterator<Item = Receipt>>(&mut self, receipts: I) {
        let receipts = receipts.into_iter();
        // Several receipts skip the state of one, which would copy the first, and are written where
        // they stay.
        if let (Self::None, (2.., _)) = (&self, receipts.size_hint()) {
            *self = Self::Many(SmallVec::new());
        }
        receipts.for_each(|receipt| self.push(receipt));
    }
}

impl Deref for Receipts {
    type Target = [Receipt];

    fn deref(&self) -> &[Receipt] {
        match self {
            Self::None => &[],
            Self::One(receipt) => slice::from_ref(receipt),
            Self::Many(receipts) => receipts,
        }
    }
}

impl DerefMut for Receipts {
    fn deref_mut(&mut self) -> &mut [Receipt] {
        match self {
            Self::None => &mut [],
            Self::One(receipt) => slice::from_mut(receipt),
            Self::Many(receipts) => receipts,
        }
    }
}
