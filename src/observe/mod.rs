//! Contains what the crate reports: [`events`] and [`suspicions`] for the `tracing` crate and
//! [`metrics`] for the `metrics` crate.
//!
//! These are the only files that know those two crates. Without the features of the same names each
//! function does nothing. This folder must not know any other type of the crate but its times: it
//! is given names, numbers and keyed hashes, and never a key. No function here is called while a
//! bucket is locked.

pub(crate) mod events;
pub(crate) mod metrics;
pub(crate) mod suspicions;
