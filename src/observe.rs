//! What the crate reports, and the only file that knows to whom.
//!
//! Owns every event and every metric. A leaf: it is handed names, numbers and hashes that tell nobody whose they are, never
//! keys, and knows no type of the crate, so that everything may call it. Without the features `tracing` and `metrics` each
//! function is empty. Never called under a lock of a bucket.

#[cfg(feature = "tracing")]
pub(crate) use self::events::{
    Throttle, banned, missing_key, near_cap, no_sweeper, refused, same_name_twice, sweep_panicked, unread_address,
};
#[cfg(all(feature = "redis", feature = "tracing"))]
pub(crate) use self::events::{redis_found, redis_lost, redis_strange};
#[cfg(feature = "metrics")]
pub(crate) use self::metering::{Meters, swept};
#[cfg(all(feature = "redis", feature = "metrics"))]
pub(crate) use self::metering::{redis_called, redis_connections, redis_given_up, redis_starts};
#[cfg(not(feature = "tracing"))]
pub(crate) use self::silence::{
    Throttle, banned, missing_key, near_cap, no_sweeper, refused, same_name_twice, sweep_panicked, unread_address,
};
#[cfg(all(feature = "redis", not(feature = "tracing")))]
pub(crate) use self::silence::{redis_found, redis_lost, redis_strange};
#[cfg(not(feature = "metrics"))]
pub(crate) use self::unmetered::{Meters, swept};
#[cfg(all(feature = "redis", not(feature = "metrics")))]
pub(crate) use self::unmetered::{redis_called, redis_connections, redis_given_up, redis_starts};

#[cfg(feature = "tracing")]
mod events {
    use std::{
        fmt, io,
        sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    };

    use tracing::{Level, debug, enabled, error, info, warn};

    /// Each at DEBUG, with a hash that is the same for the same client, if the key is known; and one a minute at INFO, so that a
    /// flood is seen where nobody listens to details. The arguments are made only where somebody does.
    pub(crate) fn refused<'a, R: fmt::Debug>(
        policy: impl FnOnce() -> &'a str,
        reason: impl FnOnce() -> R,
        key: impl FnOnce() -> Option<u128>,
        throttle: &Throttle,
        now: u64,
    ) {
        if enabled!(Level::DEBUG) {
            let key = key().map(|key| format!("{key:032x}"));
            debug!(policy = policy(), reason = ?reason(), key, "request refused");
        } else if enabled!(Level::INFO) && throttle.opens(now) {
            info!(policy = policy(), reason = ?reason(), "requests are refused; said once a minute, and for each request at DEBUG");
        }
    }

    /// A status of the server's own (5xx) means that nobody can be told from anybody: that is loud, but `throttle` lets
    /// it be said once a minute at most, whatever the load.
    pub(crate) fn missing_key(policy: &str, status: u16, remedy: &'static str, throttle: &Throttle, now: u64) {
        if status >= 500 && throttle.opens(now) {
            error!(policy, status, remedy, "requests have no key and are refused");
        } else {
            debug!(policy, status, "request without a key refused");
        }
    }

    /// Lets one event a minute through.
    #[derive(Debug, Default)]
    pub(crate) struct Throttle {
        /// The minute of the last one, counted from 1.
        minute: AtomicU64,
    }

    impl Throttle {
        fn opens(&self, now: u64) -> bool {
            let minute = now / 60_000_000_000 + 1;
            self.minute.load(Ordering::Relaxed) != minute && self.minute.swap(minute, Ordering::Relaxed) != minute
        }
    }

    pub(crate) fn near_cap(policy: &str, keys: usize, max_keys: usize) {
        warn!(policy, keys, max_keys, "the policy holds over 80 % of the keys that it may");
    }

    /// Whoever counts by the peer's address behind a proxy limits all its clients as one. Said once, for the process;
    /// looked for in the first requests only, so that it costs the others nothing.
    #[inline]
    pub(crate) fn unread_address(from_a_proxy: impl FnOnce() -> bool, names_a_client: impl FnOnce() -> bool) {
        if LOOKS_LEFT.load(Ordering::Relaxed) > 0 {
            look_for_an_unread_address(from_a_proxy, names_a_client);
        }
    }

    static LOOKS_LEFT: AtomicU32 = AtomicU32::new(1_000);

    #[cold]
    fn look_for_an_unread_address(from_a_proxy: impl FnOnce() -> bool, names_a_client: impl FnOnce() -> bool) {
        if !from_a_proxy() {
            return;
        }
        if !names_a_client() {
            // Two threads may count one look: that only makes for more.
            let left = LOOKS_LEFT.load(Ordering::Relaxed);
            LOOKS_LEFT.store(left.saturating_sub(1), Ordering::Relaxed);
        } else if LOOKS_LEFT.swap(0, Ordering::Relaxed) > 0 {
            warn!(
                remedy = "count by `ClientIp::behind([...])` with the proxy's network in the list",
                "a private address sends X-Forwarded-For or Forwarded and is counted as one client: \
                 is it a proxy in front of many?"
            );
        }
    }

    pub(crate) fn banned(policy: &str, nanos: u64) {
        debug!(policy, seconds = nanos / 1_000_000_000, "key blocked for being refused too often");
    }

    /// Two layers tell clients of policies with one name, and clients cannot tell them apart. Said once, for the process.
    pub(crate) fn same_name_twice<'a>(name: impl FnOnce() -> Option<&'a str>) {
        static SAID: AtomicBool = AtomicBool::new(false);
        if SAID.load(Ordering::Relaxed) {
            return;
        }
        if let Some(policy) = name() {
            if !SAID.swap(true, Ordering::Relaxed) {
                warn!(
                    policy,
                    remedy = "tell them apart with `Policy::named`, or take the limiter out of one of the layers",
                    "two layers limit a request by policies of one name"
                );
            }
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis_found() {
        debug!("Redis answers; limits are shared");
    }

    /// Said once a minute at most: with strange values in place of buckets it may be true of every request.
    #[cfg(feature = "redis")]
    pub(crate) fn redis_strange(why: &str, throttle: &Throttle, now: u64) {
        if throttle.opens(now) {
            warn!(why, "Redis cannot decide over some keys; they are decided without it");
        }
    }

    /// Said once a minute at most: a server that comes and goes is lost several times a second.
    #[cfg(feature = "redis")]
    pub(crate) fn redis_lost(why: &str, throttle: &Throttle, now: u64) {
        if throttle.opens(now) {
            warn!(why, "Redis does not answer; limits are decided without it until it does");
        }
    }

    pub(crate) fn no_sweeper(error: &io::Error) {
        error!(%error, "no thread for the sweeper: idle keys are kept until the next limiter is built");
    }

    pub(crate) fn sweep_panicked() {
        error!("a sweep panicked; the next one comes at its time");
    }
}

#[cfg(not(feature = "tracing"))]
mod silence {
    use std::io;

    #[derive(Debug, Default)]
    pub(crate) struct Throttle {}

    pub(crate) fn refused<'a, R>(
        _policy: impl FnOnce() -> &'a str,
        _reason: impl FnOnce() -> R,
        _key: impl FnOnce() -> Option<u128>,
        _throttle: &Throttle,
        _now: u64,
    ) {
    }
    pub(crate) fn missing_key(_policy: &str, _status: u16, _remedy: &'static str, _throttle: &Throttle, _now: u64) {}
    pub(crate) fn near_cap(_policy: &str, _keys: usize, _max_keys: usize) {}
    pub(crate) fn unread_address(_from_a_proxy: impl FnOnce() -> bool, _names_a_client: impl FnOnce() -> bool) {}
    pub(crate) fn banned(_policy: &str, _nanos: u64) {}
    pub(crate) fn same_name_twice<'a>(_name: impl FnOnce() -> Option<&'a str>) {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_found() {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_lost(_why: &str, _throttle: &Throttle, _now: u64) {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_strange(_why: &str, _throttle: &Throttle, _now: u64) {}
    pub(crate) fn no_sweeper(_error: &io::Error) {}
    pub(crate) fn sweep_panicked() {}
}

/// What became of a request under a policy.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Allowed,
    Refused,
    Blocked,
    AtCapacity,
    MissingKey,
    #[cfg(feature = "redis")]
    Unavailable,
}

/// Who decided.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Source {
    #[default]
    Memory,
    #[cfg(feature = "redis")]
    Redis,
    /// A refusal that is certain without asking Redis.
    #[cfg(feature = "redis")]
    Remembered,
    /// This process, without Redis.
    #[cfg(feature = "redis")]
    Alone,
    /// Nobody: without Redis it passes.
    #[cfg(feature = "redis")]
    Open,
}

#[cfg(feature = "metrics")]
mod metering {
    use std::{fmt, sync::OnceLock, time::Duration};

    use metrics::{Counter, counter, gauge, histogram};

    use super::{Outcome, Source};

    const OUTCOMES: [&str; 6] = ["allowed", "refused", "blocked", "at_capacity", "missing_key", "unavailable"];
    const SOURCES: [&str; 5] = ["memory", "redis", "remembered", "alone", "open"];
    const MODES: [&str; 2] = ["enforced", "shadow"];
    /// For each policy: all of these, those near the limit, and those without room of their own.
    const EACH: usize = OUTCOMES.len() * SOURCES.len() * MODES.len() + 2;

    /// The counters of a limiter's policies. Each is asked for when it is first counted: a recorder that is installed after the
    /// limiter was made, and before its first request, is the one that counts.
    pub(crate) struct Meters {
        counters: Box<[OnceLock<Counter>]>,
    }

    impl Meters {
        pub(crate) fn new(policies: usize) -> Self {
            Self { counters: (0..policies * EACH).map(|_| OnceLock::new()).collect() }
        }

        /// `near` says whether less than a fifth of the burst is left.
        #[inline]
        pub(crate) fn count(
            &self,
            (index, name): (usize, &str),
            outcome: Outcome,
            shadow: bool,
            source: Source,
            near: impl FnOnce() -> bool,
        ) {
            let (outcome, source, mode) = (outcome as usize, source as usize, usize::from(shadow));
            let at = index * EACH + (outcome * SOURCES.len() + source) * MODES.len() + mode;
            let counter = self.counters[at].get_or_init(|| {
                let (outcome, source, mode) = (OUTCOMES[outcome], SOURCES[source], MODES[mode]);
                counter!(
                    "tower_quota_decisions_total",
                    "policy" => name.to_owned(), "outcome" => outcome, "mode" => mode, "source" => source
                )
            });
            counter.increment(1);
            if near() {
                let counter = self.counters[(index + 1) * EACH - 2]
                    .get_or_init(|| counter!("tower_quota_near_limit_total", "policy" => name.to_owned()));
                counter.increment(1);
            }
        }

        /// A key without room of its own in a full map.
        pub(crate) fn overflowed(&self, index: usize, name: &str) {
            let counter = self.counters[(index + 1) * EACH - 1]
                .get_or_init(|| counter!("tower_quota_overflow_total", "policy" => name.to_owned()));
            counter.increment(1);
        }
    }

    impl fmt::Debug for Meters {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Meters").finish_non_exhaustive()
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(crate) fn swept(policy: &str, removed: usize, keys: usize, nanos: u64) {
        let policy = policy.to_owned();
        counter!("tower_quota_sweeps_total", "policy" => policy.clone()).increment(1);
        counter!("tower_quota_swept_keys_total", "policy" => policy.clone()).increment(removed as u64);
        gauge!("tower_quota_keys", "policy" => policy.clone()).set(keys as f64);
        histogram!("tower_quota_sweep_seconds", "policy" => policy).record(Duration::from_nanos(nanos));
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis_called() {
        counter!("tower_quota_redis_calls_total").increment(1);
    }

    /// One more of them, or one less.
    #[cfg(feature = "redis")]
    pub(crate) fn redis_connections(more: bool) {
        let connections = gauge!("tower_quota_redis_connections");
        if more {
            connections.increment(1.0);
        } else {
            connections.decrement(1.0);
        }
    }

    /// From here on there is a series, also where no connection ever comes.
    #[cfg(feature = "redis")]
    pub(crate) fn redis_starts() {
        gauge!("tower_quota_redis_connections").increment(0.0);
    }

    #[cfg(feature = "redis")]
    pub(crate) fn redis_given_up() {
        counter!("tower_quota_redis_lost_total").increment(1);
    }
}

#[cfg(not(feature = "metrics"))]
mod unmetered {
    use super::{Outcome, Source};

    #[derive(Debug)]
    pub(crate) struct Meters {}

    #[allow(clippy::unused_self, reason = "the other one counts")]
    impl Meters {
        pub(crate) fn new(_policies: usize) -> Self {
            Self {}
        }

        #[inline(always)]
        pub(crate) fn count(
            &self,
            _policy: (usize, &str),
            _outcome: Outcome,
            _shadow: bool,
            _source: Source,
            _near: impl FnOnce() -> bool,
        ) {
        }

        #[inline(always)]
        pub(crate) fn overflowed(&self, _index: usize, _name: &str) {}
    }

    pub(crate) fn swept(_policy: &str, _removed: usize, _keys: usize, _nanos: u64) {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_called() {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_connections(_more: bool) {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_starts() {}
    #[cfg(feature = "redis")]
    pub(crate) fn redis_given_up() {}
}
