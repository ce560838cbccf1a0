//! Decisions without a request over Redis: as in memory, for all processes, with real servers.
#![cfg(feature = "redis")]
#![expect(clippy::disallowed_methods, reason = "reservations are timed")]

#[path = "support/redis.rs"]
mod servers;
mod support;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::Request;
use servers::{ENGINES, Engine, Server, eventually, free_port};
use support::with_header;
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    decision::Reason,
    key::Header,
    limiter::{AcquireError, ConfigErrorKind},
    redis::{ControlError, OnFailure, RedisBuilder, RedisConfigError, RedisLimiter, StandingsError},
};

const FIVE: Quota = Quota::per_hour(5);
const MINUTE: Duration = Duration::from_secs(60);

fn builder(url: &str) -> RedisBuilder {
    RedisLimiter::builder(url, b"the secret of these tests", OnFailure::Closed).timeout(Duration::from_secs(5))
}

fn accounts(quota: Quota) -> Policy {
    Policy::by_key(quota).named("account")
}

async fn connected(builder: RedisBuilder) -> RedisLimiter {
    let limiter = builder.build().unwrap();
    assert!(limiter.connect(Duration::from_secs(30)).await, "{:?}", limiter.last_error());
    limiter
}

async fn remaining(limiter: &RedisLimiter, policy: &str, key: &str) -> u32 {
    limiter.peek(policy, key).await.unwrap().remaining()
}

#[track_caller]
fn denied<T: std::fmt::Debug>(result: Result<T, AcquireError>) -> tower_quota::Denied {
    match result {
        Err(AcquireError::Denied(denied)) => *denied,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_key_has_one_bucket_for_all_processes() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let [here, there] = [
            connected(builder(&server.url()).policy(accounts(FIVE))).await,
            connected(builder(&server.url()).policy(accounts(FIVE))).await,
        ];
        let admission = here.acquire_n("account", "alice", 3).await.unwrap();
        assert_eq!(admission.standings().next().unwrap().remaining(), 2);
        there.acquire_n("account", "alice", 2).await.unwrap();
        for limiter in [&here, &there] {
            let refused = denied(limiter.acquire("account", "alice").await);
            assert_eq!(refused.reason(), Reason::Exceeded);
            assert!(refused.wait().is_some_and(|wait| wait <= 12 * MINUTE));
        }
        // What is refunded here is there at once: no denial is remembered.
        admission.refund();
        eventually(async || there.acquire("account", "alice").await.is_ok()).await;
        let never = denied(here.acquire_n("account", "bob", 6).await);
        assert_eq!((never.reason(), never.wait()), (Reason::CostAboveBurst, None));
        assert!(matches!(here.acquire("acount", "bob").await, Err(AcquireError::UnknownPolicy(_))));
        here.block("account", "bob", MINUTE).await.unwrap();
        assert_eq!(denied(there.acquire("account", "bob").await).reason(), Reason::Blocked);
    }
}

#[tokio::test]
async fn a_plan_that_one_process_names_counts_in_all() {
    let server = Server::start(Engine::Valkey);
    let [here, there] = [
        connected(builder(&server.url()).policy(accounts(FIVE))).await,
        connected(builder(&server.url()).policy(accounts(FIVE))).await,
    ];
    let pro = Quota::per_hour(100);
    here.acquire_as("account", "alice", pro, 10).await.unwrap();
    let admission = there.acquire_n("account", "alice", 20).await.unwrap();
    assert_eq!(admission.standings().next().unwrap().quota(), Some(pro));
    assert_eq!(remaining(&there, "account", "alice").await, 70);
    let by_another = there.peek_as("account", "alice", Quota::per_hour(1_000)).await.unwrap();
    assert_eq!((by_another.limit(), by_another.remaining()), (1_000, 970));
    assert!(there.peek_as("acount", "alice", pro).await.is_err());
}

#[tokio::test]
async fn several_policies_are_asked_in_one_call_and_grant_all_or_nothing() {
    let server = Server::start(Engine::Redis);
    let policies =
        [accounts(FIVE), Policy::by_key(Quota::per_hour(9)).named("address"), Policy::global(Quota::per_hour(2))];
    let limiter = connected(builder(&server.url()).policies(policies)).await;
    let before = limiter.calls().calls;
    let address = Ipv4Addr::new(203, 0, 113, 7);
    let acquire = |cells| {
        limiter.acquire_all(&[("global", &"whatever", 1), ("address", &address, cells), ("account", &"alice", 2)])
    };
    let admission = acquire(4).await.unwrap();
    assert_eq!(limiter.calls().calls, before + 1);
    assert_eq!(admission.standings().map(|standing| standing.remaining()).collect::<Vec<_>>(), [3, 5, 1]);
    let refused = denied(acquire(6).await);
    assert_eq!(refused.violated().map(|standing| standing.policy().to_owned()).collect::<Vec<_>>(), ["address"]);
    assert_eq!((remaining(&limiter, "account", "alice").await, remaining(&limiter, "global", "x").await), (3, 1));
    let repeated = limiter.acquire_all(&[("account", &1, 1), ("account", &2, 1)]).await.unwrap_err();
    assert!(matches!(&repeated, AcquireError::RepeatedPolicy(name) if name == "account"), "{repeated}");
}

#[tokio::test]
async fn requests_pass_by_and_a_layer_over_nothing_else_is_refused() {
    let server = Server::start(Engine::Redis);
    let policies = [accounts(FIVE), Policy::per(Header::new("k"), FIVE).named("key")];
    let limiter = connected(builder(&server.url()).policies(policies)).await;
    assert!(limiter.decide(&with_header("k", "a")).await.is_allowed());
    limiter.acquire("key", "a").await.unwrap();
    let show = |key: &str| {
        let request = with_header("k", key);
        let standings = limiter.standings(&request);
        async { standings.await.unwrap().iter().map(|s| (s.policy().to_owned(), s.remaining())).collect::<Vec<_>>() }
    };
    assert_eq!(show("a").await, [("key".to_owned(), 3)]);
    assert_eq!(show("b").await, [("key".to_owned(), 5)]);
    let missing = limiter.standings(&Request::new(())).await.unwrap_err();
    assert!(matches!(&missing, StandingsError::Denied(denied) if denied.reason() == Reason::MissingKey), "{missing}");

    let only = connected(builder(&server.url()).policy(accounts(FIVE))).await;
    assert_eq!(RateLimitLayer::try_new(&only).unwrap_err().kind(), ConfigErrorKind::NoPolicyForRequests);
    let wrong = builder(&server.url()).policy(accounts(FIVE).when(|_| true)).build().unwrap_err();
    assert!(
        matches!(&wrong, RedisConfigError::Policies(error) if error.kind() == ConfigErrorKind::NoRequest),
        "{wrong}"
    );
}

#[tokio::test]
async fn reservations_of_all_processes_stand_in_one_line() {
    let server = Server::start(Engine::Valkey);
    let policies = || [accounts(Quota::per_second(10).burst(1)), Policy::by_key(Quota::per_minute(1)).named("slow")];
    let [here, there] = [
        connected(builder(&server.url()).policies(policies())).await,
        connected(builder(&server.url()).policies(policies())).await,
    ];
    let start = Instant::now();
    let reserved = (0..6).map(|n| [&here, &there][n % 2].reserve("account", "alice", MINUTE));
    let times = join_all(reserved).await.into_iter().map(|reservation| async move {
        reservation.unwrap().ready(tokio::time::sleep).await;
        start.elapsed()
    });
    let mut times = join_all(times).await;
    times.sort();
    for (n, time) in (0_u32..).zip(&times) {
        assert!(*time + Duration::from_millis(5) >= n * Duration::from_millis(100), "{times:?}");
    }

    // Given up, the last place in line is there for the next one.
    let reserve = async |patience| here.reserve("slow", "bob", patience).await;
    let (first, second) = (reserve(MINUTE).await.unwrap(), reserve(MINUTE).await.unwrap());
    assert!(first.wait().is_none() && second.wait().is_some_and(|wait| wait > MINUTE / 2));
    assert!(reserve(MINUTE).await.is_err());
    drop(second);
    let full = async || there.peek("slow", "bob").await.unwrap().until_full();
    eventually(async || full().await <= MINUTE).await;
    assert!(reserve(MINUTE).await.is_ok());
}

#[tokio::test]
async fn a_pause_counts_in_all_processes_and_moves_who_waits_already() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let policy = || Policy::by_key(Quota::per_minute(1)).named("the partner");
        let [here, there] = [
            connected(builder(&server.url()).policy(policy())).await,
            connected(builder(&server.url()).policy(policy())).await,
        ];
        let partner = "api.example.com";
        here.acquire("the partner", partner).await.unwrap();
        let waiting = here.reserve("the partner", partner, 5 * MINUTE).await.unwrap();
        there.pause("the partner", partner, 10 * MINUTE).await.unwrap();
        there.pause("the partner", partner, MINUTE).await.unwrap();
        // By the announcement alone: nobody asks.
        eventually(async || waiting.wait().unwrap() > 10 * MINUTE).await;
        assert!(waiting.wait().unwrap() <= 11 * MINUTE);
        for limiter in [&here, &there] {
            let left = limiter.paused_for("the partner", partner).await.unwrap().unwrap();
            assert!(left > 9 * MINUTE && left <= 10 * MINUTE, "{left:?}");
            let refused = denied(limiter.acquire("the partner", partner).await);
            assert!(refused.wait().unwrap() > 10 * MINUTE, "{refused:?}");
            assert_eq!(remaining(limiter, "the partner", partner).await, 0);
        }
        // Who gives up behind a pause returns its place.
        let late = there.reserve("the partner", partner, 20 * MINUTE).await.unwrap();
        assert!(late.wait().unwrap() > 11 * MINUTE);
        drop(late);
        eventually(async || denied(there.acquire("the partner", partner).await).wait().unwrap() < 12 * MINUTE).await;

        assert!(there.reset("the partner", partner).await.unwrap());
        assert_eq!(here.paused_for("the partner", partner).await.unwrap(), None);
        here.acquire("the partner", partner).await.unwrap();
        assert!(matches!(here.pause("the partnr", partner, MINUTE).await, Err(ControlError::UnknownPolicy(_))));
    }
}

#[tokio::test]
async fn a_pause_that_is_known_outlasts_redis() {
    let server = Server::start(Engine::Redis);
    let limiter = RedisLimiter::builder(server.url(), b"the secret of these tests", OnFailure::Local { share: 1.0 })
        .timeout(Duration::from_millis(300))
        .policy(accounts(FIVE));
    let limiter = connected(limiter).await;
    limiter.pause("account", "alice", MINUTE).await.unwrap();
    server.signal("-STOP");
    eventually(async || limiter.acquire("account", "bob").await.is_ok() && !limiter.is_connected()).await;
    let refused = denied(limiter.acquire("account", "alice").await);
    assert!(refused.wait().is_some_and(|wait| wait <= MINUTE && wait > MINUTE / 2), "{refused:?}");
    server.signal("-CONT");
}

#[tokio::test]
async fn a_pause_that_is_over_delays_nobody_any_more() {
    let server = Server::start(Engine::Valkey);
    let limiter = RedisLimiter::builder(server.url(), b"the secret of these tests", OnFailure::Local { share: 1.0 })
        .timeout(Duration::from_millis(300))
        .policy(accounts(Quota::per_second(10).burst(1)));
    let limiter = connected(limiter).await;
    let over = async || limiter.paused_for("account", "alice").await.unwrap().is_none();
    let idle = async || limiter.peek("account", "alice").await.unwrap().until_full().is_zero();
    limiter.acquire("account", "alice").await.unwrap();
    limiter.pause("account", "alice", Duration::from_millis(400)).await.unwrap();
    eventually(async || over().await && idle().await).await;
    let first = limiter.reserve("account", "alice", MINUTE).await.unwrap();
    assert_eq!(first.wait(), None);
    let second = limiter.reserve("account", "alice", MINUTE).await.unwrap();
    assert!(second.wait().is_none_or(|wait| wait <= Duration::from_millis(100)), "{second:?}");
    // Nor without Redis.
    limiter.pause("account", "bob", Duration::from_millis(200)).await.unwrap();
    eventually(async || limiter.paused_for("account", "bob").await.unwrap().is_none()).await;
    server.signal("-STOP");
    eventually(async || limiter.acquire("account", "carol").await.is_ok() && !limiter.is_connected()).await;
    let local = limiter.reserve("account", "bob", MINUTE).await.unwrap();
    server.signal("-CONT");
    assert_eq!(local.wait(), None);
}

#[tokio::test]
async fn a_process_that_hears_no_announcement_learns_of_a_pause_with_its_next_call() {
    let server = Server::start(Engine::Redis);
    assert_eq!(server.cli(&["ACL", "SETUSER", "deaf", "on", ">pw", "~*", "+@all", "resetchannels"]), "OK");
    let policy = || accounts(Quota::per_minute(1));
    let there = connected(builder(&server.url()).policy(policy())).await;
    let here = connected(builder(&server.url().replace("redis://", "redis://deaf:pw@")).policy(policy())).await;
    here.acquire("account", "alice").await.unwrap();
    let waiting = here.reserve("account", "alice", 60 * MINUTE).await.unwrap();
    there.pause("account", "alice", 10 * MINUTE).await.unwrap();
    let next = here.reserve("account", "alice", 60 * MINUTE).await.unwrap();
    let between = next.wait().unwrap().saturating_sub(waiting.wait().unwrap());
    assert!(between <= MINUTE + Duration::from_secs(1) && between >= MINUTE - Duration::from_secs(1), "{between:?}");
    assert!(waiting.wait().unwrap() > 10 * MINUTE);
}

#[tokio::test]
async fn a_policy_that_fails_open_obeys_the_pauses_that_are_known() {
    let server = Server::start(Engine::Redis);
    let limiter = RedisLimiter::builder(server.url(), b"the secret of these tests", OnFailure::Open)
        .timeout(Duration::from_millis(300))
        .policy(accounts(Quota::per_minute(60)));
    let limiter = connected(limiter).await;
    limiter.pause("account", "alice", MINUTE).await.unwrap();
    limiter.block("account", "bob", MINUTE).await.unwrap();
    server.signal("-STOP");
    eventually(async || limiter.acquire("account", "carol").await.is_ok() && !limiter.is_connected()).await;
    let answers = [limiter.acquire("account", "alice").await, limiter.acquire("account", "bob").await];
    server.signal("-CONT");
    assert_eq!(answers.map(|answer| denied(answer).reason()), [Reason::Exceeded, Reason::Blocked]);
}

#[tokio::test]
async fn a_call_by_key_sees_each_plan_that_was_named_also_for_a_policy_of_requests() {
    let server = Server::start(Engine::Valkey);
    let policy = || Policy::per(Header::new("k"), Quota::per_hour(10).burst(1)).named("key");
    let [here, there] = [
        connected(builder(&server.url()).policy(policy())).await,
        connected(builder(&server.url()).policy(policy())).await,
    ];
    // The time of a cell is the same: only the burst differs.
    let plan = Quota::per_hour(10).burst(5);
    let request = with_header("k", "a");
    assert!(here.acquire("key", "a").await.is_ok() && here.acquire("key", "a").await.is_err());
    assert!(!here.decide(&request).await.is_allowed());
    there.acquire_as("key", "a", plan, 1).await.unwrap();
    assert!(here.acquire("key", "a").await.is_ok());
    // A request in the process that has named the plan, which remembered a denial.
    assert!(here.acquire("key", "b").await.is_ok() && !here.decide(&with_header("k", "b")).await.is_allowed());
    here.acquire_as("key", "b", plan, 1).await.unwrap();
    assert!(here.decide(&with_header("k", "b")).await.is_allowed());
}

#[tokio::test]
async fn without_redis_the_policy_says_what_happens() {
    let url = format!("redis://127.0.0.1:{}", free_port());
    let build = |on_failure| {
        RedisLimiter::builder(&url, b"the secret of these tests", on_failure)
            .timeout(Duration::from_millis(200))
            .policy(accounts(FIVE))
            .build()
            .unwrap()
    };
    let refused = denied(build(OnFailure::Closed).acquire("account", "alice").await);
    assert_eq!((refused.reason(), refused.status().as_u16()), (Reason::Unavailable, 503));
    let local = build(OnFailure::Local { share: 0.4 });
    for allowed in [true, true, false] {
        assert_eq!(local.acquire("account", "alice").await.is_ok(), allowed);
    }
    assert!(build(OnFailure::Open).acquire("account", "alice").await.unwrap().standings().next().is_none());
}

/// A handler's future has to be `Send`, whatever the key borrows.
#[test]
fn the_futures_are_send() {
    fn is_send(_: &impl Send) {}
    let limiter = builder("redis://127.0.0.1").policy(accounts(FIVE)).build().unwrap();
    let name = "alice".to_owned();
    is_send(&limiter.acquire("account", &name));
    is_send(&limiter.acquire_as("account", (&name, 7), FIVE, 2));
    is_send(&limiter.acquire_all(&[("account", &name, 1)]));
    is_send(&limiter.reserve("account", &*name, MINUTE));
    is_send(&limiter.peek_as("account", name.as_bytes(), FIVE));
    is_send(&limiter.standings(&Request::new(())));
    is_send(&async {
        let admission = limiter.acquire_all(&[("account", &name, 1)]).await?;
        limiter.reserve("account", &name, MINUTE).await?.ready(tokio::time::sleep).await;
        Ok::<_, AcquireError>(admission)
    });
}
