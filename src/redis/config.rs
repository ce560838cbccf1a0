//! Contains [`RedisConfig`], the settings of a limiter over Redis in a file (feature `serde`), in
//! any format that serde reads.
//!
//! It makes a [`RedisBuilder`], to which the policies are given, from the same file or not. The
//! builder checks all of it.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{builder::RedisBuilder, fallback::OnFailure, limiter::RedisLimiter};

/// The settings of a limiter over Redis in a file. What is omitted has the default of
/// [`RedisBuilder`].
///
/// ```
/// use tower_quota::{Policy, Quota, key::Header, redis::RedisConfig};
///
/// let config: RedisConfig = toml::from_str(r#"
///     address = "redis://limits.example:6380"
///     secret = "32 random bytes of this deployment"
///     on-failure = { local = 0.25 }
///     on-failure-of = { login = "closed" }
///     timeout-ms = 100
///     lease = { cells = 64, ms = 100 }
/// "#)?;
/// let limiter = config.builder().policy(Policy::per(Header::new("user"), Quota::per_minute(5)).named("login")).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RedisConfig {
    /// The address of the server, or of the first node of a cluster: see [`RedisLimiter::builder`].
    pub address: String,
    /// The secret of the deployment.
    pub secret: String,
    /// What happens to requests when Redis does not answer.
    pub on_failure: OnFailureConfig,
    /// The same for single policies, by name. See [`RedisBuilder::on_failure_of`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub on_failure_of: BTreeMap<String, OnFailureConfig>,
    /// See [`RedisBuilder::prefix`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// In milliseconds. See [`RedisBuilder::timeout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// In milliseconds. See [`RedisBuilder::stall_after`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall_after_ms: Option<u64>,
    /// See [`RedisBuilder::lease`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseSettings>,
    /// See [`RedisBuilder::sentinels`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<SentinelSettings>,
    /// The addresses of further nodes; an empty list for a cluster of one address. See
    /// [`RedisBuilder::cluster`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Vec<String>>,
    /// See [`RedisBuilder::cached_keys`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_keys: Option<usize>,
    /// For addresses that ask for TLS.
    #[cfg(feature = "redis-tls")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSettings>,
}

/// What happens to requests when Redis does not answer: [`OnFailure`] in a file.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnFailureConfig {
    /// `"closed"`.
    Closed,
    /// A share of each quota: `{ local = 0.25 }`.
    Local(f64),
    /// `"open"`.
    Open,
}

/// Cells in advance: `{ cells = 64, ms = 100 }`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LeaseSettings {
    /// At most so many.
    pub cells: u32,
    /// For so many milliseconds.
    pub ms: u64,
}

/// Where the sentinels are: `{ addresses = ["redis://s1:26379"], primary = "limits" }`.
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SentinelSettings {
    /// Their addresses.
    pub addresses: Vec<String>,
    /// The name that they have for the primary.
    pub primary: String,
}

/// The certificates, each as the text of a PEM file.
#[cfg(feature = "redis-tls")]
#[derive(Clone, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TlsSettings {
    /// Authorities of your own. See [`RedisBuilder::ca_certificate`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ca_certificates: Vec<String>,
    /// The certificate of this client, and its chain. See [`RedisBuilder::client_certificate`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientCertificate>,
    /// See [`RedisBuilder::server_name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// The certificate of a client, with its key.
#[cfg(feature = "redis-tls")]
#[derive(Clone, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The certificate and its chain.
    pub chain: String,
    /// The private key.
    pub key: String,
}

impl From<OnFailureConfig> for OnFailure {
    fn from(config: OnFailureConfig) -> Self {
        match config {
            OnFailureConfig::Closed => Self::Closed,
            OnFailureConfig::Local(share) => Self::Local { share },
            OnFailureConfig::Open => Self::Open,
        }
    }
}

impl RedisConfig {
    /// Returns a builder with these settings.
    pub fn builder(self) -> RedisBuilder {
        let mut builder = RedisLimiter::builder(self.address, self.secret, self.on_failure.into());
        for (policy, on_failure) in self.on_failure_of {
            builder = builder.on_failure_of(policy, on_failure.into());
        }
        if let Some(prefix) = self.prefix {
            builder = builder.prefix(prefix);
        }
        if let Some(timeout) = self.timeout_ms {
            builder = builder.timeout(Duration::from_millis(timeout));
        }
        if let Some(time) = self.stall_after_ms {
            builder = builder.stall_after(Duration::from_millis(time));
        }
        if let Some(LeaseSettings { cells, ms }) = self.lease {
            builder = builder.lease(cells, Duration::from_millis(ms));
        }
        if let Some(SentinelSettings { addresses, primary }) = self.sentinel {
            builder = builder.sentinels(addresses, primary);
        }
        if let Some(others) = self.cluster {
            builder = builder.cluster(others);
        }
        if let Some(keys) = self.cached_keys {
            builder = builder.cached_keys(keys);
        }
        #[cfg(feature = "redis-tls")]
        if let Some(TlsSettings { ca_certificates, client, server_name }) = self.tls {
            for certificate in ca_certificates {
                builder = builder.ca_certificate(certificate);
            }
            if let Some(ClientCertificate { chain, key }) = client {
                builder = builder.client_certificate(chain, key);
            }
            if let Some(name) = server_name {
                builder = builder.server_name(name);
            }
        }
        builder
    }
}

/// Never shows the secret, nor the addresses, which may have a password.
impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("on_failure", &self.on_failure)
            .field("on_failure_of", &self.on_failure_of)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Never shows the addresses.
impl fmt::Debug for SentinelSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentinelSettings").field("primary", &self.primary).finish_non_exhaustive()
    }
}

/// Never shows the keys.
#[cfg(feature = "redis-tls")]
impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// Never shows the key.
#[cfg(feature = "redis-tls")]
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").finish_non_exhaustive()
    }
}
