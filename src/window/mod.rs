//! Contains [`Window`]: a number of cells in each hour, day, week, month or other fixed period,
//! with its text form.
//!
//! This folder computes when a window starts and ends. It must not know of buckets, of keys or of
//! requests.
//!
//! A rate ([`Quota`]) protects a machine: cells come back one by one. A window is
//! what an invoice says: so many cells a month, all of them back at once when the next one starts.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::Window;
//!
//! const FREE: Window = Window::daily(1_000); // a zero here is a compile error
//! let quarter = Window::fixed(500, Duration::from_secs(15 * 60));
//! assert_eq!("500 every 15m".parse(), Ok(quarter));
//! assert_eq!(FREE.to_string(), "1000 daily");
//! ```

mod bounds;
#[cfg(feature = "calendar")]
mod calendar;
mod error;
mod text;

use std::time::Duration;

pub(crate) use self::bounds::WindowBounds;
#[cfg(feature = "calendar")]
use self::calendar::{CalendarDates, Unit};
pub use self::error::{WindowError, WindowErrorKind};
use crate::{
    clock::{Nanos, Timestamp},
    quota::Quota,
};

/// A number of cells in each window of time. All of them are back when the next window starts.
///
/// Windows of a fixed length are counted from the start of 1970 in UTC: hours start at full hours,
/// days at midnight, weeks on Mondays. With the feature `calendar` there are months, and days,
/// weeks and months of a time zone.
///
/// # What a boundary admits
///
/// A window says nothing about when its cells are used: all of them may be used in the last second
/// of one window, and all of the next one in the second after. So around a boundary up to twice the
/// limit passes at once. A rate beside the window prevents that: use two policies, see
/// [`Policy::per`](crate::Policy::per).
///
/// # Clocks
///
/// Windows start by the wall clock. Where that steps back, the current window lasts for as much
/// longer, and never begins a second time. Where it steps forward, the next window starts earlier.
/// A step of more than one window is not followed, but reported (feature `tracing`): one wrong
/// reading does not lock a limit until the year 2100. See
/// [`guide::windows`](crate::guide::windows).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    limit: u32,
    span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Span {
    #[cfg(feature = "calendar")]
    Calendar(CalendarDates),
    /// Counted from the start of 1970.
    Fixed(Nanos),
    /// Starts on Mondays, in UTC.
    Week,
}

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const WEEK: Nanos = Nanos::new(7 * 86_400 * Nanos::SECOND.get());

/// The first Monday of 1970.
const MONDAY: Nanos = Nanos::new(4 * 86_400 * Nanos::SECOND.get());

/// The longest period: 146 years.
const MAX_PERIOD: u128 = 1 << 62;

impl Window {
    /// Returns `limit` cells in each `period`, counted from the start of 1970 in UTC.
    ///
    /// # Panics
    ///
    /// When [`new`](Self::new) fails; in a `const` this is a compile error.
    #[must_use]
    pub const fn fixed(limit: u32, period: Duration) -> Self {
        match Self::check(limit, period) {
            Ok(period) => Self { limit, span: Span::Fixed(period) },
            Err(kind) => panic!("{}", kind.rule()),
        }
    }

    /// Returns `limit` cells in each `period`, for values from configuration. See
    /// [`fixed`](Self::fixed).
    ///
    /// # Errors
    ///
    /// When the limit is zero; when the period is shorter than a minute (use a
    /// [`Quota`] there), not whole minutes, or longer than 2⁶² nanoseconds (146
    /// years).
    pub fn new(limit: u32, period: Duration) -> Result<Self, WindowError> {
        let period = Self::check(limit, period)?;
        Ok(Self { limit, span: Span::Fixed(period) })
    }

    const fn check(limit: u32, period: Duration) -> Result<Nanos, WindowErrorKind> {
        let nanos = period.as_nanos();
        if limit == 0 {
            Err(WindowErrorKind::ZeroLimit)
        } else if nanos < Nanos::MINUTE.get() as u128 {
            Err(WindowErrorKind::ShortPeriod)
        } else if nanos > MAX_PERIOD {
            Err(WindowErrorKind::LongPeriod)
        } else if nanos % Nanos::MINUTE.get() as u128 != 0 {
            Err(WindowErrorKind::UnevenPeriod)
        } else {
            #[allow(clippy::cast_possible_truncation, reason = "at most MAX_PERIOD")]
            let nanos = nanos as u64;
            Ok(Nanos::new(nanos))
        }
    }

    /// Returns `limit` cells in each hour of UTC.
    ///
    /// # Panics
    ///
    /// If `limit` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn hourly(limit: u32) -> Self {
        Self::fixed(limit, HOUR)
    }

    /// Returns `limit` cells in each day, which starts at midnight in UTC unless a
    #[cfg_attr(feature = "calendar", doc = "[time zone](Self::time_zone)")]
    #[cfg_attr(not(feature = "calendar"), doc = "time zone (feature `calendar`)")]
    /// is set.
    ///
    /// # Panics
    ///
    /// If `limit` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn daily(limit: u32) -> Self {
        Self::fixed(limit, DAY)
    }

    /// Returns `limit` cells in each week, which starts on Monday at midnight, in UTC unless a
    #[cfg_attr(feature = "calendar", doc = "[time zone](Self::time_zone)")]
    #[cfg_attr(not(feature = "calendar"), doc = "time zone (feature `calendar`)")]
    /// is set.
    ///
    /// # Panics
    ///
    /// If `limit` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn weekly(limit: u32) -> Self {
        Self::of(limit, Span::Week)
    }

    /// Returns `limit` cells in each month, which starts on its first day at midnight, in UTC
    /// unless a [time zone](Self::time_zone) is set.
    ///
    /// # Panics
    ///
    /// If `limit` is zero.
    #[cfg(feature = "calendar")]
    #[must_use]
    pub const fn monthly(limit: u32) -> Self {
        Self::of(limit, Span::Calendar(CalendarDates::of(Unit::Month)))
    }

    const fn of(limit: u32, span: Span) -> Self {
        assert!(limit > 0, "{}", WindowErrorKind::ZeroLimit.rule());
        Self { limit, span }
    }

    /// Lets months start on this day instead of the first: a billing day.
    ///
    /// ```
    /// use tower_quota::Window;
    ///
    /// let window = Window::monthly(100_000).starting_on(15)?;
    /// assert_eq!(window.to_string(), "100000 monthly from day 15");
    /// # Ok::<(), tower_quota::window::WindowError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the window is not [monthly](Self::monthly), or the day is not from 1 to 28: other days
    /// are not in every month.
    #[cfg(feature = "calendar")]
    pub fn starting_on(self, day: u8) -> Result<Self, WindowError> {
        let kind = WindowErrorKind::StartingDay;
        if !(1..=28).contains(&day) {
            return Err(kind.into());
        }
        match self.span {
            Span::Calendar(dates) if dates.unit == Unit::Month => {
                Ok(Self { span: Span::Calendar(CalendarDates { first_day: day, ..dates }), ..self })
            }
            _ => Err(kind.into()),
        }
    }

    /// Lets days, weeks or months start at midnight in a time zone, by its name in the IANA
    /// database. So a day has 23 or 25 hours where daylight saving begins or ends, and where
    /// midnight does not exist, the day starts with its first instant.
    ///
    /// The database is the system's. Where it has none, the one that was compiled into the program.
    ///
    /// ```
    /// use tower_quota::Window;
    ///
    /// let window = Window::monthly(100_000).time_zone("America/New_York")?;
    /// assert_eq!("100000 monthly in America/New_York".parse(), Ok(window));
    /// # Ok::<(), tower_quota::window::WindowError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When there is no such time zone, or the window is not daily, weekly or monthly.
    #[cfg(feature = "calendar")]
    pub fn time_zone(self, name: &str) -> Result<Self, WindowError> {
        let dates = match self.span {
            Span::Calendar(dates) => dates,
            Span::Fixed(period) if period == DAY.into() => CalendarDates::of(Unit::Day),
            Span::Week => CalendarDates::of(Unit::Week),
            Span::Fixed(_) => return Err(WindowErrorKind::NoTimeZone.into()),
        };
        let dates = dates.in_zone(name)?;
        // Those of UTC are written, and are equal, without a zone.
        let span = match dates.unit {
            Unit::Day if dates.is_in_utc() => Span::Fixed(DAY.into()),
            Unit::Week if dates.is_in_utc() => Span::Week,
            _ => Span::Calendar(dates),
        };
        Ok(Self { span, ..self })
    }

    /// Returns the number of cells in each window.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns the same window with another number of cells.
    ///
    /// # Errors
    ///
    /// When the limit is zero.
    pub fn with_limit(&self, limit: u32) -> Result<Self, WindowError> {
        if limit == 0 {
            return Err(WindowErrorKind::ZeroLimit.into());
        }
        Ok(Self { limit, ..self.clone() })
    }

    /// The same window with another number of cells, which may be zero.
    pub(crate) fn of_limit(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    /// Whether both have the same starts and ends.
    pub(crate) fn has_bounds_of(&self, other: &Self) -> bool {
        self.span == other.span
    }

    /// The length of the longest window.
    pub(crate) fn longest(&self) -> Nanos {
        match &self.span {
            #[cfg(feature = "calendar")]
            Span::Calendar(dates) => dates.longest(),
            Span::Fixed(period) => *period,
            Span::Week => WEEK,
        }
    }

    /// The window that contains this time by the wall clock.
    pub(crate) fn at(&self, time: Timestamp) -> WindowBounds {
        match &self.span {
            #[cfg(feature = "calendar")]
            Span::Calendar(dates) => dates.at(time),
            Span::Fixed(period) => WindowBounds::fixed(time, *period, Nanos::ZERO),
            Span::Week => WindowBounds::fixed(time, WEEK, MONDAY),
        }
    }

    /// What buckets are decided by: each cell takes one nanosecond after the window's start, and
    /// none comes back before the next one.
    pub(crate) const fn quota(&self) -> Quota {
        Quota::of_window(self.limit)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Window {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the text that [`FromStr`](std::str::FromStr) reads.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Window {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format_args!("the window {text:?}: {error}")))
    }
}
