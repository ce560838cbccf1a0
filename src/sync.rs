//! The locks and atomics that decisions and the sweeper go through: the standard library's, or loom's where every interleaving of them is tried.
//!
//! ```sh
//! RUSTFLAGS="--cfg tower_quota_loom" cargo test --release --lib loom_
//! ```

#[cfg(tower_quota_loom)]
pub(crate) use loom::{
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(tower_quota_loom))]
pub(crate) use std::{
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
