//! Contains snapshots as they are in a file: the records of a limiter's state, and their format.
//!
//! This folder must not know of limiters, nor of how buckets are stored.

mod error;
mod file;
mod records;

pub use self::error::SnapshotError;
pub(crate) use self::{
    file::{read, write},
    records::{BanRecord, PenaltyRecord, PolicyRecord, Records, ResetMark, SavedBucket},
};
