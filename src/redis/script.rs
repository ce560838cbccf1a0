//! Contains the scripts that run on the server.

use std::sync::LazyLock;

/// Acquires the cells of requests: on the server's clock, in whole nanoseconds, in one round trip
/// for all buckets.
pub(super) static ACQUIRE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("bucket.lua"), include_str!("acquire.lua"))));
/// Refunds and charges after a request was allowed.
pub(super) static SETTLE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("bucket.lua"), include_str!("settle.lua"))));
/// What an operator does to one bucket.
pub(super) static CONTROL: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("bucket.lua"), include_str!("control.lua"))));
/// Sets quotas for all processes.
pub(super) static QUOTAS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("quotas.lua")));

/// A script of the server's.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) text: &'static str,
    /// By which the server knows it once it has run: its SHA-1.
    pub(super) name: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, name: sha1_smol::Sha1::from(text).digest().to_string() }
    }

    /// Those that requests need. Others are sent in full when they are needed.
    pub(super) fn of_requests() -> [&'static Self; 2] {
        [&ACQUIRE, &SETTLE]
    }
}
