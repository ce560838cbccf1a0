//! Control at run time: quotas that change, keys that are reset, blocked, listed and banned, and shadow mode.

#[cfg(feature = "tracing")]
#[path = "support/events.rs"]
mod events;
mod support;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http::{Request, StatusCode};
use proptest::prelude::*;
use support::{admits, admitted, from_ip, limiter, wait, with_header};
use tower_quota::{
    Decision, Key, Limiter, Policy, Quota,
    clock::Clock,
    decision::Reason,
    key::{Header, PeerIp, key_fn},
    limiter::{BlockError, Sweep},
    policy::Ban,
};

const DAY: Duration = Duration::from_secs(86_400);
const A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);

fn key(limiter: &Limiter, address: Ipv4Addr) -> Key {
    limiter.key(PeerIp.network(address.into()))
}

#[test]
fn ops08_a_new_quota_applies_from_the_next_decision_on_and_keeps_the_count() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_minute(5))]);
    let request = from_ip(A);
    assert_eq!(admitted(&limiter, &request, 9), 5);
    limiter.set_limit("per-ip", Quota::per_second(100)).unwrap();
    assert_eq!(limiter.limit("per-ip").unwrap(), Quota::per_second(100));
    assert_eq!(limiter.peek("per-ip", A).unwrap().remaining(), 95, "as a decision would count");
    assert_eq!(admitted(&limiter, &request, 200), 95, "five are used of a hundred");
    clock.advance(Duration::from_secs(2));
    assert_eq!(admitted(&limiter, &request, 200), 100);
    limiter.set_limit("per-ip", Quota::per_hour(1)).unwrap();
    // At the former rate, which was faster: the denial itself makes nothing longer.
    for _ in 0..2 {
        assert_eq!(wait(&limiter, &request), Some(Duration::from_secs(1)));
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(admitted(&limiter, &request, 9), 1);
    assert_eq!(wait(&limiter, &request), Some(Duration::from_secs(3_600)), "from here on at the new one");
}

/// A plan, from the request.
fn by_plan(own: Quota) -> Policy {
    Policy::per(PeerIp, own).named("plan").quota_by(|head| head.extensions().get::<Quota>().copied())
}

fn with_plan(quota: Quota) -> Request<()> {
    let mut request = from_ip(A);
    request.extensions_mut().insert(quota);
    request
}

#[test]
fn a_bigger_plan_denies_nobody_who_has_cells_left() {
    let [free, pro] = [Quota::per(1_000, 30 * DAY), Quota::per(100_000, DAY)];
    let (limiter, _clock) = limiter([by_plan(free)]);
    assert_eq!(admitted(&limiter, &with_plan(free), 100), 100);
    let standing = match limiter.decide(&with_plan(pro)) {
        Decision::Allow(allowed) => allowed.standings().next().unwrap().remaining(),
        Decision::Deny(denied) => panic!("{denied}"),
    };
    assert_eq!(standing, 99_899);
    // And back: 101 of 1,000.
    assert!(admits(&limiter, &with_plan(free)));
    assert_eq!(limiter.peek("plan", A).unwrap().remaining(), 898);
}

/// One cell of an hour, and two cells of half an hour.
#[test]
fn two_counts_that_take_the_same_time_are_two_counts() {
    for policy in [Policy::per(PeerIp, Quota::per_hour(1)).named("p"), Policy::global(Quota::per_hour(1)).named("p")] {
        let (limiter, _clock) = limiter([policy]);
        assert_eq!(admitted(&limiter, &from_ip(A), 3), 1);
        limiter.set_limit("p", Quota::per_hour(2)).unwrap();
        assert_eq!(admitted(&limiter, &from_ip(A), 3), 1);
    }
}

/// The clock is read between the reading of the bucket and its exchange: there it does what another thread may do.
#[test]
fn a_change_of_quota_and_a_reset_within_a_decision_harm_no_later_one() {
    static LIMITER: OnceLock<Limiter> = OnceLock::new();
    static ARMED: AtomicBool = AtomicBool::new(false);
    let clock = Clock::from_fn(|| {
        if ARMED.swap(false, Ordering::SeqCst) {
            let limiter = LIMITER.get().unwrap();
            limiter.set_limit("g", Quota::per_second(1_000)).unwrap();
            assert!(admits(limiter, &Request::new(())));
            limiter.reset("g", Key::GLOBAL).unwrap();
        }
        Duration::from_secs(1)
    });
    let policy = Policy::global(Quota::every(DAY)).named("g");
    let limiter =
        LIMITER.get_or_init(|| Limiter::builder().policy(policy).clock(clock).sweep(Sweep::Manual).build().unwrap());
    ARMED.store(true, Ordering::SeqCst);
    assert!(admits(limiter, &Request::new(())));
    let remaining = limiter.peek("g", Key::GLOBAL).unwrap().remaining();
    assert!(remaining >= 998, "a day is owed: {remaining} of 1,000 are left");
}

/// What is used stays used, in whatever way plans alternate.
#[test]
fn plans_to_and_fro_admit_the_largest_burst_once() {
    let plans = [Quota::per(1_000, 30 * DAY), Quota::per(100, 30 * DAY).burst(1), Quota::per(700, 30 * DAY).burst(40)];
    let (limiter, _clock) = limiter([by_plan(plans[0])]);
    let admitted = (0..9_000).filter(|n| admits(&limiter, &with_plan(plans[n % 3]))).count();
    assert_eq!(admitted, 1_000);
}

#[test]
fn who_says_no_plan_has_the_one_that_the_bucket_remembers() {
    let [own, pro] = [Quota::per_hour(2), Quota::per_hour(100)];
    let (limiter, clock) = limiter([by_plan(own)]);
    assert_eq!(limiter.peek("plan", A).unwrap().quota(), Some(own));
    assert_eq!(admitted(&limiter, &with_plan(pro), 10), 10);
    assert_eq!(limiter.peek("plan", A).unwrap().quota(), Some(pro));
    assert_eq!(admitted(&limiter, &from_ip(A), 5), 5, "beyond the policy's own");
    assert_eq!(limiter.charge("plan", A, 5).unwrap().remaining(), 80);
    assert_eq!(limiter.list("plan", 0, 9).unwrap().keys[0].1.remaining(), 80);
    // A change of the policy's own quota does not take the plan away.
    limiter.set_limit("plan", Quota::per_hour(1)).unwrap();
    assert_eq!(limiter.peek("plan", A).unwrap().remaining(), 80);
    // When nothing is used any more, there is nothing to remember.
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(limiter.peek("plan", A).unwrap().quota(), Some(Quota::per_hour(1)));
    assert_eq!(admitted(&limiter, &from_ip(A), 5), 1);
    // The policy's own quota is not a plan: a change of it is a change for all who have none.
    limiter.set_limit("plan", Quota::per_hour(50)).unwrap();
    assert_eq!(admitted(&limiter, &from_ip(A), 90), 49);
}

/// A refund is in cells of its own quota: after a conversion there are none of them.
#[test]
fn a_refund_from_before_a_change_of_plan_returns_nothing() {
    let [free, pro] = [Quota::per_hour(10), Quota::per_hour(1_000)];
    let (limiter, _clock) = limiter([by_plan(free)]);
    let Decision::Allow(before) = limiter.decide(&with_plan(free)) else { panic!() };
    let Decision::Allow(converting) = limiter.decide(&with_plan(pro)) else { panic!() };
    limiter.refund(before);
    assert_eq!(limiter.peek("plan", A).unwrap().remaining(), 998);
    limiter.refund(converting);
    assert_eq!(limiter.peek("plan", A).unwrap().remaining(), 999, "that of the request that has converted it");
}

/// Many quotas, of an application that computes one for each request.
#[test]
fn thousands_of_plans_keep_the_count() {
    let (limiter, clock) = limiter([by_plan(Quota::per_hour(1))]);
    for n in 0..100_000_u32 {
        assert!(admits(&limiter, &with_plan(Quota::per_hour(200_000 + n))), "{n}");
        if n % 10_000 == 0 {
            limiter.sweep();
        }
    }
    let remaining = limiter.peek("plan", A).unwrap().remaining();
    // A part of a cell is rounded up in each conversion.
    assert!((199_990..=200_000).contains(&remaining), "{remaining}");
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(limiter.peek("plan", A).unwrap().remaining(), 1);
}

#[test]
fn a_quota_by_request_is_not_replaced() {
    let policy =
        Policy::per(PeerIp, Quota::per_hour(1)).quota_by(|head| head.headers().get("pro").map(|_| Quota::per_hour(3)));
    let (limiter, _clock) = limiter([policy]);
    limiter.set_limit("per-ip", Quota::per_hour(2)).unwrap();
    let mut pro = from_ip(A);
    pro.headers_mut().insert("pro", "1".parse().unwrap());
    assert_eq!((admitted(&limiter, &pro, 9), admitted(&limiter, &from_ip(B), 9)), (3, 2));
}

#[test]
fn several_quotas_change_together_or_not_at_all() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(1)), Policy::global(Quota::per_hour(1))]);
    let two = Quota::per_hour(2);
    let error = limiter.set_limits([("per-ip", two), ("nobody", two)]).unwrap_err();
    assert_eq!(error.to_string(), "no policy is named \"nobody\": use one of [\"per-ip\", \"global\"]");
    assert_eq!(limiter.limit("per-ip").unwrap(), Quota::per_hour(1));
    limiter.set_limits([("per-ip", two), ("global", two)]).unwrap();
    assert_eq!(admitted(&limiter, &from_ip(A), 9), 2);
}

/// Semantics of a change: over all intervals together no more than the sum of their bursts and of what flows in.
#[test]
fn a_reload_under_load_loses_no_bucket_and_admits_no_more_than_the_sum() {
    let quotas = [Quota::per_second(1_000).burst(7), Quota::per(3, Duration::from_secs(60)).burst(11)];
    let (limiter, clock) = limiter([Policy::per(PeerIp, quotas[0])]);
    let (done, all, ready) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut bound = usize::try_from(quotas[0].burst_size()).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                ready.fetch_add(1, Ordering::Relaxed);
                while !done.load(Ordering::Relaxed) {
                    all.fetch_add(admitted(&limiter, &from_ip(A), 10), Ordering::Relaxed);
                }
            });
        }
        while ready.load(Ordering::Relaxed) < 3 {
            thread::yield_now();
        }
        for n in 1..=2_000 {
            let quota = quotas[n % 2];
            limiter.set_limit("per-ip", quota).unwrap();
            clock.advance(Duration::from_millis(3));
            // Also for the quota before, which a decision may still use.
            bound += 11 + 3;
            assert_eq!(limiter.len(), 1);
        }
        done.store(true, Ordering::Relaxed);
    });
    let all = all.load(Ordering::Relaxed);
    assert!((1..=bound).contains(&all), "{all} of {bound}");
}

#[test]
fn a_reset_key_finds_a_full_bucket() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(2))]);
    assert_eq!((admitted(&limiter, &from_ip(A), 5), admitted(&limiter, &from_ip(B), 5)), (2, 2));
    assert_eq!(limiter.reset("per-ip", key(&limiter, A)), Ok(true));
    assert_eq!(limiter.reset("per-ip", key(&limiter, A)), Ok(false), "nothing is owed");
    assert_eq!((admitted(&limiter, &from_ip(A), 5), admitted(&limiter, &from_ip(B), 5)), (2, 0));
    assert!(limiter.reset("nobody", key(&limiter, A)).is_err());
}

#[test]
fn a_blocked_key_is_denied_until_the_block_ends_and_loses_no_cells() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_hour(3)), Policy::global(Quota::per_hour(100))]);
    limiter.block("per-ip", key(&limiter, A), Duration::from_millis(60_500)).unwrap();
    let denied = limiter.decide(&from_ip(A)).denied().unwrap();
    assert_eq!((denied.reason(), denied.retry_after(), denied.policy()), (Reason::Blocked, Some(61), "per-ip"));
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(denied.to_string(), "Requests are temporarily blocked by the policy \"per-ip\". Retry in 61 s.");
    assert_eq!(admitted(&limiter, &from_ip(B), 9), 3, "nobody else is");
    assert_eq!(limiter.blocked_for("per-ip", key(&limiter, A)), Ok(Some(Duration::from_millis(60_500))));
    clock.advance(Duration::from_millis(60_500));
    assert_eq!(limiter.blocked_for("per-ip", key(&limiter, A)), Ok(None));
    assert_eq!(admitted(&limiter, &from_ip(A), 9), 3);
    // Of the six one has come back meanwhile.
    assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().remaining(), 95, "a blocked request charges no policy");
}

#[test]
fn a_block_is_ended_by_hand_by_a_reset_and_by_sweeping() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_hour(9))]);
    let block = |time| limiter.block("per-ip", key(&limiter, A), Duration::from_secs(time)).unwrap();
    block(60);
    block(0);
    assert!(admits(&limiter, &from_ip(A)));
    block(60);
    assert_eq!(limiter.reset("per-ip", key(&limiter, A)), Ok(true));
    assert!(admits(&limiter, &from_ip(A)));
    block(60);
    limiter.sweep();
    assert!(!admits(&limiter, &from_ip(A)), "a sweep ends no block");
    clock.advance(Duration::from_secs(60));
    limiter.sweep();
    assert!(admits(&limiter, &from_ip(A)));
}

#[test]
fn a_global_policy_is_blocked_for_maintenance() {
    let (limiter, clock) = limiter([Policy::global(Quota::per_hour(9))]);
    limiter.block("global", Key::GLOBAL, Duration::from_secs(5)).unwrap();
    assert_eq!(wait(&limiter, &Request::new(())), Some(Duration::from_secs(5)));
    clock.advance(Duration::from_secs(5));
    assert!(admits(&limiter, &Request::new(())));
}

#[test]
fn blocks_are_bounded() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(9))]);
    let block = |n: u32| limiter.block("per-ip", key(&limiter, Ipv4Addr::from_bits(n)), Duration::from_secs(60));
    let in_one_network = (0..2_000).filter(|n| block(*n).is_ok()).count();
    assert_eq!(in_one_network, 1_024);
    let everywhere = (1..200_u32).flat_map(|network| (0..400).map(move |n| network << 16 | n));
    let blocked = everywhere.filter(|n| block(*n).is_ok()).count();
    assert_eq!(in_one_network + blocked, 65_536);
    let error = block(u32::MAX).unwrap_err();
    assert_eq!(error, BlockError::Full);
    assert!(error.to_string().contains("in all or of this key's network"), "{error}");
    assert!(block(1).is_ok(), "a key that is blocked can be blocked for longer");
}

#[test]
fn every_key_is_listed_once_page_by_page() {
    let (limiter, _clock) =
        limiter([Policy::per(PeerIp, Quota::per_hour(9)), Policy::global(Quota::per_hour(100_000))]);
    for n in 0..1_000 {
        assert!(admits(&limiter, &from_ip(Ipv4Addr::from_bits(n << 16))));
    }
    let (mut seen, mut from, mut pages) = (HashSet::new(), Some(0), 0);
    while let Some(place) = from {
        let page = limiter.list("per-ip", place, 300).unwrap();
        for (key, standing) in &page.keys {
            assert_eq!((standing.policy(), standing.remaining()), ("per-ip", 8));
            assert!(seen.insert(key.address().unwrap()));
        }
        (from, pages) = (page.next, pages + 1);
    }
    assert_eq!((seen.len(), pages), (1_000, 4));
    assert!(limiter.list("global", 0, 10).unwrap().keys.is_empty());
    assert!(limiter.list("nobody", 0, 10).is_err());
    assert_eq!(limiter.list("per-ip", 0, 0).unwrap().next, None, "no page is no reason for another");
    assert_eq!(limiter.list("per-ip", 0, limiter.len()).unwrap().next, None, "a page of all is the last");
    assert!(!limiter.is_empty());
    assert!(limiter.list("per-ip", 5_000, usize::MAX).unwrap().keys.is_empty());
}

#[test]
fn the_keys_that_are_denied_most_are_tracked_where_configured() {
    let clock = tower_quota::clock::ManualClock::new();
    let limiter =
        Limiter::builder().policy(Policy::per(PeerIp, Quota::per_hour(1))).clock(clock).top_denied(4).build().unwrap();
    for (address, times) in [(A, 31), (B, 11)] {
        admitted(&limiter, &from_ip(address), times);
    }
    let top: Vec<_> = limiter.top_denied().into_iter().map(|denied| (denied.key.address(), denied.denials)).collect();
    assert_eq!(top, [(Some(IpAddr::V4(A)), 30), (Some(IpAddr::V4(B)), 10)]);
    assert_eq!(&*limiter.top_denied()[0].policy, "per-ip");
    let (silent, _clock) = support::limiter([Policy::per(PeerIp, Quota::per_hour(1))]);
    admitted(&silent, &from_ip(A), 9);
    assert!(silent.top_denied().is_empty());
}

#[test]
fn a_key_is_written_and_read_back_and_shows_an_address() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(1))]);
    let v6: Ipv6Addr = "2001:db8:1:2:aaaa::1".parse().unwrap();
    let keys = [key(&limiter, A), limiter.key(PeerIp.network(v6.into())), limiter.key("S3CR3T"), Key::GLOBAL];
    for key in keys {
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!(!key.to_string().contains("S3CR3T"));
    }
    assert_eq!(keys.map(Key::address), [Some(A.into()), Some("2001:db8:1:2::".parse().unwrap()), None, None]);
    for wrong in [
        "",
        "0",
        "+0000000000000000000000000000000",
        "g0000000000000000000000000000000",
        "000000000000000000000000000000000",
    ] {
        assert!(wrong.parse::<Key>().is_err(), "{wrong:?}");
    }
}

mod bans {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn banning() -> (Limiter, tower_quota::clock::ManualClock) {
        let ban = Ban::after(3, MINUTE).initial(MINUTE).max(4 * MINUTE);
        limiter([Policy::per(PeerIp, Quota::per_second(1)).ban(ban)])
    }

    /// Denied until it is banned. How long the ban is.
    fn offend(limiter: &Limiter) -> Duration {
        for _ in 0..20 {
            if let Decision::Deny(denied) = limiter.decide(&from_ip(A)) {
                if denied.reason() == Reason::Blocked {
                    return denied.wait().unwrap();
                }
            }
        }
        panic!("never banned")
    }

    #[test]
    fn the_third_denial_blocks_and_says_so() {
        let (limiter, clock) = banning();
        assert!(admits(&limiter, &from_ip(A)));
        let reasons = [(); 4].map(|()| limiter.decide(&from_ip(A)).denied().unwrap().reason());
        assert_eq!(reasons, [Reason::Exceeded, Reason::Exceeded, Reason::Blocked, Reason::Blocked]);
        clock.advance(Duration::from_secs(59));
        assert!(!admits(&limiter, &from_ip(A)), "its bucket is full long since");
        assert!(admits(&limiter, &from_ip(B)));
        clock.advance(Duration::from_secs(1));
        assert!(admits(&limiter, &from_ip(A)), "who waits as long as told is admitted");
    }

    #[test]
    fn blocks_double_up_to_the_longest_and_are_forgotten() {
        let (limiter, clock) = banning();
        for minutes in [1, 2, 4, 4] {
            let length = offend(&limiter);
            assert_eq!(length, minutes * MINUTE);
            clock.advance(length);
        }
        // Quiet for twice the last block.
        clock.advance(8 * MINUTE);
        limiter.sweep();
        assert_eq!(offend(&limiter), MINUTE);
    }

    #[test]
    fn slow_offenders_are_limited_and_not_banned() {
        let (limiter, clock) = banning();
        for _ in 0..50 {
            assert!(admits(&limiter, &from_ip(A)));
            assert_eq!(limiter.decide(&from_ip(A)).denied().unwrap().reason(), Reason::Exceeded);
            clock.advance(Duration::from_secs(30));
        }
    }

    #[test]
    fn denials_are_counted_anew_after_a_block() {
        let ban = Ban::after(3, 60 * MINUTE).initial(MINUTE);
        let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_second(1)).ban(ban)]);
        clock.advance(offend(&limiter));
        assert!(admits(&limiter, &from_ip(A)));
        let reasons = [(); 3].map(|()| limiter.decide(&from_ip(A)).denied().unwrap().reason());
        assert_eq!(reasons, [Reason::Exceeded, Reason::Exceeded, Reason::Blocked]);
    }

    #[test]
    fn a_reset_forgets_bans() {
        let (limiter, _clock) = banning();
        offend(&limiter);
        limiter.reset("per-ip", key(&limiter, A)).unwrap();
        assert!(admits(&limiter, &from_ip(A)));
        assert_eq!(offend(&limiter), MINUTE, "and how often");
    }

    #[test]
    fn a_cost_that_can_never_be_granted_is_no_offence() {
        let ban = Ban::after(1, MINUTE);
        let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_second(1)).cost_by(|_| 2).ban(ban)]);
        for _ in 0..5 {
            assert_eq!(limiter.decide(&from_ip(A)).denied().unwrap().reason(), Reason::CostAboveBurst);
        }
    }

    #[test]
    fn as_many_offenders_are_banned_as_there_is_room_for_and_blocks_by_hand_have_their_own() {
        let ban = Ban::after(1, MINUTE);
        let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(1)).ban(ban)]);
        let address = |n: u32| Ipv4Addr::from_bits(n << 12);
        for n in 0..100_000 {
            assert_eq!(admitted(&limiter, &from_ip(address(n)), 2), 1);
        }
        let is_blocked = |n: &u32| limiter.blocked_for("per-ip", key(&limiter, address(*n))).unwrap().is_some();
        assert_eq!((0..100_000).filter(is_blocked).count(), 65_536);
        assert!(limiter.block("per-ip", key(&limiter, A), MINUTE).is_ok());
        assert!(!admits(&limiter, &from_ip(A)));
    }

    #[test]
    fn a_ban_never_shortens_a_block_by_hand() {
        let (limiter, _clock) = banning();
        limiter.block("per-ip", key(&limiter, B), 10 * MINUTE).unwrap();
        assert_eq!(wait(&limiter, &from_ip(B)), Some(10 * MINUTE));
        offend(&limiter);
        limiter.block("per-ip", key(&limiter, A), 9 * MINUTE).unwrap();
        assert_eq!(wait(&limiter, &from_ip(A)), Some(9 * MINUTE));
        limiter.block("per-ip", key(&limiter, A), Duration::ZERO).unwrap();
        assert!(!admits(&limiter, &from_ip(A)), "its cell is drawn");
        assert_eq!(limiter.blocked_for("per-ip", key(&limiter, A)), Ok(None), "both are ended");
    }

    /// Semantics 2: who waits as long as told is admitted.
    #[test]
    fn the_wait_of_a_block_is_true_where_cells_are_short_too() {
        let ban = Ban::after(1, MINUTE).initial(MINUTE);
        let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_hour(1)).ban(ban)]);
        assert!(admits(&limiter, &from_ip(A)));
        for _ in 0..2 {
            let denied = limiter.decide(&from_ip(A)).denied().unwrap();
            assert_eq!((denied.reason(), denied.wait()), (Reason::Blocked, Some(60 * MINUTE)));
        }
        let (costly, _clock) = support::limiter([Policy::per(PeerIp, Quota::per_hour(1)).cost_by(|_| 2)]);
        costly.block("per-ip", key(&costly, A), MINUTE).unwrap();
        assert_eq!(wait(&costly, &from_ip(A)), None, "no wait helps, nor does the end of the block");
        clock.advance(60 * MINUTE);
        assert!(admits(&limiter, &from_ip(A)));
        limiter.block("per-ip", key(&limiter, A), Duration::from_secs(5)).unwrap();
        assert_eq!(wait(&limiter, &from_ip(A)), Some(60 * MINUTE));
    }
}

mod shadow {
    use super::*;

    #[test]
    fn ops09_a_policy_in_shadow_mode_decides_acquires_and_denies_nothing() {
        let (limiter, clock) = limiter([
            Policy::per(PeerIp, Quota::per_minute(2)).shadow(),
            Policy::per(PeerIp, Quota::per_minute(4)).named("real"),
        ]);
        let would = [(); 4].map(|()| {
            let Decision::Allow(allowed) = limiter.decide(&from_ip(A)) else { panic!("denied") };
            allowed.standings().map(|standing| (standing.is_shadow(), standing.is_violated())).collect::<Vec<_>>()
        });
        let (fine, short) = (vec![(true, false), (false, false)], vec![(true, true), (false, false)]);
        assert_eq!(would, [fine.clone(), fine, short.clone(), short]);
        let denied = limiter.decide(&from_ip(A)).denied().unwrap();
        assert_eq!(denied.violated().map(|standing| standing.policy()).collect::<Vec<_>>(), ["real"]);
        assert_eq!(denied.wait(), Some(Duration::from_secs(15)), "its longer wait does not count");
        // What it would have denied it has not drawn: half a minute later one cell is back.
        clock.advance(Duration::from_secs(30));
        assert_eq!(limiter.peek("per-ip", key(&limiter, A)).unwrap().remaining(), 1);
    }

    #[test]
    fn a_block_under_a_policy_in_shadow_mode_denies_nothing() {
        let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(9)).shadow()]);
        limiter.block("per-ip", key(&limiter, A), Duration::from_secs(60)).unwrap();
        assert!(admits(&limiter, &from_ip(A)));
    }

    #[test]
    fn ops09_a_request_without_a_key_passes_a_policy_in_shadow_mode() {
        let per_key = || Policy::per(Header::new("x-api-key"), Quota::per_hour(1));
        let (limiter, _clock) = limiter([per_key().shadow()]);
        assert_eq!(admitted(&limiter, &Request::new(()), 9), 9);
        let (limiter, _clock) = support::limiter([per_key().enforce_for(0.0)]);
        assert_eq!(admitted(&limiter, &Request::new(()), 9), 9, "a share of nothing is the same");
        let (limiter, _clock) = support::limiter([per_key().enforce_for(0.5)]);
        assert!(!admits(&limiter, &Request::new(())));
    }

    #[test]
    fn a_denial_by_another_policy_acquires_nothing_from_a_shadow_policy() {
        let (limiter, _clock) =
            limiter([Policy::per(PeerIp, Quota::per_minute(5)).shadow(), Policy::global(Quota::per_minute(1))]);
        assert_eq!(admitted(&limiter, &from_ip(A), 9), 1);
        assert_eq!(limiter.peek("per-ip", key(&limiter, A)).unwrap().remaining(), 4);
    }

    #[test]
    fn a_single_policy_in_shadow_mode_admits_all_and_blocks_no_key() {
        let ban = Ban::after(1, Duration::from_secs(60));
        let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_minute(2)).shadow().ban(ban)]);
        assert_eq!(admitted(&limiter, &from_ip(A), 20), 20);
    }

    #[test]
    fn a_share_of_the_keys_is_enforced_and_grows_without_letting_anyone_go() {
        let enforced = |share| {
            let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(1)).enforce_for(share)]);
            let denied = |n: u32| admitted(&limiter, &from_ip(Ipv4Addr::from_bits(n << 16)), 2) == 1;
            (0..4_000_u32).filter(|n| denied(*n)).collect::<HashSet<_>>()
        };
        let [none, tenth, half, all] = [0.0, 0.1, 0.5, 1.0].map(enforced);
        assert_eq!((none.len(), all.len()), (0, 4_000));
        assert!((300..500).contains(&tenth.len()) && (1_850..2_150).contains(&half.len()), "{}", tenth.len());
        assert!(tenth.is_subset(&half));
    }

    #[test]
    #[should_panic(expected = "from 0.0 to 1.0")]
    fn a_share_of_more_than_all_is_denied() {
        let _ = Policy::global(Quota::per_hour(1)).enforce_for(1.5);
    }
}

/// A missing key of a policy that denies with a status that is no error would be a bypass that looks like an answer.
#[test]
fn a_reset_says_whether_there_was_a_block() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_hour(9))]);
    let block = || limiter.block("per-ip", key(&limiter, A), Duration::from_secs(5)).unwrap();
    block();
    assert_eq!(limiter.reset("per-ip", key(&limiter, A)), Ok(true));
    block();
    clock.advance(Duration::from_secs(5));
    assert_eq!(limiter.reset("per-ip", key(&limiter, A)), Ok(false), "it has ended");
}

#[test]
fn only_the_policy_that_denies_counts_a_denial() {
    let ban = || Ban::after(1, Duration::from_secs(60));
    let by = |name: &str, quota| Policy::per(Header::new("k"), quota).named(name).ban(ban());
    let (limiter, _clock) = limiter([
        by("granting", Quota::per_hour(10)),
        by("shadow", Quota::per_hour(1)).shadow(),
        by("short", Quota::per_hour(1)),
    ]);
    let client = with_header("k", "client");
    assert_eq!(admitted(&limiter, &client, 3), 1);
    let blocked = |policy| limiter.blocked_for(policy, limiter.key("client")).unwrap().is_some();
    assert_eq!(["granting", "shadow", "short"].map(blocked), [false, false, true]);
}

/// Without a bucket of its own, or with one that the quota in force would cut.
#[test]
fn a_retry_after_the_reported_time_of_a_block_is_allowed() {
    let minute = Duration::from_secs(60);
    let once = Policy::per(Header::new("k"), Quota::per_hour(1)).named("p");
    let (full, clock) = limiter([once.max_keys(1).ban(Ban::after(1, minute).initial(minute))]);
    assert!(admits(&full, &with_header("k", "first")));
    let newcomer = with_header("k", "second");
    assert!(admits(&full, &newcomer));
    for _told_while_blocked in 0..3 {
        clock.advance(Duration::from_secs(1));
        let _ = full.decide(&newcomer);
    }
    let wait = full.decide(&newcomer).denied().unwrap();
    assert_eq!((wait.reason(), wait.wait().unwrap().as_secs()), (Reason::Blocked, 3_597));
    clock.advance(wait.wait().unwrap());
    assert!(admits(&full, &newcomer));

    let (changed, clock) = limiter([Policy::per(Header::new("k"), Quota::per_minute(5)).named("p")]);
    let client = with_header("k", "client");
    assert_eq!(admitted(&changed, &client, 6), 5);
    changed.set_limit("p", Quota::per_second(100)).unwrap();
    changed.block("p", changed.key("client"), Duration::from_secs(5)).unwrap();
    let wait = changed.decide(&client).denied().unwrap();
    assert_eq!((wait.reason(), wait.wait()), (Reason::Blocked, Some(Duration::from_secs(5))));
    clock.advance(Duration::from_secs(5));
    assert!(admits(&changed, &client), "the debt of two bursts began when it was found");
}

#[test]
fn statuses_that_are_no_errors_and_names_that_are_too_long_are_denied() {
    let denied = |policy: Policy| Limiter::builder().policy(policy).build().unwrap_err().to_string();
    let reject = tower_quota::policy::Missing::Reject(StatusCode::NOT_MODIFIED);
    assert!(denied(Policy::per(Header::new("k"), Quota::per_hour(1)).on_missing(reject)).contains("from 400 to 599"));
    let named = |length| Policy::global(Quota::per_hour(1)).named("n".repeat(length));
    assert!(denied(named(65)).contains("longer than 64 bytes"));
    assert_eq!(Limiter::new(named(64)).policies()[0].name().len(), 64);
}

proptest! {
    /// A policy that is always in shadow mode changes nothing for the policies beside it.
    #[test]
    fn shadow_changes_no_decision(steps in prop::collection::vec((0_u64..2_000, 0_u8..3), 1..60)) {
        let real = || Policy::per(Header::new("k"), Quota::per_second(2).burst(3)).named("real");
        let (alone, clock_a) = limiter([real()]);
        let shadow = Policy::per(key_fn(|_| Some(0_u64)), Quota::per_second(1)).named("shadow").shadow();
        let (both, clock_b) = limiter([shadow, real()]);
        for (ms, key) in steps {
            clock_a.advance(Duration::from_millis(ms));
            clock_b.advance(Duration::from_millis(ms));
            let request = with_header("k", [b'a' + key]);
            prop_assert_eq!(admits(&alone, &request), admits(&both, &request));
        }
    }
}
