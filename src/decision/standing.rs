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
    /// As many requests are in flight as may be. The configured time to retry in, or zero.
    NoPermit(Nanos),
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
            Self::NoPermit(_) => Reason::InFlight,
            Self::Granted | Self::Wait(_) => Reason::Exceeded,
        }
    }

    /// `None` where no wait is needed, or none helps.
    pub(super) fn wait(self) -> Option<Nanos> {
        match self {
            Self::Blocked(wait) | Self::Wait(wait) => Some(wait),
            Self::NoPermit(retry) => Some(retry).filter(|retry| !retry.is_zero()),
            Self::AtCapacity | Self::Granted | Self::Never => None,
        }
    }
}

/// The rest of the current window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowLeft {
    pub(crate) left: Nanos,
    /// The length of the whole window, in minutes.
    pub(crate) minutes: u32,
}

impl WindowLeft {
    #[inline(always)]
    pub(crate) fn new(left: Nanos, minutes: u32) -> Self {
        Self { left, minutes }
    }

    pub(crate) fn length(self) -> Nanos {
        Nanos::MINUTE.saturating_mul(self.minutes.into())
    }
}

/// What a bucket was decided by. As large as a quota, because each decision moves several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecidedLimit {
    /// The number of requests that may be in flight.
    InFlight(u32),
    Rate(Quota),
    Window {
        left: Nanos,
        limit: u32,
        minutes: u32,
    },
}

impl DecidedLimit {
    #[inline(always)]
    pub(crate) fn of(quota: Quota, window: Option<WindowLeft>) -> Self {
        match window {
            None => Self::Rate(quota),
            Some(WindowLeft { left, minutes }) => Self::Window { left, limit: quota.burst_size(), minutes },
        }
    }

    /// Where time brings no cells back, the one whose cells take a nanosecond.
    #[inline(always)]
    pub(crate) fn quota(self) -> Quota {
        match self {
            Self::Rate(quota) => quota,
            Self::InFlight(limit) | Self::Window { limit, .. } => Quota::of_window(limit),
        }
    }

    pub(crate) fn window(self) -> Option<WindowLeft> {
        match self {
            Self::InFlight(_) | Self::Rate(_) => None,
            Self::Window { left, minutes, .. } => Some(WindowLeft { left, minutes }),
        }
    }
}

/// How full a bucket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) limit: DecidedLimit,
    pub(crate) backlog: Nanos,
}

/// Where a key stands under one policy: its limit, what remains, and when more does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    pub(super) policy: &'a str,
    pub(super) shadow: bool,
    pub(super) level: Level,
    pub(super) verdict: Verdict,
}

impl<'a> Standing<'a> {
    /// The standing of a bucket that no request asks.
    pub(crate) fn of(policy: &'a str, level: Level) -> Self {
        Self { policy, shadow: false, level, verdict: Verdict::Granted }
    }

    /// Returns the policy's name.
    #[must_use]
    pub fn policy(&self) -> &'a str {
        self.policy
    }

    /// Returns the quota that the request was decided by, or `None` if the policy has no rate.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        if let DecidedLimit::Rate(quota) = self.level.limit { Some(quota) } else { None }
    }

    /// Returns the length of the current window, or `None` if the policy has none.
    #[must_use]
    pub fn window(&self) -> Option<Duration> {
        self.level.limit.window().map(|window| window.length().into())
    }

    /// Returns the number of cells that are there when nothing is used: the burst of a rate, the
    /// limit of a window, or the number of requests that may be in flight.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.level.limit.quota().burst_size()
    }

    /// Returns how many requests of one cell would be granted now, and 0 in debt. Of a rate:
    /// `floor((B·T − backlog) / T)`. Of requests in flight: how many more may be.
    #[must_use]
    pub fn remaining(&self) -> u32 {
        let Level { limit, backlog } = self.level;
        let quota = limit.quota();
        let left = bucket::requests_left(quota.burst_nanos(), backlog, quota.cell_nanos());
        left.and_then(|left| u32::try_from(left).ok()).unwrap_or(u32::MAX)
    }

    /// Returns the time until one more cell remains, or `None` when nothing is used. Of a window,
    /// the time until its end. `None` for requests in flight, whose end is unknown.
    #[must_use]
    pub fn next_cell(&self) -> Option<Duration> {
        let remaining = self.remaining();
        let missing = self.limit().checked_sub(remaining)?.checked_sub(1)?;
        let quota = match self.level.limit {
            DecidedLimit::InFlight(_) => return None,
            DecidedLimit::Rate(quota) => quota,
            DecidedLimit::Window { left, .. } => return Some(left.into()),
        };
        let next = self.level.backlog.saturating_sub(quota.cost(missing));
        // After a change to a slower quota, cells come back faster until the request is allowed.
        let wait = if let Verdict::Wait(wait) = self.verdict { wait } else { Nanos::MAX };
        Some(next.min(wait).into())
    }

    /// Returns the time until nothing is used: zero if that is so now. Of a window, the time until
    /// its end. Zero for requests in flight, whose end is unknown.
    #[must_use]
    pub fn until_full(&self) -> Duration {
        match self.level.limit {
            DecidedLimit::InFlight(_) => Duration::ZERO,
            DecidedLimit::Window { left, .. } if !self.level.backlog.is_zero() => left.into(),
            DecidedLimit::Rate(_) | DecidedLimit::Window { .. } => self.level.backlog.into(),
        }
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
