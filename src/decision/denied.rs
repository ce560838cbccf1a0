//! Contains [`Denied`]: which policies denied a request, how long to wait, and how much of both the
//! client may know.
//!
//! This file must not know the format that a denial is written into.

use std::{fmt, slice, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use smallvec::SmallVec;

use super::{
    message::Message,
    reason::Reason,
    receipt::{PolicyOutcome, PolicyOutcomes},
    standing::{Standing, Verdict},
};
use crate::{clock::Nanos, policy::Policy};

/// A denied request: which policies were violated, and how long to wait.
///
/// It contains no key, and its text may be sent to the client. A response of your own may put it
/// into its extensions, for an outer layer to read.
#[derive(Clone)]
pub struct Denied {
    policies: Arc<[Policy]>,
    cause: Cause,
    outcomes: PolicyOutcomes,
    /// Computed once from the outcomes, because a response reads it several times.
    summary: Summary,
    /// The seconds that clients wait in addition.
    jitter: u64,
}

/// The policies that denied, taken together.
#[derive(Clone, Copy)]
struct Summary {
    reason: Reason,
    disclosure: Disclosure,
    /// The longest wait. Meaningful only where a wait helps.
    wait: Nanos,
    /// The policy that denied, if it is the only one, and for lack of cells.
    single: Option<usize>,
}

/// How much of the wait the client may know: the least that any of the denying policies discloses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Disclosure {
    Nothing,
    /// Whole seconds do not disclose a hidden quota.
    WholeSeconds,
    Exact,
}

impl Summary {
    /// The summary of a denial without outcomes.
    fn without_outcomes(reason: Reason) -> Self {
        Self { reason, disclosure: Disclosure::Exact, wait: Nanos::ZERO, single: None }
    }

    fn of(policies: &[Policy], outcomes: &[PolicyOutcome]) -> Self {
        let mut summary = Self::without_outcomes(Reason::Exceeded);
        let mut denied = 0;
        for outcome in outcomes.iter().filter(|outcome| outcome.denies()) {
            let reason = outcome.verdict.reason();
            if reason.severity() > summary.reason.severity() {
                summary.reason = reason;
            }
            summary.wait = summary.wait.max(outcome.verdict.wait().unwrap_or_default());
            summary.disclosure = summary.disclosure.min(match policies[outcome.policy].advertised() {
                advertise if !advertise.names_the_wait() => Disclosure::Nothing,
                advertise if advertise.names_the_policy() => Disclosure::Exact,
                _ => Disclosure::WholeSeconds,
            });
            denied += 1;
            summary.single = (denied == 1 && reason == Reason::Exceeded).then_some(outcome.policy);
        }
        summary
    }

    fn wait(self) -> Option<Nanos> {
        let helps = match self.reason {
            Reason::Blocked | Reason::Exceeded => true,
            // The time to retry in, where one is configured.
            Reason::InFlight => !self.wait.is_zero(),
            _ => false,
        };
        helps.then_some(self.wait)
    }
}

/// The longest time that clients learn: 31 bits of seconds. All fields of a denial have this bound,
/// so that none of them contradicts another.
pub(crate) const LONGEST_ADVERTISED: Duration = Duration::from_secs(i32::MAX as u64);

#[derive(Clone)]
enum Cause {
    MissingKey {
        policy: usize,
        status: StatusCode,
        /// Boxed, because it is large and denials are moved.
        challenge: Option<Box<HeaderValue>>,
    },
    Outcomes,
    #[cfg(feature = "redis")]
    Unavailable {
        policy: usize,
    },
}

impl Denied {
    pub(crate) fn missing_key(
        policies: Arc<[Policy]>,
        policy: usize,
        status: StatusCode,
        challenge: Option<HeaderValue>,
    ) -> Self {
        let cause = Cause::MissingKey { policy, status, challenge: challenge.map(Box::new) };
        let summary = Summary::without_outcomes(Reason::MissingKey);
        Self { policies, cause, outcomes: SmallVec::new(), summary, jitter: 0 }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn unavailable(policies: Arc<[Policy]>, policy: usize) -> Self {
        let (cause, summary) = (Cause::Unavailable { policy }, Summary::without_outcomes(Reason::Unavailable));
        Self { policies, cause, outcomes: SmallVec::new(), summary, jitter: 0 }
    }

    pub(crate) fn by(policies: Arc<[Policy]>, outcomes: PolicyOutcomes) -> Self {
        let summary = Summary::of(&policies, &outcomes);
        Self { policies, cause: Cause::Outcomes, outcomes, summary, jitter: 0 }
    }

    /// Makes the wait no shorter than this, where one helps: the request was counted by a policy
    /// that has not denied it.
    pub(crate) fn wait_at_least(&mut self, wait: Nanos) {
        self.summary.wait = self.summary.wait.max(wait);
    }

    /// Adds seconds to the wait. The wait only grows, so a retry after it still succeeds.
    pub(crate) fn add_jitter(&mut self, seconds: u64) {
        self.jitter = seconds;
    }

    /// Returns why the request is denied. Where there are several reasons, returns the one against
    /// which a wait helps least.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.summary.reason
    }

    /// Returns the status of the response: 429 (RFC 6585 §4), for a missing key what its policy
    /// says, and 503 where the [requests in flight](crate::in_flight) of all clients together are
    /// too many.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.cause {
            Cause::MissingKey { status, .. } => status,
            #[cfg(feature = "redis")]
            Cause::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Cause::Outcomes if self.summary.reason == Reason::InFlight => match self.violated_policies().next() {
                Some(policy) if policy.is_global() => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::TOO_MANY_REQUESTS,
            },
            Cause::Outcomes => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Returns the value of the `Retry-After` field (RFC 9110 §10.2.3) in seconds: the
    /// [`wait`](Self::wait) rounded up, at least 1, with the layer's
    /// [jitter](crate::RateLimitLayer::jitter). Use it in a body, too: a client that comes after as
    /// many seconds is never early. Returns `None` where no wait helps, and where a policy that
    /// denied [advertises nothing](crate::policy::Advertise::Nothing).
    ///
    /// At most 2,147,483,647 seconds, which are 68 years: many clients read no larger number. Of a
    /// longer wait (a block without an end, for instance) clients learn this bound.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        // Rounded up here instead of through a duration, because each denial does this.
        let wait = self.summary.wait().filter(|_| !self.is_silent())?;
        Some(wait.seconds_up().saturating_add(self.jitter).clamp(1, LONGEST_ADVERTISED.as_secs()))
    }

    /// Returns the time after which the same request is allowed unless others consume the quota
    /// first: the longest of all policies, to the nanosecond. Returns `None` where no wait helps.
    ///
    /// It is not for clients: it may disclose what a policy does not
    /// [advertise](crate::Policy::advertise).
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.summary.wait().map(Into::into)
    }

    /// The wait that clients may know: to the nanosecond where every policy that denied names
    /// itself, and in whole seconds otherwise.
    pub(crate) fn advertised_wait(&self) -> Option<Duration> {
        let wait = match self.summary.disclosure {
            Disclosure::Nothing => None,
            Disclosure::WholeSeconds => self.summary.wait().map(|wait| Duration::from_secs(wait.seconds_up())),
            Disclosure::Exact => self.wait(),
        };
        wait.map(|wait| wait.saturating_add(Duration::from_secs(self.jitter)))
    }

    /// Whether a policy denied that advertises nothing.
    fn is_silent(&self) -> bool {
        self.summary.disclosure == Disclosure::Nothing
    }

    /// The policy that denied, if it is the only one, it discloses the wait, and it has not enough
    /// cells. This is the usual denial.
    pub(crate) fn single_exceeded(&self) -> Option<usize> {
        self.summary.single.filter(|_| !self.is_silent())
    }

    /// The reason that clients may know.
    pub(crate) fn advertised_reason(&self) -> Reason {
        if self.is_silent() { Reason::Exceeded } else { self.reason() }
    }

    /// Returns the policies that denied, in the limiter's order, including those that clients may
    /// not know. There is none for a missing key, because no bucket was read.
    pub fn violated(&self) -> impl Iterator<Item = Standing<'_>> {
        self.standings().filter(|standing| standing.is_violated() && !standing.is_shadow())
    }

    /// Returns how each policy that applied stands, in the limiter's order. Nothing was acquired,
    /// except under policies that [count denied requests](crate::Policy::count_denied).
    #[must_use]
    pub fn standings(&self) -> impl ExactSizeIterator<Item = Standing<'_>> {
        self.outcomes.iter().map(|outcome| outcome.standing(&self.policies))
    }

    /// Returns the name of the first policy that denied. Use it in logs. Clients may know only the
    /// [`advertised_policies`](Self::advertised_policies).
    #[must_use]
    pub fn policy(&self) -> &str {
        match self.cause {
            Cause::MissingKey { policy, .. } => self.policies[policy].name(),
            #[cfg(feature = "redis")]
            Cause::Unavailable { policy } => self.policies[policy].name(),
            Cause::Outcomes => self.violated_policies().next().map_or("", Policy::name),
        }
    }

    /// The policies of the limiter that denied.
    #[cfg(feature = "axum")]
    pub(crate) fn policies(&self) -> &[Policy] {
        &self.policies
    }

    /// The value of `WWW-Authenticate` where the status is 401.
    pub(crate) fn challenge(&self) -> Option<&HeaderValue> {
        match &self.cause {
            Cause::MissingKey { status: StatusCode::UNAUTHORIZED, challenge, .. } => challenge.as_deref(),
            _ => None,
        }
    }

    pub(crate) fn outcomes(&self) -> slice::Iter<'_, PolicyOutcome> {
        self.outcomes.iter()
    }

    /// The outcomes of the policies that denied because of their bucket.
    pub(crate) fn exceeded(&self) -> impl Iterator<Item = &PolicyOutcome> {
        let without_bucket =
            |outcome: &&PolicyOutcome| matches!(outcome.verdict, Verdict::AtCapacity | Verdict::Blocked(_));
        self.outcomes.iter().filter(move |outcome| outcome.denies() && !without_bucket(outcome))
    }

    /// Returns the names of the policies that denied and that clients may know: those that
    /// [advertise](crate::Policy::advertise) themselves.
    pub fn advertised_policies(&self) -> impl Iterator<Item = &str> {
        self.advertised().map(Policy::name)
    }

    pub(crate) fn advertised(&self) -> impl Iterator<Item = &Policy> {
        self.violated_policies().filter(|policy| policy.advertised().names_the_policy())
    }

    fn violated_policies(&self) -> impl Iterator<Item = &Policy> {
        let violated = self.outcomes.iter().filter(|outcome| outcome.denies());
        violated.map(|outcome| &self.policies[outcome.policy])
    }

    /// The policy that the message names: of those with this reason, the one with the longest wait.
    fn decisive_policy(&self, reason: Reason) -> Option<usize> {
        let candidates = self.outcomes.iter().filter(|outcome| outcome.denies() && outcome.verdict.reason() == reason);
        // Of several equal ones, the first.
        let longest = candidates.reduce(|a, b| if b.verdict.wait() > a.verdict.wait() { b } else { a })?;
        let another_is_longer = self.summary.wait().is_some_and(|wait| longest.verdict.wait() < Some(wait));
        (!another_is_longer).then_some(longest.policy)
    }

    pub(crate) fn message(&self) -> Message<'_> {
        let reason = self.advertised_reason();
        let policy = match self.cause {
            Cause::MissingKey { policy, .. } => Some(policy),
            #[cfg(feature = "redis")]
            Cause::Unavailable { policy } => Some(policy),
            Cause::Outcomes => self.decisive_policy(reason),
        };
        let policy = policy.map(|policy| &self.policies[policy]);
        let named = policy.filter(|policy| policy.advertised().names_the_policy());
        Message { retry_in: self.retry_after(), ..Message::of(reason, self.status(), named) }
    }
}

/// Writes one line for the client: the policy, if the client may know it, and how long
/// to wait. Nothing of the key.
impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denied")
            .field("reason", &self.reason())
            .field("policy", &self.policy())
            .field("wait", &self.wait())
            .finish_non_exhaustive()
    }
}
