//! Contains [`RedisConfigError`], why a limiter over Redis cannot be built.

use std::{error, fmt, time::Duration};

use super::address::AddressError;
use crate::limiter::{ConfigError, UnknownPolicy};

/// The shortest secret in bytes.
pub(super) const MIN_SECRET: usize = 16;

/// Why a [`RedisLimiter`](super::RedisLimiter) cannot be built. The text says what to do. No text
/// contains an address, which may have a password in it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RedisConfigError {
    /// The address of the server is not accepted.
    Address(AddressError),
    /// The policy of this name has a cap on its keys ([`max_keys`](crate::Policy::max_keys) or the
    /// like), which has no meaning in Redis.
    Capped(String),
    /// The policy of this name [counts requests that others deny](crate::Policy::count_denied),
    /// which is not possible over Redis.
    CountsDenied(String),
    /// The address of a node of a cluster is not accepted.
    ClusterAddress(AddressError),
    /// Some nodes of a cluster have TLS, and others do not.
    ClusterOfBoth,
    /// Both the address and a provider give credentials.
    Credentials,
    /// The cells or the time of leases are out of range.
    #[non_exhaustive]
    Lease {
        /// The maximum number of cells.
        max: u32,
        /// The time.
        time: Duration,
    },
    /// The list of sentinels is empty.
    NoSentinel,
    /// The policies are invalid.
    Policies(ConfigError),
    /// The prefix is empty, not printable ASCII, or contains a brace.
    Prefix(String),
    /// The address of a sentinel is not accepted.
    SentinelAddress(AddressError),
    /// Both sentinels and the nodes of a cluster are given.
    SentinelsOfACluster,
    /// The share of [`OnFailure::Local`](super::OnFailure::Local) is not above 0 and at most 1.
    Share(f64),
    /// The secret is shorter than 16 bytes.
    ShortSecret,
    /// The time of [`stall_after`](super::RedisBuilder::stall_after) is zero, or above the timeout.
    StallAfter(Duration),
    /// The timeout is zero, or above a minute.
    Timeout(Duration),
    /// The settings of TLS are not accepted. With the reason.
    Tls(String),
    /// There are settings of TLS, and no address asks for it.
    TlsWithoutAddress,
    /// `on_failure_of` names a policy that does not exist.
    UnknownPolicy(UnknownPolicy),
}

impl fmt::Display for RedisConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => write!(f, "the address of the server is not accepted: {error}"),
            Self::Capped(policy) => write!(
                f,
                "the policy {policy:?} has a cap on its keys, which has no effect in Redis: leave out max_keys, \
                 max_keys_per_network and at_cap, bound the memory of the server with maxmemory, and what this process \
                 remembers with `cached_keys`"
            ),
            Self::CountsDenied(policy) => write!(
                f,
                "the policy {policy:?} counts requests that other policies deny, which is not possible over Redis: leave \
                 out `count_denied`, and limit addresses by a layer of its own outside of this one"
            ),
            Self::ClusterAddress(error) => write!(f, "the address of a node of the cluster is not accepted: {error}"),
            Self::ClusterOfBoth => f.write_str(
                "some nodes of the cluster have TLS and others do not: write rediss:// for all, or for none",
            ),
            Self::Credentials => {
                f.write_str("credentials are given twice: leave them out of the address, or do not call `credentials`")
            }
            Self::Lease { max, time } => {
                write!(f, "a lease of {max} cells for {time:?} is invalid: use one cell or more, for 1 ms to 10 s")
            }
            Self::NoSentinel => f.write_str("the list of sentinels is empty: give at least one address"),
            Self::Policies(error) => error.fmt(f),
            Self::Prefix(prefix) => {
                write!(f, "the prefix {prefix:?} is invalid: use printable ASCII without spaces and braces")
            }
            Self::SentinelAddress(error) => write!(f, "the address of a sentinel is not accepted: {error}"),
            Self::SentinelsOfACluster => {
                f.write_str("a cluster has no sentinels: call either `sentinels` or `cluster`")
            }
            Self::Share(share) => {
                write!(f, "the share {share} of `OnFailure::Local` is invalid: use more than 0 and at most 1")
            }
            Self::ShortSecret => write!(
                f,
                "the secret is shorter than {MIN_SECRET} bytes: use a longer one, because anyone who guesses it can \
                 identify the keys in Redis"
            ),
            Self::StallAfter(time) => {
                write!(f, "the time {time:?} of `stall_after` is invalid: use more than zero and at most `timeout`")
            }
            Self::Tls(reason) => write!(f, "the settings of TLS are not accepted: {reason}"),
            Self::TlsWithoutAddress => {
                f.write_str("there are settings of TLS, and no address asks for it: write rediss:// or valkeys://")
            }
            Self::Timeout(timeout) => {
                write!(f, "the timeout {timeout:?} is invalid: use more than zero and at most a minute")
            }
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for RedisConfigError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Address(error) | Self::ClusterAddress(error) | Self::SentinelAddress(error) => Some(error),
            Self::Policies(error) => Some(error),
            Self::UnknownPolicy(unknown) => Some(unknown),
            _ => None,
        }
    }
}

impl From<ConfigError> for RedisConfigError {
    fn from(error: ConfigError) -> Self {
        Self::Policies(error)
    }
}
