//! Policies: which requests they apply to, what they charge, and how several decide together.

mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use http::{Request, StatusCode};
use support::{admits, admitted, from_ip, limiter, wait, with_header};
use tower_quota::{
    Decision, Key, Limiter, Policy, Quota, RateLimitLayer,
    decision::Reason,
    key::{ClientIp, FromExtension, Header, NetworkError, PeerIp, key_fn},
    limit::Limit,
    limiter::ConfigErrorKind,
    policy::Missing,
};

const TEN: Quota = Quota::per_second(10);

#[test]
fn denies_the_sixth_request_and_says_when_to_retry() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, Quota::per_second(5))]);
    let request = from_ip(Ipv4Addr::LOCALHOST);
    assert_eq!(admitted(&limiter, &request, 6), 5);
    let wait = wait(&limiter, &request).unwrap();
    clock.advance(wait - Duration::from_nanos(1));
    assert!(!admits(&limiter, &request));
    clock.advance(Duration::from_nanos(1));
    assert!(admits(&limiter, &request));
}

#[test]
fn each_key_has_a_bucket_and_global_has_one() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_second(2)), Policy::global(Quota::per_second(3))]);
    let (a, b) = (from_ip(Ipv4Addr::new(10, 0, 0, 1)), from_ip(Ipv4Addr::new(10, 0, 0, 2)));
    assert_eq!(admitted(&limiter, &a, 5), 2);
    assert_eq!(admitted(&limiter, &b, 5), 1, "the cap is for all");
}

#[test]
fn ops01_a_denial_by_one_policy_acquires_from_no_other() {
    for order in [false, true] {
        let mut policies = vec![
            Policy::per(Header::new("k"), Quota::per_second(1)).named("tight"),
            Policy::per(Header::new("k"), Quota::per_hour(1_000)).named("wide"),
            Policy::global(TEN),
        ];
        if order {
            policies.reverse();
        }
        let (limiter, _clock) = limiter(policies);
        let request = with_header("k", "a");
        let key = limiter.key("a");
        assert_eq!(admitted(&limiter, &request, 100), 1);
        let remaining = |name: &str, key| limiter.peek(name, key).unwrap().remaining();
        assert_eq!((remaining("wide", key), remaining("global", Key::GLOBAL)), (999, 9));
    }
}

#[test]
fn several_global_policies_are_all_or_nothing_too() {
    let (limiter, clock) =
        limiter([Policy::global(TEN).named("second"), Policy::global(Quota::per_minute(12)).named("minute")]);
    let request = Request::new(());
    assert_eq!(admitted(&limiter, &request, 20), 10);
    clock.advance(Duration::from_secs(1));
    assert_eq!(admitted(&limiter, &request, 20), 2);
    assert_eq!(limiter.peek("second", Key::GLOBAL).unwrap().remaining(), 8);
}

#[test]
fn the_wait_is_the_longest_of_the_violated_policies() {
    let (limiter, clock) = limiter([
        Policy::global(Quota::per_second(1)).named("second"),
        Policy::global(Quota::per_minute(1)).named("minute"),
        Policy::global(Quota::per_hour(100)).named("hour"),
    ]);
    let request = Request::new(());
    assert!(admits(&limiter, &request));
    let denied = limiter.decide(&request).denied().unwrap();
    assert_eq!(denied.wait(), Some(Duration::from_secs(60)));
    assert_eq!(
        denied.violated().map(|standing| standing.policy().to_owned()).collect::<Vec<_>>(),
        ["second", "minute"]
    );
    assert_eq!(denied.standings().map(|standing| standing.remaining()).collect::<Vec<_>>(), [0, 0, 99]);
    assert!(denied.violated().all(|standing| standing.wait() == standing.next_cell()));
    clock.advance(Duration::from_secs(60));
    assert!(admits(&limiter, &request));
}

#[test]
fn the_order_is_keyed_then_global() {
    let (limiter, _clock) = limiter([
        Policy::global(TEN),
        Policy::per(PeerIp, TEN),
        Policy::global(TEN).named("second global"),
        Policy::per(Header::new("k"), TEN).on_missing(Missing::Skip),
    ]);
    let names: Vec<_> = limiter.policies().iter().map(Policy::name).collect();
    assert_eq!(names, ["per-ip", "per-k", "global", "second global"]);
    let Decision::Allow(allowed) = limiter.decide(&from_ip(Ipv4Addr::LOCALHOST)) else { panic!("denied") };
    let standings: Vec<_> = allowed.standings().map(|standing| standing.policy().to_owned()).collect();
    assert_eq!(standings, ["per-ip", "global", "second global"], "per-k does not apply");
}

#[test]
fn ops06_a_condition_exempts_exactly_what_it_says() {
    let (limiter, _clock) = limiter([Policy::global(Quota::per_minute(1)).when(|head| head.uri().path() != "/health")]);
    let path = |path: &str| Request::builder().uri(path).body(()).unwrap();
    assert_eq!(admitted(&limiter, &path("/health"), 50), 50);
    assert!(admits(&limiter, &path("/")));
    for other in
        ["/health/", "//health", "/health%2F..", "/Health", "/health/..", "/HEALTH", "/a/health", "/health;x=1"]
    {
        assert!(!admits(&limiter, &path(other)), "{other} is exempt");
    }
    assert!(admits(&limiter, &path("/health?x=1")), "the query is no part of the path");
}

#[test]
fn id08_a_missing_key_has_the_documented_outcome() {
    let status = |policy: Policy| {
        let (limiter, _clock) = limiter([policy]);
        let denied = limiter.decide(&Request::new(())).denied().expect("denied");
        assert_eq!((denied.reason(), denied.wait()), (Reason::MissingKey, None));
        assert_eq!(denied.violated().count(), 0);
        assert!(limiter.is_empty());
        denied.status()
    };
    assert_eq!(status(Policy::per(PeerIp, TEN)), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status(Policy::per(FromExtension::<u64>::new(), TEN)), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status(Policy::per(Header::new("x-api-key"), TEN)), StatusCode::UNAUTHORIZED);
    assert_eq!(status(Policy::per(key_fn(|_| None::<u64>), TEN)), StatusCode::BAD_REQUEST);
    assert_eq!(status(Policy::per((PeerIp, Header::new("k")), TEN)), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status(Policy::per(Header::new("k").or(PeerIp), TEN)), StatusCode::INTERNAL_SERVER_ERROR);
    let forbidden = Missing::Reject(StatusCode::FORBIDDEN);
    assert_eq!(status(Policy::per(PeerIp, TEN).on_missing(forbidden)), StatusCode::FORBIDDEN);
}

#[test]
fn id08_sharing_and_skipping_are_written_out() {
    let policy = || Policy::per(Header::new("k"), Quota::per_minute(2));
    let (shared, _clock) = limiter([policy().on_missing(Missing::Share)]);
    assert_eq!(admitted(&shared, &Request::new(()), 5), 2);
    assert_eq!(admitted(&shared, &with_header("k", "a"), 5), 2, "the shared bucket is no key's bucket");
    let (skipped, _clock) = limiter([policy().on_missing(Missing::Skip)]);
    assert_eq!(admitted(&skipped, &Request::new(()), 50), 50);
    assert_eq!(admitted(&skipped, &with_header("k", "a"), 5), 2);
}

#[test]
fn requests_with_no_key_and_with_several_share_two_buckets() {
    let (limiter, _clock) = limiter([Policy::per(Header::new("k"), Quota::per_minute(2)).on_missing(Missing::Share)]);
    assert_eq!(admitted(&limiter, &Request::new(()), 5), 2);
    let several = Request::builder().header("k", "a").header("k", "b").body(()).unwrap();
    assert_eq!(admitted(&limiter, &several, 5), 2);
}

#[test]
fn a_policy_may_count_what_others_deny_and_nothing_that_it_denies_itself() {
    let policies = |lone: bool| {
        let address = Policy::per(PeerIp, Quota::per_hour(6)).named("address").count_denied();
        let account = Policy::per(Header::new("account"), Quota::per_hour(2)).named("account");
        // Its bucket is an atomic, or locked beside another one.
        let all = Policy::global(Quota::per_hour(100)).named("all").count_denied();
        let other = Policy::global(Quota::per_hour(100)).named("other");
        [vec![account, address, all], if lone { vec![] } else { vec![other] }].concat()
    };
    for lone in [true, false] {
        let (limiter, clock) = limiter(policies(lone));
        let guess = |account: &str| {
            let mut request = from_ip(Ipv4Addr::LOCALHOST);
            request.headers_mut().insert("account", account.parse().unwrap());
            limiter.decide(&request)
        };
        let left = |policy: &str, key: &dyn tower_quota::key::IntoKey| limiter.peek(policy, key).unwrap().remaining();
        let lefts = || (left("address", &Ipv4Addr::LOCALHOST), left("account", &"ann"), left("all", &0));
        assert!(guess("ann").is_allowed() && guess("ann").is_allowed());
        assert_eq!(lefts(), (4, 0, 98));
        for n in 1..=4 {
            let denied = guess("ann").denied().unwrap();
            assert_eq!(denied.violated().map(|standing| standing.policy().to_owned()).collect::<Vec<_>>(), ["account"]);
            assert_eq!(lefts(), (4 - n, 0, 98 - n), "counted by address and in all, and not by account");
        }
        // Now the address denies, and takes nothing for that. What others deny counts in all.
        for n in 1..=3 {
            assert!(!guess("bob").is_allowed());
            assert_eq!((lefts(), left("account", &"bob")), ((0, 0, 94 - n), 2));
        }
        // A block of another policy's is a denial, too.
        clock.advance(Duration::from_secs(3_600));
        limiter.block("account", "ann", Duration::from_secs(60)).unwrap();
        assert!(!guess("ann").is_allowed());
        assert_eq!(left("address", &Ipv4Addr::LOCALHOST), 5);
        if !lone {
            assert_eq!(left("other", &0), 100, "full again, and nothing was counted");
        }
    }
}

#[test]
fn the_wait_of_a_request_that_was_counted_is_true_and_a_block_of_ones_own_counts_nothing() {
    let (limiter, clock) = limiter([
        Policy::by_key(Quota::every(Duration::from_secs(5))).named("account"),
        Policy::by_key(Quota::every(Duration::from_secs(180)).burst(2)).named("address").count_denied(),
    ]);
    let guess = || limiter.acquire_all(&[("account", &"ann", 1), ("address", &"a", 1)]);
    let left = || limiter.peek("address", "a").unwrap().remaining();
    guess().unwrap();
    // The account lacks a cell for five seconds. The last cell of the address is taken all the same.
    let error = guess().unwrap_err();
    let denied = error.denied().unwrap();
    assert_eq!((denied.policy(), denied.wait(), left()), ("account", Some(Duration::from_secs(180)), 0));
    clock.advance(Duration::from_secs(180) - Duration::from_nanos(1));
    assert!(guess().is_err());
    clock.advance(Duration::from_nanos(1));
    assert!(guess().is_ok());
    // Its own block is no denial of another policy's.
    clock.advance(Duration::from_secs(3_600));
    limiter.block("address", "a", Duration::from_secs(60)).unwrap();
    assert!((0..9).all(|_| guess().is_err()));
    assert_eq!(left(), 2);
}

#[test]
fn an_exception_is_not_for_those_whose_address_is_missing_or_forged() {
    let tries = |policy: Policy, forwarded: Option<&str>| {
        let (limiter, _) = limiter([policy]);
        let mut request = from_ip(Ipv4Addr::new(10, 0, 0, 1));
        if let Some(forwarded) = forwarded {
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        admitted(&limiter, &request, 3)
    };
    // The proxy is in the list by mistake: a request that it passes on without an address is rejected.
    let hops = || Policy::per(ClientIp::hops(1), Quota::per_hour(1)).except(["10.0.0.0/8"]).unwrap();
    assert_eq!((tries(hops(), None), tries(hops(), Some("junk"))), (0, 0));
    assert_eq!(tries(hops(), Some("203.0.113.9")), 1);
    // Whoever is counted by its connection is not excepted by what it writes.
    let direct = Policy::per(PeerIp.or(ClientIp::hops(1)), Quota::per_hour(1)).except(["192.0.2.0/24"]).unwrap();
    assert_eq!(tries(direct, Some("192.0.2.7")), 1);
}

#[test]
fn health_checks_and_offices_are_excepted_by_the_address_that_counts() {
    let networks = ["10.1.0.0/16", "192.0.2.7", "2001:db8::/32"];
    let by_peer = Policy::per(PeerIp, Quota::per_hour(1)).except(networks).unwrap();
    let behind = ClientIp::behind(["10.9.0.0/16"]).unwrap();
    let by_client = Policy::per(behind, Quota::per_hour(1)).except(networks).unwrap();
    let all = Policy::global(Quota::per_hour(1)).except(networks).unwrap();
    let tries = |policy: &Policy, peer: &str, forwarded: Option<&str>| {
        let (limiter, _) = limiter([policy.clone()]);
        let mut request = from_ip(peer.parse::<IpAddr>().unwrap());
        if let Some(forwarded) = forwarded {
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        admitted(&limiter, &request, 3)
    };
    for peer in ["10.1.2.3", "192.0.2.7", "::ffff:10.1.2.3", "2001:db8:1::1"] {
        assert_eq!([&by_peer, &by_client, &all].map(|policy| tries(policy, peer, None)), [3; 3], "{peer}");
    }
    for peer in ["10.2.0.1", "192.0.2.8", "2001:db9::1"] {
        assert_eq!([&by_peer, &by_client, &all].map(|policy| tries(policy, peer, None)), [1; 3], "{peer}");
    }
    // Behind a proxy the address of the client counts, and not what a client writes.
    assert_eq!(tries(&by_client, "10.9.0.1", Some("10.1.2.3")), 3);
    assert_eq!(tries(&by_client, "10.9.0.1", Some("10.1.2.3, 203.0.113.9")), 1);
    assert_eq!(tries(&by_peer, "10.9.0.1", Some("10.1.2.3")), 1);
    assert_eq!(tries(&by_client, "203.0.113.9", Some("10.1.2.3")), 1, "not a proxy");
    // Connections without an address.
    let unix = Policy::global(Quota::per_hour(1)).except(["unix:"]).unwrap();
    let (limiter, _) = limiter([unix]);
    assert_eq!(admitted(&limiter, &Request::new(()), 3), 3);
    assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::LOCALHOST), 3), 1);
    for wrong in ["10.1.0.1/16", "0.0.0.0/0", "office", ""] {
        let error: NetworkError = Policy::global(Quota::per_hour(1)).except([wrong]).unwrap_err();
        assert!(error.to_string().contains(&format!("{wrong:?}")), "{error}");
    }
}

#[test]
fn a_request_without_a_key_charges_no_policy() {
    let (limiter, _clock) =
        limiter([Policy::per(PeerIp, TEN), Policy::per(Header::new("k"), TEN), Policy::global(TEN)]);
    assert!(!admits(&limiter, &from_ip(Ipv4Addr::LOCALHOST)));
    assert!(limiter.is_empty());
    assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().remaining(), 10);
}

#[test]
fn a_cost_is_charged_in_cells() {
    let (limiter, _clock) =
        limiter([Policy::global(TEN).cost_by(|head| if head.uri().path() == "/export" { 4 } else { 1 })]);
    let export = Request::builder().uri("/export").body(()).unwrap();
    assert_eq!(admitted(&limiter, &export, 5), 2);
    assert_eq!(admitted(&limiter, &Request::new(()), 5), 2);
}

#[test]
fn a_policy_that_can_never_grant_hides_the_waits_of_the_others() {
    let (limiter, _clock) =
        limiter([Policy::global(TEN).named("a"), Policy::global(Quota::per_second(5)).named("b").cost_by(|_| 6)]);
    let denied = limiter.decide(&Request::new(())).denied().unwrap();
    assert_eq!((denied.reason(), denied.retry_after()), (Reason::CostAboveBurst, None));
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(denied.policy(), "b");
    assert_eq!(denied.to_string(), "The request costs more than is ever allowed at once. Waiting does not help.");
}

mod plans {
    use super::*;

    const SLOW: Quota = Quota::per_minute(5);
    const FAST: Quota = Quota::per_second(100);

    fn plan(quota: Quota) -> Request<()> {
        let mut request = with_header("k", "a");
        request.extensions_mut().insert(quota);
        request
    }

    fn planned() -> (Limiter, tower_quota::clock::ManualClock) {
        limiter([Policy::per(Header::new("k"), SLOW).quota_by(|head| head.extensions().get::<Quota>().copied())])
    }

    #[test]
    fn the_bucket_survives_a_change_of_plan() {
        let (limiter, _clock) = planned();
        assert_eq!(admitted(&limiter, &with_header("k", "a"), 10), 5, "none is chosen: the policy's own");
        assert_eq!(admitted(&limiter, &plan(FAST), 200), 95, "the upgrade hands out no fresh burst");
        assert_eq!(limiter.len(), 1);
    }

    #[test]
    fn ops08_an_upgrade_serves_at_once_what_is_left_of_it() {
        let (limiter, clock) = planned();
        assert_eq!(admitted(&limiter, &plan(SLOW), 10), 5);
        assert_eq!(admitted(&limiter, &plan(FAST), 200), 95);
        assert_eq!(wait(&limiter, &plan(FAST)), Some(Duration::from_millis(10)));
        clock.advance(Duration::from_secs(1));
        assert_eq!(admitted(&limiter, &plan(FAST), 200), 100);
    }

    #[test]
    fn going_back_to_the_former_plan_gives_back_no_cells() {
        let (limiter, clock) = planned();
        assert_eq!(admitted(&limiter, &plan(SLOW), 10), 5);
        assert!(admits(&limiter, &plan(FAST)));
        // Six are used of five. Two come back at the rate of the plan that decided last.
        assert_eq!(wait(&limiter, &plan(SLOW)), Some(Duration::from_millis(20)));
        clock.advance(Duration::from_millis(20));
        assert_eq!(admitted(&limiter, &plan(SLOW), 10), 1);
        assert_eq!(wait(&limiter, &plan(SLOW)), Some(Duration::from_secs(12)));
    }

    #[test]
    fn after_a_downgrade_what_is_used_comes_back_at_the_former_rate() {
        let (limiter, clock) = planned();
        assert_eq!(admitted(&limiter, &plan(FAST), 200), 100);
        assert_eq!(wait(&limiter, &plan(SLOW)), Some(Duration::from_millis(960)), "four used of five");
        assert_eq!(wait(&limiter, &plan(SLOW)), Some(Duration::from_millis(960)), "a denial makes nothing longer");
        clock.advance(Duration::from_secs(1));
        assert_eq!(admitted(&limiter, &plan(SLOW), 10), 5);
    }
}

mod control {
    use super::*;

    #[test]
    fn a_charge_erases_nothing_of_what_a_slower_plan_owes() {
        let slow = Quota::per_minute(5);
        let (limiter, clock) =
            limiter([Policy::per(Header::new("k"), Quota::per_second(100)).quota_by(move |_| Some(slow))]);
        let (request, key) = (with_header("k", "a"), limiter.key("a"));
        let mut admitted = 0;
        for _ in 0..20 {
            admitted += super::admitted(&limiter, &request, 10);
            limiter.charge("per-k", key, 1).unwrap();
            clock.advance(Duration::from_secs(2));
        }
        assert!(admitted <= 5 + 40 / 12, "{admitted} requests in 40 seconds at 5 a minute");
    }

    #[test]
    fn a_peek_shows_the_plan_that_decided_and_changes_nothing() {
        let slow = Quota::per_minute(5);
        let (limiter, _clock) = limiter([Policy::global(Quota::per_second(100)).quota_by(move |_| Some(slow))]);
        assert_eq!(admitted(&limiter, &Request::new(()), 10), 5);
        for _ in 0..2 {
            let standing = limiter.peek("global", Key::GLOBAL).unwrap();
            assert_eq!((standing.quota(), standing.until_full()), (Some(slow), Duration::from_secs(60)));
        }
        assert!(!admits(&limiter, &Request::new(())));
    }

    #[test]
    fn a_cost_that_can_never_be_granted_converts_nothing() {
        let fast = Quota::per_second(100);
        let (limiter, clock) = limiter([Policy::global(Quota::per_minute(5))
            .quota_by(move |head| head.headers().contains_key("fast").then_some(fast))
            .cost_by(|head| if head.headers().contains_key("fast") { 1_000 } else { 1 })]);
        assert_eq!(admitted(&limiter, &Request::new(()), 10), 5);
        assert!(!admits(&limiter, &with_header("fast", "1")));
        clock.advance(Duration::from_secs(12));
        assert_eq!(admitted(&limiter, &Request::new(()), 10), 1);
    }

    #[test]
    fn the_key_of_a_client_is_what_the_extractor_makes_of_its_address() {
        let address: IpAddr = "2001:db8::7".parse().unwrap();
        let site = PeerIp.v6_prefix(48);
        let (limiter, _clock) = limiter([Policy::per(PeerIp, TEN), Policy::per(site, TEN).named("site")]);
        assert_eq!(admitted(&limiter, &from_ip(address), 3), 3);
        let neighbour = "2001:db8::ffff:1".parse().unwrap();
        assert_eq!(limiter.peek("per-ip", limiter.key(PeerIp.network(neighbour))).unwrap().remaining(), 7);
        assert_eq!(limiter.peek("site", limiter.key(site.network(neighbour))).unwrap().remaining(), 7);
        let [plain, mapped, other] =
            ["192.0.2.1", "::ffff:192.0.2.1", "::ffff:192.0.2.2"].map(|text| text.parse().unwrap());
        assert_eq!(limiter.key(PeerIp.network(plain)), limiter.key(PeerIp.network(mapped)));
        assert_ne!(limiter.key(PeerIp.network(mapped)), limiter.key(PeerIp.network(other)));
    }

    #[test]
    fn a_charge_makes_a_key_only_for_what_is_owed() {
        let (limiter, _clock) = limiter([Policy::per(Header::new("k"), TEN)]);
        limiter.charge("per-k", limiter.key("a"), 0).unwrap();
        assert!(limiter.is_empty());
        limiter.charge("per-k", limiter.key("a"), 1).unwrap();
        assert_eq!(limiter.len(), 1);
    }

    #[test]
    fn what_is_refunded_can_be_acquired_again_and_what_time_returned_cannot() {
        let (limiter, clock) = limiter([Policy::per(Header::new("k"), TEN).cost_by(|_| 10), Policy::global(TEN)]);
        let request = with_header("k", "a");
        let Decision::Allow(allowed) = limiter.decide(&request) else { panic!("denied") };
        clock.advance(Duration::from_millis(50));
        limiter.refund(allowed);
        assert_eq!(limiter.peek("per-k", limiter.key("a")).unwrap().until_full(), Duration::from_millis(0));
        assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().until_full(), Duration::ZERO);
        assert!(admits(&limiter, &request));
        assert!(!admits(&limiter, &request));
    }

    /// A denial may convert a bucket: where the denying quota is faster.
    #[test]
    fn a_refund_returns_nothing_to_a_bucket_that_was_converted() {
        let (limiter, _clock) =
            limiter([Policy::global(Quota::per_minute(5)).quota_by(|head| head.extensions().get::<Quota>().copied())]);
        let mut first = None;
        for _ in 0..5 {
            let Decision::Allow(allowed) = limiter.decide(&Request::new(())) else { panic!("denied") };
            first.get_or_insert(allowed);
        }
        let mut fast = Request::new(());
        fast.extensions_mut().insert(Quota::per_second(100).burst(2));
        assert_eq!(wait(&limiter, &fast), Some(Duration::from_millis(40)));
        let before = limiter.peek("global", Key::GLOBAL).unwrap().until_full();
        assert_eq!(before, Duration::from_millis(50));
        limiter.refund(first.unwrap());
        assert_eq!(limiter.peek("global", Key::GLOBAL).unwrap().until_full(), before);
    }

    #[test]
    fn a_refund_to_another_limiter_returns_nothing() {
        let build = || limiter([Policy::global(TEN)]).0;
        let (one, other) = (build(), build());
        assert_eq!(admitted(&other, &Request::new(()), 3), 3);
        let Decision::Allow(allowed) = one.decide(&Request::new(())) else { panic!("denied") };
        other.refund(allowed);
        assert_eq!(other.peek("global", Key::GLOBAL).unwrap().remaining(), 7);
    }

    #[test]
    fn a_charge_beyond_what_is_there_becomes_debt() {
        let (limiter, clock) = limiter([Policy::per(Header::new("k"), TEN)]);
        let key = limiter.key("a");
        assert_eq!(limiter.charge("per-k", key, 12).unwrap().remaining(), 0);
        assert_eq!(wait(&limiter, &with_header("k", "a")), Some(Duration::from_millis(300)));
        assert_eq!(limiter.charge("per-k", key, u32::MAX).unwrap().until_full(), Duration::from_secs(2));
        clock.advance(Duration::from_secs(2));
        assert_eq!(admitted(&limiter, &with_header("k", "a"), 20), 10);
    }

    #[test]
    fn a_peek_acquires_nothing_and_makes_no_key() {
        let (limiter, _clock) = limiter([Policy::per(Header::new("k"), TEN)]);
        let standing = limiter.peek("per-k", limiter.key("a")).unwrap();
        assert_eq!((standing.remaining(), standing.limit(), standing.next_cell()), (10, 10, None));
        assert!(limiter.is_empty());
    }

    #[test]
    fn an_unknown_policy_is_an_error_that_lists_the_known_ones() {
        let (limiter, _clock) = limiter([Policy::global(TEN), Policy::per(PeerIp, TEN)]);
        let error = limiter.peek("per-iq", Key::GLOBAL).unwrap_err();
        assert_eq!(error.to_string(), r#"no policy is named "per-iq": use one of ["per-ip", "global"]"#);
        assert!(limiter.charge("", Key::GLOBAL, 1).is_err());
    }
}

mod configuration {
    use super::*;

    fn denied(policies: impl IntoIterator<Item = Policy>) -> String {
        Limiter::builder().policies(policies).build().expect_err("denied").to_string()
    }

    #[test]
    fn ops10_faults_are_found_when_the_limiter_is_built_with_a_remedy_in_the_message() {
        assert_eq!(
            denied([]),
            "the limiter has no policy and would limit nothing: add a policy, or call `allow_empty` where that is meant"
        );
        assert_eq!(
            denied([Policy::per(PeerIp, TEN), Policy::per(PeerIp, TEN)]),
            r#"two policies are named "per-ip": rename one with `Policy::named`"#
        );
        assert_eq!(denied([Policy::global(TEN).named("")]), "a policy's name is empty: name it with `Policy::named`");
        for name in ["caf\u{e9}", "a\nb", "\u{7f}", "日"] {
            assert!(denied([Policy::global(TEN).named(name)]).contains("not printable ASCII"), "{name:?}");
        }
        for keys in [0, usize::MAX] {
            assert!(denied([Policy::per(PeerIp, TEN).max_keys(keys)]).contains("set `Policy::max_keys`"));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_says_keys_that_callers_name_exceptions_and_fractional_rates() {
        let read = |text: &str| toml::from_str::<Policy>(text);
        let account = read("key = 'by-key'\nname = 'account'\nquota = '0.5/h, burst 2'").unwrap();
        assert!(account.is_by_key() && *account.limit() == Quota::every(Duration::from_secs(7_200)).burst(2));
        let (limiter, _) = limiter([read("key = 'global'\nquota = '1/h'\nexcept = ['10.1.0.0/16']").unwrap(), account]);
        assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::new(10, 1, 2, 3)), 3), 3);
        assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::new(10, 2, 2, 3)), 3), 1);
        assert!(limiter.acquire_n("account", "ann", 2).is_ok());
        let wrong = read("key = 'global'\nquota = '1/h'\nexcept = ['10.1.2.3/16']").unwrap_err();
        assert!(wrong.to_string().contains("10.1.2.3/16"));
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_says_which_requests_count_what_they_cost_and_who_is_banned() {
        use tower_quota::{
            config::{PolicyConfig, PolicyConfigErrorKind as Kind},
            decision::Reason,
        };

        let config = |text: &str| toml::from_str::<PolicyConfig>(text).unwrap();
        let read = |more: &str| toml::from_str::<Policy>(&format!("key = 'peer-ip'\nquota = '4/h'\n{more}"));
        let tries = |policy: Policy, method: &str, path: &str| {
            let (limiter, _) = limiter([policy]);
            let mut request = from_ip(Ipv4Addr::LOCALHOST);
            (*request.method_mut(), *request.uri_mut()) = (method.parse().unwrap(), path.parse().unwrap());
            admitted(&limiter, &request, 9)
        };
        let writes = || read("methods = ['POST', 'PUT']\npaths = ['/login', '/api/**']\ncost = 2").unwrap();
        for (method, path, admitted) in [
            ("POST", "/login", 2),
            ("PUT", "/api/items/7?x=1", 2),
            ("GET", "/login", 9),
            ("POST", "/", 9),
            ("POST", "/logins", 9),
        ] {
            assert_eq!(tries(writes(), method, path), admitted, "{method} {path}");
        }
        let (limiter, _) = limiter([read("ban = { denials = 2, window-seconds = 60, initial-seconds = 7 }").unwrap()]);
        let denial = || limiter.decide(&from_ip(Ipv4Addr::LOCALHOST)).denied();
        assert_eq!((0..4).filter(|_| denial().is_none()).count(), 4);
        assert_eq!([(); 2].map(|()| denial().unwrap().reason()), [Reason::Exceeded, Reason::Blocked]);
        for (wrong, says) in [
            ("methods = ['post']", "in capitals"),
            ("methods = ['']", "not a method"),
            ("methods = []", "leave it out"),
            ("paths = []", "leave it out"),
            ("paths = ['login']", "\"login\""),
            ("ban = { denials = 0, window-seconds = 60 }", "the ban"),
            ("ban = { denials = 2, window-seconds = 60, initial-seconds = 0 }", "at least 1"),
            ("ban = { denials = 2, window-seconds = 60, max-seconds = 10 }", "no less than"),
            ("cost = 5", "above the burst"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        // What a policy without keys would ignore.
        for ignored in ["on-missing = 'share'", "max-keys = 7", "max-keys-per-network = 7", "at-cap = 'deny'"] {
            let error = toml::from_str::<Policy>(&format!("key = 'global'\nquota = '4/h'\n{ignored}")).unwrap_err();
            assert!(error.to_string().contains("leave it out"), "{error}");
        }
        // The same of a configuration that code has made.
        let mut made = config("name = 'p'\nkey = 'global'\nquota = '1/s'");
        made.methods = vec!["post".to_owned()];
        let error = Policy::try_from(made).unwrap_err();
        assert!(matches!(error.kind(), Kind::Method(_)) && error.policy() == "p", "{error}");
        assert!(toml::from_str::<PolicyConfig>("key = 'global'\nquota = '1/s'\nmethod = ['POST']").is_err());
        // What was read is written, and read again.
        let full =
            config("key = 'global'\nquota = '3/s'\nmethods = ['GET']\npaths = ['/']\ncost = 3\ncount-denied = true");
        assert_eq!(serde_json::from_str::<PolicyConfig>(&serde_json::to_string(&full).unwrap()).unwrap(), full);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_says_plans_whose_name_code_chooses() {
        #[derive(Clone)]
        struct Plan(&'static str);

        let read = |quota: &str| -> Policy {
            toml::from_str(&format!("key = 'peer-ip'\nquota = '2/h'\nplans = {{ pro = '{quota}', team = '9/h' }}"))
                .unwrap()
        };
        let read = |quota: &str| read(quota).plan_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0));
        let (limiter, _) = limiter([read("5/h")]);
        let request = |plan: Option<&'static str>| {
            let mut request = from_ip(Ipv4Addr::LOCALHOST);
            if let Some(plan) = plan {
                request.extensions_mut().insert(Plan(plan));
            }
            request
        };
        assert_eq!(admitted(&limiter, &request(None), 9), 2);
        assert_eq!(admitted(&limiter, &request(Some("pro")), 9), 3);
        assert_eq!(admitted(&limiter, &request(Some("team")), 9), 4);
        // Nobody has set it: the policy's own quota, and an event.
        assert!(!admits(&limiter, &request(Some("enterprise"))));
        assert_eq!(admitted(&limiter, &request(Some("team")), 9), 0);
        assert_eq!(limiter.policies()[0].plan("pro").and_then(Limit::quota), Some(Quota::per_hour(5)));
        assert_eq!(limiter.policies()[0].plan("enterprise"), None);
        // The file has changed.
        let limiter = limiter.with_policies([read("20/h")]).unwrap();
        assert_eq!(admitted(&limiter, &request(Some("pro")), 99), 11);
        // Nothing says which plan a request has.
        let unchosen = Limiter::builder().policy(Policy::per(PeerIp, TEN).plans([("pro", TEN)])).build().unwrap_err();
        assert_eq!(unchosen.kind(), ConfigErrorKind::NoPlanBy);
        let by_key = Policy::by_key(TEN).plans([("pro", Quota::per_second(20))]);
        let limiter = Limiter::new(by_key);
        let pro = limiter.policies()[0].plan("pro").unwrap();
        assert_eq!(
            limiter.acquire_as("by-key", 7_u8, pro, 1).map(|_| limiter.peek("by-key", 7_u8).unwrap().limit()).unwrap(),
            20
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_file_says_every_key_that_needs_no_code() {
        let read = |key: &str| toml::from_str::<Policy>(&format!("key = {key}\nquota = '1/h'"));
        let from = |address: &str, forwarded: &str| {
            let mut request = from_ip(address.parse::<IpAddr>().unwrap());
            request.headers_mut().insert("x-forwarded-for", forwarded.parse().unwrap());
            request
        };
        // Whether the second request has the key of the first one.
        let same = |key: &str, first: Request<()>, second: Request<()>| {
            let (limiter, _) = limiter([read(key).unwrap()]);
            assert!(admits(&limiter, &first));
            !admits(&limiter, &second)
        };
        let post = |mut request: Request<()>| {
            *request.method_mut() = http::Method::POST;
            request
        };
        let (a, b, c) = (
            || from("2001:db8:0:1::1", "1.1.1.1"),
            || from("2001:db8:0:2::1", "1.1.1.2"),
            || from("10.0.0.1", "1.1.1.3"),
        );
        let network = "{ peer-network = { v6-prefix = 48 } }";
        assert!(same(network, a(), b()) && !same(network, a(), c()) && !same("'peer-ip'", a(), b()));
        let hops = "{ client-ip = { hops = 1, v4-prefix = 24 } }";
        assert!(same(hops, a(), b()) && !same("{ client-ip = { hops = 1 } }", a(), b()));
        let behind = "{ client-ip = { behind = ['2001:db8::/32'], v4-prefix = 24 } }";
        assert!(same(behind, a(), b()) && !same(behind, a(), c()), "no proxy is its own client");
        let each = "{ each = ['peer-ip', 'method'] }";
        assert!(same(each, a(), a()) && !same(each, a(), post(a())) && same("'method'", a(), c()));
        let keyed = |address: &str, key: &str| {
            let mut request = from(address, "");
            request.headers_mut().insert("k", key.parse().unwrap());
            request
        };
        let first_of = "{ first-of = [{ header = 'k' }, 'peer-ip'] }";
        assert!(same(first_of, keyed("10.0.0.1", "x"), keyed("10.0.0.2", "x")));
        assert!(same(first_of, c(), c()) && !same(first_of, keyed("10.0.0.1", "x"), c()));
        for (wrong, says) in [
            ("{ each = ['peer-ip'] }", "two or three"),
            ("{ each = ['peer-ip', 'global'] }", "no part of a key"),
            ("{ first-of = ['peer-ip'] }", "at least two"),
            ("{ client-ip = { hops = 0 } }", "1 to 32"),
            ("{ client-ip = { hops = 1, behind = ['10.0.0.0/8'] } }", "either"),
            ("{ client-ip = { hops = 1, field = 'x-real-ip' } }", "known proxies"),
            ("{ client-ip = { behind = ['10.0.0.0/8'], v4-prefix = 7 } }", "8 to 32"),
            ("{ peer-network = { v6-prefix = 129 } }", "32 to 128"),
            ("{ client-ip = {} }", "no proxy is trusted"),
            ("{ header = 'a b' }", "header field"),
            ("'cookie'", "unknown variant"),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn the_error_of_a_file_names_the_line() {
        #[derive(Debug, serde::Deserialize)]
        struct Limits {
            policies: Vec<Policy>,
        }

        let good = "[[policies]]\nkey = 'global'\nquota = '1/s'\n\n";
        let limits: Limits = toml::from_str(&good.repeat(2)).unwrap();
        assert_eq!(limits.policies.len(), 2);
        for (wrong, line, says) in [
            ("[[policies]]\nname = 'b'\nkey = 'peer-ip'\nquota = '1/s'\nmethods = ['post']\n", 9, "in capitals"),
            ("[[policies]]\nname = 'b'\nkey = 'peer-ip'\nquota = '1/s'\nenforce-for = 2.0\n", 9, "enforce-for is 2"),
            ("[[policies]]\nname = 'b'\nkey = 'peer-ip'\nquota = '0/s'\n", 8, "quota"),
            ("[[policies]]\nkey = 'peer-ip'\nquota = '1/s'\nname = ''\n", 8, "printable ASCII"),
            ("[[policies]]\nkey = 'peer-ip'\nquota = '1/s'\nunit = 'caf\u{e9}'\n", 8, "printable ASCII"),
            ("[[policies]]\nkey = 'peer-ip'\nquota = '1/s'\nmax-keys = 0\n", 8, "from 1 to"),
            ("[[policies]]\nkey = 'peer-ip'\nquota = '1/s'\nmax-keys-per-network = 0\n", 8, "from 1 to"),
            ("[[policies]]\nname = 'b'\nkey = 'peer-ip'\nquota = '1/s'\npath = ['/']\n", 9, "unknown field `path`"),
        ] {
            let error = toml::from_str::<Limits>(&format!("{good}{wrong}")).unwrap_err().to_string();
            assert!(error.contains(&format!("line {line},")) && error.contains(says), "{error}");
        }
        let json = r#"{ "policies": [
            { "key": "global", "quota": "1/s",
              "cost": 0 }
        ] }"#;
        let error = serde_json::from_str::<Limits>(json).unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("cost is 0"), "{error}");
    }

    #[test]
    fn c_sf2_quotes_and_backslashes_are_fine_in_a_name() {
        let (limiter, _clock) = limiter([Policy::global(TEN).named(r#"a "b" \c"#)]);
        assert!(admits(&limiter, &Request::new(())));
    }

    #[test]
    fn an_error_has_its_kind_and_the_policy() {
        let error = Limiter::builder().policies([Policy::global(TEN), Policy::global(TEN)]).build().unwrap_err();
        assert_eq!((error.kind(), error.policy()), (ConfigErrorKind::DuplicateName, "global"));
        let error = RateLimitLayer::try_new(Vec::new()).unwrap_err();
        assert_eq!((error.kind(), error.policy()), (ConfigErrorKind::NoPolicy, ""));
        assert!(error.to_string().contains("allow_empty"), "{error}");
        // Where it is meant.
        let empty = Limiter::builder().allow_empty().build().unwrap();
        assert!((0..9).all(|_| admits(&empty, &Request::new(()))));
        assert!(empty.policies().is_empty() && RateLimitLayer::try_new(&empty).is_ok());
    }

    #[test]
    #[should_panic(expected = "two policies are named \"global\"")]
    fn a_limiter_made_on_the_spot_panics_with_the_same_words() {
        let _ = Limiter::new([Policy::global(TEN), Policy::global(TEN)]);
    }

    #[test]
    #[should_panic(expected = "valid name")]
    fn a_header_that_cannot_be_sent_is_denied() {
        let _ = Header::new("x api key");
    }
}
