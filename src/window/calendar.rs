//! Contains [`CalendarDates`], windows of local days, weeks and months. This is the only file that
//! knows jiff.

use jiff::{
    civil::Date,
    tz::{TimeZone, db},
};

use super::{
    bounds::WindowBounds,
    error::{WindowError, WindowErrorKind},
};
use crate::clock::{Nanos, Timestamp};

/// Days, weeks or months of a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CalendarDates {
    pub(super) unit: Unit,
    /// The day on which months start.
    pub(super) first_day: u8,
    pub(super) zone: TimeZone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Day,
    Month,
    Week,
}

impl CalendarDates {
    pub(super) const fn of(unit: Unit) -> Self {
        Self { unit, first_day: 1, zone: TimeZone::UTC }
    }

    pub(super) fn in_zone(self, name: &str) -> Result<Self, WindowError> {
        let zone = db().get(name).map_err(|_| WindowError::about(WindowErrorKind::UnknownTimeZone, name))?;
        let dates = Self { zone, ..self };
        Ok(if dates.is_in_utc() { Self { zone: TimeZone::UTC, ..dates } } else { dates })
    }

    pub(super) fn is_in_utc(&self) -> bool {
        self.zone.iana_name() == Some("UTC")
    }

    /// With an hour more than in UTC, where daylight saving ends.
    pub(super) fn longest(&self) -> Nanos {
        let days = match self.unit {
            Unit::Day => 1,
            Unit::Week => 7,
            Unit::Month => 31,
        };
        Nanos::new((days * 24 + 1) * 60 * Nanos::MINUTE.get())
    }

    /// The window that contains `time`.
    pub(super) fn at(&self, time: Timestamp) -> WindowBounds {
        // Neither is reached before the year 9999, and a timestamp ends in 2554.
        let bounds = jiff::Timestamp::from_nanosecond(time.as_nanos().into()).ok().and_then(|instant| {
            let mut first = self.first_date(self.zone.to_datetime(instant).date())?;
            let mut bounds = self.from(first)?;
            // Where a zone moves its midnight back, a day is followed by the end of the day before.
            // It belongs to the window that has begun.
            while bounds.end <= time {
                first = self.next(first)?;
                bounds = self.from(first)?;
            }
            Some(bounds)
        });
        bounds.unwrap_or(WindowBounds { start: time, end: Timestamp::from_nanos(u64::MAX), length: self.longest() })
    }

    /// The window whose first local date this is.
    fn from(&self, first: Date) -> Option<WindowBounds> {
        let [start, end] = [self.first_minute(first)?, self.first_minute(self.next(first)?)?];
        let timestamp = |nanos| Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(0));
        let length = Nanos::new(u64::try_from(end - start).unwrap_or(0));
        Some(WindowBounds { start: timestamp(start), end: timestamp(end), length })
    }

    /// The nanoseconds from 1970 to the first instant of a local date, rounded up to a minute: the
    /// offsets of a few zones had seconds in the past.
    fn first_minute(&self, date: Date) -> Option<i128> {
        let minute = i128::from(Nanos::MINUTE.get());
        let instant = self.zone.to_timestamp(date.at(0, 0, 0, 0)).ok()?.as_nanosecond();
        Some(-((-instant).div_euclid(minute)) * minute)
    }

    /// The first local date of the window in which `date` is.
    fn first_date(&self, date: Date) -> Option<Date> {
        match self.unit {
            Unit::Day => Some(date),
            Unit::Month => {
                let first_day = i8::try_from(self.first_day).ok()?;
                let month = if date.day() < first_day { date.first_of_month().yesterday().ok()? } else { date };
                Date::new(month.year(), month.month(), first_day).ok()
            }
            Unit::Week => {
                let since_monday = date.weekday().to_monday_zero_offset();
                date.checked_sub(jiff::Span::new().days(since_monday)).ok()
            }
        }
    }

    /// The first local date of the window after the one that starts on `first`.
    fn next(&self, first: Date) -> Option<Date> {
        let span = jiff::Span::new();
        let span = match self.unit {
            Unit::Day => span.days(1),
            Unit::Month => span.months(1),
            Unit::Week => span.days(7),
        };
        first.checked_add(span).ok()
    }
}
