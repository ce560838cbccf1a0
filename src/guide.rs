//! The guide, chapter by chapter, as it is in the folder `docs`.
//!
//! This file must not contain code.

#[doc = include_str!("../docs/testing.md")]
pub mod testing {}

#[doc = include_str!("../docs/troubleshooting.md")]
pub mod troubleshooting {}

#[doc = include_str!("../docs/windows.md")]
pub mod windows {}
