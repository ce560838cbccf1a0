//! Policies from configuration (feature `serde`).
//!
//! This module contains the form of a policy in a file, in any format that serde reads. It must not
//! know of files, or of limiters. When a file has changed, read it to policies again, and pass
//! their quotas to [`Limiter::set_quotas`](crate::Limiter::set_quotas), which keeps the buckets.
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
//! // Later, when the file has changed:
//! let policies = read(r#"
//!     [[policies]]
//!     key = { header = "x-api-key" }
//!     quota = "30/s"
//! "#)?;
//! limiter.set_quotas(policies.iter().map(|policy| (policy.name(), policy.quota())))?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{error, fmt, time::Duration};

use http::{
    HeaderName, Method, StatusCode,
    header::{self, InvalidHeaderName},
    status::InvalidStatusCode,
};
use serde::{Deserialize, Serialize};

use crate::{
    key::{Bearer, ClientIp, Header, Missing, NetworkError, PeerIp, TrustError},
    policy::{Advertise, AtCap, Ban, PathError, Policy},
    quota::{Quota, QuotaError},
};

/// A policy in a file. What is omitted has the default of [`Policy`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PolicyConfig {
    /// See [`Policy::named`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the policy counts by.
    pub key: KeyConfig,
    /// The quota as text: `"100/s, burst 200"`.
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
    /// See [`Policy::max_keys_per_network`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys_per_network: Option<usize>,
    /// See [`Policy::at_cap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_cap: Option<AtCap>,
    /// See [`Policy::on_missing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_missing: Option<MissingConfig>,
    /// See [`Policy::methods`]. `["POST", "PUT"]`. All unless set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// See [`Policy::paths`]. `["/login", "/api/**"]`. All unless set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// The cells that each request costs; one unless set. See [`Policy::cost_by`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u32>,
    /// See [`Policy::ban`]. `{ denials = 20, window-seconds = 60 }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ban: Option<BanConfig>,
    /// See [`Policy::count_denied`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count_denied: bool,
    /// See [`Policy::except`]. `["10.1.0.0/16"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// What a policy counts by.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KeyConfig {
    /// All requests together. `"global"`.
    Global,
    /// What callers name: [`Policy::by_key`]. `"by-key"`.
    ByKey,
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
    /// `"x-forwarded-for"` (unless set), `"forwarded"`, or a field with one address that the proxy
    /// overwrites.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

/// When a key is blocked for its denials. See [`Ban`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct BanConfig {
    /// How many denials within the window.
    pub denials: u32,
    /// See [`Ban::after`].
    pub window_seconds: u64,
    /// See [`Ban::initial`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_seconds: Option<u64>,
    /// See [`Ban::max`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u64>,
}

/// What happens to a request without a key. See [`Missing`].
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
    /// When a network, the name of a field, a status or a share is invalid.
    fn try_from(config: PolicyConfig) -> Result<Self, PolicyConfigError> {
        let invalid = |kind| {
            let policy = config.name.clone().unwrap_or_else(|| format!("{:?}", config.key));
            PolicyConfigError { policy, kind }
        };
        let field = |name: &str| {
            let field = HeaderName::try_from(name);
            field.map_err(|source| invalid(PolicyConfigErrorKind::Field { name: name.to_owned(), source }))
        };
        let mut policy = match &config.key {
            KeyConfig::Global => Self::global(config.quota),
            KeyConfig::ByKey => Self::by_key(config.quota),
            KeyConfig::PeerIp => Self::per(PeerIp, config.quota),
            KeyConfig::Bearer => Self::per(Bearer, config.quota),
            KeyConfig::Header(name) => Self::per(Header::new(field(name)?), config.quota),
            KeyConfig::ClientIp(ClientIpConfig { behind, field: name }) => {
                let client =
                    ClientIp::behind(behind).map_err(|source| invalid(PolicyConfigErrorKind::Trust(source)))?;
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
                return Err(invalid(PolicyConfigErrorKind::Share(share)));
            }
            Some(share) => policy = policy.enforce_for(share),
            None => {}
        }
        if !config.methods.is_empty() {
            let method = |name: &String| {
                // A method is a word of capitals: another spelling is a mistake, and would apply to
                // nothing.
                let method = Method::from_bytes(name.as_bytes()).ok().filter(|_| *name == name.to_uppercase());
                method.ok_or_else(|| invalid(PolicyConfigErrorKind::Method(name.clone())))
            };
            policy = policy.methods(config.methods.iter().map(method).collect::<Result<Vec<_>, _>>()?);
        }
        if !config.paths.is_empty() {
            policy = policy.paths(&config.paths).map_err(|source| invalid(PolicyConfigErrorKind::Path(source)))?;
        }
        if let Some(cost) = config.cost {
            if cost == 0 {
                return Err(invalid(PolicyConfigErrorKind::Cost));
            }
            policy = policy.cost_by(move |_| cost);
        }
        if let Some(BanConfig { denials, window_seconds, initial_seconds, max_seconds }) = config.ban {
            let window = Duration::from_secs(window_seconds);
            // `Ban::after` panics where this fails.
            Quota::new(denials, window).map_err(|source| invalid(PolicyConfigErrorKind::Ban(source)))?;
            let mut ban = Ban::after(denials, window);
            if let Some(initial) = initial_seconds {
                ban = ban.initial(Duration::from_secs(initial));
            }
            if let Some(max) = max_seconds {
                ban = ban.max(Duration::from_secs(max));
            }
            policy = policy.ban(ban);
        }
        if config.count_denied {
            policy = policy.count_denied();
        }
        if !config.except.is_empty() {
            policy = policy.except(&config.except).map_err(|source| invalid(PolicyConfigErrorKind::Except(source)))?;
        }
        if let Some(max_keys) = config.max_keys {
            policy = policy.max_keys(max_keys);
        }
        if let Some(max_keys) = config.max_keys_per_network {
            policy = policy.max_keys_per_network(max_keys);
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
                Err(source) => Err(invalid(PolicyConfigErrorKind::Status { code, source })),
            },
        }
    }
}

/// Why a configured policy is invalid.
#[derive(Debug)]
pub struct PolicyConfigError {
    policy: String,
    kind: PolicyConfigErrorKind,
}

impl PolicyConfigError {
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
    /// The name of a header field is invalid.
    #[non_exhaustive]
    Field {
        /// The name.
        name: String,
        /// Why it is invalid.
        source: InvalidHeaderName,
    },
    /// The share of `enforce-for` is not from 0.0 to 1.0.
    Share(f64),
    /// The status of `on-missing` is invalid.
    #[non_exhaustive]
    Status {
        /// The status.
        code: u16,
        /// Why it is invalid.
        source: InvalidStatusCode,
    },
    /// The list of trusted proxies is invalid.
    Trust(TrustError),
    /// The denials and the window of a ban are no quota.
    Ban(QuotaError),
    /// Requests would cost nothing, and so be unlimited.
    Cost,
    /// The name of a method is invalid, or not in capitals.
    Method(String),
    /// A pattern of [`PolicyConfig::paths`] is invalid.
    Path(PathError),
    /// A network of [`PolicyConfig::except`] is invalid.
    Except(NetworkError),
}

impl fmt::Display for PolicyConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy {:?}: ", self.policy)?;
        match &self.kind {
            PolicyConfigErrorKind::Field { name, .. } => {
                write!(f, "{name:?} is not the name of a header field: use letters, digits and hyphens")
            }
            PolicyConfigErrorKind::Share(share) => {
                write!(f, "enforce-for is {share}: set it from 0.0 to 1.0")
            }
            PolicyConfigErrorKind::Status { code, .. } => {
                write!(f, "on-missing rejects with {code}, which is not a status: use one from 400 to 599")
            }
            PolicyConfigErrorKind::Trust(error) => error.fmt(f),
            PolicyConfigErrorKind::Except(error) => error.fmt(f),
            PolicyConfigErrorKind::Ban(error) => write!(f, "the ban: {error}"),
            PolicyConfigErrorKind::Cost => f.write_str("cost is 0, which limits nothing: set it to at least 1"),
            PolicyConfigErrorKind::Method(name) => {
                write!(f, "{name:?} is not a method: write it in capitals, as `POST`")
            }
            PolicyConfigErrorKind::Path(error) => error.fmt(f),
        }
    }
}

impl error::Error for PolicyConfigError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.kind {
            PolicyConfigErrorKind::Field { source, .. } => Some(source),
            PolicyConfigErrorKind::Cost | PolicyConfigErrorKind::Method(_) | PolicyConfigErrorKind::Share(_) => None,
            PolicyConfigErrorKind::Status { source, .. } => Some(source),
            PolicyConfigErrorKind::Trust(source) => Some(source),
            PolicyConfigErrorKind::Except(source) => Some(source),
            PolicyConfigErrorKind::Ban(source) => Some(source),
            PolicyConfigErrorKind::Path(source) => Some(source),
        }
    }
}
