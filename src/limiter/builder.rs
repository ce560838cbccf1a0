//! Contains [`Builder`]: from policies to a limiter in memory, or to the reason why not.

use super::{
    Limiter,
    error::{ConfigError, ConfigErrorKind, MIN_SECRET},
    into_limiter::IntoLimiter,
    local_buckets::LocalBuckets,
    policy_set::{PolicySet, PolicySetOptions},
};
use crate::{clock::Clock, key::KeyHasher, observe::metrics::DecidedBy, policy::Policy, sweeper::Sweep};

impl Limiter {
    /// Returns the builder of a limiter, to set a clock for instance.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Builds a [`Limiter`]. Made by [`Limiter::builder`].
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    policies: Vec<Policy>,
    options: PolicySetOptions,
    short_secret: bool,
}

impl Builder {
    /// Adds a policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policies.push(policy);
        self
    }

    /// Adds policies.
    pub fn policies(mut self, policies: impl IntoIterator<Item = Policy>) -> Self {
        self.policies.extend(policies);
        self
    }

    /// Reads the time from `clock`; from the system's clock unless set.
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.options.clock = clock.into();
        self
    }

    /// Sets who removes idle keys from memory. Unless set, a background thread does for a limiter
    /// on the system's clock, and nobody does for a limiter on any other clock: see [`Sweep`].
    pub fn sweep(mut self, sweep: Sweep) -> Self {
        self.options.sweep = Some(sweep);
        self
    }

    /// Tracks the keys that are denied most, at most this number of them, for
    /// [`Limiter::top_denied`](super::Limiter::top_denied). None unless set, and at most 4,096.
    /// Tracking costs every denial a search through them.
    pub fn top_denied(mut self, keys: usize) -> Self {
        self.options.top_denied = keys.min(4_096);
        self
    }

    /// Makes keys mean the same in every process with this secret, so that a
    /// [snapshot](super::Limiter::snapshot) of one can be restored in the next. Random unless set.
    ///
    /// Use at least 16 random bytes, from a secret store and not from the sources: whoever knows
    /// the secret can find two keys that share a bucket, and can write snapshots.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        let secret = secret.as_ref();
        self.short_secret = secret.len() < MIN_SECRET;
        self.options.hasher = Some(KeyHasher::with_secret(secret));
        self
    }

    /// Accepts that there is no policy, where a configuration may say so. Such a limiter limits
    /// nothing. Unless set, building it fails.
    pub fn allow_empty(mut self) -> Self {
        self.options.allow_empty = true;
        self
    }

    /// Builds the limiter.
    ///
    /// Its order is that of the keyed policies, followed by that of the global ones, which are
    /// acquired last.
    ///
    /// # Errors
    ///
    /// When there is no policy, unless that is [allowed](Self::allow_empty); when a name is empty,
    /// longer than 64 bytes, not printable ASCII, or used twice; when a policy's
    /// [`max_keys`](Policy::max_keys) is zero or above 2³² − 1, or the status of
    /// [`Missing::Reject`](crate::policy::Missing::Reject) is not an error; when a policy [by
    /// key](Policy::by_key) has something set that needs a request; when a policy with a window
    /// chooses rates, or the reverse; when the secret is shorter than 16 bytes.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        if self.short_secret {
            return Err(ConfigError::new("", ConfigErrorKind::ShortSecret));
        }
        let set = PolicySet::new(self.policies, self.options)?;
        let buckets = LocalBuckets::new(&set, DecidedBy::Memory, "");
        Ok(Limiter::of(set, buckets))
    }
}

impl IntoLimiter for Policy {
    type Limiter = Limiter;

    fn into_limiter(self) -> Result<Limiter, ConfigError> {
        Limiter::builder().policy(self).build()
    }
}

impl<const N: usize> IntoLimiter for [Policy; N] {
    type Limiter = Limiter;

    fn into_limiter(self) -> Result<Limiter, ConfigError> {
        Limiter::builder().policies(self).build()
    }
}

impl IntoLimiter for Vec<Policy> {
    type Limiter = Limiter;

    fn into_limiter(self) -> Result<Limiter, ConfigError> {
        Limiter::builder().policies(self).build()
    }
}

impl IntoLimiter for Limiter {
    type Limiter = Self;

    fn into_limiter(self) -> Result<Self, ConfigError> {
        Ok(self)
    }
}

impl IntoLimiter for &Limiter {
    type Limiter = Limiter;

    fn into_limiter(self) -> Result<Limiter, ConfigError> {
        Ok(self.clone())
    }
}
