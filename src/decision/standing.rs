//! Contains [`Standing`], where a key stands under one policy, and the policy's [`Verdict`].

use std::time::Duration;

use super::reason::Reason;
use crate::{
    bucket::{self, Evaluation},
    clock::Nanos,
    quota::Quota,
};

/// A policy's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    AtCapacity,
    /// The remaining time of the block.
    Blocked(Nanos),
    Granted,
    Never,
    /// The time until the cells are there.
    Wait(Nanos),
}

impl Verdict {
    #[inline(always)]
    pub(super) fn of(wait: Nanos) -> Self {
        match wait {
            Evaluation::NOW => Self::Granted,
            Evaluation::NEVER => Self::Never,
            wait => Self::Wait(wait),
        }
    }

    pub(super) fn reason(self) -> Reason {
        match self {
            Self::AtCapacity => Reason::AtCapacity,
            Self::Blocked(_) => Reason::Blocked,
            Self::Never => Reason::CostAboveBurst,
            Self::Granted | Self::Wait(_) => Reason::Exceeded,
        }
    }

    /// `None` where no wait is needed, or none helps.
    pub(super) fn wait(self) -> Option<Nanos> {
        match self {
            Self::Blocked(wait) | Self::Wait(wait) => Some(wait),
            Self::AtCapacity | Self::Granted | Self::Never => None,
        }
    }
}

/// Where a key stands under one policy: its limit, what remains, and when more does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    pub(super) policy: &'a str,
    pub(super) shadow: bool,
    pub(super) quota: Quota,
    pub(super) backlog: Nanos,
    pub(super) verdict: Verdict,
}

impl<'a> Standing<'a> {
    /// The standing of a bucket that no request asks.
    pub(crate) fn of(policy: &'a str, quota: Quota, backlog: Nanos) -> Self {
        Self { policy, shadow: false, quota, backlog, verdict: Verdict::Granted }
    }

    /// Returns the policy's name.
    #[must_use]
    pub fn policy(&self) -> &'a str {
        self.policy
    }

    /// Returns the quota that the request was decided by.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Returns the burst: the number of cells that are there when the bucket is full.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.quota.burst_size()
    }

    /// Returns how many requests of one cell would be granted now: `floor((B·T − backlog) / T)`,
    /// and 0 in debt.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        let left = bucket::requests_left(self.quota.burst_nanos(), self.backlog, self.quota.cell_nanos());
        left.and_then(|left| u32::try_from(left).ok()).unwrap_or(u32::MAX)
    }

    /// Returns the time until one more cell remains, or `None` when the bucket is full.
    #[must_use]
    pub fn next_cell(&self) -> Option<Duration> {
        let remaining = self.remaining();
        let missing = self.limit().checked_sub(remaining)?.checked_sub(1)?;
        let next = self.backlog.saturating_sub(self.quota.cost(missing));
        // After a change to a slower quota, cells come back faster until the request is allowed.
        let wait = if let Verdict::Wait(wait) = self.verdict { wait } else { Nanos::MAX };
        Some(next.min(wait).into())
    }

    /// Returns the time until the bucket is full.
    #[must_use]
    pub fn until_full(&self) -> Duration {
        self.backlog.into()
    }

    /// Returns the time until the cells that this request asked for are there. Returns `None` where
    /// they were granted, or where no wait helps.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.verdict.wait().map(Into::into)
    }

    /// Whether this policy denied the request, or would have denied it outside of
    /// [shadow mode](crate::Policy::shadow).
    #[must_use]
    pub fn is_violated(&self) -> bool {
        self.verdict != Verdict::Granted
    }

    /// Whether the policy was in [shadow mode](crate::Policy::shadow) for this request, and denied
    /// nothing.
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.shadow
    }
}
