//! The locks and atomics that decisions and the sweeper use: the standard library's, or loom's in
//! the models that try every interleaving.
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
