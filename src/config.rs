//! Policies from configuration (feature `serde`).
//!
//! Owns what a policy looks like in a file, in any format that serde reads. Knows nothing of files, or of limiters: a
//! file that was read again becomes policies again, whose quotas
//! [`Limiter::set_quotas`](crate::Limiter::set_quotas) takes over without losing a bucket.
//!
//! ```
//! use tower_quota::{Limiter, Policy, config::PolicyConfig};
//!
//! #[derive(serde::Deserialize)]
//! struct Limits {
//!     policies: Vec<PolicyConfig>,
//! }
//!
//! let read = |text: &str| -> Result<Vec<Policy>, Box<dyn std::error::Error>> {
//!     let limits: Limits = toml::from_str(text)?;
//!     Ok(limits.policies.into_iter().map(Policy::try_from).collect::<Result<_, _>>()?)
//! };
//! let limiter = Limiter::new(read(r#"
//!     [[policies]]
//!     key = { header = "x-api-key" }
//!     quota = "10/s, burst 20"
//!
//!     [[policies]]
//!     key = "global"
//!     quota = "5000/s"
//! "#)?);
//! // Later, from the file as it is then:
//! let policies = read(r#"
//!     [[policies]]
//!     key = { header = "x-api-key" }
//!     quota = "30/s"
//! "#)?;
//! limiter.set_quotas(policies.iter().map(|policy| (policy.name(), policy.quota())))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{error, fmt};

use http::{HeaderName, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::{
    key::{Bearer, ClientIp, Header, Missing, PeerIp},
    policy::{Advertise, AtCap, Policy},
    quota::Quota,
};

/// A policy as a file has it. What is left out is as [`Policy`] has it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PolicyConfig {
    /// See [`Policy::named`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What is counted.
    pub key: KeyConfig,
    /// As text: `"100/s, burst 200"`.
    pub quota: Quota,
    /// See [`Policy::advertise`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<Advertise>,
    /// See [`Policy::enforce_for`]; zero is [shadow mode](Policy::shadow).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce_for: Option<f64>,
    /// See [`Policy::max_keys`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys: Option<usize>,
    /// See [`Policy::at_cap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_cap: Option<AtCap>,
    /// See [`Policy::on_missing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_missing: Option<MissingConfig>,
}

/// What a policy counts by.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KeyConfig {
    /// Nothing: all requests together. `"global"`.
    Global,
    /// [`PeerIp`]. `"peer-ip"`.
    PeerIp,
    /// [`Bearer`]. `"bearer"`.
    Bearer,
    /// [`Header`]. `{ header = "x-api-key" }`.
    Header(String),
    /// [`ClientIp::behind`]. `{ client-ip = { behind = ["10.0.0.0/8"] } }`.
    ClientIp(ClientIpConfig),
}

/// How the address of a client is found.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ClientIpConfig {
    /// The networks of the trusted proxies.
    pub behind: Vec<String>,
    /// `"x-forwarded-for"` (unless set), `"forwarded"`, or a field with one address that the proxy overwrites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// What becomes of a request without a key. See [`Missing`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MissingConfig {
    /// `{ reject = 401 }`.
    Reject(u16),
    /// `"share"`.
    Share,
    /// `"skip"`.
    Skip,
}

impl TryFrom<PolicyConfig> for Policy {
    type Error = PolicyConfigError;

    /// # Errors
    ///
    /// When a network, the name of a field, a status or a share cannot be what it should.
    fn try_from(config: PolicyConfig) -> Result<Self, PolicyConfigError> {
        let refuse = |reason: String| {
            let policy = config.name.clone().unwrap_or_else(|| format!("{:?}", config.key));
            PolicyConfigError { policy, reason }
        };
        let field = |name: &str| {
            HeaderName::try_from(name).map_err(|error| refuse(format!("the name of a field, {name:?}: {error}")))
        };
        let mut policy = match &config.key {
            KeyConfig::Global => Self::global(config.quota),
            KeyConfig::PeerIp => Self::per(PeerIp, config.quota),
            KeyConfig::Bearer => Self::per(Bearer, config.quota),
            KeyConfig::Header(name) => Self::per(Header::new(field(name)?), config.quota),
            KeyConfig::ClientIp(ClientIpConfig { behind, field: name }) => {
                let client = ClientIp::behind(behind).map_err(|error| refuse(error.to_string()))?;
                let client = match name.as_deref().map(field).transpose()? {
                    None => client,
                    Some(name) if name == "x-forwarded-for" => client,
                    Some(header::FORWARDED) => client.forwarded(),
                    Some(name) => client.header(name),
                };
                Self::per(client, config.quota)
            }
        };
        if let Some(name) = &config.name {
            policy = policy.named(name);
        }
        if let Some(advertise) = config.advertise {
            policy = policy.advertise(advertise);
        }
        match config.enforce_for {
            Some(share) if !(0.0..=1.0).contains(&share) => {
                return Err(refuse(format!("enforce-for is between 0.0 and 1.0, not {share}")));
            }
            Some(share) => policy = policy.enforce_for(share),
            None => {}
        }
        if let Some(max_keys) = config.max_keys {
            policy = policy.max_keys(max_keys);
        }
        if let Some(at_cap) = config.at_cap {
            policy = policy.at_cap(at_cap);
        }
        match config.on_missing {
            None => Ok(policy),
            Some(MissingConfig::Share) => Ok(policy.on_missing(Missing::Share)),
            Some(MissingConfig::Skip) => Ok(policy.on_missing(Missing::Skip)),
            Some(MissingConfig::Reject(code)) => match StatusCode::from_u16(code) {
                Ok(status) => Ok(policy.on_missing(Missing::Reject(status))),
                Err(error) => Err(refuse(format!("the status {code}: {error}"))),
            },
        }
    }
}

/// Why a configured policy was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfigError {
    policy: String,
    reason: String,
}

impl fmt::Display for PolicyConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy {}: {}", self.policy, self.reason)
    }
}

impl error::Error for PolicyConfigError {}
