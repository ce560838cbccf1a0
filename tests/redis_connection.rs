//! The life of a connection to Redis: quiet times, ways that forget, names with several addresses, long ways, credentials
//! that rotate, servers that forbid this or that, and what is said when there is no connection.
#![cfg(feature = "redis")]

#[path = "support/events.rs"]
mod events;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/redis.rs"]
mod servers;
mod support;

use std::{
    convert::Infallible,
    env, fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use events::Lines;
use proxy::Proxy;
use servers::{ENGINES, Engine, Server, eventually, free_port, within_a_minute};
use support::with_header;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_quota::{
    Decision, Policy, Quota, RateLimitLayer,
    key::Header,
    limiter::Admission,
    redis::{OnFailure, RedisBuilder, RedisCredentials, RedisLimiter},
};

const SECRET: &[u8] = b"the secret of these tests";

fn builder(url: &str) -> RedisBuilder {
    RedisLimiter::builder(url, SECRET, OnFailure::Closed)
        .timeout(Duration::from_secs(5))
        .policy(Policy::per(Header::new("k"), Quota::per_hour(1_000)))
}

async fn connected(builder: RedisBuilder) -> RedisLimiter {
    let limiter = builder.build().unwrap();
    let connected = limiter.connect(Duration::from_secs(30)).await;
    assert!(connected, "{:?}", limiter.last_error());
    limiter
}

async fn admits(limiter: &RedisLimiter) -> bool {
    limiter.decide(&with_header("k", "a")).await.is_allowed()
}

/// Why there is no connection.
async fn failure(builder: RedisBuilder) -> String {
    let limiter = builder.build().unwrap();
    eventually(|| async { !admits(&limiter).await && limiter.last_error().is_some() }).await;
    assert!(!limiter.is_connected());
    limiter.last_error().unwrap()
}

/// Time that a server or a device in between counts.
#[expect(clippy::disallowed_methods, reason = "the connection counts it too")]
fn let_pass(time: Duration) {
    let start = Instant::now();
    within_a_minute(|| start.elapsed() > time);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_server_closed_in_a_quiet_time_is_no_reason_to_deny() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url())).await;
    for _ in 0..2 {
        assert!(admits(&limiter).await);
        assert_eq!(server.cli(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).parse(), Ok(1));
        eventually(|| async { !limiter.is_connected() }).await;
        assert!(admits(&limiter).await, "{:?}", limiter.last_error());
        assert!(limiter.is_connected());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ended_in_a_quiet_time_is_opened_again_without_a_request() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url())).await;
    assert_eq!(server.cli(&["CLIENT", "KILL", "TYPE", "PUBSUB"]).parse(), Ok(1));
    eventually(|| async { !limiter.is_connected() }).await;
    eventually(|| async { limiter.is_connected() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_forgotten_without_a_word_is_no_reason_to_deny() {
    let server = Server::start(Engine::Redis);
    let proxy = Proxy::before(server.port);
    let limiter = connected(builder(&proxy.url())).await;
    for _ in 0..2 {
        assert!(admits(&limiter).await);
        proxy.forget();
        let_pass(Duration::from_millis(1_100));
        assert!(admits(&limiter).await, "{:?}", limiter.last_error());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_forgotten_is_noticed_without_a_request() {
    let server = Server::start(Engine::Redis);
    let proxy = Proxy::before(server.port);
    let limiter = connected(builder(&proxy.url()).timeout(Duration::from_millis(500))).await;
    let before = proxy.accepted();
    proxy.forget();
    within_a_minute(|| proxy.accepted() > before);
    eventually(|| async { limiter.is_connected() }).await;
    assert!(admits(&limiter).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_far_away_decides_where_the_timeout_says_so() {
    let server = Server::start(Engine::Redis);
    let proxy = Proxy::before(server.port);
    proxy.delay_each_way(Duration::from_millis(150));
    let limiter = connected(builder(&proxy.url()).timeout(Duration::from_millis(900))).await;
    for _ in 0..3 {
        assert!(admits(&limiter).await);
    }
    // Also after a pause, in which there is no time to check the connection first.
    let_pass(Duration::from_millis(1_100));
    assert!(admits(&limiter).await);
    let reason = failure(builder(&proxy.url()).timeout(Duration::from_millis(50))).await;
    assert!(reason.contains("raise `timeout`"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_script_load_the_script_is_sent_in_full() {
    for engine in ENGINES {
        let server = Server::start_with(engine, &["--rename-command", "SCRIPT", ""]);
        assert!(admits(&connected(builder(&server.url())).await).await, "{engine:?}");
        let server = Server::start(engine);
        let rights = ["~{tower-quota:*", "+evalsha", "+eval", "+time", "+get", "+set"];
        assert_eq!(server.cli(&[&["ACL", "SETUSER", "u", "on", ">p"][..], &rights].concat()), "OK");
        let limiter = connected(builder(&format!("redis://u:p@127.0.0.1:{}", server.port))).await;
        assert!(admits(&limiter).await, "{engine:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_and_a_database_are_used() {
    let folder = env::temp_dir().join(format!("tower-quota-socket-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("redis.sock");
    let server = Server::start_with(Engine::Redis, &["--unixsocket", socket.to_str().unwrap()]);
    for url in [format!("unix://{}?db=3", socket.display()), format!("{}/3?protocol=resp3", server.url())] {
        assert!(admits(&connected(builder(&url)).await).await);
        assert!(server.cli(&["-n", "3", "KEYS", "*per-k*"]).contains("per-k"), "{url}");
        assert_eq!(server.cli(&["KEYS", "*"]), "");
    }
    let reason = failure(builder(&format!("unix://{}", folder.join("no.sock").display()))).await;
    assert!(reason.contains("no.sock") && reason.contains("check the path"), "{reason}");
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_asked_for_at_each_login() {
    let server = Server::start_with(Engine::Redis, &["--requirepass", "operator"]);
    let rotate = |password: &str| {
        let user = ["ACL", "SETUSER", "limiter", "reset", "on", "~*", "+@all", &format!(">{password}")];
        assert_eq!(server.cli(&user), "OK");
    };
    rotate("first");
    let (password, asked) = (Arc::new(Mutex::new("first".to_owned())), Arc::new(AtomicUsize::new(0)));
    let provider = {
        let (password, asked) = (Arc::clone(&password), Arc::clone(&asked));
        move || {
            let (password, asked) = (password.lock().unwrap().clone(), asked.fetch_add(1, Ordering::SeqCst) + 1);
            async move {
                match password.as_str() {
                    "panic" => panic!("the provider of {asked}"),
                    "error" => Err(format!("no token for {asked}")),
                    _ => Ok(RedisCredentials::new("limiter", password)),
                }
            }
        }
    };
    let limiter = connected(builder(&server.url()).credentials(provider)).await;
    assert!(admits(&limiter).await);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let lose = || {
        server.cli(&["CLIENT", "KILL", "USER", "limiter"]);
    };
    for (next, reason) in [
        ("second", None),
        ("error", Some("no token for")),
        ("third", None),
        ("panic", Some("the provider of credentials panicked")),
        ("fourth", None),
        ("wrong", Some("does not accept the user and the password")),
    ] {
        if reason.is_none() {
            rotate(next);
        }
        next.clone_into(&mut password.lock().unwrap());
        lose();
        match reason {
            None => eventually(|| async { admits(&limiter).await && limiter.last_error().is_none() }).await,
            Some(reason) => {
                // At first the failure is that the connection is lost.
                let says_why = || limiter.last_error().is_some_and(|failure| failure.contains(reason));
                eventually(|| async { !admits(&limiter).await && says_why() }).await;
            }
        }
    }
    let twice = builder("redis://user:pass@127.0.0.1")
        .credentials(|| async { Ok::<_, std::io::Error>(RedisCredentials::password("x")) });
    assert!(twice.build().unwrap_err().to_string().contains("twice"));
}

/// With a name of its own, which this process alone resolves: it runs the test again where the file of names is another.
#[test]
fn a_name_with_several_addresses_is_tried_until_one_serves() {
    const NAMES: &str = "TOWER_QUOTA_TEST_NAMES";
    if env::var_os(NAMES).is_none() {
        let file = env::temp_dir().join(format!("tower-quota-names-{}", std::process::id()));
        fs::write(
            &file,
            "127.0.0.1 localhost\n127.0.0.3 several.test\n127.0.0.2 several.test\n127.0.0.4 several.test\n",
        )
        .unwrap();
        let script = "mount --bind \"$1\" /etc/hosts && exec \"$2\" --exact a_name_with_several_addresses_is_tried_until_one_serves";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(&file).arg(env::current_exe().unwrap());
        assert!(command.env(NAMES, "1").status().unwrap().success());
        fs::remove_file(file).unwrap();
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // One address where nobody listens, a replica, and the primary.
        let primary = Server::start_with(Engine::Redis, &["--bind", "127.0.0.4 127.0.0.1"]);
        let port = primary.port.to_string();
        let replica = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.3", "--save", "", "--replicaof", "127.0.0.1", &port])
            .current_dir(env::temp_dir())
            .stdout(std::process::Stdio::null())
            .spawn();
        let mut replica = replica.unwrap();
        within_a_minute(|| primary.cli(&["INFO", "replication"]).contains("state=online"));
        let limiter = connected(builder(&format!("redis://several.test:{port}"))).await;
        assert!(admits(&limiter).await);
        // The replica is not asked first again.
        let asked_of_replica = || {
            let said =
                Command::new("redis-cli").args(["-h", "127.0.0.3", "-p", &port, "INFO", "stats"]).output().unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            let count = said.lines().find_map(|line| line.strip_prefix("total_connections_received:")).unwrap();
            count.trim().parse::<u32>().unwrap()
        };
        let before = asked_of_replica();
        for _ in 0..3 {
            primary.cli(&["CLIENT", "KILL", "TYPE", "PUBSUB"]);
            eventually(|| async { admits(&limiter).await }).await;
        }
        assert_eq!(asked_of_replica(), before + 1, "but by this test");
        replica.kill().unwrap();
        replica.wait().unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sentinel_s_primary_is_reached_where_the_map_says() {
    let password = "p";
    let server = Server::start_with(Engine::Redis, &["--requirepass", password]);
    let proxy = Proxy::before(server.port);
    let sentinel = Server::sentinel("limits", proxy.port, password);
    let url = format!("redis://:{password}@ignored");
    let (announced, actual) = (proxy.port, server.port);
    let mapped = builder(&url).sentinels([sentinel.url()], "limits").map_address(move |host, port| {
        assert_eq!((host, port), ("127.0.0.1", announced));
        (host.to_owned(), actual)
    });
    assert!(admits(&connected(mapped).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_of_the_operations_page_suffice_for_a_sentinel() {
    let page = include_str!("../docs/redis.md");
    let server = Server::start_with(Engine::Redis, &["--requirepass", "p"]);
    let sentinel = Server::sentinel("limits", server.port, "p");
    let command = page.split("`ACL SETUSER asker").nth(1).expect("the page has it").split('`').next().unwrap();
    let command: Vec<&str> = ["ACL", "SETUSER", "asker"].into_iter().chain(command.split_whitespace()).collect();
    assert_eq!(sentinel.cli(&command), "OK");
    let asked = format!("redis://asker:password@127.0.0.1:{}", sentinel.port);
    assert!(admits(&connected(builder("redis://:p@ignored").sentinels([asked], "limits")).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_explained_with_the_address_and_what_to_do() {
    let server = Server::start_with(Engine::Redis, &["--requirepass", "p", "--replica-serve-stale-data", "yes"]);
    let url = |login: &str, path: &str| format!("redis://{login}127.0.0.1:{}{path}", server.port);
    let address = format!("127.0.0.1:{}: ", server.port);
    server.cli(&["ACL", "SETUSER", "nothing", "on", ">n", "~*", "-@all"]);
    server.cli(&["ACL", "SETUSER", "notime", "on", ">n", "~*", "+@all", "-time"]);
    server.cli(&["ACL", "SETUSER", "nokeys", "on", ">n", "~other:*", "+@all"]);
    for (user, path, expected) in [
        ("", "", "wants a password"),
        (":wrong@", "", "does not accept the user and the password"),
        (":wrong@", "?protocol=resp3", "does not accept the user and the password"),
        (":p@", "/99", "no database of this number"),
        ("nothing:n@", "", "no right to run `evalsha`"),
        ("notime:n@", "", "no right to `time`"),
        ("nokeys:n@", "", "lacks a right"),
    ] {
        let reason = failure(builder(&url(user, path))).await;
        assert!(reason.contains(expected) && reason.starts_with(&address), "{user}{path}: {reason}");
    }
    let reason = failure(builder(&url(":p@", "")).cluster([""; 0])).await;
    assert!(reason.contains("not in cluster mode") && reason.starts_with(&address), "{reason}");
    let reason = failure(builder(&url(":p@", "")).sentinels([url(":p@", "")], "limits")).await;
    assert!(reason.contains("no sentinel") && reason.starts_with(&address), "{reason}");
    let sentinel = Server::sentinel("limits", server.port, "p");
    let reason = failure(builder(&url(":p@", "")).sentinels([sentinel.url()], "other")).await;
    assert!(reason.contains("no primary of the name \"other\""), "{reason}");
    let reason = failure(builder(&sentinel.url())).await;
    assert!(reason.contains("may be a sentinel"), "{reason}");
    server.cli(&["REPLICAOF", "127.0.0.1", &free_port().to_string()]);
    let reason = failure(builder(&url(":p@", ""))).await;
    assert!(reason.contains("is a replica") && reason.starts_with(&address), "{reason}");
    let node = Server::cluster_node(Engine::Redis);
    let reason = failure(builder(&format!("{}/1", node.url()))).await;
    assert!(reason.contains("call `cluster`"), "{reason}");
    let free = free_port();
    let reason = failure(builder(&format!("redis://127.0.0.1:{free}"))).await;
    assert!(reason.contains("refuses connections") && reason.contains(&free.to_string()), "{reason}");
    let reason = failure(builder("redis://no-such-host.invalid")).await;
    assert!(reason.contains("cannot be resolved"), "{reason}");
}

#[test]
fn a_failure_is_reported_at_once_to_whoever_listens_where_the_limiter_is_first_used() {
    let server = Server::start(Engine::Redis);
    let lines = Lines::default();
    let text = lines.collect(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reason = failure(builder(&format!("{}/99", server.url()))).await;
            assert!(reason.contains("database"));
        });
    });
    assert_eq!(text.matches("no database of this number").count(), 1, "{text}");
}

/// A server that restarts in a quiet time, and nobody but `connect` asks.
#[tokio::test(flavor = "multi_thread")]
async fn connecting_in_advance_ends_a_rest() {
    let mut server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url())).await;
    server.kill();
    eventually(|| async { !limiter.is_connected() }).await;
    server.run();
    assert!(limiter.connect(Duration::from_secs(2)).await, "{:?}", limiter.last_error());
}

/// The connection ends while a handler works, and what it settles then is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_settled_after_a_quiet_time_is_not_lost() {
    let server = Server::start(Engine::Redis);
    let limiter = connected(builder(&server.url())).await;
    let (server, limiter) = (&server, &limiter);
    let service = service_fn(|request: http::Request<()>| async move {
        server.cli(&["CLIENT", "KILL", "TYPE", "PUBSUB"]);
        eventually(|| async { !limiter.is_connected() }).await;
        request.extensions().get::<Admission>().unwrap().settle("per-k", 500).unwrap();
        Ok::<_, Infallible>(http::Response::new(String::new()))
    });
    let service = RateLimitLayer::new(limiter).admissions().layer(service);
    assert!(service.oneshot(with_header("k", "a")).await.unwrap().status().is_success());
    let other = connected(builder(&server.url())).await;
    eventually(|| async {
        let request = with_header("k", "a");
        let Decision::Allow(allowed) = other.decide(&request).await else { panic!("there are 500 left") };
        allowed.standings().next().unwrap().remaining() < 500
    })
    .await;
}
