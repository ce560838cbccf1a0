//! Policies from configuration (feature `serde`).
//!
//! This module contains the form of a policy in a file, in any format that serde reads. It must not
//! know of files, or of limiters.
//!
//! A file says what [`Policy`] can without code. What needs code is added to what was read: which
//! plan a request has, for instance.
//!
//! ```
//! use tower_quota::{Limiter, Policy};
//!
//! #[derive(serde::Deserialize)]
//! struct Limits {
//!     policies: Vec<Policy>,
//! }
//!
//! let limits: Limits = toml::from_str(r#"
//!     [[policies]]
//!     key = { header = "x-api-key" }
//!     quota = "10/s, burst 20"
//!     plans = { pro = "100/s", team = "1000/s" }
//!
//!     [[policies]]
//!     name = "login"
//!     key = "peer-ip"
//!     quota = "5/m"
//!     methods = ["POST"]
//!     paths = ["/login", "/api/login/**"]
//!     except = ["10.1.0.0/16"]
//!
//!     [[policies]]
//!     name = "day"
//!     key = { header = "x-api-key" }
//!     window = "10000 daily"
//!
//!     [[policies]]
//!     key = "global"
//!     quota = "5000/s"
//! "#)?;
//! #[derive(Clone)]
//! struct Plan(String);
//!
//! let limiter = Limiter::new(
//!     limits
//!         .policies
//!         .into_iter()
//!         .map(|policy| match policy.name() {
//!             "per-x-api-key" => policy.plan_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0.as_str())),
//!             _ => policy,
//!         })
//!         .collect::<Vec<_>>(),
//! );
//! # Ok::<(), toml::de::Error>(())
//! ```
//!
//! When the file has changed, read it again. A layer that is
//! [reloadable](crate::RateLimitLayer::reloadable) takes the policies, with the buckets of those
//! that stay. Where only quotas change, [`Limiter::set_limits`](crate::Limiter::set_limits) is
//! enough.

mod checked;
mod error;
mod key;
mod parts;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

pub use self::{
    error::{PolicyConfigError, PolicyConfigErrorKind},
    key::{ClientIpConfig, KeyConfig, PrefixConfig},
    parts::{BanConfig, MissingConfig},
};
use crate::{
    limit::Limit,
    policy::{Advertise, AtCap, LimitMisfit, Policy},
    quota::Quota,
    window::Window,
};

/// A policy in a file. What is omitted has the default of [`Policy`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PolicyConfig {
    /// See [`Policy::named`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::name")]
    pub name: Option<String>,
    /// What the policy counts by.
    #[serde(deserialize_with = "checked::key")]
    pub key: KeyConfig,
    /// The rate as text: `"100/s, burst 200"`. A policy has either this or a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// The window as text: `"1000 daily"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// The limits of plans, by their names: see [`Policy::plans`]. `{ pro = "100/s" }`, or for a
    /// policy with a window `{ pro = "50000 daily" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub plans: BTreeMap<String, Limit>,
    /// See [`Policy::unit`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::name")]
    pub unit: Option<String>,
    /// See [`Policy::advertise`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<Advertise>,
    /// See [`Policy::enforce_for`]; zero is [shadow mode](Policy::shadow).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::enforce_for")]
    pub enforce_for: Option<f64>,
    /// See [`Policy::max_keys`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::max_keys")]
    pub max_keys: Option<usize>,
    /// See [`Policy::max_keys_per_network`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::max_keys_per_network")]
    pub max_keys_per_network: Option<usize>,
    /// See [`Policy::at_cap`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_cap: Option<AtCap>,
    /// See [`Policy::on_missing`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::on_missing")]
    pub on_missing: Option<MissingConfig>,
    /// See [`Policy::methods`]. `["POST", "PUT"]`. All unless set.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "checked::methods")]
    pub methods: Vec<String>,
    /// See [`Policy::paths`]. `["/login", "/api/**"]`. All unless set.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "checked::paths")]
    pub paths: Vec<String>,
    /// The cells that each request costs; one unless set. See [`Policy::cost_by`].
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::cost")]
    pub cost: Option<u32>,
    /// See [`Policy::ban`]. `{ denials = 20, window-seconds = 60 }`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "checked::ban")]
    pub ban: Option<BanConfig>,
    /// See [`Policy::count_denied`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub count_denied: bool,
    /// See [`Policy::except`]. `["10.1.0.0/16"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "checked::except")]
    pub except: Vec<String>,
}

/// A policy in a file, in the form of [`PolicyConfig`].
impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(PolicyConfig::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl TryFrom<PolicyConfig> for Policy {
    type Error = PolicyConfigError;

    /// # Errors
    ///
    /// When a part of it is invalid: see [`PolicyConfigErrorKind`]. Where it was read from a file,
    /// reading has failed already, with the line if the format counts them.
    fn try_from(config: PolicyConfig) -> Result<Self, PolicyConfigError> {
        let name = || config.name.clone().unwrap_or_else(|| format!("{:?}", config.key));
        config.policy().map_err(|kind| PolicyConfigError::new(name(), kind))
    }
}

impl PolicyConfig {
    /// What is set on a policy and would do nothing is a mistake.
    fn check_without_keys(&self) -> Result<(), PolicyConfigErrorKind> {
        let Self { on_missing, max_keys, max_keys_per_network, at_cap, .. } = self;
        for (part, is_set) in [
            ("on-missing", on_missing.is_some()),
            ("max-keys", max_keys.is_some()),
            ("max-keys-per-network", max_keys_per_network.is_some()),
            ("at-cap", at_cap.is_some()),
        ] {
            if is_set {
                return Err(PolicyConfigErrorKind::NoKeys(part));
            }
        }
        Ok(())
    }

    fn policy(&self) -> Result<Policy, PolicyConfigErrorKind> {
        if self.key == KeyConfig::Global {
            self.check_without_keys()?;
        }
        let limit = match (self.quota, &self.window) {
            (Some(quota), None) => Limit::Quota(quota),
            (None, Some(window)) => Limit::Window(window.clone()),
            (None, None) | (Some(_), Some(_)) => return Err(PolicyConfigErrorKind::Limit),
        };
        let mut policy = match self.key.extractor()? {
            None if self.key == KeyConfig::ByKey => Policy::by_key(limit.clone()),
            None => Policy::global(limit.clone()),
            Some(key) => Policy::per(key, limit.clone()),
        };
        policy = policy.plans(self.plans.iter().map(|(name, plan)| (name, plan.clone())));
        if policy.misfit() == Some(LimitMisfit::Plan) {
            return Err(PolicyConfigErrorKind::Plan);
        }
        if let Some(unit) = &self.unit {
            policy = policy.unit(unit);
        }
        if let Some(name) = &self.name {
            policy = policy.named(name);
        }
        if let Some(advertise) = self.advertise {
            policy = policy.advertise(advertise);
        }
        if let Some(share) = self.enforce_for {
            policy = policy.enforce_for(parts::share(share)?);
        }
        if !self.methods.is_empty() {
            policy = policy.methods(parts::methods(&self.methods)?);
        }
        if !self.paths.is_empty() {
            policy = policy.paths(&self.paths).map_err(PolicyConfigErrorKind::Path)?;
        }
        if let Some(cost) = self.cost {
            let cost = parts::cost(cost)?;
            if self.plans.values().chain([&limit]).all(|limit| limit.basis().burst_size() < cost) {
                return Err(PolicyConfigErrorKind::CostAboveBurst);
            }
            policy = policy.cost_by(move |_| cost);
        }
        if let Some(ban) = self.ban {
            policy = policy.ban(parts::ban(ban)?);
        }
        if self.count_denied {
            policy = policy.count_denied();
        }
        if !self.except.is_empty() {
            policy = policy.except(&self.except).map_err(PolicyConfigErrorKind::Except)?;
        }
        if let Some(max_keys) = self.max_keys {
            policy = policy.max_keys(max_keys);
        }
        if let Some(max_keys) = self.max_keys_per_network {
            policy = policy.max_keys_per_network(max_keys);
        }
        if let Some(at_cap) = self.at_cap {
            policy = policy.at_cap(at_cap);
        }
        if let Some(missing) = self.on_missing {
            policy = policy.on_missing(parts::missing(missing)?);
        }
        Ok(policy)
    }
}
