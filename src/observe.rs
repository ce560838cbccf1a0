//! What the crate reports, and the only file that knows to whom.
//!
//! Owns every event. A leaf: it is handed names and numbers, never keys, and knows no type of the crate, so that
//! everything may call it. Without the feature `tracing` each function is empty. Never called under a lock of a bucket.

#[cfg(feature = "tracing")]
pub(crate) use self::events::{
    Throttle, banned, missing_key, near_cap, no_sweeper, refused, same_name_twice, sweep_panicked, unread_address,
};
#[cfg(all(feature = "redis", feature = "tracing"))]
pub(crate) use self::events::{redis_found, redis_lost, redis_strange};
#[cfg(not(feature = "tracing"))]
pub(crate) use self::silence::{
    Throttle, banned, missing_key, near_cap, no_sweeper, refused, same_name_twice, sweep_panicked, unread_address,
};
#[cfg(all(feature = "redis", not(feature = "tracing")))]
pub(crate) use self::silence::{redis_found, redis_lost, redis_strange};

#[cfg(feature = "tracing")]
mod events {
    use std::{
        fmt, io,
        sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    };

    use tracing::{debug, error, warn};

    pub(crate) fn refused<R: fmt::Debug>(policy: &str, reason: impl FnOnce() -> R) {
        // The arguments are made only where somebody listens.
        debug!(policy, reason = ?reason(), "request refused");
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
    pub(crate) fn unread_address(from_a_proxy: impl FnOnce() -> bool, names_a_client: impl FnOnce() -> bool) {
        static LOOKS_LEFT: AtomicU32 = AtomicU32::new(1_000);
        let left = LOOKS_LEFT.load(Ordering::Relaxed);
        if left == 0 || !from_a_proxy() {
            return;
        }
        if !names_a_client() {
            // Lost updates only make for more looks.
            LOOKS_LEFT.store(left - 1, Ordering::Relaxed);
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

    pub(crate) fn refused<R>(_policy: &str, _reason: impl FnOnce() -> R) {}
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
