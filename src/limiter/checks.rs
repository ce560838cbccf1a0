//! Contains what policies must be: each by itself, beside the others of a limiter, and after those
//! that they continue.
//!
//! This file must not know of buckets.

use super::error::{ConfigError, ConfigErrorKind};
use crate::{
    policy::{self, MAX_NAME, Missing, Policy},
    store::Cap,
};

/// Checks each policy, and that their names differ.
pub(super) fn check(policies: &[Policy]) -> Result<(), ConfigError> {
    for (index, policy) in policies.iter().enumerate() {
        let name = policy.name();
        let invalid = |kind| Err(ConfigError::new(name, kind));
        if name.is_empty() {
            return invalid(ConfigErrorKind::EmptyName);
        }
        if !name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return invalid(ConfigErrorKind::UnprintableName);
        }
        if policies[..index].iter().any(|earlier| earlier.name() == name) {
            return invalid(ConfigErrorKind::DuplicateName);
        }
        if name.len() > MAX_NAME {
            return invalid(ConfigErrorKind::LongName);
        }
        if policy.cell_unit().is_some_and(|unit| !policy::is_name(unit)) {
            return invalid(ConfigErrorKind::Unit);
        }
        if let Some(misfit) = policy.misfit() {
            return invalid(misfit.into());
        }
        if policy.lacks_plan_by() {
            return invalid(ConfigErrorKind::NoPlanBy);
        }
        if policy.is_by_key() && policy.needs_requests() {
            return invalid(ConfigErrorKind::NoRequest);
        }
        if let Some(Missing::Reject(status)) = policy.missing() {
            if !status.is_client_error() && !status.is_server_error() {
                return invalid(ConfigErrorKind::MissingStatus);
            }
        }
        let Cap { max_keys, per_network, .. } = policy.cap();
        if max_keys == 0 || u32::try_from(max_keys).is_err() || per_network == Some(0) {
            return invalid(ConfigErrorKind::MaxKeys);
        }
    }
    Ok(())
}

/// For each policy the former one that it continues: the one of the same name, if both are global
/// or neither is, and both have a rate or a window.
pub(super) fn origins(former: &[Policy], policies: &[Policy]) -> Result<Vec<Option<usize>>, ConfigError> {
    let mut last: Option<usize> = None;
    let origin = |policy: &Policy| {
        let same = |former: &Policy| {
            former.name() == policy.name()
                && former.is_global() == policy.is_global()
                && former.limit().is_like(policy.limit())
        };
        let Some(origin) = former.iter().position(same) else { return Ok(None) };
        if last.is_some_and(|last| origin < last) {
            return Err(ConfigError::new(policy.name(), ConfigErrorKind::Reordered));
        }
        if !policy.is_global() && policy.cap() != former[origin].cap() {
            return Err(ConfigError::new(policy.name(), ConfigErrorKind::ChangedCap));
        }
        last = Some(origin);
        Ok(last)
    };
    policies.iter().map(origin).collect()
}
