//! Contains the parts of a policy in a file that may be invalid, each with what is made of it.

use std::time::Duration;

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::error::PolicyConfigErrorKind;
use crate::{key::Missing, policy::Ban, quota::Quota};

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

pub(super) fn share(share: f64) -> Result<f64, PolicyConfigErrorKind> {
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err(PolicyConfigErrorKind::Share(share)) }
}

pub(super) fn methods(names: &[String]) -> Result<Vec<Method>, PolicyConfigErrorKind> {
    let method = |name: &String| {
        // A method is a word of capitals: another spelling is a mistake, and would apply to
        // nothing.
        let method = Method::from_bytes(name.as_bytes()).ok().filter(|_| *name == name.to_uppercase());
        method.ok_or_else(|| PolicyConfigErrorKind::Method(name.clone()))
    };
    names.iter().map(method).collect()
}

pub(super) fn cost(cost: u32) -> Result<u32, PolicyConfigErrorKind> {
    if cost == 0 { Err(PolicyConfigErrorKind::Cost) } else { Ok(cost) }
}

pub(super) fn ban(config: BanConfig) -> Result<Ban, PolicyConfigErrorKind> {
    let BanConfig { denials, window_seconds, initial_seconds, max_seconds } = config;
    let window = Duration::from_secs(window_seconds);
    // `Ban::after` panics where this fails.
    Quota::new(denials, window).map_err(PolicyConfigErrorKind::Ban)?;
    if initial_seconds == Some(0) || max_seconds.is_some_and(|max| max < initial_seconds.unwrap_or(60)) {
        return Err(PolicyConfigErrorKind::BanLength);
    }
    let mut ban = Ban::after(denials, window);
    if let Some(initial) = initial_seconds {
        ban = ban.initial(Duration::from_secs(initial));
    }
    if let Some(max) = max_seconds {
        ban = ban.max(Duration::from_secs(max));
    }
    Ok(ban)
}

pub(super) fn missing(config: MissingConfig) -> Result<Missing, PolicyConfigErrorKind> {
    match config {
        MissingConfig::Share => Ok(Missing::Share),
        MissingConfig::Skip => Ok(Missing::Skip),
        MissingConfig::Reject(code) => match StatusCode::from_u16(code) {
            Ok(status) if status.is_client_error() || status.is_server_error() => Ok(Missing::Reject(status)),
            _ => Err(PolicyConfigErrorKind::Status(code)),
        },
    }
}
