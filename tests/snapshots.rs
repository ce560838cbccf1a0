//! Snapshots: what they bring back, what they never forgive, and what is no snapshot.

mod support;

use std::{net::Ipv4Addr, time::Duration};

use http::Request;
use proptest::prelude::*;
use support::{admits, admitted, from_ip, with_header};
use tower_quota::{
    Limiter, Policy, Quota, Window,
    clock::ManualClock,
    key::{Header, PeerIp},
    limiter::{ConfigErrorKind, Restored, SnapshotError, Sweep},
    policy::{AtCap, Ban},
};

const SECRET: &[u8] = b"a secret of tests, and of nobody else";
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

fn build(clock: &ManualClock, policies: impl IntoIterator<Item = Policy>) -> Limiter {
    let builder = Limiter::builder().policies(policies).clock(clock.clone()).sweep(Sweep::Manual).secret(SECRET);
    builder.build().unwrap()
}

fn saved(limiter: &Limiter) -> Vec<u8> {
    let mut file = Vec::new();
    limiter.snapshot(&mut file).unwrap();
    file
}

fn at(time: Duration) -> ManualClock {
    let clock = ManualClock::new();
    clock.set(time);
    clock
}

fn rate(quota: Quota) -> Policy {
    Policy::per(Header::new("x-k"), quota).named("rate")
}

fn left(limiter: &Limiter, policy: &str, key: &str) -> u32 {
    limiter.peek(policy, key).unwrap().remaining()
}

#[test]
fn what_was_used_is_used_in_the_next_process() {
    let clock = at(DAY * 100);
    let policies = || {
        [
            rate(Quota::per_hour(10)),
            Policy::per(Header::new("x-k"), Window::daily(100)).named("day"),
            Policy::by_key(Window::weekly(1_000)).named("account"),
            Policy::global(Window::hourly(50)).named("cap"),
        ]
    };
    let first = build(&clock, policies());
    assert_eq!(admitted(&first, &with_header("x-k", "a"), 7), 7);
    first.acquire_n("account", "ann", 900).unwrap();
    clock.advance(Duration::from_secs(360));
    let file = saved(&first);
    let next = build(&clock, policies());
    let restored = next.restore(&file[..]).unwrap();
    assert_eq!((restored.buckets, restored.without_place), (4, 0));
    assert_eq!(restored.skipped_policies, [""; 0]);
    for (policy, key, remaining) in [("rate", "a", 4), ("day", "a", 93), ("account", "ann", 100), ("cap", "", 43)] {
        assert_eq!(left(&next, policy, key), remaining, "{policy}");
        assert_eq!(left(&first, policy, key), remaining, "{policy}");
    }
    // Twice is no more than once.
    next.restore(&file[..]).unwrap();
    assert_eq!(left(&next, "day", "a"), 93);
    // While the process was away, time has passed.
    clock.advance(HOUR);
    let later = build(&clock, policies());
    assert_eq!(later.restore(&file[..]).unwrap().buckets, 2, "the rate and the hour are full again");
    assert_eq!((left(&later, "rate", "a"), left(&later, "day", "a")), (10, 93));
    clock.advance(DAY);
    let next_day = build(&clock, policies());
    assert_eq!(next_day.restore(&file[..]).unwrap().buckets, 1);
    assert_eq!((left(&next_day, "day", "a"), left(&next_day, "account", "ann")), (100, 100));
}

#[test]
fn a_restore_never_forgives_what_is_used_already() {
    let clock = at(DAY);
    let policies = || [rate(Quota::per_hour(10)), Policy::global(Quota::per_hour(100)).named("cap")];
    let first = build(&clock, policies());
    let request = with_header("x-k", "a");
    assert_eq!(admitted(&first, &request, 3), 3);
    let file = saved(&first);
    let next = build(&clock, policies());
    assert_eq!(admitted(&next, &request, 8), 8);
    assert_eq!(admitted(&next, &with_header("x-k", "b"), 1), 1);
    next.restore(&file[..]).unwrap();
    assert_eq!((left(&next, "rate", "a"), left(&next, "rate", "b"), left(&next, "cap", "")), (2, 9, 91));
}

#[test]
fn debts_survive_also_those_of_a_longer_burst() {
    let clock = at(DAY);
    let first = build(&clock, [rate(Quota::per_minute(60)), Policy::global(Quota::per_minute(60)).named("cap")]);
    first.charge("rate", "a", 110).unwrap();
    first.charge("cap", "", 110).unwrap();
    let next = build(
        &clock,
        [rate(Quota::per_minute(60).burst(5)), Policy::global(Quota::per_minute(60).burst(5)).named("cap")],
    );
    next.restore(&saved(&first)[..]).unwrap();
    for (policy, key) in [("rate", "a"), ("cap", "")] {
        let full = next.peek(policy, key).unwrap().until_full();
        assert_eq!(full, Duration::from_secs(110), "{policy}");
        assert!(next.acquire(policy, key).is_err());
        assert_eq!(next.peek(policy, key).unwrap().until_full(), full, "a denial cuts nothing");
    }
}

#[test]
fn limits_that_have_changed_since_keep_the_count() {
    let clock = at(DAY);
    let first = build(&clock, [rate(Quota::per_hour(10)), Policy::by_key(Window::daily(10)).named("day")]);
    assert_eq!(admitted(&first, &with_header("x-k", "a"), 4), 4);
    first.acquire_n("day", "a", 4).unwrap();
    let next = build(&clock, [rate(Quota::per_second(100)), Policy::by_key(Window::daily(1_000)).named("day")]);
    next.restore(&saved(&first)[..]).unwrap();
    assert_eq!(left(&next, "day", "a"), 996);
    assert!(admits(&next, &with_header("x-k", "a")));
    assert_eq!(left(&next, "rate", "a"), 95);
}

#[test]
fn plans_survive_unless_their_policy_has_them_no_more() {
    #[derive(Clone)]
    struct Plan(&'static str);

    let clock = at(DAY);
    let accounts = |pro: Quota| Policy::by_key(Quota::per_hour(5)).named("account").plans([("pro", pro)]);
    let pro = Quota::per_hour(1_000);
    let first = build(&clock, [accounts(pro)]);
    first.acquire_as("account", "ann", pro, 9).unwrap();
    let file = saved(&first);
    let next = build(&clock, [accounts(pro)]);
    next.restore(&file[..]).unwrap();
    assert_eq!(left(&next, "account", "ann"), 991);
    let by_name = |quota: Quota| {
        let policy = Policy::per(Header::new("x-k"), Quota::per_hour(5)).named("plan").plans([("pro", quota)]);
        policy.plan_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0))
    };
    let first = build(&clock, [by_name(pro)]);
    let mut request = with_header("x-k", "a");
    request.extensions_mut().insert(Plan("pro"));
    assert_eq!(admitted(&first, &request, 9), 9);
    let file = saved(&first);
    for (quota, remaining) in [(pro, 991), (Quota::per_hour(20), 0)] {
        let next = build(&clock, [by_name(quota)]);
        next.restore(&file[..]).unwrap();
        assert_eq!(left(&next, "plan", "a"), remaining);
    }
}

#[test]
fn blocks_bans_and_pauses_survive() {
    let clock = at(DAY);
    let policy = || rate(Quota::per_hour(1)).ban(Ban::after(3, HOUR).initial(HOUR).max(HOUR * 8));
    let first = build(&clock, [policy()]);
    first.block("rate", "blocked", HOUR * 5).unwrap();
    first.pause("rate", "paused", HOUR * 2).unwrap();
    let denied =
        |limiter: &Limiter, key: &str, times| assert_eq!(admitted(limiter, &with_header("x-k", key), times), 0);
    for key in ["banned", "struck"] {
        assert!(admits(&first, &with_header("x-k", key)));
    }
    denied(&first, "banned", 3);
    denied(&first, "struck", 2);
    clock.advance(Duration::from_secs(600));
    let file = saved(&first);
    let next = build(&clock, [policy()]);
    next.restore(&file[..]).unwrap();
    let blocked = |limiter: &Limiter, key: &str| limiter.blocked_for("rate", key).unwrap();
    for (key, time) in [("blocked", Some(HOUR * 5)), ("banned", Some(HOUR)), ("struck", None)] {
        assert_eq!(blocked(&next, key), time.map(|time| time - Duration::from_secs(600)), "{key}");
    }
    assert_eq!(next.paused_for("rate", "paused").unwrap(), Some(HOUR * 2 - Duration::from_secs(600)));
    denied(&next, "struck", 1);
    assert!(blocked(&next, "struck").is_some(), "the third strike");
    // The next ban is longer than the first.
    clock.advance(HOUR);
    assert!(admits(&next, &with_header("x-k", "banned")));
    denied(&next, "banned", 3);
    assert!(blocked(&next, "banned").unwrap() > HOUR);
}

#[test]
fn a_reset_that_is_newer_than_the_snapshot_wins() {
    let clock = at(DAY);
    let limiter = build(&clock, [rate(Quota::per_hour(3))]);
    assert_eq!(admitted(&limiter, &with_header("x-k", "a"), 3), 3);
    assert_eq!(admitted(&limiter, &with_header("x-k", "b"), 3), 3);
    for key in ["a", "b", "c"] {
        limiter.block("rate", key, HOUR).unwrap();
        limiter.pause("rate", key, HOUR).unwrap();
    }
    let before = saved(&limiter);
    clock.advance(Duration::from_nanos(1));
    limiter.reset("rate", "a").unwrap();
    limiter.block("rate", "c", Duration::ZERO).unwrap();
    limiter.restore(&before[..]).unwrap();
    assert_eq!(left(&limiter, "rate", "a"), 3);
    assert_eq!(limiter.blocked_for("rate", "a").unwrap(), None);
    assert_eq!(limiter.paused_for("rate", "a").unwrap(), None);
    assert!(limiter.blocked_for("rate", "b").unwrap().is_some() && left(&limiter, "rate", "b") == 0);
    assert_eq!(limiter.blocked_for("rate", "c").unwrap(), None);
    // Also in the next process, which knows of the reset by a later snapshot.
    let after = saved(&limiter);
    let next = build(&clock, [rate(Quota::per_hour(3))]);
    next.restore(&after[..]).unwrap();
    next.restore(&before[..]).unwrap();
    assert_eq!((left(&next, "rate", "a"), left(&next, "rate", "b")), (3, 0));
}

#[test]
fn a_reset_at_the_time_of_the_snapshot_wins_too() {
    let limiter = build(&at(DAY), [rate(Quota::per_hour(3))]);
    assert_eq!(admitted(&limiter, &with_header("x-k", "a"), 3), 3);
    let file = saved(&limiter);
    limiter.reset("rate", "a").unwrap();
    limiter.restore(&file[..]).unwrap();
    assert_eq!(left(&limiter, "rate", "a"), 3);
}

#[test]
fn windows_of_a_clock_that_was_wrong_lock_nobody_for_years() {
    let clock = at(DAY * 22_000);
    let day = || Policy::by_key(Window::daily(5)).named("day");
    let first = build(&clock, [day()]);
    first.acquire_n("day", "a", 5).unwrap();
    clock.set(DAY * 20_000 + HOUR);
    let next = build(&clock, [day()]);
    next.restore(&saved(&first)[..]).unwrap();
    assert_eq!(left(&next, "day", "a"), 0, "it is used today");
    clock.set(DAY * 20_001);
    assert_eq!(left(&next, "day", "a"), 5);
}

#[test]
fn a_window_of_another_calendar_keeps_what_was_used_as_long_as_both_last() {
    let clock = at(DAY * 100 + HOUR * 14);
    let first = build(&clock, [Policy::by_key(Window::daily(5)).named("w")]);
    first.acquire_n("w", "a", 5).unwrap();
    let file = saved(&first);
    let hourly = || Policy::by_key(Window::hourly(5)).named("w");
    let next = build(&clock, [hourly()]);
    next.restore(&file[..]).unwrap();
    assert_eq!(left(&next, "w", "a"), 0);
    clock.advance(HOUR);
    assert_eq!(left(&next, "w", "a"), 5);
    clock.advance(DAY);
    let late = build(&clock, [hourly()]);
    assert_eq!(late.restore(&file[..]).unwrap().buckets, 0);
}

#[test]
fn blocks_that_are_over_take_no_places() {
    let clock = at(DAY);
    let policy = || Policy::by_key(Quota::per_hour(1)).named("key");
    let first = build(&clock, [policy()]);
    for key in 0..65_536_u32 {
        first.block("key", key, HOUR).unwrap();
    }
    let file = saved(&first);
    clock.advance(HOUR);
    let next = build(&clock, [policy()]);
    next.restore(&file[..]).unwrap();
    next.block("key", "another", HOUR).unwrap();
}

#[test]
fn keys_beyond_the_cap_of_both_processes_have_the_same_debt() {
    let clock = at(DAY);
    let policy = |max_keys| Policy::per(PeerIp, Quota::per_hour(3)).named("ip").max_keys(max_keys);
    let first = build(&clock, [policy(64)]);
    let network = |n: u8| from_ip(Ipv4Addr::new(10, n, 0, 1));
    for host in 0..64 {
        assert!(admits(&first, &from_ip(Ipv4Addr::new(1, host, 0, 1))));
    }
    for n in 0..40 {
        admitted(&first, &network(n), 2);
    }
    let file = saved(&first);
    let next = build(&clock, [policy(64)]);
    assert_eq!(next.restore(&file[..]).unwrap().buckets, 64);
    for n in 0..80 {
        assert_eq!(admits(&first, &network(n)), admits(&next, &network(n)), "{n}");
    }
    // In a table of another length nobody knows whose slot was whose.
    let next = build(&clock, [policy(128)]);
    next.restore(&file[..]).unwrap();
    let fresh = (64..128).filter(|host| admits(&next, &from_ip(Ipv4Addr::new(2, *host, 0, 1)))).count();
    assert_eq!(fresh, 64);
    assert_eq!((0..40).filter(|n| admitted(&next, &network(*n), 3) == 3).count(), 0, "no debt is forgiven");
}

#[test]
fn a_snapshot_of_ten_times_the_keys_is_restored_as_far_as_there_is_room_and_forgives_nobody() {
    let clock = at(DAY);
    let policy =
        |max_keys| Policy::by_key(Quota::per_hour(3)).named("key").max_keys(max_keys).max_keys_per_network(max_keys);
    let first = build(&clock, [policy(10_000)]);
    for key in 0..10_000 {
        first.acquire_n("key", key, 3).unwrap();
    }
    let file = saved(&first);
    for at_cap in [AtCap::Overflow, AtCap::Deny] {
        let next = build(&clock, [policy(1_000).at_cap(at_cap)]);
        let restored = next.restore(&file[..]).unwrap();
        assert_eq!((restored.buckets, restored.without_place, next.len()), (10_000, 9_000, 1_000));
        assert_eq!((0..10_000).filter(|key| next.acquire("key", *key).is_ok()).count(), 0);
    }
    let tiny = build(&clock, [policy(1)]);
    assert!(tiny.restore(&file[..]).is_ok(), "some megabytes are always read");
    let huge = vec![0; 40 << 20];
    let mut forged = file[..36].to_vec();
    forged.extend(huge);
    assert!(matches!(tiny.restore(&forged[..]), Err(SnapshotError::TooLarge)));
}

#[test]
fn policies_that_are_gone_are_skipped_and_named() {
    let clock = at(DAY);
    let first = build(
        &clock,
        [
            rate(Quota::per_hour(3)),
            Policy::by_key(Quota::per_hour(3)).named("renamed"),
            Policy::by_key(Quota::per_hour(3)).named("window"),
            Policy::global(Quota::per_hour(3)).named("keyed"),
        ],
    );
    for policy in ["rate", "renamed", "window", "keyed"] {
        first.acquire(policy, "a").unwrap();
    }
    let next = build(
        &clock,
        [
            Policy::by_key(Quota::per_hour(3)).named("other"),
            Policy::by_key(Window::daily(3)).named("window"),
            Policy::by_key(Quota::per_hour(3)).named("keyed"),
            rate(Quota::per_hour(3)),
        ],
    );
    let Restored { buckets, mut skipped_policies, .. } = next.restore(&saved(&first)[..]).unwrap();
    skipped_policies.sort();
    assert_eq!((buckets, skipped_policies), (1, vec!["keyed".into(), "renamed".into(), "window".into()]));
    assert_eq!((left(&next, "rate", "a"), left(&next, "window", "a")), (2, 3));
}

#[test]
fn a_limiter_without_a_secret_has_no_snapshots_and_a_short_secret_is_none() {
    let limiter = Limiter::new(rate(Quota::per_hour(1)));
    assert!(matches!(limiter.snapshot(Vec::new()), Err(SnapshotError::NoSecret)));
    assert!(matches!(limiter.restore(&[][..]), Err(SnapshotError::NoSecret)));
    let short = Limiter::builder().policy(rate(Quota::per_hour(1))).secret("fifteen letters").build().unwrap_err();
    assert_eq!(short.kind(), ConfigErrorKind::ShortSecret);
    assert!(short.to_string().contains("16 bytes"), "{short}");
}

/// Everything that a snapshot can contain.
fn full(clock: &ManualClock) -> (Limiter, Vec<u8>) {
    let limiter = empty(clock);
    for n in 0..12_u8 {
        let _ = limiter.decide(&with_header("x-k", [b'a' + n]));
    }
    limiter.acquire_as("account", "ann", Quota::per_hour(90), 5).unwrap();
    limiter.block("rate", "blocked", HOUR).unwrap();
    limiter.pause("rate", "paused", HOUR).unwrap();
    limiter.reset("rate", "b").unwrap();
    for _denied in 0..9 {
        let _ = limiter.acquire("account", "bob");
    }
    let file = saved(&limiter);
    (limiter, file)
}

fn empty(clock: &ManualClock) -> Limiter {
    build(
        clock,
        [
            rate(Quota::per_hour(2)).max_keys(8).max_keys_per_network(8),
            Policy::per(Header::new("x-k"), Window::daily(20)).named("day"),
            Policy::by_key(Quota::per_hour(5)).named("account").ban(Ban::after(3, HOUR)),
            Policy::global(Quota::per_hour(200)).named("cap"),
        ],
    )
}

fn is_unchanged(limiter: &Limiter) -> bool {
    limiter.is_empty() && left(limiter, "cap", "") == 200 && limiter.blocked_for("rate", "blocked").unwrap().is_none()
}

#[test]
fn a_truncated_snapshot_is_an_error_and_changes_nothing() {
    let clock = at(DAY);
    let (_, file) = full(&clock);
    let limiter = empty(&clock);
    for end in 0..file.len() {
        let error = limiter.restore(&file[..end]).unwrap_err();
        assert!(matches!(error, SnapshotError::Truncated), "{end} of {}: {error}", file.len());
    }
    let longer = [&file[..], b"x"].concat();
    assert!(matches!(limiter.restore(&longer[..]), Err(SnapshotError::Altered)));
    assert!(is_unchanged(&limiter));
    assert_eq!(limiter.restore(&file[..]).unwrap().skipped_policies.len(), 0);
    assert!(!is_unchanged(&limiter));
}

#[test]
fn an_altered_snapshot_is_an_error_and_changes_nothing() {
    let clock = at(DAY);
    let (_, file) = full(&clock);
    let limiter = empty(&clock);
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut altered = file.clone();
            altered[at] ^= 1 << bit;
            let error = limiter.restore(&altered[..]).unwrap_err();
            let expected = match at {
                0..8 => matches!(error, SnapshotError::NotASnapshot),
                8..12 => matches!(error, SnapshotError::OtherVersion(_)),
                12..20 => matches!(error, SnapshotError::Truncated | SnapshotError::Altered),
                20..36 => matches!(error, SnapshotError::OtherSecret),
                _ => matches!(error, SnapshotError::Altered),
            };
            assert!(expected, "bit {bit} of byte {at}: {error:?}");
        }
    }
    assert!(is_unchanged(&limiter));
}

#[test]
fn a_foreign_snapshot_is_an_error_with_the_reason() {
    let clock = at(DAY);
    let (_, file) = full(&clock);
    let other = Limiter::builder().policy(rate(Quota::per_hour(2))).clock(clock.clone()).secret([7_u8; 16]).build();
    let error = other.unwrap().restore(&file[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::OtherSecret) && error.to_string().contains("secret"), "{error}");
    let limiter = empty(&clock);
    for foreign in [&b"{\"json\": true}"[..], b"TQ-STATEd in another way", &[0; 99], b"PK"] {
        let error = limiter.restore(foreign).unwrap_err();
        assert!(matches!(error, SnapshotError::NotASnapshot | SnapshotError::OtherVersion(_)), "{error}");
    }
    // By a clock that is ahead.
    clock.set(DAY - Duration::from_secs(1));
    let error = limiter.restore(&file[..]).unwrap_err();
    assert!(matches!(error, SnapshotError::FromTheFuture(by) if by == Duration::from_secs(1)), "{error}");
    assert!(is_unchanged(&limiter));
    // Two machines' clocks differ by some milliseconds.
    clock.set(DAY - Duration::from_millis(999));
    assert!(limiter.restore(&file[..]).is_ok());
}

#[test]
fn a_reader_that_fails_is_an_error() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    let limiter = empty(&ManualClock::new());
    let error = limiter.restore(Broken).unwrap_err();
    assert!(error.to_string().contains("the disk is gone"), "{error}");
}

#[test]
fn a_snapshot_contains_no_key_as_it_is() {
    let clock = at(DAY);
    let limiter = build(&clock, [rate(Quota::per_hour(5))]);
    assert!(admits(&limiter, &with_header("x-k", "sk_live_51H8")));
    let file = saved(&limiter);
    assert!(!file.windows(7).any(|part| part == b"sk_live"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A process that is restarted decides as one that is not.
    #[test]
    fn a_restored_limiter_decides_as_the_one_that_was_saved(
        steps in prop::collection::vec((0_u8..6, 0_u8..4, 1_u32..9, 0_u64..4_000_000_000_000), 1..80),
    ) {
        let clock = at(DAY * 100);
        let plans = [Quota::per_hour(40), Quota::per_minute(7).burst(3)];
        let policies = || [
            Policy::by_key(Quota::per_minute(6).burst(9)).named("rate"),
            Policy::by_key(Window::fixed(20, HOUR * 3)).named("window"),
            Policy::global(Quota::per_minute(30)).named("cap"),
        ];
        let mut limiter = build(&clock, policies());
        let mut restarted = build(&clock, policies());
        for (what, key, cells, time) in steps {
            let both = |act: &dyn Fn(&Limiter) -> bool| (act(&limiter), act(&restarted));
            let (one, other) = match what {
                0 => both(&|limiter| limiter.acquire_all(&[("rate", &key, cells), ("cap", &0, 1)]).is_ok()),
                1 => both(&|limiter| limiter.acquire_all(&[("window", &key, cells), ("cap", &0, 1)]).is_ok()),
                2 => both(&|limiter| limiter.acquire_as("rate", key, plans[usize::from(key % 2)], cells).is_ok()),
                3 => both(&|limiter| limiter.charge("window", key, cells).is_ok()),
                4 => {
                    clock.advance(Duration::from_nanos(time));
                    (true, true)
                }
                _ => {
                    let next = build(&clock, policies());
                    next.restore(&saved(&restarted)[..]).unwrap();
                    restarted = next;
                    (true, true)
                }
            };
            prop_assert_eq!(one, other);
            for key in 0..4_u8 {
                for policy in ["rate", "window", "cap"] {
                    let [one, other] = [&limiter, &restarted].map(|limiter| limiter.peek(policy, key).unwrap());
                    prop_assert_eq!((one.remaining(), one.until_full()), (other.remaining(), other.until_full()));
                }
            }
        }
        limiter = restarted;
        drop(limiter);
    }
}

#[test]
fn requests_are_decided_while_a_snapshot_is_written_and_restored() {
    let limiter = Limiter::builder().policy(rate(Quota::per_hour(1_000))).secret(SECRET).build().unwrap();
    std::thread::scope(|scope| {
        let deciding = scope.spawn(|| {
            (0..20_000_u32)
                .filter(|n| admits(&limiter, &Request::builder().header("x-k", n % 50).body(()).unwrap()))
                .count()
        });
        for _ in 0..20 {
            let file = saved(&limiter);
            limiter.restore(&file[..]).unwrap();
        }
        assert_eq!(deciding.join().unwrap(), 20_000);
    });
    assert_eq!((0..50_u32).map(|n| 1_000 - left(&limiter, "rate", &n.to_string())).sum::<u32>(), 20_000);
}
