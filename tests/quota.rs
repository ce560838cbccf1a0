//! Quotas: what they mean, how they are written, and which are denied.

use std::time::Duration;

use proptest::prelude::*;
use tower_quota::{Quota, quota::QuotaError};

#[test]
fn per_second_is_a_rate_and_every_is_a_period() {
    assert_eq!(Quota::per_second(2).cell_period(), Duration::from_millis(500));
    assert_eq!(Quota::every(Duration::from_secs(2)).cell_period(), Duration::from_secs(2));
    assert_eq!(Quota::per_minute(5).cell_period(), Duration::from_secs(12));
    assert_eq!(Quota::per_hour(1).cell_period(), Duration::from_secs(3_600));
}

#[test]
fn the_burst_defaults_to_the_count_of_the_rate() {
    assert_eq!(Quota::per_minute(5).burst_size(), 5);
    assert_eq!(Quota::every(Duration::from_secs(2)).burst_size(), 1);
    assert_eq!(Quota::per_minute(5).burst(2).burst_size(), 2);
    assert_eq!(Quota::per_minute(5).burst(2).time_to_fill(), Duration::from_secs(24));
}

#[test]
fn the_period_of_a_cell_is_rounded_up() {
    assert_eq!(Quota::per_second(3).cell_period(), Duration::from_nanos(333_333_334));
    assert_eq!(Quota::per_second(1_000_000_000).cell_period(), Duration::from_nanos(1));
    assert_eq!(Quota::per_second(999_999_999).cell_period(), Duration::from_nanos(2));
}

#[test]
fn quotas_are_made_in_constants() {
    const LOGIN: Quota = Quota::per_minute(5).burst(2);
    assert_eq!((LOGIN.cells(), LOGIN.period(), LOGIN.burst_size()), (5, Duration::from_secs(60), 2));
}

#[test]
fn ari03_zero_is_denied_with_the_rule() {
    assert_eq!(Quota::new(0, Duration::from_secs(1)), Err(QuotaError::ZeroCells));
    assert_eq!(Quota::new(1, Duration::ZERO), Err(QuotaError::ZeroPeriod));
    assert_eq!(Quota::per_second(1).try_burst(0), Err(QuotaError::ZeroBurst));
    assert!(QuotaError::ZeroCells.to_string().contains("at least 1"));
}

#[test]
#[should_panic(expected = "a quota's rate is at least 1 cell per period")]
fn ari03_zero_panics_with_the_rule() {
    let _ = Quota::per_second(0);
}

#[test]
#[should_panic(expected = "a quota's burst is at least 1 cell")]
fn ari03_zero_burst_panics_with_the_rule() {
    let _ = Quota::per_second(1).burst(0);
}

#[test]
fn ari03_more_than_one_cell_per_nanosecond_is_denied() {
    assert!(Quota::new(1_000_000_000, Duration::from_secs(1)).is_ok());
    assert_eq!(Quota::new(1_000_000_001, Duration::from_secs(1)), Err(QuotaError::TooFast));
}

#[test]
fn ari02_a_burst_that_overflows_is_denied() {
    const MAX: u64 = 1 << 62;
    assert!(Quota::new(1, Duration::from_nanos(MAX)).is_ok());
    assert_eq!(Quota::new(1, Duration::from_nanos(MAX + 1)), Err(QuotaError::TooLong));
    assert_eq!(Quota::new(1, Duration::MAX), Err(QuotaError::TooLong));
    let cell = Quota::every(Duration::from_nanos(MAX / (1 << 31)));
    assert!(cell.try_burst(1 << 31).is_ok());
    assert_eq!(cell.try_burst((1 << 31) + 1), Err(QuotaError::TooLong));
    assert_eq!(cell.try_burst(u32::MAX), Err(QuotaError::TooLong));
}

#[test]
fn rates_need_not_be_whole() {
    let second = Duration::from_secs(1);
    let fractional = |cells: f64, period| Quota::fractional(cells, period).unwrap();
    for (text, cells, period, cell, burst) in [
        ("0.5/s", 0.5, second, 2 * second, 1),
        ("2.5/s", 2.5, second, Duration::from_millis(400), 3),
        ("0.001/ms", 0.001, Duration::from_millis(1), second, 1),
        ("0.6666666667/s", 0.666_666_666_7, second, Duration::from_millis(1_500), 1),
        ("1.0/m", 1.0, 60 * second, 60 * second, 1),
        ("0.3/s", 0.3, second, Duration::from_nanos(3_333_333_334), 1),
    ] {
        let quota: Quota = text.parse().unwrap();
        assert_eq!((quota.cell_period(), quota.burst_size()), (cell, burst), "{text}");
        assert_eq!(quota, fractional(cells, period), "{text}");
        assert_eq!(quota.to_string().parse(), Ok(quota), "{text}");
    }
    assert_eq!("0.5/s, burst 20".parse(), Ok(Quota::every(2 * second).burst(20)));
    assert_eq!("7/d".parse(), Ok(Quota::per_day(7)));
    for cells in [f64::NAN, 0.0, -1.0, -f64::INFINITY] {
        assert_eq!(Quota::fractional(cells, second), Err(QuotaError::ZeroCells));
    }
    for cells in [f64::INFINITY, 1e300, 1_000_000_000.5, f64::from(u32::MAX)] {
        assert_eq!(Quota::fractional(cells, second), Err(QuotaError::TooFast));
    }
    assert_eq!(Quota::fractional(1e-300, second), Err(QuotaError::TooLong));
    assert_eq!(Quota::fractional(0.5, Duration::MAX), Err(QuotaError::TooLong));
    assert_eq!(Quota::fractional(0.5, Duration::ZERO), Err(QuotaError::ZeroPeriod));
    for wrong in ["0.0/s", ".5/s", "5./s", "1.2.3/s", "1e3/s", "0.-5/s", "0,5/s", "0. 5/s"] {
        assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
    }
}

#[test]
fn quotas_are_written_and_read() {
    for (text, quota) in [
        ("100/s", Quota::per_second(100)),
        ("5/m", Quota::per_minute(5)),
        ("1000/h, burst 50", Quota::per_hour(1_000).burst(50)),
        ("3/90s, burst 9", Quota::per(3, Duration::from_secs(90)).burst(9)),
        ("1/250ms", Quota::every(Duration::from_millis(250))),
        ("7/d", Quota::per(7, Duration::from_secs(86_400))),
        ("1/1001us", Quota::every(Duration::from_micros(1_001))),
        ("1/ns", Quota::every(Duration::from_nanos(1))),
    ] {
        assert_eq!(quota.to_string(), text);
        assert_eq!(text.parse(), Ok(quota), "{text}");
    }
    assert_eq!(" 10 / 2 m ,burst 3 ".parse(), Ok(Quota::per(10, Duration::from_secs(120)).burst(3)));
}

#[test]
fn what_cannot_be_read_is_denied_with_a_reason() {
    for text in [
        "",
        "100",
        "100/",
        "/s",
        "x/s",
        "-1/s",
        "+1/s",
        "1/week",
        "1/s burst 2",
        "1/s, 2",
        "1/s, burst",
        "1/s, burst x",
        "1/s, burst -2",
        "4294967296/s",
        "1/-1s",
        "1/s, burst 2, burst 3",
        "1/s/s",
        "１/s",
    ] {
        let error = text.parse::<Quota>().expect_err(text);
        assert!(matches!(error, QuotaError::Syntax(_)), "{text}: {error:?}");
        assert!(error.to_string().contains("COUNT/PERIOD"), "{error}");
        let (_, departure) = error.to_string().rsplit_once(": ").map(|(rule, why)| (rule.len(), why.len())).unwrap();
        assert!(departure > 0, "{error} does not say what is wrong with this one");
    }
    assert_eq!("0/s".parse::<Quota>(), Err(QuotaError::ZeroCells));
    assert_eq!("1/0s".parse::<Quota>(), Err(QuotaError::ZeroPeriod));
    assert_eq!("1/s, burst 0".parse::<Quota>(), Err(QuotaError::ZeroBurst));
    assert_eq!("1/99999999999999999999d".parse::<Quota>(), Err(QuotaError::TooLong));
    assert_eq!("1/213504d".parse::<Quota>(), Err(QuotaError::TooLong));
}

proptest! {
    #[test]
    fn every_quota_survives_being_written_and_read(cells in 1_u32.., period in 1_u64..(1 << 62), burst in 1_u32..) {
        if let Ok(quota) = Quota::new(cells, Duration::from_nanos(period)).and_then(|quota| quota.try_burst(burst)) {
            prop_assert_eq!(quota.to_string().parse(), Ok(quota));
            // Never more than was asked, and short by less than a nanosecond a cell.
            let exact = u128::from(period);
            let cell = quota.cell_period().as_nanos();
            prop_assert!(cell * u128::from(cells) >= exact && (cell - 1) * u128::from(cells) < exact);
        }
    }

    #[test]
    fn no_text_makes_reading_panic(text in ".*") {
        let _ = text.parse::<Quota>();
    }
}
