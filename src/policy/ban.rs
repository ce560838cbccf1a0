//! Contains [`Ban`]: when a key is blocked for its denials, and for how long.

use std::time::Duration;

use crate::quota::Quota;

/// Blocks keys that are denied repeatedly, for increasing durations.
///
/// All clients that share a key are blocked together: those behind one address, or all requests
/// without a key under [`Missing::Share`](super::Missing::Share).
///
/// ```
/// use std::time::Duration;
/// use tower_quota::{Policy, Quota, key::PeerIp, policy::Ban};
///
/// // 20 denials at once: blocked for a minute, then for two, four, and so on up to a day.
/// let ban = Ban::after(20, Duration::from_secs(60))
///     .initial(Duration::from_secs(60))
///     .max(Duration::from_secs(86_400));
/// let policy = Policy::per(PeerIp, Quota::per_second(10)).ban(ban);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ban {
    pub(crate) strikes: Quota,
    pub(crate) initial: Duration,
    pub(crate) max: Duration,
}

impl Ban {
    /// Blocks a key at its denial number `denials`, if the denials come at once. The first block
    /// lasts a minute and the longest an hour, unless set.
    ///
    /// Denials are counted by a bucket of their own, which forgets one in each `window / denials`.
    /// So of slower denials more are needed, and denials that come no faster than they are
    /// forgotten block nobody.
    ///
    /// For each policy, at most 65,536 keys are watched, and 1,024 of one network (IPv4 /16, IPv6
    /// /40). Further keys are limited, and not blocked: add a policy by address before a policy by
    /// a key that a client can invent.
    ///
    /// # Panics
    ///
    /// If `denials` is zero, or [`Quota::new`] fails for the two.
    pub const fn after(denials: u32, window: Duration) -> Self {
        let (initial, max) = (Duration::from_secs(60), Duration::from_secs(3_600));
        Self { strikes: Quota::per(denials, window), initial, max }
    }

    /// Sets how long the first block lasts; a minute unless set. A block that follows at once lasts
    /// twice as long as the one before. The longer the key was quiet in between, the shorter the
    /// next block. After twice the length of a block without another one, the key starts anew.
    pub const fn initial(self, initial: Duration) -> Self {
        Self { initial, ..self }
    }

    /// Sets how long a block lasts at most; an hour unless set.
    pub const fn max(self, max: Duration) -> Self {
        Self { max, ..self }
    }
}
