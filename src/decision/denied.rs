//! [`Denied`]: a refusal.
//!
//! Owns what the policies that refused come to together, and how much of it is told to whom. Knows nothing of the syntax it
//! is told in.

use std::{fmt, slice, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::{Outcome, Standing, Trial, Trials};
use crate::policy::Policy;

/// A refusal: which policies were violated, and how long to wait.
///
/// It holds no key, and its text is fit for the client. An answer of your own may put it into the extensions of the
/// response, for an outer layer to see.
#[derive(Clone)]
pub struct Denied {
    policies: Arc<[Policy]>,
    cause: Cause,
    trials: Trials,
    /// Of the trials: found once, for an answer asks for it several times.
    summary: Summary,
    /// Whole seconds that clients are told to wait beyond what they must.
    jitter: u64,
}

/// What the policies that refused come to together.
#[derive(Clone, Copy)]
struct Summary {
    reason: Reason,
    tells: Tells,
    /// The longest of their waits, in nanoseconds. Means something only where a wait helps.
    wait: u64,
    /// The one that refused, if only one did, and for want of cells.
    sole: Option<usize>,
}

/// How much of the wait is told: what the most reticent of the policies that refused lets be told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tells {
    Nothing,
    /// Which do not give a hidden quota away.
    WholeSeconds,
    Exactly,
}

impl Summary {
    /// Of a refusal without trials.
    fn untried(reason: Reason) -> Self {
        Self { reason, tells: Tells::Exactly, wait: 0, sole: None }
    }

    fn of(policies: &[Policy], trials: &[Trial]) -> Self {
        let mut summary = Self::untried(Reason::Exceeded);
        let mut refused = 0;
        for trial in trials.iter().filter(|trial| trial.refuses()) {
            let reason = trial.outcome.reason();
            // Of several that hold, the one that a wait helps least against.
            if severity(reason) > severity(summary.reason) {
                summary.reason = reason;
            }
            summary.wait = summary.wait.max(trial.outcome.nanos().unwrap_or(0));
            summary.tells = summary.tells.min(match policies[trial.policy].advertised() {
                advertise if !advertise.tells_the_wait() => Tells::Nothing,
                advertise if advertise.names_the_policy() => Tells::Exactly,
                _ => Tells::WholeSeconds,
            });
            refused += 1;
            summary.sole = (refused == 1 && reason == Reason::Exceeded).then_some(trial.policy);
        }
        summary
    }

    fn wait(self) -> Option<u64> {
        matches!(self.reason, Reason::Blocked | Reason::Exceeded).then_some(self.wait)
    }
}

fn severity(reason: Reason) -> u8 {
    match reason {
        Reason::CostAboveBurst => 3,
        Reason::AtCapacity => 2,
        Reason::Blocked => 1,
        Reason::Exceeded | Reason::MissingKey | Reason::Unavailable => 0,
    }
}

#[derive(Clone)]
enum Cause {
    MissingKey {
        policy: usize,
        status: StatusCode,
        /// Apart, for it is large, and refusals are moved.
        challenge: Option<Box<HeaderValue>>,
    },
    Tried,
    #[cfg(feature = "redis")]
    Unavailable {
        policy: usize,
    },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The key is blocked: by [`Limiter::block`](crate::Limiter::block), or because it was refused too often
    /// ([`Policy::ban`](crate::Policy::ban)).
    Blocked,
    /// A policy whose map is full takes no new keys ([`AtCap::Deny`](crate::policy::AtCap::Deny)), or none at this cost.
    AtCapacity,
    /// The request costs more cells than a policy ever has at once. It can never succeed.
    CostAboveBurst,
    /// A policy has not enough cells now.
    Exceeded,
    /// The request has no key for a policy that needs one.
    MissingKey,
    /// A policy whose buckets are elsewhere cannot look at them now, and does not admit without.
    Unavailable,
}

impl Denied {
    pub(crate) fn missing_key(
        policies: Arc<[Policy]>,
        policy: usize,
        status: StatusCode,
        challenge: Option<HeaderValue>,
    ) -> Self {
        let (cause, summary) = (
            Cause::MissingKey { policy, status, challenge: challenge.map(Box::new) },
            Summary::untried(Reason::MissingKey),
        );
        Self { policies, cause, trials: SmallVec::new(), summary, jitter: 0 }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn unavailable(policies: Arc<[Policy]>, policy: usize) -> Self {
        let (cause, summary) = (Cause::Unavailable { policy }, Summary::untried(Reason::Unavailable));
        Self { policies, cause, trials: SmallVec::new(), summary, jitter: 0 }
    }

    pub(crate) fn tried(policies: Arc<[Policy]>, trials: Trials) -> Self {
        let summary = Summary::of(&policies, &trials);
        Self { policies, cause: Cause::Tried, trials, summary, jitter: 0 }
    }

    /// Sends the client away for so many seconds more: the wait only grows, and so stays true.
    pub(crate) fn add_jitter(&mut self, seconds: u64) {
        self.jitter = seconds;
    }

    /// Why the request was refused. Where several reasons hold, the one that a wait helps least against.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.summary.reason
    }

    /// The status that says so: 429 (RFC 6585 §4), or for a missing key what its policy says.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.cause {
            Cause::MissingKey { status, .. } => status,
            #[cfg(feature = "redis")]
            Cause::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Cause::Tried => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// The time after which the same request is admitted if nobody else draws meanwhile: the longest of all policies, to
    /// the nanosecond. `None` where no wait is known to help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.summary.wait().map(Duration::from_nanos)
    }

    /// The value of the `Retry-After` field (RFC 9110 §10.2.3): [`retry_after`](Self::retry_after) in whole seconds,
    /// rounded up, at least 1, with the layer's [jitter](crate::RateLimitLayer::jitter). `None` also where a policy that
    /// refused [advertises nothing](crate::policy::Advertise::Nothing).
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        // Rounded up here, and not by way of a duration: this is asked for with each refusal.
        let wait = self.summary.wait().filter(|_| !self.is_silent())?;
        Some(wait.div_ceil(SECOND).saturating_add(self.jitter).max(1))
    }

    /// What clients are told to wait: to the nanosecond where every policy that refused names itself, and else in whole
    /// seconds, which do not give a hidden quota away.
    pub(crate) fn told_wait(&self) -> Option<Duration> {
        let wait = match self.summary.tells {
            Tells::Nothing => None,
            Tells::WholeSeconds => self.summary.wait().map(|wait| Duration::from_secs(wait.div_ceil(SECOND))),
            Tells::Exactly => self.retry_after(),
        };
        wait.map(|wait| wait.saturating_add(Duration::from_secs(self.jitter)))
    }

    /// Whether a policy refused of which nothing may be told.
    fn is_silent(&self) -> bool {
        self.summary.tells == Tells::Nothing
    }

    /// The policy that refused, if it is the only one, lets the wait be told, and has not enough cells: what nearly all
    /// refusals are.
    pub(crate) fn sole_excess(&self) -> Option<usize> {
        self.summary.sole.filter(|_| !self.is_silent())
    }

    /// The reason as clients are told it.
    pub(crate) fn told_reason(&self) -> Reason {
        if self.is_silent() { Reason::Exceeded } else { self.reason() }
    }

    /// The policies that refused, in the limiter's order, whatever clients may know of them. For a missing key there are
    /// none: nothing was looked at.
    pub fn violated(&self) -> impl Iterator<Item = Standing<'_>> {
        self.standings().filter(|standing| standing.is_violated() && !standing.is_shadow())
    }

    /// How each policy that applied stands, in the limiter's order. Nothing was drawn.
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.trials.iter().map(|trial| trial.standing(&self.policies))
    }

    /// The name of the first policy that refused. For logs; what clients may know are the
    /// [`told_policies`](Self::told_policies).
    #[must_use]
    pub fn policy(&self) -> &str {
        match self.cause {
            Cause::MissingKey { policy, .. } => self.policies[policy].name(),
            #[cfg(feature = "redis")]
            Cause::Unavailable { policy } => self.policies[policy].name(),
            Cause::Tried => self.violated_policies().next().map_or("", Policy::name),
        }
    }

    /// The value of `WWW-Authenticate` where the status is 401.
    pub(crate) fn challenge(&self) -> Option<&HeaderValue> {
        match &self.cause {
            Cause::MissingKey { status: StatusCode::UNAUTHORIZED, challenge, .. } => challenge.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn trials(&self) -> slice::Iter<'_, Trial> {
        self.trials.iter()
    }

    /// The trials of the policies that refused and had a bucket to look at.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = &Trial> {
        let without = |trial: &&Trial| matches!(trial.outcome, Outcome::AtCapacity | Outcome::Blocked(_));
        self.trials.iter().filter(move |trial| trial.refuses() && !without(trial))
    }

    /// The names of the policies that refused and that clients may know: those that [advertise](crate::Policy::advertise)
    /// themselves.
    pub fn told_policies(&self) -> impl Iterator<Item = &str> {
        self.told().map(Policy::name)
    }

    pub(crate) fn told(&self) -> impl Iterator<Item = &Policy> {
        self.violated_policies().filter(|policy| policy.advertised().names_the_policy())
    }

    fn violated_policies(&self) -> impl Iterator<Item = &Policy> {
        let violated = self.trials.iter().filter(|trial| trial.refuses());
        violated.map(|trial| &self.policies[trial.policy])
    }
}

/// One sentence or two for the client: the policy, if it may be known, and how long to wait. Nothing of the key.
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sentence { start, named, end, retry_in } = self.sentence();
        f.write_str(start)?;
        if let Some((preposition, policy)) = named {
            write!(f, "{preposition}\"{}\"", policy.name())?;
        }
        f.write_str(end)?;
        retry_in.map_or(Ok(()), |seconds| write!(f, " Retry in {seconds} s."))
    }
}

/// What the client is told, in parts.
pub(crate) struct Sentence<'a> {
    pub(crate) start: &'static str,
    /// What leads to the policy's name, and the policy.
    pub(crate) named: Option<(&'static str, &'a Policy)>,
    pub(crate) end: &'static str,
    /// Seconds.
    pub(crate) retry_in: Option<u64>,
}

impl Denied {
    /// The policy that the reason is true of: the one to wait for longest, where a wait helps.
    fn culprit(&self, reason: Reason) -> Option<usize> {
        let culprits = self.trials.iter().filter(|trial| trial.refuses() && trial.outcome.reason() == reason);
        // Of several that are equal, the first.
        let longest = culprits.reduce(|a, b| if b.outcome.nanos() > a.outcome.nanos() { b } else { a })?;
        let elsewhere = self.summary.wait().is_some_and(|wait| longest.outcome.nanos() < Some(wait));
        (!elsewhere).then_some(longest.policy)
    }

    pub(crate) fn sentence(&self) -> Sentence<'_> {
        let reason = self.told_reason();
        let policy = match self.cause {
            Cause::MissingKey { policy, .. } => Some(policy),
            #[cfg(feature = "redis")]
            Cause::Unavailable { policy } => Some(policy),
            Cause::Tried => self.culprit(reason),
        };
        let policy = policy.map(|policy| &self.policies[policy]);
        let named = policy.filter(|policy| policy.advertised().names_the_policy());
        Sentence { retry_in: self.retry_after_seconds(), ..Sentence::of(reason, self.status(), named) }
    }
}

impl<'a> Sentence<'a> {
    /// Without the time to come back at.
    pub(crate) fn of(reason: Reason, status: StatusCode, named: Option<&'a Policy>) -> Self {
        let (start, preposition, end) = match reason {
            Reason::MissingKey if status == StatusCode::INTERNAL_SERVER_ERROR => {
                ("The server is not set up to tell clients apart", " for the policy ", ".")
            }
            Reason::MissingKey => ("The request has no key", " for the policy ", "."),
            Reason::CostAboveBurst => {
                ("The request costs more than is ever allowed at once", " by the policy ", ". Waiting does not help.")
            }
            Reason::AtCapacity => ("No new clients are taken now", " by the policy ", "."),
            Reason::Blocked => ("Requests are blocked for a time", " by the policy ", "."),
            Reason::Exceeded => ("Too many requests", " for the policy ", "."),
            Reason::Unavailable => ("The limit cannot be checked now", " for the policy ", "."),
        };
        Sentence { start, named: named.map(|policy| (preposition, policy)), end, retry_in: None }
    }
}

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denied")
            .field("reason", &self.reason())
            .field("policy", &self.policy())
            .field("retry_after", &self.retry_after())
            .finish_non_exhaustive()
    }
}

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;
