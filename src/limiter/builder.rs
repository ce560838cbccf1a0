//! [`Builder`]: from policies to a limiter, or to the reason why not.

use std::{error, fmt, sync::Arc};

use super::{Limiter, Shared, buckets::Buckets, penalties::Penalties, sketch::Sketch};
use crate::{
    clock::Clock,
    key::KeyHasher,
    observe::{self, Meters, Source},
    policy::{Missing, Policy},
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
    top_denied: usize,
    /// Random unless set.
    hasher: Option<KeyHasher>,
    source: Source,
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

    /// Makes keys under a secret that other processes have, too.
    #[cfg(feature = "redis")]
    pub(crate) fn hasher(mut self, hasher: KeyHasher) -> Self {
        self.hasher = Some(hasher);
        self
    }

    /// Keeps count of the keys that are refused most, in so many places, for
    /// [`Limiter::top_denied`](super::Limiter::top_denied); at most 4,096. None unless set: counting costs every refusal a
    /// look through the places.
    pub fn top_denied(mut self, places: usize) -> Self {
        self.top_denied = places.min(4_096);
        self
    }

    /// Whom the meters name. In memory, unless set.
    #[cfg(feature = "redis")]
    pub(crate) fn source(self, source: Source) -> Self {
        Self { source, ..self }
    }

    /// Builds the limiter.
    ///
    /// Its order is that of the keyed policies, followed by that of the global ones, which are charged last.
    ///
    /// # Errors
    ///
    /// When there is no policy; when a name is empty, longer than 64 bytes, not printable ASCII, or used twice; when a
    /// policy's [`max_keys`](Policy::max_keys) is zero or beyond 2³² − 1, or the status of
    /// [`Missing::Reject`](crate::policy::Missing::Reject) is no error.
    pub fn build(self) -> Result<Limiter, ConfigError> {
        check(&self.policies)?;
        let (mut policies, global): (Vec<_>, Vec<_>) =
            self.policies.into_iter().partition(|policy| !policy.is_global());
        let lone = global.len() == 1;
        policies.extend(global);
        let buckets = policies.iter().map(|policy| {
            let swept_as = match self.sweep {
                #[cfg(feature = "redis")]
                Sweep::Background if matches!(self.source, Source::Alone) => {
                    // Not to be taken for the keys of the limiter that knows Redis.
                    Some(format!("{} (without Redis)", policy.name()).into())
                }
                Sweep::Background => Some(policy.shared_name()),
                Sweep::Manual => None,
            };
            let buckets = if policy.is_global() {
                Buckets::global(policy, lone)
            } else {
                let (max_keys, at_cap) = policy.cap();
                let store = Arc::new(Store::new(max_keys, at_cap, self.clock.clone()));
                let period = sweeper::period(policy.quota().time_to_fill());
                let sweeping = swept_as.as_ref().map(|name| Sweeping::start(Arc::clone(name), &store, period));
                Buckets::keyed(policy, store, sweeping)
            };
            if let Some(ban) = policy.banned() {
                buckets.penalties_or(|| Penalties::new(Some(ban), &self.clock, swept_as.as_ref()));
            }
            buckets
        });
        let buckets = buckets.collect();
        let meters = Meters::new(policies.len());
        let shared = Shared {
            policies: policies.into(),
            buckets,
            clock: self.clock,
            hasher: self.hasher.unwrap_or_else(KeyHasher::random),
            missing_keys: observe::Throttle::default(),
            refusals: observe::Throttle::default(),
            meters,
            source: self.source,
            sketch: (self.top_denied > 0).then(|| Sketch::new(self.top_denied)),
            sweep: self.sweep,
        };
        Ok(Limiter { shared: Arc::new(shared) })
    }
}

/// In bytes. Names are in header fields, which have limits of their own.
const LONGEST_NAME: usize = 64;

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
        if name.len() > LONGEST_NAME {
            return refuse(policy, Fault::LongName);
        }
        if let Some(Missing::Reject(status)) = policy.missing() {
            if !status.is_client_error() && !status.is_server_error() {
                return refuse(policy, Fault::MissingStatus);
            }
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
    LongName,
    MaxKeys,
    MissingStatus,
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
            Fault::LongName => {
                write!(
                    f,
                    "the name {policy:?} is longer than {LONGEST_NAME} bytes: choose another with `Policy::named`"
                )
            }
            Fault::MissingStatus => {
                write!(
                    f,
                    "the policy {policy:?} would refuse requests without a key with a status that is no error: give \
                     `Missing::Reject` one from 400 to 599"
                )
            }
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
