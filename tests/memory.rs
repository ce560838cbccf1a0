//! Memory: bounded, given back, and nobody's live bucket is forgotten for it.

mod support;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use http::Request;
use support::{admits, admitted, from_ip, limiter, with_header};
use tower_quota::{
    Decision, Limiter, Policy, Quota,
    decision::Reason,
    key::{Header, PeerIp, key_fn},
    policy::AtCap,
};

const HOUR: Quota = Quota::per_hour(3);

/// An address in the network `network`.0.0/16, counted from 1.
fn address(network: u16, host: u16) -> Ipv4Addr {
    let [a, b] = network.to_be_bytes();
    let [c, d] = host.to_be_bytes();
    Ipv4Addr::new(a, b, c, d)
}

/// Five million addresses from all networks against a cap of one million.
#[test]
fn mem01_mem02_a_flood_of_five_million_keys_forgets_no_live_bucket() {
    const CAP: usize = 1_000_000;
    let (limiter, clock) = limiter([Policy::per(PeerIp, HOUR).max_keys(CAP)]);
    let victim = from_ip(Ipv4Addr::new(203, 0, 113, 7));
    let innocent = from_ip(Ipv4Addr::new(198, 51, 100, 7));
    assert_eq!(admitted(&limiter, &victim, 5), 3);
    assert!(admits(&limiter, &innocent));

    let most = AtomicUsize::new(0);
    thread::scope(|scope| {
        for half in 0..2_u32 {
            let (limiter, most) = (&limiter, &most);
            scope.spawn(move || {
                for n in 0..2_500_000_u32 {
                    // Spread over all of IPv4 by an odd factor; the two halves are disjoint.
                    let flooder = from_ip(Ipv4Addr::from((n * 2 + half).wrapping_mul(2_654_435_761)));
                    let _ = limiter.decide(&flooder);
                    if n % 4_096 == 0 {
                        most.fetch_max(limiter.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });

    assert!(most.into_inner() <= CAP && limiter.len() <= CAP);
    assert!(limiter.len() > CAP * 9 / 10, "{} keys: the flood has not filled the map", limiter.len());
    assert_eq!(admitted(&limiter, &victim, 5), 0, "the victim of the flood has a fresh bucket");
    assert_eq!(admitted(&limiter, &innocent, 5), 2, "a client that was there before has lost its bucket");

    // The flood owes for twenty minutes a key: then all of it is swept, and new clients have buckets of their own.
    clock.advance(Duration::from_secs(20 * 60));
    assert!(limiter.sweep() > CAP * 9 / 10);
    assert_eq!(limiter.len(), 2, "victim and innocent owe for longer");
    assert_eq!(admitted(&limiter, &victim, 5), 1);
    assert_eq!(admitted(&limiter, &from_ip(Ipv4Addr::new(192, 0, 2, 1)), 5), 3);
}

#[test]
fn one_network_fills_its_share_and_locks_out_no_other() {
    let (limiter, clock) = limiter([Policy::per(PeerIp, HOUR).max_keys(6_400).max_keys_per_network(100)]);
    for host in 0..100 {
        assert!(admits(&limiter, &from_ip(address(0x0a01, host))));
    }
    assert_eq!(limiter.len(), 100);
    // Newcomers of the same network share one bucket of the overflow; all others have buckets of their own.
    let newcomers = (100..1_000).filter(|host| admits(&limiter, &from_ip(address(0x0a01, *host))));
    assert_eq!(newcomers.count(), 3);
    assert_eq!(limiter.len(), 100);
    for network in 0x0a02..0x0a30 {
        assert_eq!(admitted(&limiter, &from_ip(address(network, 1)), 5), 3, "{network:#x} is locked out");
    }
    // When its keys owe nothing any more, the network has its share again.
    clock.advance(Duration::from_secs(3_600));
    limiter.sweep();
    assert!(limiter.is_empty());
    for host in 2_000..2_100 {
        assert_eq!(admitted(&limiter, &from_ip(address(0x0a01, host)), 5), 3);
    }
}

#[test]
fn a_small_map_serves_the_clients_of_one_network() {
    for max_keys in [100, 1_000, 4_096_u16] {
        let (limiter, _clock) = limiter([Policy::per(PeerIp, HOUR).max_keys(max_keys.into())]);
        for host in 0..max_keys * 3 / 4 {
            assert_eq!(admitted(&limiter, &from_ip(address(0x0a01, host)), 5), 3, "{host} of {max_keys}");
        }
        // Whatever else comes from there, others have room.
        for host in 0..10_000 {
            let _ = limiter.decide(&from_ip(address(0x0a01, host)));
        }
        let others = 0..max_keys / 8;
        let served = others.clone().filter(|n| admitted(&limiter, &from_ip(address(0x0b00 + n, 1)), 5) == 3);
        // One in 8,000 runs finds a network that shares both count and overflow with the full one.
        assert!(served.count() + 1 >= others.len(), "of {max_keys}");
    }
}

#[test]
fn a_network_may_have_as_many_keys_as_its_policy_says() {
    let policy = || Policy::per(PeerIp, HOUR).max_keys(10_000);
    for (policy, share) in [
        (policy(), 4_096),
        (policy().max_keys_per_network(9_000), 9_000),
        (policy().max_keys_per_network(usize::MAX), 10_000),
    ] {
        let (limiter, _clock) = limiter([policy]);
        for host in 0..12_000 {
            let _ = limiter.decide(&from_ip(address(0x0a01, host)));
        }
        assert_eq!(limiter.len(), share);
    }
    let refused = Limiter::builder().policy(policy().max_keys_per_network(0)).build().unwrap_err();
    assert!(refused.to_string().contains("`Policy::max_keys_per_network`"), "{refused}");
}

#[test]
fn one_ipv6_network_fills_its_share_and_locks_out_no_other() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, HOUR).max_keys(6_400).max_keys_per_network(100)]);
    let in_network = |network: u16, subnet: u16| {
        from_ip(Ipv6Addr::new(0x2001, 0xdb8, network << 8, subnet, 0, 0, 0, 1)) // a /40, then /64s in it
    };
    for subnet in 0..10_000 {
        let _ = limiter.decide(&in_network(1, subnet));
    }
    assert_eq!(limiter.len(), 100);
    assert!(!admits(&limiter, &in_network(1, 50_000)));
    assert_eq!(admitted(&limiter, &in_network(2, 1), 5), 3);
}

#[test]
fn combinations_with_an_address_are_subject_to_its_share() {
    let by_path = || key_fn(|head| Some(head.uri().path().to_owned()));
    let (limiter, _clock) = limiter([Policy::per((PeerIp, by_path()), HOUR).named("pairs").max_keys_per_network(100)]);
    for n in 0..1_000 {
        let mut request = from_ip(Ipv4Addr::new(10, 1, 0, 1));
        *request.uri_mut() = format!("/{n}").parse().unwrap();
        let _ = limiter.decide(&request);
    }
    assert_eq!(limiter.len(), 100);
    let mut elsewhere = from_ip(Ipv4Addr::new(10, 2, 0, 1));
    *elsewhere.uri_mut() = "/1".parse().unwrap();
    assert!(admits(&limiter, &elsewhere));
    assert_eq!(limiter.len(), 101, "another network has a share of its own");
}

#[test]
fn one_key_never_competes_with_itself_for_the_last_place() {
    for at_cap in [AtCap::Overflow, AtCap::Allow, AtCap::Deny] {
        for _ in 0..300 {
            let policy = Policy::per(Header::new("k"), Quota::per_hour(1)).max_keys(1).at_cap(at_cap);
            let (limiter, _clock) = limiter([policy]);
            let start = Barrier::new(4);
            let total: usize = thread::scope(|scope| {
                let racers = [0; 4].map(|_| {
                    scope.spawn(|| {
                        let request = with_header("k", "a");
                        start.wait();
                        usize::from(admits(&limiter, &request))
                    })
                });
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(total, 1, "{at_cap:?}");
        }
    }
}

#[test]
fn a_refund_goes_to_the_bucket_that_granted() {
    let (limiter, _clock) = limiter([Policy::per(Header::new("k"), HOUR).max_keys(1)]);
    assert!(admits(&limiter, &with_header("k", "first")));
    let newcomer = with_header("k", "second");
    assert_eq!(admitted(&limiter, &newcomer, 2), 2);
    let Decision::Allow(allowed) = limiter.decide(&newcomer) else { panic!("the overflow has three") };
    assert!(!admits(&limiter, &newcomer));
    limiter.refund(allowed);
    assert_eq!(admitted(&limiter, &newcomer, 2), 1);
}

#[test]
fn a_cost_that_only_a_plan_can_pay_is_not_called_impossible_for_lack_of_room() {
    let policy = Policy::per(Header::new("k"), HOUR).max_keys(1).quota_by(|_| Some(Quota::per_hour(100)));
    let policy = policy.cost_by(|head| if head.uri().path() == "/huge" { 1_000 } else { 10 });
    let (limiter, clock) = limiter([policy]);
    assert!(admits(&limiter, &with_header("k", "first")));
    let mut newcomer = with_header("k", "second");
    let reason = |request: &Request<()>| limiter.decide(request).denied().unwrap().reason();
    assert_eq!(reason(&newcomer), Reason::AtCapacity);
    *newcomer.uri_mut() = "/huge".parse().unwrap();
    assert_eq!(reason(&newcomer), Reason::CostAboveBurst);
    clock.advance(Duration::from_secs(3_600));
    limiter.sweep();
    assert!(admits(&limiter, &with_header("k", "second")));
}

#[test]
fn a_cost_of_the_whole_base_burst_is_paid_out_of_the_overflow() {
    let policy = Policy::per(Header::new("k"), HOUR).max_keys(1).quota_by(|_| Some(Quota::per_hour(100)));
    let (limiter, _clock) = limiter([policy.cost_by(|_| HOUR.burst_size())]);
    assert!(admits(&limiter, &with_header("k", "first")));
    let newcomer = with_header("k", "second");
    assert!(admits(&limiter, &newcomer));
    assert_eq!(limiter.decide(&newcomer).denied().unwrap().reason(), Reason::Exceeded);
}

#[test]
fn at_the_cap_a_new_key_acquires_from_the_overflow_by_the_base_quota() {
    let plan = Quota::per_hour(1_000);
    let policy = Policy::per(Header::new("k"), HOUR).max_keys(16).quota_by(move |_| Some(plan));
    let (limiter, _clock) = limiter([policy]);
    for n in 0..16 {
        assert!(admits(&limiter, &with_header("k", format!("{n}"))));
    }
    // One slot for all of them: three requests, not a thousand.
    let newcomers = (0..50).filter(|n| admits(&limiter, &with_header("k", format!("new {n}"))));
    assert_eq!(newcomers.count(), 3);
    assert_eq!(limiter.len(), 16);
    assert!(admits(&limiter, &with_header("k", "3")), "those who were there have their own");
}

#[test]
fn m4_deny_and_allow_are_written_out() {
    let full = |at_cap| {
        let (limiter, clock) = limiter([
            Policy::per(Header::new("k"), HOUR).max_keys(1).at_cap(at_cap),
            Policy::global(Quota::per_hour(20)),
        ]);
        assert!(admits(&limiter, &with_header("k", "first")));
        (limiter, clock)
    };
    let newcomer = with_header("k", "second");

    let (denying, clock) = full(AtCap::Deny);
    let denied = denying.decide(&newcomer).denied().unwrap();
    assert_eq!((denied.reason(), denied.retry_after()), (Reason::AtCapacity, None));
    assert_eq!(denying.peek("global", tower_quota::Key::GLOBAL).unwrap().remaining(), 19, "a denial has charged");
    clock.advance(Duration::from_secs(3_600));
    denying.sweep();
    assert!(admits(&denying, &newcomer), "there is room again");

    let costly = Policy::per(Header::new("k"), HOUR)
        .max_keys(1)
        .at_cap(AtCap::Allow)
        .cost_by(|head| if head.headers().get("k").is_some_and(|key| key == "first") { 1 } else { 100 });
    let (uncounted, _clock) = limiter([costly]);
    assert!(admits(&uncounted, &with_header("k", "first")));
    assert!(admits(&uncounted, &newcomer), "not counted means at any cost");

    let (allowing, _clock) = full(AtCap::Allow);
    assert_eq!(admitted(&allowing, &newcomer, 50), 19, "not counted by key, and yet by the others");
}

#[test]
fn a_denied_request_makes_no_key() {
    let (limiter, _clock) = limiter([Policy::per(PeerIp, Quota::per_hour(10)), Policy::per(Header::new("k"), HOUR)]);
    // ID12: the policy per address stands before the policy per invented key.
    for n in 0..10_000 {
        let mut request = from_ip(Ipv4Addr::LOCALHOST);
        request.headers_mut().insert("k", n.into());
        let _ = limiter.decide(&request);
    }
    assert_eq!(limiter.len(), 1 + 10);
}

#[test]
fn mem05_swept_keys_are_gone_and_those_that_owe_stay() {
    let (limiter, clock) = limiter([Policy::per(Header::new("k"), Quota::per_second(1))]);
    for n in 0..1_000 {
        assert!(admits(&limiter, &with_header("k", format!("{n}"))));
    }
    assert_eq!(limiter.sweep(), 0, "all of them owe a second");
    clock.advance(Duration::from_millis(500));
    assert!(admits(&limiter, &with_header("k", "late")));
    clock.advance(Duration::from_millis(500));
    assert_eq!(limiter.sweep(), 1_000);
    assert_eq!(limiter.len(), 1);
    assert!(!admits(&limiter, &with_header("k", "late")));
}
