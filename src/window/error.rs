//! Contains [`WindowError`], why a window is invalid.

use std::{error, fmt};

/// Why a [`Window`](crate::Window) is invalid. The text says the rule, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowError {
    kind: WindowErrorKind,
    /// What was written.
    text: Option<String>,
}

impl WindowError {
    pub(super) fn about(kind: WindowErrorKind, text: &str) -> Self {
        Self { kind, text: Some(text.to_owned()) }
    }

    /// Returns what is wrong.
    #[must_use]
    pub fn kind(&self) -> WindowErrorKind {
        self.kind
    }
}

/// What is wrong with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WindowErrorKind {
    /// The period is longer than 2⁶² nanoseconds (146 years).
    LongPeriod,
    /// The text needs the feature `calendar`.
    NeedsCalendar,
    /// A time zone for a window that is not of days, weeks or months.
    NoTimeZone,
    /// The period is shorter than a minute.
    ShortPeriod,
    /// A day on which months start is not from 1 to 28, or the window is not monthly.
    StartingDay,
    /// The text is not that of a window.
    Syntax,
    /// The period is not a number of whole minutes.
    UnevenPeriod,
    /// There is no such time zone.
    UnknownTimeZone,
    /// A limit of zero cells.
    ZeroLimit,
}

impl WindowErrorKind {
    pub(super) const fn rule(self) -> &'static str {
        match self {
            Self::LongPeriod => "a window's period is at most 2^62 ns (146 years)",
            Self::NeedsCalendar => {
                "windows of months and in time zones need the feature `calendar` of `tower-quota`: \
                 cargo add tower-quota --features calendar"
            }
            Self::NoTimeZone => "only windows of days, weeks and months start by a time zone: leave it out",
            Self::ShortPeriod => "a window's period is at least a minute: for a shorter one use a `Quota`",
            Self::StartingDay => "only a monthly window has a day to start on, from 1 to 28, which every month has",
            Self::Syntax => {
                "a window is written COUNT hourly, daily, weekly, monthly or every PERIOD, [from day DAY] [in ZONE], as \
                 in `1000 daily`, `500 every 15m` or `100000 monthly in Europe/Zurich`"
            }
            Self::UnevenPeriod => "a window's period is a number of whole minutes",
            Self::UnknownTimeZone => "there is no such time zone: write the name of one as `Europe/Zurich`",
            Self::ZeroLimit => "a window's limit is at least 1 cell: with 0 no request is ever allowed",
        }
    }
}

impl From<WindowErrorKind> for WindowError {
    fn from(kind: WindowErrorKind) -> Self {
        Self { kind, text: None }
    }
}

impl fmt::Display for WindowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.rule())?;
        match &self.text {
            Some(text) => write!(f, "; not {text:?}"),
            None => Ok(()),
        }
    }
}

impl error::Error for WindowError {}
