//! Contains [`Moment`]: when a bucket is decided. Where no policy of a limiter has windows, that is
//! now, and no step of a decision asks for more.
//!
//! This file must not know of buckets' storage or decisions.

use super::window_clock::WindowClock;
use crate::{bucket::Bucket, clock::Timestamp, decision::WindowLeft};

/// When a bucket is decided that was read before `now`.
pub(super) trait Moment: Copy {
    /// Whether any policy has windows.
    const WINDOWS: bool;

    /// For a bucket of a policy with this window.
    fn of(window: Option<&WindowClock>, bucket: Bucket, now: Timestamp) -> Self;

    /// The time to which cells have come back.
    fn stands_at(self, now: Timestamp) -> Timestamp;

    /// The window that the bucket is in, for the standing that a response reports.
    fn window(self) -> Option<WindowLeft>;
}

/// No policy has windows.
#[derive(Clone, Copy)]
pub(super) struct RatesOnly;

impl Moment for RatesOnly {
    const WINDOWS: bool = false;

    #[inline(always)]
    fn of(_window: Option<&WindowClock>, _bucket: Bucket, _now: Timestamp) -> Self {
        Self
    }

    #[inline(always)]
    fn stands_at(self, now: Timestamp) -> Timestamp {
        now
    }

    #[inline(always)]
    fn window(self) -> Option<WindowLeft> {
        None
    }
}

/// Some policies have windows.
#[derive(Clone, Copy)]
pub(super) struct WithWindows {
    stands_at: Timestamp,
    window: Option<WindowLeft>,
}

impl Moment for WithWindows {
    const WINDOWS: bool = true;

    #[inline(always)]
    fn of(window: Option<&WindowClock>, bucket: Bucket, now: Timestamp) -> Self {
        let Some(window) = window else { return Self { stands_at: now, window: None } };
        let (stands_at, left) = window.stands_at(bucket, now);
        Self { stands_at, window: Some(left) }
    }

    #[inline(always)]
    fn stands_at(self, _now: Timestamp) -> Timestamp {
        self.stands_at
    }

    #[inline(always)]
    fn window(self) -> Option<WindowLeft> {
        self.window
    }
}
