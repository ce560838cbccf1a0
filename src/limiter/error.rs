//! Contains the errors of building and controlling a limiter.

use std::{error, fmt};

use crate::{
    decision::Denied,
    limit::Limit,
    policy::{LimitMisfit, MAX_NAME, Policy},
};

/// The shortest secret in bytes.
pub(crate) const MIN_SECRET: usize = 16;

/// Why a [`Limiter`](crate::Limiter) cannot be built. The text names the policy, the rule, and what
/// to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    policy: String,
    kind: ConfigErrorKind,
}

impl ConfigError {
    pub(super) fn new(policy: &str, kind: ConfigErrorKind) -> Self {
        Self { policy: policy.to_owned(), kind }
    }

    /// Returns what is wrong.
    #[must_use]
    pub fn kind(&self) -> ConfigErrorKind {
        self.kind
    }

    /// Returns the name of the policy that is wrong. It is empty where there is no policy.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }
}

/// What is wrong with the configuration of a limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigErrorKind {
    /// A policy that stays has another maximum number of keys.
    ChangedCap,
    /// Two policies have one name.
    DuplicateName,
    /// The name of a policy is empty.
    EmptyName,
    /// A policy with a rate has [`Policy::limit_by`].
    LimitByOnQuota,
    /// The name of a policy is longer than 64 bytes.
    LongName,
    /// The maximum number of keys is zero, or above 2³² − 1.
    MaxKeys,
    /// The status for a missing key is not an error (400 to 599).
    MissingStatus,
    /// There is no policy.
    NoPolicy,
    /// A layer has policies by key only, and would limit nothing.
    NoPolicyForRequests,
    /// Something is set that needs a request, on a policy that sees none.
    NoRequest,
    /// A policy has plans, and nothing says which one a request has.
    NoPlanBy,
    /// A plan of a policy is a rate and the policy has a window, or the reverse, or its window has
    /// another period.
    PlanMisfit,
    /// A policy with a window has [`Policy::quota_by`].
    QuotaByOnWindow,
    /// Policies that stay are in another order.
    Reordered,
    /// The secret is shorter than 16 bytes.
    ShortSecret,
    /// The unit of a policy is empty, longer than 64 bytes, or not printable ASCII.
    Unit,
    /// The name of a policy is not printable ASCII.
    UnprintableName,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.policy;
        match self.kind {
            ConfigErrorKind::ChangedCap => write!(
                f,
                "the policy {policy:?} has keys, and cannot change `max_keys`, `max_keys_per_network` or `at_cap` while \
                 it is in use: rename it to begin anew, or restart"
            ),
            ConfigErrorKind::Reordered => write!(
                f,
                "the policy {policy:?} stands after another one that it stood before: leave the policies that stay in \
                 their order, or restart"
            ),
            ConfigErrorKind::DuplicateName => {
                write!(f, "two policies are named {policy:?}: rename one with `Policy::named`")
            }
            ConfigErrorKind::EmptyName => write!(f, "a policy's name is empty: name it with `Policy::named`"),
            ConfigErrorKind::LongName => write!(
                f,
                "the policy's name {policy:?} is longer than {MAX_NAME} bytes: choose a shorter one with `Policy::named`"
            ),
            ConfigErrorKind::MaxKeys => write!(
                f,
                "the policy {policy:?} has an invalid maximum number of keys: \
                 set `Policy::max_keys` from 1 to 2^32 - 1, and `Policy::max_keys_per_network` to at least 1"
            ),
            ConfigErrorKind::MissingStatus => write!(
                f,
                "the policy {policy:?} rejects a missing key with a status that is not an error: \
                 set `Missing::Reject` to a status from 400 to 599"
            ),
            ConfigErrorKind::NoPolicy => f.write_str("the limiter has no policy and would limit nothing: add a policy, or call `allow_empty` where that is meant"),
            ConfigErrorKind::NoPolicyForRequests => f.write_str(
                "the limiter has policies by key only, and a layer would limit nothing: \
                 call `Limiter::acquire` where the key is known, or add a policy for requests",
            ),
            ConfigErrorKind::NoRequest => write!(
                f,
                "the policy {policy:?} counts by a key that callers name, and sees no request: leave out `when`, \
                 `methods`, `paths`, `except`, `quota_by`, `limit_by`, `cost_by`, `count_if`, `on_missing` and `require`, and name a plan with `Limiter::acquire_as`"
            ),
            ConfigErrorKind::NoPlanBy => write!(
                f,
                "the policy {policy:?} has plans, and nothing says which one a request has: call `Policy::plan_by`"
            ),
            ConfigErrorKind::LimitByOnQuota => write!(
                f,
                "the policy {policy:?} has a rate, and `limit_by` chooses the cells of a window: call `Policy::quota_by`"
            ),
            ConfigErrorKind::PlanMisfit => write!(
                f,
                "the policy {policy:?} has a plan of another kind: give each of its plans a rate if the policy has one, \
                 or a window of the policy's period"
            ),
            ConfigErrorKind::QuotaByOnWindow => write!(
                f,
                "the policy {policy:?} has a window, and `quota_by` chooses a rate: call `Policy::limit_by`"
            ),
            ConfigErrorKind::ShortSecret => write!(
                f,
                "the secret is shorter than {MIN_SECRET} bytes: use a longer one, which nobody can guess"
            ),
            ConfigErrorKind::Unit => write!(
                f,
                "the unit of the policy {policy:?} is not 1 to {MAX_NAME} bytes of printable ASCII, \
                 which header fields need: choose another one with `Policy::unit`"
            ),
            ConfigErrorKind::UnprintableName => write!(
                f,
                "the policy's name {policy:?} is not printable ASCII, which header fields need: \
                 choose another one with `Policy::named`"
            ),
        }
    }
}

impl error::Error for ConfigError {}

impl From<LimitMisfit> for ConfigErrorKind {
    fn from(misfit: LimitMisfit) -> Self {
        match misfit {
            LimitMisfit::LimitBy => Self::LimitByOnQuota,
            LimitMisfit::Plan => Self::PlanMisfit,
            LimitMisfit::QuotaBy => Self::QuotaByOnWindow,
        }
    }
}

/// No policy of the limiter has the given name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPolicy {
    name: String,
    known: Vec<String>,
}

impl UnknownPolicy {
    pub(super) fn new<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        Self { name: name.to_owned(), known: known.map(str::to_owned).collect() }
    }

    /// Returns the name that no policy has.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no policy is named {:?}: use one of {:?}", self.name, self.known)
    }
}

impl error::Error for UnknownPolicy {}

/// Why a limit was not set, or not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// The policy has a rate and was given a window, or the reverse, or a key was given a window of
    /// another period than the policy's.
    Misfit {
        /// The policy's name.
        policy: String,
        /// The limit with which the policy was made.
        own: Limit,
        /// The limit that is none for this policy.
        given: Limit,
    },
    /// There is no policy of the given name.
    UnknownPolicy(UnknownPolicy),
}

impl LimitError {
    pub(crate) fn misfit(policy: &Policy, given: Limit) -> Self {
        Self::Misfit { policy: policy.name().to_owned(), own: policy.limit().clone(), given }
    }
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misfit { policy, own, given } => write!(
                f,
                "the policy {policy:?} has the limit \"{own}\", beside which \"{given}\" means nothing: give a rate to \
                 a policy with a rate, and a window of the same period to one with a window"
            ),
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for LimitError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Misfit { .. } => None,
            Self::UnknownPolicy(unknown) => Some(unknown),
        }
    }
}

impl From<UnknownPolicy> for LimitError {
    fn from(unknown: UnknownPolicy) -> Self {
        Self::UnknownPolicy(unknown)
    }
}

/// Why no cells were acquired for a key.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AcquireError {
    /// A policy has denied, and nothing was acquired. Boxed, because it is large.
    Denied(Box<Denied>),
    /// The plan is no limit for the policy. Boxed, because it is large.
    Limit(Box<LimitError>),
    /// The policy of this name stands twice in one call. Ask it once, for the sum of the cells.
    RepeatedPolicy(String),
    /// There is no policy of the given name.
    UnknownPolicy(UnknownPolicy),
}

impl AcquireError {
    /// Returns the denial, if it is one.
    #[must_use]
    pub fn denied(&self) -> Option<&Denied> {
        if let Self::Denied(denied) = self { Some(denied) } else { None }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denied) => denied.fmt(f),
            Self::Limit(error) => error.fmt(f),
            Self::RepeatedPolicy(name) => {
                write!(f, "the policy {name:?} stands twice in one call: name it once, with the sum of the cells")
            }
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for AcquireError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Denied(_) | Self::RepeatedPolicy(_) => None,
            Self::Limit(error) => Some(error),
            Self::UnknownPolicy(unknown) => Some(unknown),
        }
    }
}

impl From<Denied> for AcquireError {
    fn from(denied: Denied) -> Self {
        Self::Denied(Box::new(denied))
    }
}

impl From<LimitError> for AcquireError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::UnknownPolicy(unknown) => Self::UnknownPolicy(unknown),
            misfit @ LimitError::Misfit { .. } => Self::Limit(Box::new(misfit)),
        }
    }
}

impl From<UnknownPolicy> for AcquireError {
    fn from(unknown: UnknownPolicy) -> Self {
        Self::UnknownPolicy(unknown)
    }
}

/// Why a key was not blocked, or not paused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockError {
    /// The maximum number of keys is blocked or paused, in all or of this key's network.
    Full,
    /// There is no policy of the given name.
    UnknownPolicy(UnknownPolicy),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str(
                "the maximum number of keys is blocked or paused, in all or of this key's network: end others first",
            ),
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for BlockError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Full => None,
            Self::UnknownPolicy(unknown) => Some(unknown),
        }
    }
}
