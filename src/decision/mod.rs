//! [`Decision`]: the verdict over all policies, and each policy's [`Standing`] in it.
//!
//! Owns what a verdict means: which policies are violated, how long to wait, what to say. Knows nothing of how it was
//! reached, nor of how it is written into a response.

mod denied;
mod trial;

use std::{fmt, time::Duration};

pub use self::denied::{Denied, Reason};
pub(crate) use self::{
    denied::Sentence,
    trial::{Draw, Draws, Outcome, Trial, Trials},
};
use crate::{policy::Policy, quota::Quota};

/// Whether a request is admitted.
#[derive(Debug)]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "made where it is returned; an allocation would cost more than a copy")]
pub enum Decision<'a> {
    /// Every policy that applies has granted its cells, and they are drawn.
    Allow(Allowed<'a>),
    /// At least one policy has refused, and no policy is charged.
    Deny(Denied),
}

impl Decision<'_> {
    /// Whether the request is admitted.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The refusal, if it is one.
    #[must_use]
    pub fn denied(self) -> Option<Denied> {
        match self {
            Self::Allow(_) => None,
            Self::Deny(denied) => Some(denied),
        }
    }
}

/// An admission, and the receipts for what was drawn.
#[must_use]
pub struct Allowed<'a> {
    pub(crate) policies: &'a [Policy],
    /// The reading of the clock at which the cells were drawn.
    pub(crate) at: u64,
    pub(crate) draws: Draws,
}

impl Allowed<'_> {
    /// How each policy that applied stands after the draw, in the limiter's order.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.draws.iter().map(|draw| draw.trial.standing(self.policies))
    }
}

impl fmt::Debug for Allowed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}

/// How one policy stands in a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    policy: &'a str,
    shadow: bool,
    quota: Quota,
    backlog: u64,
    outcome: Outcome,
}

impl<'a> Standing<'a> {
    pub(crate) fn of(policy: &'a str, quota: Quota, backlog: u64) -> Self {
        Self { policy, shadow: false, quota, backlog, outcome: Outcome::Granted }
    }

    /// The policy's name.
    #[must_use]
    pub fn policy(&self) -> &'a str {
        self.policy
    }

    /// The quota that the request was decided under.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// The cells that are there at once when nothing is owed.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.quota.burst_size()
    }

    /// How many requests of one cell would be granted now: `floor((B·T − backlog) / T)`, 0 in debt.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        let left = self.quota.burst_nanos().saturating_sub(self.backlog) / self.quota.cell_nanos();
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// The time until one cell more remains. `None` when the bucket is full.
    #[must_use]
    pub fn next_cell(&self) -> Option<Duration> {
        let remaining = self.remaining();
        let missing = u64::from(self.limit().checked_sub(remaining)?.checked_sub(1)?);
        Some(Duration::from_nanos(self.backlog - missing * self.quota.cell_nanos()))
    }

    /// The time until nothing is owed and the whole burst is there.
    #[must_use]
    pub fn until_full(&self) -> Duration {
        Duration::from_nanos(self.backlog)
    }

    /// The time until the cells that this request asked for are there. `None` where they were granted, or no wait is
    /// known to help.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.outcome.wait()
    }

    /// Whether this policy refused the request, or would have refused it if it were not in
    /// [shadow mode](crate::Policy::shadow).
    #[must_use]
    pub fn is_violated(&self) -> bool {
        self.outcome != Outcome::Granted
    }

    /// Whether the policy was in [shadow mode](crate::Policy::shadow) for this request, and refused nothing.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }
}
