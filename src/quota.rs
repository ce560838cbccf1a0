//! Contains [`Quota`], a rate and a burst, with its text form.
//!
//! The checks here make every later computation safe: nothing that fits a `Quota` can overflow in a
//! bucket. This file must not know of the passing of time, of keys or of requests.
//!
//! ```
//! use std::time::Duration;
//! use tower_quota::Quota;
//!
//! const LOGIN: Quota = Quota::per_minute(5).burst(2); // a zero here is a compile error
//! let slow = Quota::every(Duration::from_secs(90));
//! let configured: Quota = "1000/h, burst 50".parse()?;
//! assert_eq!(configured, Quota::per_hour(1_000).burst(50));
//! assert_eq!(slow.to_string(), "1/90s");
//! # Ok::<(), tower_quota::quota::QuotaError>(())
//! ```

use std::{error, fmt, num::NonZeroU32, str::FromStr, time::Duration};

use crate::clock::Nanos;

/// A rate (cells per period) and a burst (cells available at once).
///
/// A cell is one unit of quota. A request costs one cell unless its policy says otherwise. Rates
/// are always *cells per period*: `per_second(2)` allows two cells a second. For one cell per
/// period, use [`every`](Self::every).
///
/// # What a burst admits
///
/// The burst defaults to the rate's count: `per_minute(5)` lets five requests through at once and
/// then one every twelve seconds. A bucket that starts full therefore admits up to `burst + rate`
/// in one window: ten in the first minute. In any window `W` it admits at most
/// `burst + floor(W / T)` cells, where `T` is the [`cell_period`](Self::cell_period). To spread
/// requests evenly, use a burst of one.
///
/// # Precision
///
/// `T` is the period divided by the count, rounded **up** to whole nanoseconds, so that a quota
/// never admits more than was asked. The effective rate is short of the nominal one by less than
/// `n / 10⁹` of itself, where `n` is the rate per second: less than a millionth at a thousand a
/// second, and a sixth at 300 million (`T` is 4 ns instead of 3⅓).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    /// Never zero, so that something else can stand in a quota's place without taking more room.
    cells: NonZeroU32,
    burst: u32,
    period: u64,
    cell_period: u64,
}

impl Quota {
    /// Returns `cells` per second, with a burst of `cells`.
    ///
    /// # Panics
    ///
    /// If `cells` is zero or above 10⁹; in a `const` this is a compile error.
    #[must_use]
    pub const fn per_second(cells: u32) -> Self {
        Self::per(cells, Duration::from_secs(1))
    }

    /// Returns `cells` per minute, with a burst of `cells`.
    ///
    /// # Panics
    ///
    /// If `cells` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn per_minute(cells: u32) -> Self {
        Self::per(cells, Duration::from_secs(60))
    }

    /// Returns `cells` per hour, with a burst of `cells`.
    ///
    /// # Panics
    ///
    /// If `cells` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn per_hour(cells: u32) -> Self {
        Self::per(cells, Duration::from_secs(3_600))
    }

    /// Returns `cells` per day, with a burst of `cells`: so up to twice as many in the first day.
    ///
    /// # Panics
    ///
    /// If `cells` is zero; in a `const` this is a compile error.
    #[must_use]
    pub const fn per_day(cells: u32) -> Self {
        Self::per(cells, Duration::from_secs(86_400))
    }

    /// Returns `cells` per `period`, with a burst of `cells`.
    ///
    /// # Panics
    ///
    /// When [`new`](Self::new) fails; in a `const` this is a compile error.
    #[must_use]
    pub const fn per(cells: u32, period: Duration) -> Self {
        match Self::new(cells, period) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.rule()),
        }
    }

    /// Returns one cell per `period`, with a burst of one.
    ///
    /// # Panics
    ///
    /// If `period` is zero or above 2⁶² nanoseconds; in a `const` this is a compile error.
    #[must_use]
    pub const fn every(period: Duration) -> Self {
        Self::per(1, period)
    }

    /// Returns `cells` per `period`, with a burst of `cells`, for values from configuration.
    ///
    /// # Errors
    ///
    /// When a count or the period is zero, the rate is above 10⁹ a second, or the period or the
    /// time that the burst takes to come back exceeds 2⁶² nanoseconds (146 years).
    pub const fn new(cells: u32, period: Duration) -> Result<Self, QuotaError> {
        let Some(count) = NonZeroU32::new(cells) else { return Err(QuotaError::ZeroCells) };
        if period.is_zero() {
            return Err(QuotaError::ZeroPeriod);
        }
        if period.as_nanos() > MAX_NANOS as u128 {
            return Err(QuotaError::TooLong);
        }
        #[allow(clippy::cast_possible_truncation, reason = "at most MAX_NANOS, checked above")]
        let period = period.as_nanos() as u64;
        if period < cells as u64 {
            return Err(QuotaError::TooFast);
        }
        let quota = Self { cells: count, burst: cells, period, cell_period: period.div_ceil(cells as u64) };
        quota.try_burst(cells)
    }

    /// Returns a rate that need not be whole: `fractional(0.5, second)` is one cell in two seconds.
    /// The burst is `cells`, rounded up. The time of a cell is rounded up to whole nanoseconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_quota::Quota;
    ///
    /// let quota = Quota::fractional(2.5, Duration::from_secs(1))?;
    /// assert_eq!(quota, "2.5/s".parse()?);
    /// assert_eq!((quota.cell_period(), quota.burst_size()), (Duration::from_millis(400), 3));
    /// # Ok::<(), tower_quota::quota::QuotaError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When `cells` is not a number above zero, or [`new`](Self::new) would fail for such a rate.
    pub fn fractional(cells: f64, period: Duration) -> Result<Self, QuotaError> {
        if cells.is_nan() || cells <= 0.0 {
            return Err(QuotaError::ZeroCells);
        }
        if period.is_zero() {
            return Err(QuotaError::ZeroPeriod);
        }
        #[allow(clippy::cast_precision_loss, reason = "a period of over 104 days, to some nanoseconds")]
        let nanos = period.as_nanos() as f64;
        let cell = (nanos / cells).ceil();
        if cells > f64::from(u32::MAX) || cells > nanos {
            return Err(QuotaError::TooFast);
        }
        #[allow(clippy::cast_precision_loss, reason = "a bound, which is a power of two")]
        if cell > MAX_NANOS as f64 {
            return Err(QuotaError::TooLong);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
        let (cell, burst) = (cell as u64, cells.ceil() as u32);
        Self::every(Duration::from_nanos(cell)).try_burst(burst)
    }

    /// Returns the same rate with `burst` cells available at once.
    ///
    /// # Panics
    ///
    /// When [`try_burst`](Self::try_burst) fails; in a `const` this is a compile error.
    #[must_use]
    pub const fn burst(self, burst: u32) -> Self {
        match self.try_burst(burst) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.rule()),
        }
    }

    /// Returns the same rate with `burst` cells available at once, for values from configuration.
    ///
    /// # Errors
    ///
    /// When `burst` is zero, or the time that it takes to come back exceeds 2⁶² nanoseconds
    /// (146 years).
    pub const fn try_burst(self, burst: u32) -> Result<Self, QuotaError> {
        if burst == 0 {
            return Err(QuotaError::ZeroBurst);
        }
        if self.cell_period as u128 * burst as u128 > MAX_NANOS as u128 {
            return Err(QuotaError::TooLong);
        }
        Ok(Self { burst, ..self })
    }

    /// Returns the count of the rate, as written; one where it was [fractional](Self::fractional).
    #[must_use]
    pub const fn cells(self) -> u32 {
        self.cells.get()
    }

    /// Returns the period of the rate, as written.
    #[must_use]
    pub const fn period(self) -> Duration {
        Duration::from_nanos(self.period)
    }

    /// Returns the cells that are available at once after a long enough pause.
    #[must_use]
    pub const fn burst_size(self) -> u32 {
        self.burst
    }

    /// Returns the time after which one cell comes back: `period / cells`, rounded up to whole
    /// nanoseconds. This is the emission interval `T` of GCRA.
    #[must_use]
    pub const fn cell_period(self) -> Duration {
        Duration::from_nanos(self.cell_period)
    }

    /// Returns the time after which an exhausted bucket is full again: `burst × T`.
    #[must_use]
    pub const fn time_to_fill(self) -> Duration {
        Duration::from_nanos(self.burst_nanos().get())
    }

    /// `share` of the rate and of the burst, at least a burst of one cell. The share is larger
    /// where the rate would be slower than the slowest quota.
    #[cfg(feature = "redis")]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "bounded before"
    )]
    pub(crate) fn scaled(self, share: f64) -> Self {
        let burst = ((f64::from(self.burst) * share) as u32).max(1);
        let longest = MAX_NANOS / u64::from(burst);
        let slower = |nanos: u64| ((nanos as f64 / share).ceil() as u64).max(nanos);
        Self {
            cells: self.cells,
            burst,
            period: slower(self.period),
            cell_period: slower(self.cell_period).min(longest).max(self.cell_period),
        }
    }

    /// `T`, at least one nanosecond.
    #[inline(always)]
    pub(crate) const fn cell_nanos(self) -> Nanos {
        Nanos::new(self.cell_period)
    }

    /// The time that `cells` take to come back. Saturates.
    #[inline(always)]
    pub(crate) const fn cost(self, cells: u32) -> Nanos {
        self.cell_nanos().saturating_mul(cells as u64)
    }

    /// What the bucket of a window with this limit is decided by: see
    /// [`bucket`](crate::bucket). A limit of zero grants nothing.
    pub(crate) const fn of_window(limit: u32) -> Self {
        Self { cells: NonZeroU32::MIN, burst: limit, period: 1, cell_period: 1 }
    }

    /// A quota whose cells take so long.
    pub(crate) const fn of_cell(cell: Nanos) -> Self {
        Self { cells: NonZeroU32::MIN, burst: 1, period: cell.get(), cell_period: cell.get() }
    }

    /// Three words, for storage in atomics.
    pub(crate) const fn to_words(self) -> [u64; 3] {
        [(self.cells.get() as u64) << 32 | self.burst as u64, self.period, self.cell_period]
    }

    /// The quota that [`to_words`](Self::to_words) took apart.
    #[allow(clippy::cast_possible_truncation, reason = "the two halves are taken apart")]
    pub(crate) const fn from_words([counts, period, cell_period]: [u64; 3]) -> Self {
        let cells = match NonZeroU32::new((counts >> 32) as u32) {
            Some(cells) => cells,
            // Of words that were taken apart from no quota.
            None => NonZeroU32::MIN,
        };
        Self { cells, burst: counts as u32, period, cell_period }
    }

    /// The quota of words that may come from anywhere, if they are those of one. A limit of a
    /// window may be zero.
    pub(crate) fn from_checked_words(words: [u64; 3]) -> Option<Self> {
        let quota = Self::from_words(words);
        let Self { period, cell_period, burst, .. } = quota;
        let fits = u128::from(cell_period) * u128::from(burst) <= u128::from(MAX_NANOS) && period <= MAX_NANOS;
        (quota.to_words() == words && period > 0 && cell_period > 0 && fits).then_some(quota)
    }

    /// `burst × T`, at most [`MAX_NANOS`].
    #[inline(always)]
    pub(crate) const fn burst_nanos(self) -> Nanos {
        Nanos::new(self.cell_period * self.burst as u64)
    }
}

/// Writes the form that [`FromStr`] reads: `100/s`, `3/90s, burst 9`. A default burst is left out.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.cells)?;
        match PeriodText(self.period).parts() {
            (1, unit) => f.write_str(unit)?,
            _ => PeriodText(self.period).fmt(f)?,
        }
        if self.burst == self.cells.get() { Ok(()) } else { write!(f, ", burst {}", self.burst) }
    }
}

/// Reads `COUNT/PERIOD` or `COUNT/PERIOD, burst COUNT`, where `PERIOD` is a unit with an optional
/// count before it: `100/s`, `5/m`, `1000/h, burst 50`, `3/90s`, `1/250ms`. Units are `ns`, `us`,
/// `ms`, `s`, `m`, `h` and `d`.
impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let (rate, burst) = match text.split_once(',') {
            Some((rate, burst)) => (rate, Some(burst.trim())),
            None => (text, None),
        };
        let (cells, period) =
            rate.split_once('/').ok_or(QuotaError::Syntax("expected a `/` between the count and the period"))?;
        let (cells, period) = (cells.trim(), duration(period.trim())?);
        let quota = match cells.split_once('.') {
            None => Self::new(count(cells)?, period)?,
            Some((whole, part)) => {
                let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                if !is_number(whole) || !is_number(part) {
                    return Err(QuotaError::Syntax("a count has digits, and at most one point between them"));
                }
                let cells =
                    cells.parse().map_err(|_| QuotaError::Syntax("a count has digits, and at most one point"))?;
                Self::fractional(cells, period)?
            }
        };
        let Some(burst) = burst else { return Ok(quota) };
        let burst = burst.strip_prefix("burst").ok_or(QuotaError::Syntax("expected `burst` after the comma"))?;
        quota.try_burst(count(burst.trim_start())?)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Quota {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads the text that [`FromStr`] reads.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Quota {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format_args!("the quota {text:?}: {error}")))
    }
}

/// Writes a period of so many nanoseconds in its longest unit: `15m`.
pub(crate) struct PeriodText(pub(crate) u64);

impl PeriodText {
    fn parts(&self) -> (u64, &'static str) {
        let (unit, length) = UNITS.into_iter().find(|(_, length)| self.0 % length == 0).unwrap_or(("ns", 1));
        (self.0 / length, unit)
    }
}

impl fmt::Display for PeriodText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, unit) = self.parts();
        write!(f, "{count}{unit}")
    }
}

pub(crate) fn count(digits: &str) -> Result<u32, QuotaError> {
    // `u32::from_str` would also accept a sign.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QuotaError::Syntax("a count has digits only"));
    }
    digits.parse().map_err(|_| QuotaError::Syntax("a count is at most 4294967295"))
}

pub(crate) fn duration(text: &str) -> Result<Duration, QuotaError> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &text[..text.len() - unit.len()];
    let (_, length) = UNITS
        .into_iter()
        .find(|(name, _)| *name == unit.trim_start())
        .ok_or(QuotaError::Syntax("expected a unit of the period: ns, us, ms, s, m, h or d"))?;
    let times = if digits.is_empty() { 1 } else { digits.parse().map_err(|_| QuotaError::TooLong)? };
    length.checked_mul(times).map(Duration::from_nanos).ok_or(QuotaError::TooLong)
}

/// Why a [`Quota`] is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The text is not of the form `COUNT/PERIOD[, burst COUNT]`. The string says what is wrong.
    Syntax(&'static str),
    /// More than one cell per nanosecond.
    TooFast,
    /// The period, or the time that the burst takes to come back, exceeds 2⁶² ns (146 years).
    TooLong,
    /// A burst of zero cells.
    ZeroBurst,
    /// A rate of zero cells.
    ZeroCells,
    /// A period of zero length.
    ZeroPeriod,
}

impl QuotaError {
    const fn rule(self) -> &'static str {
        match self {
            Self::Syntax(_) => "a quota is written COUNT/PERIOD[, burst COUNT], as in `100/s` or `3/90s, burst 9`",
            Self::TooFast => "a quota admits at most 10^9 cells per second",
            Self::TooLong => {
                "a quota's period, and its burst times the period of one cell, are at most 2^62 ns (146 years)"
            }
            Self::ZeroBurst => "a quota's burst is at least 1 cell: with 0 no request is ever allowed",
            Self::ZeroCells => "a quota's rate is at least 1 cell per period: with 0 no request is ever allowed",
            Self::ZeroPeriod => "a quota's period is longer than zero",
        }
    }
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule())?;
        match self {
            Self::Syntax(fault) => write!(f, ": {fault}"),
            _ => Ok(()),
        }
    }
}

impl error::Error for QuotaError {}

/// The longest time that a burst may take to come back. Two bursts (the furthest that a bucket is
/// ever ahead) and a charge on top fit 64 bits, so no later computation can wrap.
const MAX_NANOS: u64 = 1 << 62;

/// From the longest, so that `Display` finds the shortest text.
const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_less_of_the_rate_and_the_burst_and_at_least_one_cell() {
        let share = |quota: Quota, share| {
            let scaled = quota.scaled(share);
            (scaled.burst, scaled.period, scaled.cell_period)
        };
        assert_eq!(share(Quota::per_second(10).burst(40), 0.25), (10, 4_000_000_000, 400_000_000));
        assert_eq!(share(Quota::per_second(10), 1.0), (10, 1_000_000_000, 100_000_000));
        assert_eq!(share(Quota::per_second(10), 0.01), (1, 100_000_000_000, 10_000_000_000));
        // Rounded so that a share never has more.
        assert_eq!(share(Quota::per_second(10).burst(7), 0.3), (2, 3_333_333_334, 333_333_334));
        // A cell takes no longer than a quota can say.
        assert_eq!(share(Quota::per(1, Duration::from_secs(3_600)), 1e-15).2, MAX_NANOS);
    }
}
