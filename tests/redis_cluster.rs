//! The same policies over a cluster of Redis or Valkey: real servers, started and ended by the tests.
#![cfg(feature = "redis")]

#[path = "support/redis.rs"]
mod servers;
mod support;

use std::time::Duration;

use futures_util::future::join_all;
use servers::{ENGINES, Engine, Server, eventually, free_port, within_a_minute};
use support::with_header;
use tower_quota::{
    Decision, Policy, Quota,
    decision::Reason,
    key::{Header, Key},
    redis::{OnFailure, RedisBuilder, RedisLimiter},
};

const FIVE: Quota = Quota::per_hour(5);

fn builder(servers: &[Server; 3], on_failure: OnFailure) -> RedisBuilder {
    let others = servers[1..].iter().map(Server::url);
    // Long, so that a slow machine is no failure; where the time matters, it is set.
    RedisLimiter::builder(servers[0].url(), b"the secret of these tests", on_failure)
        .timeout(Duration::from_secs(5))
        .cluster(others)
}

fn by_header(quota: Quota) -> Policy {
    Policy::per(Header::new("k"), quota)
}

async fn connected(builder: RedisBuilder) -> RedisLimiter {
    let limiter = builder.build().unwrap();
    assert!(limiter.connect(Duration::from_secs(30)).await, "no connection");
    limiter
}

async fn decide<'a>(limiter: &'a RedisLimiter, key: &str) -> Decision<'a> {
    limiter.decide(&with_header("k", key)).await
}

async fn admitted(limiter: &RedisLimiter, key: &str, tries: usize) -> usize {
    let mut admitted = 0;
    for _ in 0..tries {
        admitted += usize::from(decide(limiter, key).await.is_allowed());
    }
    admitted
}

/// The names of the buckets that each server has.
fn keys(servers: &[Server]) -> Vec<Vec<String>> {
    servers.iter().map(Server::keys).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rds04_each_key_is_asked_where_it_is() {
    for engine in ENGINES {
        let (servers, _replica) = Server::cluster(engine);
        let policies = [by_header(FIVE).named("a"), by_header(Quota::per_hour(7)).named("b")];
        let first = connected(builder(&servers, OnFailure::Closed).policies(policies.clone())).await;
        let second = connected(builder(&servers, OnFailure::Closed).policies(policies)).await;
        assert!(first.is_connected());
        let before = first.calls();
        for key in 0..30 {
            let key = key.to_string();
            let (a, b) = (admitted(&first, &key, 3).await, admitted(&second, &key, 7).await);
            assert_eq!(a + b, 5, "{engine:?}: {key}");
        }
        assert_eq!(first.calls().calls - before.calls, 90, "two policies of one principal are one call");
        let keys = keys(&servers);
        assert!(keys.iter().all(|keys| keys.len() >= 4), "{keys:?}");
        assert_eq!(keys.iter().map(Vec::len).sum::<usize>(), 60);
    }
}

/// A policy of each key and one of the whole service are at different nodes; what one has granted in vain is refund.
#[tokio::test(flavor = "multi_thread")]
async fn all_or_nothing_over_several_nodes() {
    for engine in ENGINES {
        let (servers, _replica) = Server::cluster(engine);
        let policies =
            || [by_header(FIVE), Policy::global(Quota::per_hour(12)), by_header(FIVE).named("watches").shadow()];
        let both = connected(builder(&servers, OnFailure::Closed).policies(policies())).await;
        let mut total = 0;
        for key in ["a", "b", "c", "d", "e", "f"] {
            total += admitted(&both, key, 4).await;
        }
        assert_eq!(total, 12, "{engine:?}");
        let denied = decide(&both, "g").await.denied().unwrap();
        assert_eq!((denied.reason(), denied.policy()), (Reason::Exceeded, "global"));
        // Another process, which knows nothing, asks all nodes and is denied by one. The others have lost nothing by it.
        let other = connected(builder(&servers, OnFailure::Closed).policies(policies())).await;
        assert!(!decide(&other, "h").await.is_allowed());
        let alone = connected(builder(&servers, OnFailure::Closed).policy(by_header(FIVE))).await;
        assert_eq!(admitted(&alone, "a", 10).await, 1);
        assert_eq!(admitted(&alone, "g", 10).await, 5);
        eventually(|| async { keys(&servers).concat().iter().filter(|key| key.ends_with(":watches")).count() == 3 })
            .await;
        assert_eq!(admitted(&alone, "h", 10).await, 5);
    }
}

/// Many at once over three nodes never admit more than either policy has, and what was refund is there again.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_over_several_nodes_gets_no_more_than_the_quota() {
    let (servers, _replica) = Server::cluster(Engine::Redis);
    let policies = || [by_header(Quota::per_hour(10)), Policy::global(Quota::per_hour(50))];
    let limiters = [(); 3].map(|()| builder(&servers, OnFailure::Closed).policies(policies()));
    let limiters = join_all(limiters.map(connected)).await;
    let crowd = limiters.iter().flat_map(|limiter| (0..12).map(move |key| (limiter, key.to_string())));
    let each = join_all(crowd.map(|(limiter, key)| async move { admitted(limiter, &key, 8).await })).await;
    let total: usize = each.iter().sum();
    assert!(total <= 50, "{total}");
    // Some may have been denied by cells that were under way. None of those is lost for whoever comes later.
    let late = connected(builder(&servers, OnFailure::Closed).policies(policies())).await;
    let mut later = 0;
    for key in 100..150 {
        later += admitted(&late, &key.to_string(), 1).await;
    }
    assert_eq!(total + later, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn rds04_a_slot_that_moves_is_followed_and_loses_nothing() {
    for engine in ENGINES {
        let (servers, _replica) = Server::cluster(engine);
        let limiter = connected(builder(&servers, OnFailure::Closed).policy(by_header(FIVE))).await;
        assert_eq!(admitted(&limiter, "a", 2).await, 2);
        let owner = servers.iter().position(|server| server.keys().len() == 1).unwrap();
        let (source, target) = (&servers[owner], &servers[(owner + 1) % 3]);
        let key = source.keys().remove(0);
        let slot = source.cli(&["CLUSTER", "KEYSLOT", &key]);
        let (from, to) = (source.cluster_id(), target.cluster_id());
        assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]), "OK");
        assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]), "OK");
        assert_eq!(admitted(&limiter, "a", 1).await, 1, "{engine:?}: it is still there");
        let port = target.port.to_string();
        assert_eq!(source.cli(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]), "OK");
        assert_eq!(admitted(&limiter, "a", 1).await, 1, "{engine:?}: the node that it goes to is asked");
        for server in [target, source] {
            assert_eq!(server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
        }
        assert_eq!(admitted(&limiter, "a", 10).await, 1, "{engine:?}: it is there for good");
        assert!(limiter.is_connected());
        // The map is made anew, and who comes now asks at once where it is.
        let fresh = connected(builder(&servers, OnFailure::Closed).policy(by_header(FIVE))).await;
        let before = fresh.calls();
        assert_eq!(admitted(&fresh, "a", 1).await, 0);
        assert_eq!(fresh.calls().calls, before.calls + 1, "{engine:?}");
    }
}

/// The server that has a key's bucket, that bucket's name, and its slot.
fn where_is(servers: &[Server; 3], limiter_keys: usize) -> (usize, String, String) {
    let at = servers.iter().position(|server| server.keys().len() == limiter_keys).unwrap();
    let key = servers[at].keys().remove(0);
    let slot = servers[at].cli(&["CLUSTER", "KEYSLOT", &key]);
    (at, key, slot)
}

/// One that has no slots yet stands on no map.
#[tokio::test(flavor = "multi_thread")]
async fn rds04_a_slot_that_moves_to_a_new_node_is_followed() {
    let (servers, _replica) = Server::cluster(Engine::Redis);
    let limiter = connected(builder(&servers, OnFailure::Closed).policy(by_header(FIVE))).await;
    assert_eq!(admitted(&limiter, "a", 2).await, 2);
    let (at, key, slot) = where_is(&servers, 1);
    let (source, target) = (&servers[at], Server::cluster_node(Engine::Redis));
    source.meet(&target);
    let (from, to) = (source.cluster_id(), target.cluster_id());
    within_a_minute(|| target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]) == "OK");
    assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]), "OK");
    assert_eq!(source.cli(&["MIGRATE", "127.0.0.1", &target.port.to_string(), &key, "0", "5000"]), "OK");
    assert_eq!(admitted(&limiter, "a", 1).await, 1);
    assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
    assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to]), "OK");
    assert_eq!(admitted(&limiter, "a", 10).await, 2);
    assert!(limiter.is_connected());
}

/// Two keys in one call, neither of which is there yet: the source sends it on, and the target has not all.
#[tokio::test(flavor = "multi_thread")]
async fn rds04_several_policies_of_one_principal_are_decided_while_their_slot_moves() {
    for engine in ENGINES {
        let (servers, _replica) = Server::cluster(engine);
        let policies = || [by_header(FIVE).named("five"), by_header(Quota::per_hour(3)).named("three")];
        let limiter = connected(builder(&servers, OnFailure::Closed).policies(policies())).await;
        assert_eq!(admitted(&limiter, "a", 1).await, 1);
        let (at, _, slot) = where_is(&servers, 2);
        let (source, target) = (&servers[at], &servers[(at + 1) % 3]);
        source.cli(&["FLUSHALL"]);
        assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source.cluster_id()]), "OK");
        assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target.cluster_id()]), "OK");
        let fresh = connected(builder(&servers, OnFailure::Closed).policies(policies())).await;
        assert_eq!(admitted(&fresh, "a", 10).await, 3, "{engine:?}");
        assert!(fresh.is_connected());
    }
}

/// A migration that was half cancelled: a key has no home, and nobody else is harmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_a_home_harms_no_other_key() {
    let (servers, _replica) = Server::cluster(Engine::Redis);
    let limiter = connected(builder(&servers, OnFailure::Closed).policy(by_header(Quota::per_hour(1_000)))).await;
    assert_eq!(admitted(&limiter, "a", 1).await, 1);
    let (at, _, slot) = where_is(&servers, 1);
    let (source, target) = (&servers[at], &servers[(at + 1) % 3]);
    source.cli(&["FLUSHALL"]);
    assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target.cluster_id()]), "OK");
    for other in 0..100 {
        assert!(!decide(&limiter, "a").await.is_allowed());
        assert!(decide(&limiter, &other.to_string()).await.is_allowed(), "{other}");
    }
}

/// Whoever made the map first is gone, or not driven: who decides elsewhere has it made.
#[test]
fn the_map_is_made_wherever_somebody_decides() {
    let (mut servers, replica) = Server::cluster(Engine::Redis);
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let limiter = builder(&servers, OnFailure::Closed).policy(by_header(Quota::per_hour(1_000))).build().unwrap();
    // Its first task waits for ever.
    let idle = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    idle.block_on(async { assert!(!decide(&limiter, "a").await.is_allowed()) });
    let first = runtime();
    first.block_on(async { assert!(limiter.connect(Duration::from_secs(30)).await, "behind an idle runtime") });
    drop(first);
    let second = runtime();
    second.block_on(async {
        assert!(limiter.connect(Duration::from_secs(30)).await);
        servers[0].kill();
        eventually(|| async {
            for key in 0..30 {
                let _ = decide(&limiter, &key.to_string()).await;
            }
            replica.cli(&["ROLE"]).starts_with("master") && limiter.is_connected()
        })
        .await;
    });
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_address_s_password_counts_for_all_and_the_standings_are_in_order() {
    let (mut servers, _replica) = Server::cluster(Engine::Redis);
    for server in &servers {
        let login = ["ACL", "SETUSER", "limiter", "on", ">password", "allkeys", "allcommands"];
        assert_eq!(server.cli(&login), "OK");
        assert_eq!(server.cli(&["ACL", "SETUSER", "default", "-cluster|slots", "-evalsha"]), "OK");
    }
    let policies = [
        Policy::per(Header::new("k"), FIVE).named("p0"),
        Policy::per(Header::new("other"), FIVE).named("p1"),
        Policy::per(Header::new("k"), FIVE).named("p2"),
    ];
    let first = format!("redis://limiter:password@127.0.0.1:{}", servers[2].port);
    let limiter = RedisLimiter::builder(first, b"the secret of these tests", OnFailure::Local { share: 0.4 })
        .timeout(Duration::from_secs(5))
        .cluster([servers[0].url()])
        .policies(policies);
    servers[2].kill();
    let limiter = &limiter.build().unwrap();
    // The second address knows the others; the first one is away.
    let names = &async |key: &str| {
        let mut request = with_header("k", key);
        request.headers_mut().insert("other", key.parse().unwrap());
        match limiter.decide(&request).await {
            Decision::Allow(allowed) => {
                allowed.standings().map(|standing| standing.policy().to_owned()).collect::<Vec<_>>()
            }
            Decision::Deny(denied) => panic!("{denied}"),
        }
    };
    let mut tries = 100..;
    eventually(|| {
        let key = tries.next().unwrap().to_string();
        async move { limiter.calls().calls > 0 || names(&key).await.is_empty() }
    })
    .await;
    for key in 0..20 {
        assert_eq!(names(&key.to_string()).await, ["p0", "p1", "p2"]);
    }
    let before = limiter.calls().calls;
    for key in 20..40 {
        assert_eq!(names(&key.to_string()).await, ["p0", "p1", "p2"]);
    }
    assert!(limiter.calls().calls > before + 10, "the others are asked");
}

/// The others go on, and what was known of the keys of the one that is lost still counts.
#[tokio::test(flavor = "multi_thread")]
async fn rds01_a_lost_primary_affects_no_other_node() {
    let (mut servers, _replica) = Server::cluster(Engine::Redis);
    let limiter = connected(builder(&servers, OnFailure::Local { share: 0.4 }).policy(by_header(FIVE))).await;
    let names: Vec<String> = (0..30).map(|key| key.to_string()).collect();
    for name in &names {
        assert_eq!(admitted(&limiter, name, 1).await, 1);
    }
    // The second has no replica.
    let lost = servers[1].keys().len();
    assert!((1..30).contains(&lost));
    servers[1].kill();
    eventually(|| async {
        // One of them is there.
        for key in 200..230 {
            let _ = decide(&limiter, &key.to_string()).await;
        }
        !limiter.is_connected()
    })
    .await;
    let mut left = Vec::new();
    for name in &names {
        left.push(admitted(&limiter, name, 10).await);
    }
    // Four of five there, two of two where the process is alone.
    assert_eq!(left.iter().filter(|left| **left == 2).count(), lost, "{left:?}");
    assert_eq!(left.iter().filter(|left| **left == 4).count(), 30 - lost, "{left:?}");
    servers[1].run();
    eventually(|| async { limiter.is_connected() }).await;
    let mut fresh = 0;
    for key in 100..130 {
        fresh += admitted(&limiter, &key.to_string(), 6).await;
    }
    assert_eq!(fresh, 150, "shared again");
}

/// Killed, or frozen, which a cluster's client does not notice by itself.
#[tokio::test(flavor = "multi_thread")]
async fn rds06_after_a_failover_the_new_primary_is_asked() {
    for (engine, frozen) in [(Engine::Redis, true), (Engine::Valkey, false)] {
        let (mut servers, replica) = Server::cluster(engine);
        let limiter = builder(&servers, OnFailure::Local { share: 1.0 }).policy(by_header(FIVE));
        let limiter = connected(limiter.timeout(Duration::from_millis(200))).await;
        for key in 0..30 {
            assert_eq!(admitted(&limiter, &key.to_string(), 5).await, 5);
        }
        let there = servers[0].keys().len();
        within_a_minute(|| replica.keys().len() == there);
        if frozen {
            servers[0].signal("-STOP");
        } else {
            servers[0].kill();
        }
        eventually(|| async {
            for key in 200..230 {
                let _ = decide(&limiter, &key.to_string()).await;
            }
            replica.cli(&["ROLE"]).starts_with("master") && limiter.is_connected()
        })
        .await;
        // By one that has seen nothing: what was drawn before is owed there still. It is told of the lost one first.
        let other = builder(&servers, OnFailure::Closed).policy(by_header(FIVE));
        let other = connected(other.timeout(Duration::from_secs(2))).await;
        for key in 0..30 {
            assert_eq!(admitted(&other, &key.to_string(), 1).await, 0, "{engine:?}");
        }
        if frozen {
            servers[0].signal("-CONT");
        }
    }
}

/// With the rights that docs/redis.md gives, and no others.
#[tokio::test]
async fn the_rights_of_the_operations_page_suffice_in_a_cluster() {
    let (servers, _replica) = Server::cluster(Engine::Redis);
    let page = include_str!("../docs/redis.md");
    let rights = |before: &str| page.split(before).nth(1).expect("the page has it").split('`').nth(1).unwrap();
    let all = rights("- a single server, or the primary behind sentinels:").trim_start_matches("ACL ");
    let in_a_cluster = rights("- a node of a cluster, also:");
    let command = format!("ACL {all} {in_a_cluster}");
    let command: Vec<&str> = command.split_whitespace().collect();
    let urls = servers.each_ref().map(|server| {
        assert_eq!(server.cli(&command), "OK");
        format!("redis://limiter:password@127.0.0.1:{}", server.port)
    });
    let builder = RedisLimiter::builder(&urls[0], b"the secret of these tests", OnFailure::Closed).cluster(&urls[1..]);
    let limiter = connected(builder.timeout(Duration::from_secs(5)).policy(by_header(FIVE))).await;
    for key in 0..20 {
        assert_eq!(admitted(&limiter, &key.to_string(), 6).await, 5);
    }
}

#[test]
fn outside_of_a_runtime_a_cluster_is_done_without_and_nothing_panics() {
    let limiter = RedisLimiter::builder("redis://127.0.0.1", b"the secret of these tests", OnFailure::Closed)
        .cluster(Vec::<String>::new())
        .policy(by_header(FIVE))
        .build()
        .unwrap();
    assert_ne!(limiter.key("a"), Key::GLOBAL);
    let request = with_header("k", "a");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(decision) = std::pin::pin!(limiter.decide(&request)).poll(&mut cx) else {
        panic!("there is nothing to wait for")
    };
    assert_eq!(decision.denied().unwrap().reason(), Reason::Unavailable);
}

/// A slot that nobody has is looked for less and less often, and over the connections that there are.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_a_home_costs_no_connections() {
    let node = Server::cluster_node(Engine::Redis);
    assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]), "OK");
    within_a_minute(|| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let builder = RedisLimiter::builder(node.url(), b"the secret of these tests", OnFailure::Closed);
    let limiter = connected(builder.cluster([""; 0]).policy(by_header(Quota::per_hour(1_000)))).await;
    let count = |section: &str, name: &str| -> u32 {
        let text = node.cli(&["INFO", section]);
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.trim_start_matches("calls=").split(',').next().unwrap().trim().parse().unwrap()
    };
    let connections = || count("stats", "total_connections_received:");
    let looks = || count("commandstats", "cmdstat_cluster|slots:");
    let by_the_test = connections();
    assert_eq!(connections() - by_the_test, 1, "each question of the test is a connection");
    let (before, looked_before) = (connections(), looks());
    let mut denied = 0;
    for key in 0..4_000 {
        denied += u32::from(!decide(&limiter, &key.to_string()).await.is_allowed());
    }
    assert!(denied > 1_000, "half of the slots have no home");
    assert!(connections() - before <= 2, "those of the test");
    assert!(looks() - looked_before <= 20);
}

/// In both versions of the protocol, whatever the node prefers to be called.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_preferred_name_is_found() {
    for preferred in ["hostname", "unknown-endpoint"] {
        let bus = free_port().to_string();
        let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-announce-ip", "127.0.0.1"];
        let preferred = ["--cluster-preferred-endpoint-type", preferred];
        let node = Server::start_with(Engine::Redis, &[&settings[..], &preferred].concat());
        assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
        within_a_minute(|| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        for protocol in ["resp2", "resp3"] {
            let url = format!("{}?protocol={protocol}", node.url());
            let builder = RedisLimiter::builder(url, b"the secret of these tests", OnFailure::Closed);
            let limiter = connected(builder.cluster([""; 0]).prefix(protocol).policy(by_header(FIVE))).await;
            assert_eq!(admitted(&limiter, "a", 7).await, 5, "{preferred:?} {protocol}");
        }
    }
}

/// Nodes announce where they are, and are reached elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_reached_where_the_map_says() {
    let (bus, announced) = (free_port().to_string(), free_port());
    let port = announced.to_string();
    let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-announce-port", &port];
    let node = Server::start_with(Engine::Redis, &settings);
    assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]), "OK");
    within_a_minute(|| node.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let actual = node.port;
    let builder = RedisLimiter::builder(node.url(), b"the secret of these tests", OnFailure::Closed);
    let builder = builder
        .cluster([""; 0])
        .map_address(move |host, port| (host.to_owned(), if port == announced { actual } else { port }));
    let limiter = connected(builder.policy(by_header(FIVE))).await;
    assert_eq!(admitted(&limiter, "a", 7).await, 5);
}

/// Whatever runs for a limiter ends with its last handle: no thread and no connection is left.
#[tokio::test]
async fn the_thread_and_the_connections_end_with_the_last_handle() {
    let (servers, _replica) = Server::cluster(Engine::Redis);
    let clients = || {
        servers.iter().map(|server| {
            server.cli(&["CLIENT", "LIST", "TYPE", "PUBSUB"]).lines().filter(|line| !line.is_empty()).count()
        })
    };
    let limiter = connected(builder(&servers, OnFailure::Closed).policy(by_header(FIVE))).await;
    eventually(|| async { clients().eq([1, 1, 1]) }).await;
    assert!(decide(&limiter, "a").await.is_allowed());
    drop(limiter);
    eventually(|| async { clients().eq([0, 0, 0]) }).await;
}
