//! [`Builder`]: from policies to a limiter, or to the reason why not.

use std::{error, fmt, sync::Arc};

use super::{Limiter, Shared, buckets::Buckets};
use crate::{
    clock::Clock,
    key::KeyHasher,
    observe,
    policy::Policy,
    store::Store,
    sweeper::{self, Sweeping},
};

/// Builds a [`Limiter`]. Made by [`Limiter::builder`].
#[derive(Debug, Default)]
#[must_use]
pub struct Builder {
    policies: Vec<Policy>,
    clock: Clock,
    sweep: Sweep,
}

/// Who removes the keys that owe nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sweep {
    /// A thread of the crate's own, one for the whole process, from the first limiter with a keyed policy to the drop of
    /// the last.
    #[default]
    Background,
    /// You, by calling [`Limiter::sweep`].
    Manual,
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

    /// Reads the time from `clock`; from the system's monotonic clock unless this is set.
    pub fn clock(mut self, clock: impl Into<Clock>) -> Self {
        self.clock = clock.into();
        self
    }

    /// Says who removes the keys that owe nothing; a thread in the background unless this is set.
    pub fn sweep(mut self, sweep: Sweep) -> Self {
        self.sweep = sweep;
        self
    }

    /// Builds the limiter.
    ///
    /// Its order is that of the keyed policies, followed by that of the global ones, which are charged last.
    ///
    /// # Errors
    ///
    /// When there is no policy; when a name is empty, not printable ASCII, or used twice; when a policy's
    /// [`max_keys`](Policy::max_keys) is zero or beyond 2³² − 1.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        check(&self.policies)?;
        let (mut policies, global): (Vec<_>, Vec<_>) =
            self.policies.into_iter().partition(|policy| !policy.is_global());
        let lone = global.len() == 1;
        policies.extend(global);
        let buckets = policies.iter().map(|policy| {
            if policy.is_global() {
                return Buckets::global(lone);
            }
            let (max_keys, at_cap) = policy.cap();
            let store = Arc::new(Store::new(max_keys, at_cap, self.clock.clone()));
            let sweeping = match self.sweep {
                Sweep::Background => {
                    let period = sweeper::period(policy.quota().time_to_fill());
                    Some(Sweeping::start(policy.shared_name(), &store, period))
                }
                Sweep::Manual => None,
            };
            Buckets::keyed(store, sweeping)
        });
        let buckets = buckets.collect();
        let shared = Shared {
            policies: policies.into(),
            buckets,
            clock: self.clock,
            hasher: KeyHasher::random(),
            missing_keys: observe::Throttle::default(),
        };
        Ok(Limiter { shared: Arc::new(shared) })
    }
}

fn check(policies: &[Policy]) -> Result<(), ConfigError> {
    let refuse = |policy: &Policy, fault| Err(ConfigError { policy: policy.name().to_owned(), fault });
    if policies.is_empty() {
        return Err(ConfigError { policy: String::new(), fault: Fault::NoPolicy });
    }
    for (index, policy) in policies.iter().enumerate() {
        let name = policy.name();
        if name.is_empty() {
            return refuse(policy, Fault::EmptyName);
        }
        if !name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return refuse(policy, Fault::UnprintableName);
        }
        if policies[..index].iter().any(|earlier| earlier.name() == name) {
            return refuse(policy, Fault::DuplicateName);
        }
        let (max_keys, _) = policy.cap();
        if max_keys == 0 || u32::try_from(max_keys).is_err() {
            return refuse(policy, Fault::MaxKeys);
        }
    }
    Ok(())
}

/// Why a [`Limiter`] was refused. Its text names the policy, the rule, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    policy: String,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    DuplicateName,
    EmptyName,
    MaxKeys,
    NoPolicy,
    UnprintableName,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.policy;
        match self.fault {
            Fault::DuplicateName => {
                write!(f, "two policies are named {policy:?}: tell them apart with `Policy::named`")
            }
            Fault::EmptyName => write!(f, "a policy's name is empty: name it with `Policy::named`"),
            Fault::MaxKeys => {
                write!(
                    f,
                    "the policy {policy:?} may hold no keys, or more than 2^32 - 1: set `Policy::max_keys` between"
                )
            }
            Fault::NoPolicy => write!(f, "a limiter without a policy would limit nothing: give it at least one"),
            Fault::UnprintableName => {
                write!(
                    f,
                    "the name {policy:?} is not printable ASCII, which header fields need: choose another with `Policy::named`"
                )
            }
        }
    }
}

impl error::Error for ConfigError {}
