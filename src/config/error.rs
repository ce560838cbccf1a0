//! Contains why a policy in a file is invalid.

use std::{error, fmt};

use http::header::InvalidHeaderName;

use crate::{
    key::{NetworkError, TrustError},
    policy::PathError,
    quota::QuotaError,
};

/// Why a configured policy is invalid.
#[derive(Debug)]
pub struct PolicyConfigError {
    policy: String,
    kind: PolicyConfigErrorKind,
}

impl PolicyConfigError {
    pub(super) fn new(policy: String, kind: PolicyConfigErrorKind) -> Self {
        Self { policy, kind }
    }

    /// Returns the policy's name, or its key where it has no name.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Returns what is wrong.
    #[must_use]
    pub fn kind(&self) -> &PolicyConfigErrorKind {
        &self.kind
    }
}

/// What is wrong with a configured policy.
#[derive(Debug)]
#[non_exhaustive]
pub enum PolicyConfigErrorKind {
    /// A list of this name is empty, in a file.
    EmptyList(&'static str),
    /// The name of a header field is invalid.
    #[non_exhaustive]
    Field {
        /// The name.
        name: String,
        /// Why it is invalid.
        source: InvalidHeaderName,
    },
    /// The key cannot be made, for this reason.
    Key(&'static str),
    /// A number of keys is zero, or above 2³² − 1.
    MaxKeys(usize),
    /// A name or a unit is not 1 to 64 bytes of printable ASCII.
    Name(String),
    /// A part of this name is set on a policy that has no keys.
    NoKeys(&'static str),
    /// The share of `enforce-for` is not from 0.0 to 1.0.
    Share(f64),
    /// The status of `on-missing` is not an error (400 to 599).
    Status(u16),
    /// There is neither a quota nor a window, or there are both.
    Limit,
    /// A plan is not of the policy's kind: a rate, or a window of the same period.
    Plan,
    /// The list of trusted proxies is invalid.
    Trust(TrustError),
    /// The denials and the window of a ban are no quota.
    Ban(QuotaError),
    /// A ban would block for no time, or its longest block be shorter than its first.
    BanLength,
    /// Requests would cost nothing, and so be unlimited.
    Cost,
    /// Requests would cost more than any quota of the policy has at once, and all be denied.
    CostAboveBurst,
    /// The name of a method is invalid, or not in capitals.
    Method(String),
    /// A pattern of [`paths`](super::PolicyConfig::paths) is invalid.
    Path(PathError),
    /// A network of [`except`](super::PolicyConfig::except) is invalid.
    Except(NetworkError),
}

impl fmt::Display for PolicyConfigErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyList(part) => {
                write!(
                    f,
                    "{part} is empty, so the policy would apply to nothing: leave it out to apply it to all requests"
                )
            }
            Self::Field { name, .. } => {
                write!(f, "{name:?} is not the name of a header field: use letters, digits and hyphens")
            }
            Self::Key(reason) => write!(f, "the key: {reason}"),
            Self::Share(share) => write!(f, "enforce-for is {share}: set it from 0.0 to 1.0"),
            Self::Status(code) => {
                write!(f, "on-missing rejects with {code}, which is not an error: use a status from 400 to 599")
            }
            Self::Trust(error) => error.fmt(f),
            Self::Except(error) => error.fmt(f),
            Self::Ban(error) => write!(f, "the ban: {error}"),
            Self::BanLength => f.write_str(
                "the ban: set initial-seconds to at least 1, and max-seconds (an hour unless set) to no less than \
                 initial-seconds (a minute unless set)",
            ),
            Self::CostAboveBurst => f.write_str(
                "cost is above the burst of every quota of the policy, which denies all: lower it, or raise a burst",
            ),
            Self::Limit => f.write_str(
                "write either quota (a rate, as \"100/s\") or window (as \"1000 daily\"): a policy has one limit; for both, \
                 write two policies",
            ),
            Self::Plan => f.write_str(
                "a plan is of another kind than the policy: give it a rate if the policy has a quota, or a window of the \
                 same period if it has a window",
            ),
            Self::MaxKeys(keys) => write!(f, "{keys} is not a number of keys: set it from 1 to 2^32 - 1"),
            Self::Name(name) => {
                write!(f, "{name:?} is not 1 to 64 bytes of printable ASCII, which header fields need")
            }
            Self::NoKeys(part) => {
                write!(f, "{part} is about keys, and a policy with the key `global` has none: leave it out")
            }
            Self::Cost => f.write_str("cost is 0, which limits nothing: set it to at least 1"),
            Self::Method(name) => write!(f, "{name:?} is not a method: write it in capitals, as `POST`"),
            Self::Path(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for PolicyConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy {:?}: {}", self.policy, self.kind)
    }
}

impl error::Error for PolicyConfigError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.kind {
            PolicyConfigErrorKind::Field { source, .. } => Some(source),
            PolicyConfigErrorKind::BanLength
            | PolicyConfigErrorKind::Cost
            | PolicyConfigErrorKind::CostAboveBurst
            | PolicyConfigErrorKind::MaxKeys(_)
            | PolicyConfigErrorKind::Name(_)
            | PolicyConfigErrorKind::NoKeys(_)
            | PolicyConfigErrorKind::EmptyList(_)
            | PolicyConfigErrorKind::Limit
            | PolicyConfigErrorKind::Plan
            | PolicyConfigErrorKind::Key(_)
            | PolicyConfigErrorKind::Method(_)
            | PolicyConfigErrorKind::Share(_)
            | PolicyConfigErrorKind::Status(_) => None,
            PolicyConfigErrorKind::Trust(source) => Some(source),
            PolicyConfigErrorKind::Except(source) => Some(source),
            PolicyConfigErrorKind::Ban(source) => Some(source),
            PolicyConfigErrorKind::Path(source) => Some(source),
        }
    }
}
