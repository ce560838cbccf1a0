//! Contains tower's side of both limiters: the layer, the services and their futures.
//!
//! This folder must not know where buckets are, nor how a decision is reached.

pub(crate) mod deferred;
pub mod delay;
pub mod future;
pub(crate) mod layer;
pub mod reload;
pub(crate) mod service;
pub(crate) mod state;
pub(crate) mod waiters;
