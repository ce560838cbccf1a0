//! Contains the text form of windows: `1000 daily`, `500 every 15m`, `100000 monthly in
//! Europe/Zurich`.

use std::{fmt, str::FromStr};

#[cfg(feature = "calendar")]
use super::calendar::Unit;
use super::{DAY, HOUR, Span, Window, WindowError, WindowErrorKind};
use crate::quota::{self, PeriodText};

/// Writes the form that [`FromStr`] reads.
impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.limit())?;
        match &self.span {
            #[cfg(feature = "calendar")]
            Span::Calendar(dates) => dates.fmt(f),
            Span::Fixed(period) if *period == HOUR.into() => f.write_str("hourly"),
            Span::Fixed(period) if *period == DAY.into() => f.write_str("daily"),
            Span::Fixed(period) => write!(f, "every {}", PeriodText(period.get())),
            Span::Week => f.write_str("weekly"),
        }
    }
}

/// Reads `COUNT hourly`, `COUNT daily`, `COUNT weekly`, `COUNT monthly` or `COUNT every PERIOD`,
/// where `PERIOD` is as in the text of a [`Quota`](crate::Quota): `15m`, `12h`, `30d`. With the
/// feature `calendar` a month may be followed by `from day DAY`, and days, weeks and months by
/// `in ZONE`.
impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let syntax = || WindowError::about(WindowErrorKind::Syntax, text);
        let mut words = text.split_whitespace();
        let limit = quota::count(words.next().ok_or_else(syntax)?).map_err(|_| syntax())?;
        if limit == 0 {
            return Err(WindowErrorKind::ZeroLimit.into());
        }
        let word = words.next().ok_or_else(syntax)?;
        let window = match word {
            "hourly" => Self::hourly(limit),
            "daily" => Self::daily(limit),
            "weekly" => Self::weekly(limit),
            #[cfg(feature = "calendar")]
            "monthly" => Self::monthly(limit),
            #[cfg(not(feature = "calendar"))]
            "monthly" => return Err(WindowErrorKind::NeedsCalendar.into()),
            "every" => {
                let period = words.next().ok_or_else(syntax)?;
                Self::new(limit, quota::duration(period).map_err(|_| syntax())?)?
            }
            _ => return Err(syntax()),
        };
        window.with_dates(&words.collect::<Vec<_>>(), text)
    }
}

impl Window {
    #[cfg(feature = "calendar")]
    fn with_dates(mut self, mut words: &[&str], text: &str) -> Result<Self, WindowError> {
        let syntax = || WindowError::about(WindowErrorKind::Syntax, text);
        if let ["from", "day", day, rest @ ..] = words {
            let day = quota::count(day).map_err(|_| syntax())?;
            self = self.starting_on(u8::try_from(day).unwrap_or(u8::MAX))?;
            words = rest;
        }
        match words {
            [] => Ok(self),
            ["in", zone] => self.time_zone(zone),
            _ => Err(syntax()),
        }
    }

    #[cfg(not(feature = "calendar"))]
    fn with_dates(self, words: &[&str], text: &str) -> Result<Self, WindowError> {
        match words {
            [] => Ok(self),
            ["in", _] | ["from", "day", ..] => Err(WindowErrorKind::NeedsCalendar.into()),
            _ => Err(WindowError::about(WindowErrorKind::Syntax, text)),
        }
    }
}

#[cfg(feature = "calendar")]
impl fmt::Display for super::CalendarDates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.unit {
            Unit::Day => "daily",
            Unit::Month => "monthly",
            Unit::Week => "weekly",
        })?;
        if self.first_day > 1 {
            write!(f, " from day {}", self.first_day)?;
        }
        match self.zone.iana_name() {
            Some("UTC") | None => Ok(()),
            Some(zone) => write!(f, " in {zone}"),
        }
    }
}
