//! Contains every event, and the [`Throttle`] of those that may come often.

#![cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "nothing is reported"))]

#[cfg(not(feature = "tracing"))]
use std::io::Write as _;
use std::{
    fmt, io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

#[cfg(feature = "tracing")]
use crate::clock;
use crate::clock::{Nanos, Timestamp};
#[cfg(feature = "redis")]
use crate::limit::Limit;

/// Lets one event a minute through.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// The minute of the last event, counted from 1.
    minute: AtomicU64,
}

impl Throttle {
    /// Lets one event through for ever.
    #[cfg(not(feature = "tracing"))]
    fn opens_once(&self) -> bool {
        self.minute.load(Ordering::Relaxed) != u64::MAX && self.minute.swap(u64::MAX, Ordering::Relaxed) != u64::MAX
    }

    #[cfg_attr(not(any(feature = "redis", feature = "tracing")), allow(dead_code, reason = "there is no event"))]
    fn opens(&self, now: Timestamp) -> bool {
        let minute = now.as_nanos() / Nanos::MINUTE.get() + 1;
        self.minute.load(Ordering::Relaxed) != minute && self.minute.swap(minute, Ordering::Relaxed) != minute
    }
}

/// Reports a denied request at DEBUG, with a hash that is the same for the same client where the
/// key is known. Otherwise reports one denied request a minute at INFO, so that a flood is seen
/// without DEBUG. The arguments are computed only where a subscriber is interested.
#[inline]
pub(crate) fn denied<'a, R: fmt::Debug>(
    policy: impl FnOnce() -> &'a str,
    reason: impl FnOnce() -> R,
    key: impl FnOnce() -> Option<u128>,
    throttle: &Throttle,
    now: Timestamp,
) {
    #[cfg(feature = "tracing")]
    if tracing::enabled!(tracing::Level::DEBUG) {
        let key = key().map(|key| format!("{key:026x}"));
        tracing::debug!(policy = policy(), reason = ?reason(), key, "request denied");
    } else if tracing::enabled!(tracing::Level::INFO) && throttle.opens(now) {
        tracing::info!(
            policy = policy(),
            reason = ?reason(),
            "requests denied (logged once per minute; enable DEBUG to log each)"
        );
    }
}

/// Reports a request without a key. A status of the server's own (5xx) means that every client is
/// refused. The event is then an error, logged at most once a minute. Without `tracing` the message
/// is written to the standard error once.
pub(crate) fn missing_key<R: fmt::Display>(
    policy: &str,
    status: u16,
    remedy: impl FnOnce() -> R,
    throttle: &Throttle,
    now: Timestamp,
) {
    #[cfg(feature = "tracing")]
    if status >= 500 && throttle.opens(now) {
        tracing::error!(policy, status, remedy = %remedy(), "requests have no key and are rejected (logged once per minute)");
    } else {
        tracing::debug!(policy, status, "request without a key rejected");
    }
    #[cfg(not(feature = "tracing"))]
    if status >= 500 && throttle.opens_once() {
        let remedy = remedy();
        // A standard error that is closed is no reason to fail.
        let _ = writeln!(
            io::stderr(),
            "tower-quota: requests have no key for the policy {policy:?}, and are rejected with {status}: {remedy} \
             (written once; with the feature `tracing` this is an event)"
        );
    }
}

/// Reports a plan that a request has and the policy has not, so that the request has the policy's
/// own quota: at most once a minute by the wall clock, without `tracing` once.
pub(crate) fn unknown_plan(policy: &str, plan: &str, throttle: &Throttle) {
    #[cfg(feature = "tracing")]
    if throttle.opens(clock::wall_time()) {
        tracing::error!(
            policy,
            plan,
            remedy = "add the plan with `Policy::plans`, or to the configuration",
            "requests have a plan that the policy does not know; they have the policy's own quota (logged once per minute)"
        );
    }
    #[cfg(not(feature = "tracing"))]
    if throttle.opens_once() {
        let _ = writeln!(
            io::stderr(),
            "tower-quota: requests have the plan {plan:?}, which the policy {policy:?} does not know: add it with \
             `Policy::plans`. They have the policy's own quota (written once; with the feature `tracing` this is an event)"
        );
    }
}

/// Reports a call by key that asks what no policy can answer, which a handler has returned.
#[cfg(any(feature = "axum", feature = "tonic"))]
pub(crate) fn not_asked(error: &dyn fmt::Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "cells cannot be acquired");
    #[cfg(not(feature = "tracing"))]
    {
        static WRITTEN: AtomicBool = AtomicBool::new(false);
        if !WRITTEN.swap(true, Ordering::Relaxed) {
            let text = "a handler answers 500, because cells cannot be acquired";
            let _ = writeln!(io::stderr(), "tower-quota: {text}: {error} (written once)");
        }
    }
}

pub(crate) fn near_cap(policy: &str, keys: usize, max_keys: usize) {
    #[cfg(feature = "tracing")]
    tracing::warn!(policy, keys, max_keys, "the policy stores over 80 % of its maximum number of keys");
}

/// Reported once for a limiter.
#[cfg(feature = "tracing")]
pub(crate) fn dates_in_keys(policies: &str) {
    tracing::warn!(
        policies,
        remedy = "leave the date out of the keys of these policies",
        "keys contain dates: under these policies each is a new key every day, and stays for as long as its quota \
         takes to come back, until the map is full"
    );
}

/// Reported at most once for each sweep.
pub(crate) fn too_many_quotas() {
    #[cfg(feature = "tracing")]
    tracing::warn!(
        remedy = "choose among fewer quotas in `Policy::quota_by`",
        "over 65,535 quotas are in use under one policy; \
         some buckets do not remember theirs, and a change of quota keeps their time instead of their count"
    );
}

/// Reported at most once for each sweep.
pub(crate) fn clock_step_refused(policy: &str, step: Nanos) {
    #[cfg(feature = "tracing")]
    tracing::error!(
        policy,
        seconds = step.get() / Nanos::SECOND.get(),
        remedy = "if the wall clock is right, restart",
        "the wall clock has moved by more than a window of this policy, whose windows do not follow it"
    );
    #[cfg(not(feature = "tracing"))]
    let _ = (policy, step);
}

pub(crate) fn banned(policy: &str, length: Nanos) {
    #[cfg(feature = "tracing")]
    tracing::debug!(policy, seconds = length.get() / Nanos::SECOND.get(), "key banned after repeated denials");
}

/// Reports that two layers advertise policies with one name, which clients cannot tell apart.
/// Logged once per process.
pub(crate) fn duplicate_policy_name<'a>(name: impl FnOnce() -> Option<&'a str>) {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if cfg!(not(feature = "tracing")) || LOGGED.load(Ordering::Relaxed) {
        return;
    }
    if let Some(policy) = name() {
        if !LOGGED.swap(true, Ordering::Relaxed) {
            #[cfg(feature = "tracing")]
            tracing::warn!(
                policy,
                remedy = "rename one policy with `Policy::named`, or remove the limiter from one of the layers",
                "two layers limit a request by policies with the same name"
            );
        }
    }
}

pub(crate) fn no_sweeper_thread(error: &io::Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "cannot start the sweeper thread; idle keys stay in memory until the next limiter is built");
}

pub(crate) fn sweep_panicked() {
    #[cfg(feature = "tracing")]
    tracing::error!("a sweep panicked; the next sweep runs as scheduled");
}

/// Who receives the events of a thread. A thread of the crate reports to whom the thread that
/// started it does.
#[cfg(feature = "redis")]
pub(crate) struct Subscriber {
    #[cfg(feature = "tracing")]
    dispatch: tracing::Dispatch,
}

#[cfg(feature = "redis")]
impl Subscriber {
    pub(crate) fn current() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            dispatch: tracing::dispatcher::get_default(Clone::clone),
        }
    }

    #[cfg_attr(not(feature = "tracing"), allow(clippy::unused_self, reason = "nobody receives events"))]
    pub(crate) fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
        // Without one, the process may still set one for all threads.
        #[cfg(feature = "tracing")]
        if !self.dispatch.is::<tracing::subscriber::NoSubscriber>() {
            return tracing::dispatcher::with_default(&self.dispatch, run);
        }
        run()
    }
}

#[cfg(feature = "redis")]
pub(crate) fn no_redis_thread(error: &io::Error) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "cannot start the thread that talks to Redis; policies use the fallback");
}

#[cfg(feature = "redis")]
pub(crate) fn redis_connected() {
    #[cfg(feature = "tracing")]
    tracing::debug!("connected to Redis; limits are shared");
}

/// Logged at most once a minute: with foreign values in place of buckets it may happen on every
/// request.
#[cfg(feature = "redis")]
pub(crate) fn redis_key_error(reason: &str, throttle: &Throttle, now: Timestamp) {
    #[cfg(feature = "tracing")]
    if throttle.opens(now) {
        tracing::warn!(reason, "Redis cannot decide on some keys; their policies use the fallback");
    }
}

/// Logged at most once a minute, because an unstable server may be lost several times a second, and
/// where the reason is new. Returns whether it was.
#[cfg(feature = "redis")]
pub(crate) fn redis_lost(reason: &str, throttle: &Throttle, is_new: bool, now: Timestamp) -> bool {
    let opens = throttle.opens(now);
    #[cfg(feature = "tracing")]
    if opens || is_new {
        tracing::warn!(reason, "Redis is not used; policies use the fallback until it is");
    }
    opens || is_new
}

/// Logged at most once a minute, because anybody who may publish can send as many.
#[cfg(feature = "redis")]
pub(crate) fn redis_announcement_ignored(throttle: &Throttle, now: Timestamp) {
    #[cfg(feature = "tracing")]
    if throttle.opens(now) {
        tracing::warn!("an announcement over Redis has a form that this version does not know, and is ignored");
    }
}

/// Logged at most once a minute, because a connection may be lost several times a second.
#[cfg(feature = "redis")]
pub(crate) fn redis_unheard(reason: &str, throttle: &Throttle, now: Timestamp) {
    #[cfg(feature = "tracing")]
    if throttle.opens(now) {
        tracing::warn!(
            reason,
            remedy = "give the user the rights that docs/redis.md lists",
            "blocks, resets and quotas that other processes set are heard late, or not at all"
        );
    }
}

/// Logged at most once a minute, because many keys may be banned together.
#[cfg(feature = "redis")]
pub(crate) fn redis_ban_lost(reason: &str, throttle: &Throttle, now: Timestamp) {
    #[cfg(feature = "tracing")]
    if throttle.opens(now) {
        tracing::warn!(
            reason,
            "a ban did not reach Redis; other processes do not obey it, and this one soon forgets it"
        );
    }
}

/// The quota of a policy was set by another process, or before this one was started.
#[cfg(feature = "redis")]
pub(crate) fn limit_changed(policy: &str, limit: &Limit) {
    #[cfg(feature = "tracing")]
    tracing::info!(policy, %limit, "an operator has set the limit of this policy in Redis");
}
