//! [`Trial`]: what one policy was asked, and its answer; and [`Draw`], the receipt for what it drew.
//!
//! Owns how they are kept while they are handed on: many are moved in each decision. Knows nothing of verdicts.

use std::{
    ops::{Deref, DerefMut},
    slice,
    time::Duration,
};

use smallvec::SmallVec;

use super::{Reason, Standing};
use crate::{
    bucket::{Bucket, Drawn},
    key::Key,
    policy::Policy,
    quota::Quota,
};

/// What one policy was asked, and its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trial {
    /// The policy's index in its limiter.
    pub(crate) policy: usize,
    /// Whether the policy only reports.
    pub(crate) shadow: bool,
    pub(crate) quota: Quota,
    /// After the draw, or as it was found.
    pub(crate) backlog: u64,
    pub(crate) outcome: Outcome,
}

impl Trial {
    /// How the policy of this index stands, whose `bucket` was drawn from, or is as its quota allows it to stand.
    #[inline(always)]
    pub(crate) fn of(policy: usize, quota: Quota, bucket: Bucket, drawn: Drawn, now: u64) -> Self {
        let outcome = match drawn.wait {
            Drawn::NOW => Outcome::Granted,
            Drawn::NEVER => Outcome::Never,
            wait => Outcome::Wait(wait),
        };
        Self { policy, shadow: false, quota, backlog: bucket.backlog(now), outcome }
    }

    pub(super) fn standing<'a>(&self, policies: &'a [Policy]) -> Standing<'a> {
        Standing { policy: policies[self.policy].name(), ..self.unnamed() }
    }

    /// The standing without the policy's name, for whoever knows it.
    pub(crate) fn unnamed(&self) -> Standing<'static> {
        Standing { policy: "", shadow: self.shadow, quota: self.quota, backlog: self.backlog, outcome: self.outcome }
    }

    /// Whether the policy refused, and is there to refuse.
    pub(crate) fn refuses(&self) -> bool {
        self.outcome != Outcome::Granted && !self.shadow
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    AtCapacity,
    /// For so many nanoseconds yet.
    Blocked(u64),
    Granted,
    Never,
    /// Nanoseconds.
    Wait(u64),
}

impl Outcome {
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::AtCapacity => Reason::AtCapacity,
            Self::Blocked(_) => Reason::Blocked,
            Self::Never => Reason::CostAboveBurst,
            Self::Granted | Self::Wait(_) => Reason::Exceeded,
        }
    }

    pub(super) fn wait(self) -> Option<Duration> {
        self.nanos().map(Duration::from_nanos)
    }

    pub(super) fn nanos(self) -> Option<u64> {
        match self {
            Self::Blocked(nanos) | Self::Wait(nanos) => Some(nanos),
            Self::AtCapacity | Self::Granted | Self::Never => None,
        }
    }
}

/// A trial that was granted, and the receipt for what it drew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) trial: Trial,
    pub(crate) key: Key,
    pub(crate) cells: u32,
    /// Nanoseconds of backlog.
    pub(crate) added: u64,
    /// Of the policy, when it was drawn.
    pub(crate) generation: u64,
    /// The bucket as it was left.
    pub(crate) left: Bucket,
    /// Whether it was drawn from the overflow instead of a bucket of its own.
    pub(crate) from_overflow: bool,
}

/// The receipts of a decision, in the policies' order, those of four policies without an allocation. A single one is written
/// where it stays: to be handed to a collection it would be copied, and it is large.
#[derive(Debug, Default)]
#[expect(clippy::large_enum_variant, reason = "an allocation would cost more than a copy")]
pub(crate) enum Draws {
    #[default]
    None,
    One(Draw),
    Many(SmallVec<[Draw; 4]>),
}

impl Draws {
    #[inline(always)]
    pub(crate) fn push(&mut self, draw: Draw) {
        match self {
            Self::None => *self = Self::One(draw),
            Self::One(first) => *self = Self::Many(SmallVec::from_iter([*first, draw])),
            Self::Many(draws) => draws.push(draw),
        }
    }
}

impl Extend<Draw> for Draws {
    #[inline(always)]
    fn extend<I: IntoIterator<Item = Draw>>(&mut self, draws: I) {
        let mut draws = draws.into_iter();
        // Several are not gone about by way of one, which would copy the first.
        if let (Self::None, (2.., _)) = (&self, draws.size_hint()) {
            let mut several = SmallVec::new();
            draws.by_ref().for_each(|draw| several.push(draw));
            *self = Self::Many(several);
        }
        draws.for_each(|draw| self.push(draw));
    }
}

#[cfg(feature = "redis")]
impl Draws {
    /// Into the policies' order.
    pub(crate) fn sort(&mut self) {
        if let Self::Many(draws) = self {
            draws.sort_unstable_by_key(|draw| draw.trial.policy);
        }
    }
}

impl Deref for Draws {
    type Target = [Draw];

    fn deref(&self) -> &[Draw] {
        match self {
            Self::None => &[],
            Self::One(draw) => slice::from_ref(draw),
            Self::Many(draws) => draws,
        }
    }
}

impl DerefMut for Draws {
    fn deref_mut(&mut self) -> &mut [Draw] {
        match self {
            Self::None => &mut [],
            Self::One(draw) => slice::from_mut(draw),
            Self::Many(draws) => draws,
        }
    }
}

/// Those of a refusal are moved with it, and most limiters have one policy or two.
pub(crate) type Trials = SmallVec<[Trial; 2]>;

impl Draw {
    /// How the policy stands after the draw.
    pub(crate) fn standing<'a>(&self, policies: &'a [Policy]) -> Standing<'a> {
        self.trial.standing(policies)
    }
}
