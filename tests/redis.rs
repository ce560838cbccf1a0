//! The same policies over Redis and Valkey: real servers, started and ended by the tests.
#![cfg(feature = "redis")]

#[path = "support/example.rs"]
mod example;
#[path = "support/redis.rs"]
mod servers;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{
    convert::Infallible,
    error::Error as _,
    future::ready,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use example::Example;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use servers::{ENGINES, Engine, Server, eventually, free_port, within_a_minute};
use support::{from_ip, with_header};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_quota::{
    Decision, Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    decision::Reason,
    key::{Header, PeerIp, key_fn},
    limiter::{Admission, ConfigError, ConfigErrorKind, Sweep, UnknownPolicy},
    policy::Ban,
    redis::{OnFailure, RedisBuilder, RedisConfigError, RedisLimiter},
};
use wire::Connection;

const SECRET: &[u8] = b"the secret of these tests";
const FIVE: Quota = Quota::per_hour(5);

fn builder(url: &str, on_failure: OnFailure) -> RedisBuilder {
    // Long, so that a slow machine is no failure; where the time matters, it is set.
    RedisLimiter::builder(url, SECRET, on_failure).timeout(Duration::from_secs(5))
}

async fn connected(builder: RedisBuilder) -> RedisLimiter {
    let limiter = builder.build().unwrap();
    connect(&limiter).await;
    limiter
}

async fn connect(limiter: &RedisLimiter) {
    assert!(limiter.connect(Duration::from_secs(30)).await, "no connection");
}

fn by_header(quota: Quota) -> Policy {
    Policy::per(Header::new("k"), quota)
}

async fn admits(limiter: &RedisLimiter, key: &str) -> bool {
    limiter.decide(&with_header("k", key)).await.is_allowed()
}

async fn admitted(limiter: &RedisLimiter, key: &str, tries: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..tries {
        admitted += usize::from(admits(limiter, key).await);
    }
    admitted
}

#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_one_bucket_and_admit_exactly_the_quota() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let processes =
            [0; 3].map(|_| builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_hour(500))));
        let processes = join_all(processes.map(connected)).await;
        let total: usize =
            join_all(processes.iter().flat_map(|limiter| (0..20).map(move |_| admitted(limiter, "a", 30))))
                .await
                .into_iter()
                .sum();
        assert_eq!(total, 500, "{engine:?}");
        // And another key has its own.
        assert!(admits(&processes[0], "b").await);
    }
}

/// A file has changed: the layer gets a limiter with other policies, and buckets are in Redis by the names of theirs.
#[tokio::test]
async fn a_layer_takes_another_limiter_over_the_same_redis_and_policies_that_stay_keep_their_buckets() {
    let server = Server::start(Engine::Redis);
    let limiter =
        async |policies: Vec<Policy>| connected(builder(&server.url(), OnFailure::Closed).policies(policies)).await;
    let layer = RateLimitLayer::new(limiter(vec![by_header(FIVE)]).await).reloadable();
    let service = layer.layer(service_fn(async |_: Request<()>| Ok::<_, Infallible>(Response::new(String::new()))));
    let ask = async || service.clone().oneshot(with_header("k", "a")).await.unwrap();
    assert_eq!(ask().await.headers()["ratelimit"], "\"per-k\";r=4;t=720");
    let added = by_header(Quota::per_hour(1)).named("added");
    layer.replace(limiter(vec![by_header(Quota::per_hour(10)), added]).await).unwrap();
    let allowed = ask().await;
    assert_eq!(
        (allowed.status(), &allowed.headers()["ratelimit"]),
        (StatusCode::OK, &"\"per-k\";r=8;t=360, \"added\";r=0;t=3600".parse().unwrap())
    );
    assert_eq!(ask().await.status(), StatusCode::TOO_MANY_REQUESTS);
    layer.replace(limiter(vec![by_header(FIVE)]).await).unwrap();
    assert_eq!(ask().await.headers()["ratelimit"], "\"per-k\";r=2;t=720");
    assert_eq!(layer.limiter().peek("per-k", "a").await.unwrap().remaining(), 2);
}

#[tokio::test]
async fn a_denial_reports_how_the_bucket_stands_and_when_to_retry() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE))).await;
    for left in (0..5).rev() {
        let request = with_header("k", "a");
        let Decision::Allow(allowed) = limiter.decide(&request).await else { panic!("it has five") };
        assert_eq!(allowed.standings().next().unwrap().remaining(), left);
    }
    let denied = limiter.decide(&with_header("k", "a")).await.denied().unwrap();
    assert_eq!(denied.reason(), Reason::Exceeded);
    let wait = denied.wait().unwrap();
    assert!(wait <= Duration::from_secs(720) && wait > Duration::from_secs(700), "{wait:?}");
}

/// Grants and remainders of random requests over several policies, beside a limiter in memory. In hours nothing comes back.
#[test]
fn rds08_the_script_decides_as_the_limiter_in_memory_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for engine in ENGINES {
        let server = Server::start(engine);
        let mut runner = TestRunner::new(Config::with_cases(40));
        let asks = prop::collection::vec((0_u64..3, 0_u64..2, 0_u32..7), 1..60);
        let quotas = (1_u32..12, 1_u32..30, 1_u32..40);
        runner
            .run(&(quotas, asks, any::<u64>()), |((user, team, all), asks, salt)| {
                let policies = || {
                    type Asked = (u64, u64, u32);
                    let asked = |head: tower_quota::key::RequestHead<'_>| *head.extensions().get::<Asked>().unwrap();
                    let hourly = |cells: u32| Quota::per(7, Duration::from_secs(3 * 3_600)).burst(cells);
                    [
                        Policy::per(key_fn(move |head| Some(asked(head).0)), hourly(user))
                            .named("user")
                            .cost_by(move |head| asked(head).2),
                        Policy::per(key_fn(move |head| Some(asked(head).1)), hourly(team)).named("team"),
                        Policy::global(hourly(all)).cost_by(move |head| asked(head).2.min(2)),
                    ]
                };
                let here = Limiter::builder().policies(policies()).clock(ManualClock::new()).sweep(Sweep::Manual);
                let here = here.build().unwrap();
                // A prefix of its own, so that cases do not meet.
                let there =
                    builder(&server.url(), OnFailure::Closed).prefix(format!("case-{salt}")).policies(policies());
                let there = there.build().unwrap();
                runtime.block_on(async {
                    let mut request = Request::new(());
                    connect(&there).await;
                    for (index, asked) in asks.into_iter().enumerate() {
                        request.extensions_mut().insert(asked);
                        match (here.decide(&request), there.decide(&request).await) {
                            (Decision::Allow(a), Decision::Allow(b)) => {
                                let remaining = |allowed: &tower_quota::decision::Allowed<'_>| {
                                    allowed.standings().map(|standing| standing.remaining()).collect::<Vec<_>>()
                                };
                                prop_assert_eq!(remaining(&a), remaining(&b), "{}: {:?}", index, asked);
                            }
                            (Decision::Deny(a), Decision::Deny(b)) => prop_assert_eq!(a.reason(), b.reason()),
                            (a, b) => prop_assert!(false, "{index}: {asked:?}: {a:?}, and there {b:?}"),
                        }
                    }
                    Ok(())
                })
            })
            .unwrap();
    }
}

#[tokio::test]
async fn all_or_nothing_over_several_policies() {
    let server = Server::start(Engine::Valkey);
    let policies = [by_header(Quota::per_hour(100)).named("wide"), by_header(Quota::per_hour(3)).named("narrow")];
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policies(policies)).await;
    assert_eq!(admitted(&limiter, "a", 10).await, 3);
    // Another handle, which knows nothing of the denials, finds what is left.
    let other =
        connected(builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_hour(100)).named("wide")))
            .await;
    let request = with_header("k", "a");
    let Decision::Allow(allowed) = other.decide(&request).await else { panic!("it has 97") };
    assert_eq!(allowed.standings().next().unwrap().remaining(), 96);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_one_key_are_asked_for_together() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_hour(2_000)))).await;
    let before = limiter.calls();
    let admitted: usize = join_all((0..100).map(|_| admitted(&limiter, "a", 30))).await.into_iter().sum();
    assert_eq!(admitted, 2_000);
    let (decisions, calls) = (limiter.calls().decisions - before.decisions, limiter.calls().calls - before.calls);
    assert!(decisions >= 2_000 && calls * 4 < decisions, "{calls} calls for {decisions} decisions");
}

#[tokio::test]
async fn rds11_a_denial_is_cached_until_it_ends_and_for_its_key_only() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE))).await;
    assert_eq!(admitted(&limiter, "a", 6).await, 5);
    let before = limiter.calls();
    assert_eq!(admitted(&limiter, "a", 1_000).await, 0);
    assert_eq!(limiter.calls(), before, "Redis was asked what was known");
    assert!(admits(&limiter, "b").await);
    // Until it ends: 20 ms a cell.
    let short =
        connected(builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_second(50).burst(1)))).await;
    assert!(admits(&short, "c").await);
    let wait = short.decide(&with_header("k", "c")).await.denied().unwrap().wait().unwrap();
    #[expect(clippy::disallowed_methods, reason = "the server's clock is the one that counts")]
    let start = Instant::now();
    eventually(|| admits(&short, "c")).await;
    #[expect(clippy::disallowed_methods, reason = "the server's clock is the one that counts")]
    let took = start.elapsed();
    assert!(wait <= Duration::from_millis(20) && took + Duration::from_millis(20) >= wait);
}

#[tokio::test]
async fn rds07_every_key_expires_when_nothing_is_owed() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE))).await;
        assert!(admits(&limiter, "a").await && admits(&limiter, "a").await);
        let keys = server.keys();
        assert_eq!(keys.len(), 1, "{keys:?}");
        // As docs/redis.md says, which names the prefix and the policy `per-ip`.
        let usage: u32 = server.cli(&["MEMORY", "USAGE", &keys[0]]).parse().unwrap();
        assert!(usage <= 184, "{engine:?}: {usage}");
        let ttls: Vec<u64> = keys.iter().map(|key| server.cli(&["PTTL", key]).parse().unwrap()).collect();
        let most = *ttls.iter().max().unwrap();
        assert!((1_430_000..=1_440_001).contains(&most), "two cells of 720 s: {ttls:?}");
    }
}

#[tokio::test]
async fn i11_i14_no_key_stands_in_redis_and_none_chooses_its_slot() {
    let server = Server::start(Engine::Redis);
    let policies = [Policy::per(PeerIp, FIVE), by_header(FIVE).named("{evil}:\"policy\"")];
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policies(policies)).await;
    let mut request = from_ip(Ipv4Addr::new(203, 0, 113, 7));
    for key in ["S3CR3T", "}{", "a}b{c", "{tag}"] {
        request.headers_mut().insert("k", key.parse().unwrap());
        assert!(limiter.decide(&request).await.is_allowed());
    }
    let keys = server.keys();
    assert_eq!(keys.len(), 1 + 4, "{keys:?}");
    for key in keys {
        assert!(!key.contains("S3CR3T") && !key.contains("203") && !key.contains("cb007107"), "{key}");
        // The first pair of braces is ours: it holds the prefix and 26 hexadecimal digits.
        let tag = key.strip_prefix("{tower-quota:").unwrap().split('}').next().unwrap();
        assert!(tag.len() == 26 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    }
    let other_secret = RedisLimiter::builder(server.url(), b"another secret, as long", OnFailure::Closed)
        .policy(Policy::per(PeerIp, FIVE));
    let other = connected(other_secret).await;
    let before = server.keys().len();
    assert!(other.decide(&request).await.is_allowed());
    assert_eq!(server.keys().len(), before + 1, "under another secret it is another bucket");
}

#[tokio::test]
async fn s3_building_never_connects_and_without_a_server_the_builder_s_word_counts() {
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let build = |on_failure| builder(&nowhere, on_failure).policy(by_header(Quota::per_hour(8))).build().unwrap();
    let closed = build(OnFailure::Closed);
    let denied = closed.decide(&with_header("k", "a")).await.denied().unwrap();
    assert_eq!(
        (denied.reason(), denied.status(), denied.wait()),
        (Reason::Unavailable, StatusCode::SERVICE_UNAVAILABLE, None)
    );
    assert_eq!(admitted(&build(OnFailure::Open), "a", 100).await, 100);
    assert_eq!(admitted(&build(OnFailure::Local { share: 1.0 }), "a", 100).await, 8);
    let half = build(OnFailure::Local { share: 0.5 });
    assert_eq!(admitted(&half, "a", 100).await, 4);
    assert_eq!(admitted(&half, "b", 100).await, 4);
    assert!(!half.is_connected());

    let mixed = builder(&nowhere, OnFailure::Open).policies([
        by_header(FIVE).named("fair"),
        Policy::per(PeerIp, FIVE).named("login").when(|head| head.uri().path() == "/login"),
    ]);
    let mixed = mixed.on_failure_of("login", OnFailure::Closed).build().unwrap();
    let mut request = from_ip(Ipv4Addr::LOCALHOST);
    request.headers_mut().insert("k", "a".parse().unwrap());
    assert!(mixed.decide(&request).await.is_allowed());
    *request.uri_mut() = "/login".parse().unwrap();
    let denied = mixed.decide(&request).await.denied().unwrap();
    assert_eq!((denied.policy(), denied.reason()), ("login", Reason::Unavailable));
}

#[test]
fn outside_of_a_runtime_it_builds_and_says_what_is_wrong() {
    let build = |builder: RedisBuilder| builder.policy(by_header(FIVE)).build().map(|_| ()).unwrap_err().to_string();
    let fine = || builder("redis://127.0.0.1", OnFailure::Open);
    fine().policy(by_header(FIVE)).build().unwrap();
    for (builder, word) in [
        (RedisLimiter::builder("no address", SECRET, OnFailure::Open), "address"),
        (fine().prefix("a{b"), "brace"),
        (fine().prefix(""), "prefix"),
        (fine().timeout(Duration::ZERO), "timeout"),
        (fine().timeout(Duration::MAX), "timeout"),
        (fine().lease(0, Duration::from_secs(1)), "lease"),
        (fine().lease(1, Duration::ZERO), "lease"),
        (RedisLimiter::builder("redis://127.0.0.1", b"", OnFailure::Open), "secret"),
        (RedisLimiter::builder("redis://127.0.0.1", SECRET, OnFailure::Local { share: 0.0 }), "share"),
        (fine().on_failure_of("api-key", OnFailure::Local { share: f64::NAN }), "share"),
        (fine().on_failure_of("nobody", OnFailure::Open), "nobody"),
        (fine().policy(Policy::global(FIVE).named("")), "name"),
        (fine().sentinels(Vec::<String>::new(), "primary"), "sentinel"),
        (fine().sentinels(["redis://h"], "primary").cluster(["redis://h"]), "sentinels"),
        (fine().cluster(["no address"]), "address"),
    ] {
        let error = build(builder);
        assert!(error.contains(word), "{error}");
    }
    let secret = RedisLimiter::builder("redis://user:pa55word@h", b"S3CR3T S3CR3T S3CR3T", OnFailure::Open);
    assert!(!format!("{secret:?}").contains("pa55word"));
    let error = build(RedisLimiter::builder("redis//user:pa55word@h", SECRET, OnFailure::Open));
    assert!(!error.contains("pa55word"), "{error}");
}

/// A bucket that was spent there stays spent here, and what comes back is shared again.
#[tokio::test(flavor = "multi_thread")]
async fn rds01_a_killed_server_is_done_without_and_found_again() {
    for engine in ENGINES {
        let mut server = Server::start(engine);
        let limiter =
            connected(builder(&server.url(), OnFailure::Local { share: 0.5 }).policy(by_header(Quota::per_hour(8))))
                .await;
        assert_eq!(admitted(&limiter, "spent", 20).await, 8);
        server.kill();
        eventually(|| async {
            admits(&limiter, "x").await;
            !limiter.is_connected()
        })
        .await;
        assert_eq!(admitted(&limiter, "spent", 20).await, 0, "what was known is forgotten");
        assert_eq!(admitted(&limiter, "new", 20).await, 4, "the share of a new key");
        server.run();
        eventually(|| async { limiter.is_connected() }).await;
        // The server has forgotten, and who comes back to it asks again.
        assert_eq!(admitted(&limiter, "spent", 20).await, 8);
        assert_eq!(admitted(&limiter, "fresh", 20).await, 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rds02_a_frozen_server_delays_few_and_is_found_again() {
    let server = Server::start(Engine::Redis);
    let policy = by_header(Quota::per_hour(1_000_000));
    let limiter = RedisLimiter::builder(server.url(), SECRET, OnFailure::Open).policy(policy);
    let limiter = connected(limiter.timeout(Duration::from_millis(50))).await;
    server.signal("-STOP");
    // All of them together are over in a few time-outs, however many there are.
    for _ in 0..50 {
        let all = join_all((0..100).map(|n| async move { n })).await;
        let decided = join_all(all.iter().map(|n| limiter.decide(&with_header("k", format!("{n}"))))).await;
        assert!(decided.iter().all(Decision::is_allowed), "open means open");
    }
    eventually(|| async {
        admits(&limiter, "x").await;
        !limiter.is_connected()
    })
    .await;
    server.signal("-CONT");
    eventually(|| async { limiter.is_connected() }).await;
    let before = limiter.calls();
    assert!(admits(&limiter, "x").await);
    assert_eq!(limiter.calls().calls, before.calls + 1, "asked again");
}

#[tokio::test]
async fn rds03_a_flushed_script_is_sent_again_without_an_effect() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE))).await;
        assert!(admits(&limiter, "a").await);
        assert_eq!(server.cli(&["SCRIPT", "FLUSH"]), "OK");
        assert_eq!(admitted(&limiter, "a", 10).await, 4);
        assert!(limiter.is_connected());
    }
}

/// Errors that every key would meet end the connection until the script runs again.
#[tokio::test(flavor = "multi_thread")]
async fn rds09_a_server_that_cannot_write_is_done_without_until_it_can() {
    for engine in ENGINES {
        for (fault, mend) in [
            (&["REPLICAOF", "127.0.0.1", "1"][..], &["REPLICAOF", "NO", "ONE"][..]),
            (&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
            (&["CONFIG", "SET", "min-replicas-to-write", "1"], &["CONFIG", "SET", "min-replicas-to-write", "0"]),
            (&["ACL", "SETUSER", "default", "-evalsha"], &["ACL", "SETUSER", "default", "+evalsha"]),
        ] {
            let server = Server::start(engine);
            let limiter = connected(builder(&server.url(), OnFailure::Open).policy(by_header(FIVE))).await;
            assert_eq!(admitted(&limiter, "a", 10).await, 5);
            assert_eq!(server.cli(fault), "OK", "{fault:?}");
            assert_eq!(admitted(&limiter, "b", 10).await, 10, "{engine:?}, {fault:?}: open means open");
            eventually(|| async {
                admits(&limiter, "x").await;
                !limiter.is_connected()
            })
            .await;
            // It answers, and PING would succeed; what counts is whether the script runs and writes.
            assert!(!limiter.connect(Duration::from_millis(100)).await, "{engine:?}, {fault:?}");
            assert_eq!(server.cli(mend), "OK", "{mend:?}");
            eventually(|| async { limiter.is_connected() }).await;
            assert_eq!(admitted(&limiter, "c", 10).await, 5, "{engine:?}, {fault:?}: shared again");
        }
    }
}

/// A script of somebody else's runs on and on; the server answers all others that it is busy.
#[tokio::test(flavor = "multi_thread")]
async fn rds09_a_busy_server_is_done_without_until_it_is_not() {
    for engine in ENGINES {
        let server = Server::start_with(engine, &["--busy-reply-threshold", "50"]);
        let limiter = connected(builder(&server.url(), OnFailure::Open).policy(by_header(FIVE))).await;
        let port = server.port.to_string();
        let endless = ["-p", &port, "EVAL", "while true do end", "0"];
        let mut script = std::process::Command::new("redis-cli").args(endless).spawn().unwrap();
        within_a_minute(|| server.cli(&["PING"]).contains("BUSY"));
        assert_eq!(admitted(&limiter, "a", 10).await, 10, "{engine:?}: open means open");
        assert!(!limiter.connect(Duration::from_millis(100)).await, "{engine:?}");
        assert_eq!(server.cli(&["SCRIPT", "KILL"]), "OK");
        script.wait().unwrap();
        eventually(|| async { limiter.is_connected() }).await;
        assert_eq!(admitted(&limiter, "b", 10).await, 5, "{engine:?}: shared again");
    }
}

/// It accepts connections while it reads its keys from disk, and answers that it is loading.
#[tokio::test(flavor = "multi_thread")]
async fn rds09_a_server_that_is_loading_is_done_without_until_it_has() {
    let slow = ["--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"];
    let mut server = Server::start_with(Engine::Redis, &slow);
    let fill = "for i = 1, 10000 do redis.call('SET', 'filler' .. i, i) end";
    server.cli(&["EVAL", fill, "0"]);
    let limiter = connected(builder(&server.url(), OnFailure::Open).policy(by_header(FIVE))).await;
    assert_eq!(admitted(&limiter, "a", 10).await, 5);
    assert_eq!(server.cli(&["SAVE"]), "OK");
    server.kill();
    let port = server.port.to_string();
    let starting = std::thread::spawn(move || {
        server.run();
        server
    });
    let mut seen = false;
    eventually(|| {
        let ping = std::process::Command::new("redis-cli").args(["-p", &port, "PING"]).output().unwrap();
        let loading = String::from_utf8_lossy(&ping.stdout).contains("LOADING");
        assert!(!loading || !limiter.is_connected());
        seen |= loading;
        let limiter = &limiter;
        async move {
            let _ = admits(limiter, "x").await;
            limiter.is_connected()
        }
    })
    .await;
    assert!(seen, "it was not seen loading");
    let _server = starting.join().unwrap();
    assert_eq!(admitted(&limiter, "b", 10).await, 5, "shared again");
}

/// Back by an hour: who owed a burst owes a burst, and not an hour. Ahead by an hour: one more burst.
#[tokio::test(flavor = "multi_thread")]
async fn s7_a_server_whose_clock_steps_locks_no_client_out_and_admits_one_burst_more() {
    let server = Server::with_clock(Engine::Valkey, &[]);
    // Each time by one that has seen nothing.
    let fresh =
        || connected(builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_second(1).burst(5))));
    assert_eq!(admitted(&fresh().await, "a", 10).await, 5);
    server.step_clock(-3_600);
    let late = fresh().await;
    let wait = late.decide(&with_header("k", "a")).await.denied().unwrap().wait().unwrap();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    eventually(|| admits(&late, "a")).await;
    assert!(admitted(&fresh().await, "b", 10).await >= 5);
    server.step_clock(3_600);
    let more = admitted(&fresh().await, "b", 10).await;
    assert!((5..=6).contains(&more), "{more}");
}

#[cfg(feature = "metrics")]
#[test]
fn the_source_of_each_decision_is_counted() {
    if !in_a_process_of_its_own("the_source_of_each_decision_is_counted") {
        return;
    }
    let mut server = Server::start(Engine::Redis);
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let counted = recorder.handle();
    metrics::set_global_recorder(recorder).expect("this process has no other");
    let count = |policy: &str, outcome: &str, source: &str| {
        let labels = format!(r#"policy="{policy}",outcome="{outcome}",mode="enforced",source="{source}"}} "#);
        let text = counted.render();
        text.split(&labels).nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse::<u32>().unwrap())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let policies = [by_header(FIVE).named("share"), Policy::per(PeerIp, FIVE).named("open")];
        let limiter = builder(&server.url(), OnFailure::Local { share: 0.4 }).on_failure_of("open", OnFailure::Open);
        let limiter = limiter.policies([policies[0].clone(), policies[1].clone().when(|head| head.method() == "PUT")]);
        let limiter = connected(limiter).await;
        assert!(counted.render().contains("tower_quota_redis_connections 1"));
        assert_eq!(admitted(&limiter, "a", 8).await, 5);
        assert_eq!(count("share", "allowed", "redis"), 5);
        assert_eq!((count("share", "denied", "redis"), count("share", "denied", "cache")), (0, 3));
        assert!(!limiter.decide(&Request::new(())).await.is_allowed(), "a request without a key");
        assert_eq!(count("share", "missing_key", "cache"), 1);
        let other = connected(builder(&server.url(), OnFailure::Closed).policy(policies[0].clone())).await;
        assert!(!admits(&other, "a").await);
        assert_eq!(count("share", "denied", "redis"), 1, "by one that knew nothing");
        drop(other);
        server.kill();
        eventually(|| async {
            let _ = admits(&limiter, "x").await;
            !limiter.is_connected()
        })
        .await;
        let (before, denied) = (count("share", "allowed", "fallback"), count("share", "denied", "fallback"));
        assert_eq!(admitted(&limiter, "b", 5).await, 2);
        assert_eq!(
            (count("share", "allowed", "fallback") - before, count("share", "denied", "fallback") - denied),
            (2, 3)
        );
        let mut put = from_ip(Ipv4Addr::LOCALHOST);
        *put.method_mut() = http::Method::PUT;
        put.headers_mut().insert("k", "c".parse().unwrap());
        assert!(limiter.decide(&put).await.is_allowed());
        assert_eq!(count("open", "allowed", "open"), 1);
        let text = counted.render();
        assert!(
            text.contains("tower_quota_redis_connections 0") && text.contains("tower_quota_redis_lost_total 1"),
            "{text}"
        );
    });
}

/// Runs the test in another process, whose metrics are of nothing else. True in that process.
fn in_a_process_of_its_own(test: &str) -> bool {
    const ALONE: &str = "TOWER_QUOTA_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let itself = std::env::current_exe().unwrap();
    let status = std::process::Command::new(itself).args(["--exact", test]).env(ALONE, "1").status().unwrap();
    assert!(status.success());
    false
}

/// Not limiters in one process: processes.
#[test]
fn processes_of_the_system_share_one_bucket() {
    let server = Server::start(Engine::Redis);
    let itself = std::env::current_exe().unwrap();
    let one = || {
        let mut command = std::process::Command::new(&itself);
        command.args(["--exact", "one_of_several_processes", "--nocapture", "--test-threads", "1"]);
        command.env(SERVER, server.url()).stdout(std::process::Stdio::piped()).spawn().unwrap()
    };
    let processes = [(); 4].map(|()| one());
    let admitted = processes.map(|process| {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        let (_, admitted) = said.split_once("admitted ").expect("it says how many");
        admitted.split_whitespace().next().unwrap().parse::<usize>().unwrap()
    });
    assert_eq!(admitted.iter().sum::<usize>(), 1_000, "{admitted:?}");
}

/// Where the process above says which server to ask.
const SERVER: &str = "TOWER_QUOTA_TEST_SERVER";

/// One of the processes of the test above; alone it has nothing to do.
#[test]
fn one_of_several_processes() {
    let Ok(url) = std::env::var(SERVER) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let limiter = connected(builder(&url, OnFailure::Closed).policy(by_header(Quota::per_hour(1_000)))).await;
        let admitted: usize = join_all((0..20).map(|_| admitted(&limiter, "a", 50))).await.into_iter().sum();
        println!("admitted {admitted} ");
    });
}

/// What stands where a bucket should be: garbage is healed, another type harms its own key alone.
#[tokio::test]
async fn rds09_a_foreign_value_affects_no_other_key() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let fresh = || connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE)));
        assert!(admits(&fresh().await, "a").await);
        let ours: Vec<String> = server.keys();
        assert_eq!(ours.len(), 1, "{ours:?}");
        let key = &ours[0];
        for garbage in ["", "x", "12", "-1790000000000000000", "1e18", "99999999999999999999999999"] {
            for key in &ours {
                server.cli(&["SET", key, garbage]);
            }
            assert_eq!(admitted(&fresh().await, "a", 10).await, 5, "{engine:?}: {garbage:?}");
        }
        // Years ahead, written by a clock that was: to the nanosecond, as much is owed as was then.
        for key in &ours {
            server.cli(&["SET", key, "9000000000000000000 8999996400000000 8999996400000000 720000000000"]);
        }
        let limiter = fresh().await;
        let denied = limiter.decide(&with_header("k", "a")).await.denied().unwrap();
        assert_eq!(denied.wait(), Some(Duration::from_secs(720)), "{denied:?}");
        let ttl: u64 = server.cli(&["PTTL", key]).parse().unwrap();
        assert!(ttl <= 3_600_001, "and what was moved is written: {ttl}");
        for block in ["b", "n"] {
            for key in &ours {
                let blocked =
                    format!("9000000000000000000 8999996400000000 8999996400000000 1 {block}9000000000000000001");
                server.cli(&["SET", key, &blocked]);
            }
            let left = limiter.blocked_for("per-k", "a").await.unwrap();
            assert_eq!(left, Some(Duration::new(3_600, 1)), "{block}");
        }
        for key in &ours {
            server.cli(&["DEL", key]);
            server.cli(&["LPUSH", key, "a list"]);
        }
        let limiter = fresh().await;
        let denied = limiter.decide(&with_header("k", "a")).await.denied().unwrap();
        assert_eq!(denied.reason(), Reason::Unavailable, "{engine:?}");
        assert!(limiter.is_connected(), "one key is no reason to give up");
        assert!(admits(&limiter, "b").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rds10_a_request_that_is_dropped_shifts_no_other_answer() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_hour(1_000)))).await;
    // Keys with different remainders, so that an answer of another one would show.
    for n in 0..10 {
        assert_eq!(admitted(&limiter, &format!("{n}"), n * 10).await, n * 10);
    }
    for _ in 0..200 {
        for n in 0..10 {
            let key = format!("{n}");
            let dropped = with_header("k", "dropped");
            let _ = futures_util::poll!(std::pin::pin!(limiter.decide(&dropped)));
            if n % 3 == 0 {
                let request = with_header("k", &key);
                let Decision::Allow(allowed) = limiter.decide(&request).await else { panic!("{key} has more") };
                let spent = 1_000 - allowed.standings().next().unwrap().remaining() as usize;
                assert!((n * 10 + 1..=n * 10 + 200).contains(&spent), "{key}: {spent}");
            }
        }
    }
}

#[tokio::test]
async fn the_task_and_its_connection_end_with_the_last_handle() {
    let server = Server::start(Engine::Redis);
    let clients = || server.cli(&["CLIENT", "LIST"]).lines().count() - 1;
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE))).await;
    let clone = limiter.clone();
    assert_eq!(clients(), 1);
    drop(limiter);
    assert!(admits(&clone, "a").await);
    drop(clone);
    eventually(|| async { clients() == 0 }).await;
}

/// Runtimes come and go, and the connection stays.
#[test]
fn the_connection_outlives_the_runtimes_that_use_it() {
    let server = Server::start(Engine::Redis);
    let limiter = builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE)).build().unwrap();
    for round in 0..3 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            connect(&limiter).await;
            assert!(admits(&limiter, &format!("{round}")).await);
        });
        drop(runtime);
        assert!(limiter.is_connected());
    }
}

#[test]
fn an_error_has_the_source_that_it_comes_from() {
    let unknown = builder("redis://127.0.0.1", OnFailure::Open).on_failure_of("nobody", OnFailure::Open);
    let error = unknown.policy(by_header(FIVE)).build().unwrap_err();
    assert!(error.source().unwrap().is::<UnknownPolicy>());
    let error = builder("redis://127.0.0.1", OnFailure::Open).build().unwrap_err();
    assert!(error.source().unwrap().is::<ConfigError>());
    assert!(matches!(error, RedisConfigError::Policies(ref policies) if policies.kind() == ConfigErrorKind::NoPolicy));
}

/// What is read from the handle of a layer is true of that layer.
#[tokio::test]
async fn the_limiter_of_a_layer_is_the_one_that_decides() {
    let server = Server::start(Engine::Redis);
    let layer = RateLimitLayer::new(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE)).build().unwrap());
    assert!(!layer.limiter().is_connected());
    connect(layer.limiter()).await;
    let service = layer.layer(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new())))));
    for _ in 0..5 {
        assert_eq!(service.clone().oneshot(with_header("k", "a")).await.unwrap().status(), StatusCode::OK);
    }
    assert_eq!(layer.limiter().calls().decisions, 5);
    assert!(!admits(layer.limiter(), "a").await, "the layer has used up the quota");
}

/// The block of a ban may end before the cells are there. Then the wait is that for the cells.
#[tokio::test]
async fn a_banned_key_has_an_accurate_wait() {
    let server = Server::start(Engine::Redis);
    let minute = Duration::from_secs(60);
    let policy = by_header(Quota::per_hour(2)).ban(Ban::after(1, minute).initial(minute).max(minute));
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(policy)).await;
    assert_eq!(admitted(&limiter, "a", 2).await, 2);
    for denial in ["by Redis", "from the cache"] {
        let denied = limiter.decide(&with_header("k", "a")).await.denied().unwrap();
        assert_eq!(denied.reason(), Reason::Blocked, "{denial}");
        assert!(denied.wait().unwrap() > Duration::from_secs(1_700), "{denial}: {denied}");
    }
}

#[tokio::test]
async fn the_layer_answers_as_the_one_in_memory_does() {
    let server = Server::start(Engine::Redis);
    let limiter =
        connected(builder(&server.url(), OnFailure::Closed).policy(Policy::per(PeerIp, Quota::per_hour(2)))).await;
    let service = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::from("served")))));
    let ask = |layer: RateLimitLayer<RedisLimiter>, address: [u8; 4]| async move {
        let mut request = Request::new(());
        request.extensions_mut().insert(SocketAddr::from((address, 1)));
        layer.layer(service).oneshot(request).await.unwrap()
    };
    let field = |response: &Response<String>, name: &str| {
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
    };
    let first = ask(RateLimitLayer::new(&limiter), [192, 0, 2, 1]).await;
    assert_eq!((first.status(), first.body().as_str()), (StatusCode::OK, "served"));
    assert_eq!(field(&first, "ratelimit").unwrap(), r#""per-ip";r=1;t=1800"#);
    ask(RateLimitLayer::new(&limiter), [192, 0, 2, 1]).await;
    let denied = ask(RateLimitLayer::new(&limiter), [192, 0, 2, 1]).await;
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(field(&denied, "retry-after").unwrap(), "1800");
    assert!(denied.body().contains("violated-policies"), "{}", denied.body());
    let plain = ask(RateLimitLayer::new(&limiter).plain_text(), [192, 0, 2, 1]).await;
    assert!(plain.body().starts_with("Too many requests"), "{}", plain.body());
    drop(server);
    eventually(|| async {
        let gone = ask(RateLimitLayer::new(&limiter), [192, 0, 2, 9]).await;
        gone.status() == StatusCode::SERVICE_UNAVAILABLE && gone.body().contains("cannot be checked")
    })
    .await;
}

/// What is lost in Redis is at most one burst more; what a process has seen denied, it remembers.
#[tokio::test]
async fn s5_an_evicted_key_begins_anew_and_once_and_a_changed_quota_does_not() {
    let server = Server::start(Engine::Redis);
    let fresh = |quota| connected(builder(&server.url(), OnFailure::Closed).policy(by_header(quota)));
    let limiter = fresh(FIVE).await;
    assert_eq!(admitted(&limiter, "a", 10).await, 5);
    server.cli(&["FLUSHALL"]);
    assert_eq!(admitted(&limiter, "a", 10).await, 0, "this process remembers");
    assert_eq!(admitted(&fresh(FIVE).await, "a", 10).await, 5, "another has seen nothing: one burst");
    assert_eq!(admitted(&fresh(FIVE).await, "a", 10).await, 0);
    assert_eq!(admitted(&fresh(Quota::per_hour(7)).await, "a", 10).await, 2, "a change of quota keeps the count");
    assert_eq!(admitted(&fresh(FIVE).await, "a", 10).await, 0);
}

/// The primary dies, the sentinel makes the replica the primary, and the limiter asks where it is now.
#[tokio::test(flavor = "multi_thread")]
async fn rds06_after_a_failover_the_new_primary_is_asked() {
    let login = ["--requirepass", "pa55word", "--masterauth", "pa55word"];
    let mut primary = Server::start_with(Engine::Redis, &login);
    let port = primary.port.to_string();
    let replica = Server::start_with(Engine::Redis, &[&login[..], &["--replicaof", "127.0.0.1", &port]].concat());
    within_a_minute(|| replica.cli(&["INFO", "replication"]).contains("master_link_status:up"));
    let sentinel = Server::sentinel("limits", primary.port, "pa55word");
    within_a_minute(|| sentinel.cli(&["SENTINEL", "REPLICAS", "limits"]).contains(&replica.port.to_string()));
    // One that accepts and never answers stands first: the next is asked all the same.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sentinels = || [format!("redis://{}", silent.local_addr().unwrap()), sentinel.url()];
    let url = "redis://:pa55word@127.0.0.1";
    let on_failure = OnFailure::Local { share: 1.0 };
    let limiter = connected(builder(url, on_failure).sentinels(sentinels(), "limits").policy(by_header(FIVE))).await;
    assert_eq!(admitted(&limiter, "a", 10).await, 5);
    within_a_minute(|| replica.keys().len() == 1);
    primary.kill();
    eventually(|| async {
        let _ = admits(&limiter, "x").await;
        replica.cli(&["ROLE"]).starts_with("master") && limiter.is_connected()
    })
    .await;
    assert_eq!(admitted(&limiter, "b", 10).await, 5);
    within_a_minute(|| replica.keys().len() >= 2);
    // What was replicated is owed there, whoever asks.
    let other = builder(url, OnFailure::Closed).sentinels(sentinels(), "limits").policy(by_header(FIVE));
    assert_eq!(admitted(&connected(other).await, "a", 10).await, 0);
}

/// A runtime ends with a request under way: nothing of it is left that would keep the next one from asking.
#[test]
fn a_runtime_that_ends_in_the_middle_of_a_call_leaves_no_gate_shut() {
    let server = Server::start(Engine::Redis);
    let limiter = builder(&server.url(), OnFailure::Open).policy(by_header(FIVE)).build().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        connect(&limiter).await;
        server.signal("-STOP");
        for n in 0..5 {
            let limiter = limiter.clone();
            tokio::spawn(async move { admits(&limiter, &format!("{n}")).await });
        }
        eventually(|| async { limiter.calls().calls >= 5 }).await;
    });
    drop(runtime);
    server.signal("-CONT");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        connect(&limiter).await;
        assert_eq!(admitted(&limiter, "a", 50).await, 5);
    });
}

/// More requests at once than any queue holds are no way past the limit.
#[tokio::test]
async fn a_crowd_is_limited_like_anybody_else() {
    let server = Server::start(Engine::Redis);
    for (keys, expected) in [(1, 5), (4_000, 4_000)] {
        let limiter = builder(&server.url(), OnFailure::Open).stall_after(Duration::from_secs(5));
        let limiter = &connected(limiter.policy(by_header(FIVE))).await;
        let crowd = (0..4_000).map(|n| async move { admits(limiter, &format!("{keys} {}", n % keys)).await });
        let admitted = join_all(crowd).await.into_iter().filter(|admitted| *admitted).count();
        assert_eq!(admitted, expected, "of {keys} keys");
        // Of one key, the last ones find a cached denial.
        assert!(keys == 1 || limiter.calls().decisions == 4_000, "all were left to Redis");
    }
}

/// What is drawn from a share takes longer to come back than the whole, and only where the share counts.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acquired_without_redis_locks_no_client_out_with_it() {
    let mut server = Server::start(Engine::Redis);
    let share = OnFailure::Local { share: 0.05 };
    let limiter = connected(builder(&server.url(), share).policy(by_header(FIVE))).await;
    let all = connected(builder(&server.url(), share).policy(Policy::global(FIVE))).await;
    server.kill();
    for limiter in [&limiter, &all] {
        eventually(|| async {
            let _ = admits(limiter, "x").await;
            !limiter.is_connected()
        })
        .await;
    }
    assert_eq!(admitted(&limiter, "a", 10).await, 1, "a share is at least one cell");
    assert_eq!(admitted(&all, "a", 10).await, 0, "which one of the first has had");
    server.run();
    connect(&limiter).await;
    connect(&all).await;
    assert_eq!(admitted(&limiter, "a", 10).await, 5);
    assert_eq!(admitted(&all, "a", 10).await, 5);
}

/// In shadow mode a policy draws what it has, and neither denies nor holds the others back.
#[tokio::test(flavor = "multi_thread")]
async fn ops09_a_policy_in_shadow_mode_only_watches() {
    let server = Server::start(Engine::Redis);
    let policies = [by_header(Quota::per_hour(50)).named("old"), by_header(Quota::per_hour(3)).named("new").shadow()];
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policies(policies)).await;
    for left in [2, 1, 0, 0] {
        let request = with_header("k", "a");
        let Decision::Allow(allowed) = limiter.decide(&request).await else { panic!("the old one has 50") };
        let standings: Vec<_> = allowed.standings().map(|standing| standing.remaining()).collect();
        assert_eq!(standings[1], left);
    }
    let together = join_all((0..20).map(|_| admitted(&limiter, "a", 5))).await;
    assert_eq!(together.into_iter().sum::<usize>(), 46);
}

/// A key above its share may be within its limit. A ban for it would outlast the outage.
#[tokio::test]
async fn a_denial_of_the_fallback_bans_nobody() {
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let minute = Duration::from_secs(60);
    let policy = by_header(Quota::per_hour(8)).ban(Ban::after(1, minute).initial(minute).max(minute));
    let limiter = builder(&nowhere, OnFailure::Local { share: 0.5 }).policy(policy).build().unwrap();
    assert_eq!(admitted(&limiter, "a", 10).await, 4);
    let denied = limiter.decide(&with_header("k", "a")).await.denied().unwrap();
    assert_ne!(denied.reason(), Reason::Blocked);
}

#[tokio::test]
async fn a_cost_that_no_share_can_pay_is_denied_and_not_sold_at_a_discount() {
    let nowhere = format!("redis://127.0.0.1:{}", free_port());
    let policy = by_header(Quota::per_hour(100)).cost_by(|head| if head.uri().path() == "/dear" { 100 } else { 25 });
    let limiter = builder(&nowhere, OnFailure::Local { share: 0.25 }).policy(policy).build().unwrap();
    let mut dear = with_header("k", "a");
    *dear.uri_mut() = "/dear".parse().unwrap();
    assert_eq!(limiter.decide(&dear).await.denied().unwrap().reason(), Reason::Unavailable);
    assert_eq!(admitted(&limiter, "a", 10).await, 1);
}

/// What is known of a bucket under one quota says nothing of another, which may find cells in it.
#[tokio::test]
async fn a_denial_is_cached_for_its_quota_only() {
    let server = Server::start(Engine::Redis);
    let plan = |head: tower_quota::key::RequestHead<'_>| {
        Some(if head.headers().contains_key("pro") { Quota::per_hour(9) } else { FIVE })
    };
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE).quota_by(plan))).await;
    let mut pro = with_header("k", "a");
    pro.headers_mut().insert("pro", "1".parse().unwrap());
    assert_eq!(admitted(&limiter, "a", 10).await, 5);
    for _ in 0..4 {
        assert!(limiter.decide(&pro).await.is_allowed());
    }
    assert!(!limiter.decide(&pro).await.is_allowed());
    assert_eq!(admitted(&limiter, "a", 10).await, 0);
}

/// Two runtimes in turn, neither of which is driven between its turns, and without timers.
#[test]
fn a_runtime_that_is_not_driven_is_no_reason_to_do_without_redis() {
    let server = Server::start(Engine::Redis);
    let limiter = builder(&server.url(), OnFailure::Closed).policy(by_header(Quota::per_hour(100))).build().unwrap();
    let runtimes = [(); 2].map(|()| tokio::runtime::Builder::new_current_thread().build().unwrap());
    for turn in 0..10 {
        runtimes[turn % 2].block_on(async {
            connect(&limiter).await;
            assert!(admits(&limiter, "a").await, "turn {turn}");
        });
    }
}

/// A runtime whose clock leaps whenever it has nothing to do.
#[tokio::test(start_paused = true)]
async fn a_paused_clock_changes_nothing() {
    let server = Server::start(Engine::Redis);
    let limiter = builder(&server.url(), OnFailure::Closed).timeout(Duration::from_millis(50));
    let limiter = connected(limiter.policy(by_header(Quota::per_hour(100)))).await;
    assert_eq!(admitted(&limiter, "a", 50).await, 50);
}

/// With the rights that docs/redis.md gives, and no others.
#[tokio::test]
async fn the_rights_of_the_operations_page_suffice() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let give = |before: &str| {
            let page = include_str!("../docs/redis.md");
            let rights = page.split(before).nth(1).expect("the page has it").split('`').nth(1).unwrap();
            let rights = rights.trim_start_matches("ACL SETUSER limiter");
            let command: Vec<&str> =
                ["ACL", "SETUSER", "limiter"].into_iter().chain(rights.split_whitespace()).collect();
            assert_eq!(server.cli(&command), "OK");
        };
        give("- a single server, or the primary behind sentinels:");
        let url = format!("redis://limiter:password@127.0.0.1:{}", server.port);
        let limiter = connected(builder(&url, OnFailure::Closed).policy(by_header(FIVE))).await;
        assert_eq!(admitted(&limiter, "a", 10).await, 5, "{engine:?}");
        assert_eq!(server.cli(&["SCRIPT", "FLUSH"]), "OK");
        assert!(admits(&limiter, "b").await, "{engine:?}");
        limiter.block("per-k", "b", Duration::from_secs(60)).await.unwrap();
        limiter.set_limit("per-k", Quota::per_hour(9)).await.unwrap();
        assert_eq!(limiter.list("per-k", None, 10).await.unwrap().keys.len(), 2);
        assert!(limiter.reset("per-k", "a").await.unwrap());
        limiter.set_limit("per-k", FIVE).await.unwrap();
        let elsewhere = builder(&url, OnFailure::Closed).prefix("elsewhere").policy(by_header(FIVE)).build().unwrap();
        assert!(!elsewhere.connect(Duration::from_millis(200)).await, "other keys are not its own");
        let with = |more: &str| builder(&format!("{url}{more}"), OnFailure::Closed).policy(by_header(FIVE));
        assert!(!with("/5").build().unwrap().connect(Duration::from_millis(200)).await, "it needs another right");
        give("- with a database in the address, also:");
        for more in ["/5", "?protocol=resp3"] {
            assert!(admits(&connected(with(more)).await, "c").await, "{engine:?} {more}");
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn settings_are_read_from_a_file() {
    use tower_quota::redis::RedisConfig;
    let read = |text: &str| toml::from_str::<RedisConfig>(text);
    let least = "address = \"redis://127.0.0.1\"\nsecret = \"the secret of these tests\"\non-failure = \"open\"\n";
    let all = format!(
        "{least}prefix = \"p\"\ntimeout-ms = 70\nstall-after-ms = 20\ncached-keys = 10\n\
         lease = {{ cells = 64, ms = 100 }}\n[on-failure-of]\nper-k = {{ local = 0.25 }}\n"
    );
    for text in [least, &all] {
        let config = read(text).unwrap();
        assert!(!format!("{config:?}").contains("the secret"));
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RedisConfig>(&json).unwrap(), config);
        config.builder().policy(by_header(FIVE)).build().unwrap();
    }
    let refused =
        |text: &str| read(&format!("{least}{text}")).unwrap().builder().policy(by_header(FIVE)).build().unwrap_err();
    assert_eq!(refused("timeout-ms = 0"), RedisConfigError::Timeout(Duration::ZERO));
    assert_eq!(refused("on-failure-of = { per-k = { local = 2.0 } }"), RedisConfigError::Share(2.0));
    assert!(matches!(refused("on-failure-of = { x = \"closed\" }"), RedisConfigError::UnknownPolicy(_)));
    assert!(matches!(refused("lease = { cells = 0, ms = 1 }"), RedisConfigError::Lease { max: 0, .. }));
    assert_eq!(
        refused("sentinel = { addresses = [], primary = \"x\" }\ncluster = []"),
        RedisConfigError::SentinelsOfACluster
    );
    assert!(read(&format!("{least}colour = 1")).unwrap_err().to_string().contains("colour"));
}

/// One in cluster mode, and nobody has said so: some keys are elsewhere.
#[tokio::test]
async fn rds04_a_server_in_cluster_mode_is_done_without_unless_it_is_said() {
    // Unless it is said, the second port is above the first by 10,000, where connections have theirs.
    let bus = free_port().to_string();
    let server = Server::start_with(Engine::Redis, &["--cluster-enabled", "yes", "--cluster-port", &bus]);
    let limiter = builder(&server.url(), OnFailure::Closed).policy(by_header(FIVE)).build().unwrap();
    assert!(!limiter.connect(Duration::from_millis(300)).await);
    assert_eq!(limiter.decide(&with_header("k", "a")).await.denied().unwrap().reason(), Reason::Unavailable);
}

#[test]
fn the_example_shares_one_limit_between_two_servers() {
    let server = Server::start(Engine::Redis);
    let mut example = Example::run_with("redis", &[("REDIS_URL", &server.url())]);
    let second = example.line();
    let second = second.strip_prefix("listening on http://").unwrap().parse().unwrap();
    let statuses = (0..8).map(|n| {
        let address = if n % 2 == 0 { example.address } else { second };
        Connection::open(address).send("GET", "/", &[]).status
    });
    assert_eq!(statuses.collect::<Vec<_>>(), [200, 200, 200, 200, 200, 429, 429, 429]);

    // Another process resets the customer, and blocks it.
    let operate = |arguments: &[&str]| {
        let mut command = std::process::Command::new(example::path("redis"));
        let output = command.env("REDIS_URL", server.url()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(operate(&["reset", "127.0.0.1"]), "127.0.0.1 has its whole limit again\n");
    within_a_minute(|| Connection::open(second).send("GET", "/", &[]).status == 200);
    assert_eq!(operate(&["block", "127.0.0.1", "60"]), "127.0.0.1 is blocked for 60s\n");
    within_a_minute(|| Connection::open(example.address).send("GET", "/", &[]).status == 429);
}

#[test]
fn the_example_admin_runs_over_redis() {
    let server = Server::start(Engine::Redis);
    let environment = [("ADMIN_PORT", "0"), ("ADMIN_TOKEN", "s3cret"), ("REDIS_URL", &server.url())];
    let mut example = Example::run_with("admin", &environment);
    let admin = example.line().strip_prefix("admin on http://").unwrap().parse().unwrap();
    let ask = |method: &str, path: &str| {
        let reply = Connection::open(admin).send(method, path, &[("authorization", "Bearer s3cret")]);
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        reply.body
    };
    let status = || Connection::open(example.address).send("GET", "/", &[]).status;
    within_a_minute(|| status() == 200 && ask("GET", "/policies/per-ip/keys").contains("remaining"));
    let keys = ask("GET", "/policies/per-ip/keys");
    let key = keys.split("\"key\":\"").nth(1).unwrap().split('"').next().unwrap();
    ask("POST", &format!("/policies/per-ip/keys/{key}/block?seconds=60"));
    assert_eq!(status(), 429);
    assert!(!ask("GET", &format!("/policies/per-ip/keys/{key}")).contains("\"blocked_for_ms\":null"));
    assert!(ask("DELETE", &format!("/policies/per-ip/keys/{key}")).contains("true"));
    within_a_minute(|| status() == 200);
    assert!(ask("GET", "/denied").contains("per-ip"));
}

/// Failed logins count, and successful ones do not, however many processes there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_does_not_count_is_refunded_in_redis() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let policy = || by_header(FIVE).count_if(|response| response.status() == StatusCode::UNAUTHORIZED);
        let limiters = [(); 2].map(|()| builder(&server.url(), OnFailure::Closed).policy(policy()));
        let limiters = join_all(limiters.map(connected)).await;
        let ask = async |limiter: &RedisLimiter, status: StatusCode| {
            let login = service_fn(move |_: Request<()>| {
                let mut response = Response::new(String::new());
                *response.status_mut() = status;
                ready(Ok::<_, Infallible>(response))
            });
            RateLimitLayer::new(limiter).layer(login).oneshot(with_header("k", "a")).await.unwrap().status()
        };
        for round in 0..20 {
            let limiter = &limiters[round % 2];
            eventually(|| async { ask(limiter, StatusCode::OK).await == StatusCode::OK }).await;
        }
        for round in 0..5 {
            // What the last one refund may be on its way.
            let failed =
                || async { ask(&limiters[round % 2], StatusCode::UNAUTHORIZED).await == StatusCode::UNAUTHORIZED };
            eventually(failed).await;
        }
        for limiter in &limiters {
            assert_eq!(ask(limiter, StatusCode::OK).await, StatusCode::TOO_MANY_REQUESTS, "{engine:?}");
        }
    }
}

/// A handler knows what a request has cost when it is done: less is refund, more is charged.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_settles_is_settled_in_redis() {
    let server = Server::start(Engine::Redis);
    let policy = |cells| by_header(Quota::per_hour(100)).named("tokens").cost_by(move |_| cells);
    let limiter = connected(builder(&server.url(), OnFailure::Closed).policy(policy(50))).await;
    let other = connected(builder(&server.url(), OnFailure::Closed).policy(policy(1))).await;
    let layer = || RateLimitLayer::new(&limiter).admissions();
    let ask = async |cells: Option<u32>| {
        let service = service_fn(move |request: Request<()>| {
            let admission = request.extensions().get::<Admission>().unwrap();
            match cells {
                Some(cells) => admission.settle("tokens", cells).unwrap(),
                None => admission.refund(),
            }
            // Once is enough.
            admission.refund();
            assert!(admission.settle("nobody", 1).is_err());
            ready(Ok::<_, Infallible>(Response::new(String::new())))
        });
        layer().layer(service).oneshot(with_header("k", "a")).await.unwrap().status()
    };
    let remaining = async || {
        let request = with_header("k", "a");
        match other.decide(&request).await {
            Decision::Allow(allowed) => Some(allowed.standings().next().unwrap().remaining()),
            Decision::Deny(_) => None,
        }
    };
    let calls = || {
        let stats = server.cli(&["INFO", "commandstats"]);
        let calls = stats.split("cmdstat_evalsha:calls=").nth(1).unwrap().split(',').next().unwrap();
        calls.parse::<u32>().unwrap()
    };
    for (cost, left) in [(Some(20), 79), (None, 78), (Some(70), 7)] {
        let before = calls();
        assert_eq!(ask(cost).await, StatusCode::OK);
        within_a_minute(|| calls() == before + 2);
        assert_eq!(remaining().await, Some(left));
    }
    // More than there is: the debt ends at the burst.
    let all = connected(builder(&server.url(), OnFailure::Closed).policy(policy(7))).await;
    assert!(admits(&all, "a").await);
    assert!(!admits(&other, "a").await);
    // What was refund here is not taken for owed here.
    assert_eq!(ask(None).await, StatusCode::TOO_MANY_REQUESTS);
}

/// One after the other, so that nothing can be asked for together.
#[tokio::test(flavor = "multi_thread")]
async fn with_leases_a_busy_key_takes_few_calls_and_no_more_than_the_quota() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let policy = || by_header(Quota::per_hour(2_000));
        let busy = || builder(&server.url(), OnFailure::Closed).policy(policy()).lease(64, Duration::from_secs(1));
        let limiters = [connected(busy()).await, connected(busy()).await];
        let before = limiters[0].calls();
        let each = join_all(limiters.iter().map(|limiter| admitted(limiter, "a", 800))).await;
        assert_eq!(each, [800, 800], "{engine:?}");
        let calls = limiters[0].calls().calls - before.calls;
        assert!(calls < 200, "{calls} calls for 800 decisions");
        // What both hold goes back, and then is there for whoever asks.
        let rest = AtomicUsize::new(0);
        eventually(|| async {
            // A denial would be remembered beyond the return: it is asked as one who knows nothing.
            let exact = connected(builder(&server.url(), OnFailure::Closed).policy(policy())).await;
            let more = admitted(&exact, "a", 50).await;
            rest.fetch_add(more, Ordering::Relaxed) + more >= 400
        })
        .await;
        assert_eq!(rest.into_inner(), 400, "{engine:?}");
        for limiter in &limiters {
            assert!(!admits(limiter, "a").await, "{engine:?}");
        }
    }
}

/// The script alone, with acquisitions of some time ago: `owed` before, and what is left.
#[test]
fn time_has_returned_a_part_of_what_is_refunded() {
    for engine in ENGINES {
        let server = Server::start(engine);
        let script = concat!(include_str!("../src/redis/bucket.lua"), include_str!("../src/redis/settle.lua"));
        let now = || server.cli(&["TIME"]).lines().next().unwrap().parse::<i64>().unwrap();
        for (owed, returned, since, charged, generation, left) in [
            // Two of five seconds have gone by.
            (100, 5, 2, 0, 7, 97),
            (100, 5, 5, 0, 7, 100),
            (100, 5, 9, 0, 7, 100),
            // Acquired by a clock that was ahead: no more than all of it.
            (100, 5, -30, 0, 7, 95),
            // Somebody else's refund: nothing is owed any more.
            (3, 50, 0, 0, 7, 0),
            (0, 50, 0, 0, 7, 0),
            // From before a reset.
            (100, 5, 2, 0, 6, 100),
            (100, 0, 0, 50, 7, 150),
            (0, 0, 0, 50, 7, 50),
            // The burst is 600, and the debt as much again.
            (590, 0, 0, 50, 7, 640),
            (1_190, 0, 0, 50, 7, 1_200),
            // A charge lessens nothing.
            (1_300, 0, 0, 50, 7, 1_300),
        ] {
            server.cli(&["FLUSHALL"]);
            let start = now();
            if owed > 0 {
                let value = format!("{}000000000 {start}000000 7 1000000000", start + owed);
                server.cli(&["SET", "k", &value]);
            }
            let drawn = (start - since).to_string();
            let (returned, generation, charged) =
                (format!("{returned}000000000"), generation.to_string(), charged.to_string());
            let mut arguments =
                vec![&*drawn, "0", &returned, &generation, "1000000000", "600", "", &charged, "0", "", "0", "0"];
            // Of a rate, which has no windows.
            arguments.extend(["", "0"]);
            let said = server.cli(&[&["EVAL", script, "1", "k"][..], &arguments].concat());
            assert_eq!(said.lines().count(), 2, "{said}");
            let value: i64 = server.cli(&["GET", "k"]).get(..10).map_or(start, |seconds| seconds.parse().unwrap());
            // A second may pass on the way.
            assert!((left - 1..=left + 2).contains(&(value - start)), "{owed} {returned} {since}: {}", value - start);
        }
    }
}
