//! Contains [`Limit`], what a policy limits by: a rate or a window.
//!
//! This file must not know of keys, buckets or requests.

use std::{error, fmt, str::FromStr};

use crate::{
    quota::{Quota, QuotaError},
    window::{Window, WindowError},
};

/// What a policy limits by: a rate, or a number of cells in a window.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// A rate and a burst: cells come back one by one.
    Quota(Quota),
    /// So many cells in each hour, day, month: all of them are back when the next one starts.
    Window(Window),
}

impl Limit {
    /// What buckets are decided by.
    pub(crate) fn basis(&self) -> Quota {
        match self {
            Self::Quota(quota) => *quota,
            Self::Window(window) => window.quota(),
        }
    }

    /// Returns the number of cells that are there when nothing is used: the burst of a rate, or the
    /// limit of a window.
    #[must_use]
    pub fn cells(&self) -> u32 {
        self.basis().burst_size()
    }

    /// Returns the rate, if it is one.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        if let Self::Quota(quota) = self { Some(*quota) } else { None }
    }

    /// Returns the window, if it is one.
    #[must_use]
    pub fn window(&self) -> Option<&Window> {
        if let Self::Window(window) = self { Some(window) } else { None }
    }

    /// Whether both are rates, or both are windows.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.window().is_some() == other.window().is_some()
    }
}

/// Writes the text of the quota, or of the window.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quota(quota) => quota.fmt(f),
            Self::Window(window) => window.fmt(f),
        }
    }
}

/// Reads the text of a quota (`100/s`) or of a window (`1000 daily`).
impl FromStr for Limit {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        let unit = text.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim_start();
        if unit.starts_with(|c: char| c.is_ascii_alphabetic()) {
            text.parse().map(Self::Window).map_err(ParseLimitError::Window)
        } else {
            text.parse().map(Self::Quota).map_err(ParseLimitError::Quota)
        }
    }
}

/// Why a text is not that of a [`Limit`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseLimitError {
    /// It is not that of a quota.
    Quota(QuotaError),
    /// It is not that of a window.
    Window(WindowError),
}

impl fmt::Display for ParseLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quota(error) => error.fmt(f),
            Self::Window(error) => error.fmt(f),
        }
    }
}

impl error::Error for ParseLimitError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(match self {
            Self::Quota(error) => error,
            Self::Window(error) => error,
        })
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Limit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the text that [`FromStr`] reads.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Limit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format_args!("the limit {text:?}: {error}")))
    }
}

impl PartialEq<Quota> for Limit {
    fn eq(&self, other: &Quota) -> bool {
        self.quota() == Some(*other)
    }
}

impl PartialEq<Window> for Limit {
    fn eq(&self, other: &Window) -> bool {
        self.window() == Some(other)
    }
}

/// What can be the limit of a policy: a [`Quota`] or a [`Window`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a limit",
    note = "use a `Quota`, such as `Quota::per_second(10)`, or a `Window`, such as `Window::daily(1_000)`",
    note = "for text, write `.parse::<Quota>()?` or `.parse::<Window>()?`"
)]
pub trait IntoLimit {
    /// Makes the limit.
    fn into_limit(self) -> Limit;
}

impl IntoLimit for Limit {
    fn into_limit(self) -> Limit {
        self
    }
}

impl IntoLimit for &Limit {
    fn into_limit(self) -> Limit {
        self.clone()
    }
}

impl IntoLimit for Quota {
    fn into_limit(self) -> Limit {
        Limit::Quota(self)
    }
}

impl IntoLimit for Window {
    fn into_limit(self) -> Limit {
        Limit::Window(self)
    }
}

impl IntoLimit for &Window {
    fn into_limit(self) -> Limit {
        Limit::Window(self.clone())
    }
}
