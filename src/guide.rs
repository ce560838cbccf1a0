//! The guide, chapter by chapter, as it is in the folder `docs/guide`.
//!
//! | to | read |
//! |---|---|
//! | choose a limit: a rate, a window, requests in flight | [`choosing`], [`windows`] |
//! | choose what is counted | [`keys`], [`proxies`] |
//! | sell API keys with quotas | [`api_keys`], [`costs`] |
//! | protect a login | [`logins`] |
//! | limit messages, jobs, outgoing calls | [`by_key`], [`waiting`] |
//! | change what clients get | [`responses`] |
//! | run it | [`operations`], [`processes`] |
//! | test an application | [`testing`] |
//! | come from another crate | [`migrating`] |
//! | know what it costs | [`performance`] |
//! | find out why it does not compile, or does not limit | [`troubleshooting`], [`faq`] |
//!
//! This file must not contain code.

#[doc = include_str!("../docs/guide/api_keys.md")]
pub mod api_keys {}

#[doc = include_str!("../docs/guide/by_key.md")]
pub mod by_key {}

#[doc = include_str!("../docs/guide/choosing.md")]
pub mod choosing {}

#[doc = include_str!("../docs/guide/costs.md")]
pub mod costs {}

#[doc = include_str!("../docs/guide/faq.md")]
pub mod faq {}

#[doc = include_str!("../docs/guide/keys.md")]
pub mod keys {}

#[doc = include_str!("../docs/guide/logins.md")]
pub mod logins {}

#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}

#[doc = include_str!("../docs/guide/operations.md")]
pub mod operations {}

#[doc = include_str!("../docs/guide/performance.md")]
pub mod performance {}

#[doc = include_str!("../docs/guide/processes.md")]
pub mod processes {}

#[doc = include_str!("../docs/guide/proxies.md")]
pub mod proxies {}

#[doc = include_str!("../docs/guide/responses.md")]
pub mod responses {}

#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}

#[doc = include_str!("../docs/guide/troubleshooting.md")]
pub mod troubleshooting {}

#[doc = include_str!("../docs/guide/waiting.md")]
pub mod waiting {}

#[doc = include_str!("../docs/guide/windows.md")]
pub mod windows {}
