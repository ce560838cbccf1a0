//! Contains [`WindowBounds`], when one window starts and ends.

use crate::clock::{Nanos, Timestamp};

/// When a window starts and ends. Both are whole minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowBounds {
    /// The start of 1970 where the window started before.
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    /// Longer than from `start` to `end` where the window started before 1970.
    pub(crate) length: Nanos,
}

impl WindowBounds {
    /// The window of a fixed length that contains `time`. One of them starts at `first`, which is
    /// less than a period after the start of 1970.
    pub(super) fn fixed(time: Timestamp, period: Nanos, first: Nanos) -> Self {
        let (time, period, first) = (time.as_nanos(), period.get(), first.get());
        let Some(since_first) = time.checked_sub(first) else {
            let end = Timestamp::from_nanos(first);
            return Self { start: Timestamp::ORIGIN, end, length: Nanos::new(period) };
        };
        let start = Timestamp::from_nanos(time - since_first % period);
        Self { start, end: start.saturating_add(Nanos::new(period)), length: Nanos::new(period) }
    }
}
