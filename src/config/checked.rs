//! Reads the parts of a policy that may be invalid, and refuses those of which nothing can be made.
//! So the error of a format that counts lines names the line of the part.

use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    error::PolicyConfigErrorKind,
    key::KeyConfig,
    parts::{self, BanConfig, MissingConfig},
};
use crate::{
    policy::{self, Policy},
    quota::Quota,
};

fn read<'de, D, T, M>(deserializer: D, make: impl FnOnce(&T) -> Result<M, PolicyConfigErrorKind>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let part = T::deserialize(deserializer)?;
    make(&part).map_err(D::Error::custom)?;
    Ok(part)
}

fn read_option<'de, D, T, M>(
    deserializer: D,
    make: impl FnOnce(T) -> Result<M, PolicyConfigErrorKind>,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Copy,
{
    read(deserializer, |part: &Option<T>| part.map(make).transpose())
}

/// A list that is left out means everything, and one that says nothing could mean either.
fn not_empty(part: &'static str, list: &[String]) -> Result<(), PolicyConfigErrorKind> {
    if list.is_empty() { Err(PolicyConfigErrorKind::EmptyList(part)) } else { Ok(()) }
}

fn any() -> Policy {
    Policy::global(Quota::per_second(1))
}

pub(super) fn key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyConfig, D::Error> {
    read(deserializer, KeyConfig::extractor)
}

/// A name, or a unit.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    read(deserializer, |name: &Option<String>| match name {
        Some(name) if !policy::is_name(name) => Err(PolicyConfigErrorKind::Name(name.clone())),
        _ => Ok(()),
    })
}

pub(super) fn max_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    read_option(deserializer, |keys: usize| match u32::try_from(keys) {
        Ok(1..) => Ok(()),
        _ => Err(PolicyConfigErrorKind::MaxKeys(keys)),
    })
}

/// Beyond the cap of the policy it is no bound.
pub(super) fn max_keys_per_network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    read_option(deserializer, |keys: usize| if keys == 0 { Err(PolicyConfigErrorKind::MaxKeys(keys)) } else { Ok(()) })
}

pub(super) fn enforce_for<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    read_option(deserializer, parts::share)
}

pub(super) fn methods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    read(deserializer, |names: &Vec<String>| {
        not_empty("methods", names)?;
        parts::methods(names)
    })
}

pub(super) fn paths<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    read(deserializer, |paths: &Vec<String>| {
        not_empty("paths", paths)?;
        any().paths(paths).map_err(PolicyConfigErrorKind::Path)
    })
}

pub(super) fn except<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    read(deserializer, |networks: &Vec<String>| any().except(networks).map_err(PolicyConfigErrorKind::Except))
}

pub(super) fn cost<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    read_option(deserializer, parts::cost)
}

pub(super) fn ban<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BanConfig>, D::Error> {
    read_option(deserializer, parts::ban)
}

pub(super) fn on_missing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MissingConfig>, D::Error> {
    read_option(deserializer, parts::missing)
}
