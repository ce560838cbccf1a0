//! What limits over Redis cost, and what its failures do to requests.
//!
//! ```sh
//! cargo run --release --manifest-path benches/redis/Cargo.toml
//! ```
//!
//! Starts a Redis of its own (Debian's, installed if there is none). First table: requests come at 5,000 a second for four
//! seconds; from the first to two and a half Redis is frozen, or killed and started again. Ours beside the client's own
//! connection manager. Second table: round trips and the server's processor time for each decision, by kind of load.
//! `-- chaos` does something else to the server each second for a minute, and fails where a key has had more than its limit.
//! `-- quiet` asks every three seconds for two minutes, past a server that closes what is idle for a second and a way that
//! forgets it after two, and fails where one request was not decided by Redis. With `tls` behind it, all but the connection
//! manager is over TLS (needs openssl).

#[path = "../../../tests/support/proxy.rs"]
mod proxy;
#[path = "../../../tests/support/redis.rs"]
mod servers;

use std::{
    fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, join_all};
use http::Request;
use proxy::Proxy;
use redis::{Script, aio::ConnectionManager, aio::ConnectionManagerConfig};
use servers::{Engine, Server, free_port};
use tokio::time::{interval, sleep_until, timeout};
use tower_quota::{
    Policy, Quota,
    key::key_fn,
    redis::{OnFailure, RedisBuilder, RedisLimiter},
};

const SCRIPT: &str =
    concat!(include_str!("../../../src/redis/bucket.lua"), include_str!("../../../src/redis/acquire.lua"));
const RATE: u64 = 5_000;
const RUN: Duration = Duration::from_secs(4);
const FAULT: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(2_500)];
const SLOW: Duration = Duration::from_millis(10);
const OPEN: Quota = Quota::per_second(100_000_000);

/// Whether the limiter's connections are encrypted.
fn uses_tls() -> bool {
    std::env::args().any(|argument| argument == "tls")
}

/// A server, and its address for the limiter.
fn start(more: &[&str]) -> (Server, String) {
    if !uses_tls() {
        let server = Server::start_with(Engine::Redis, more);
        let url = server.url();
        return (server, url);
    }
    let folder = std::env::temp_dir();
    let file = |name: &str| folder.join(format!("tower-quota-bench.{name}")).to_str().unwrap().to_owned();
    let (key, certificate, port) = (file("key"), file("pem"), free_port().to_string());
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=bench", "-keyout", &key, "-out", &certificate])
        .output();
    assert!(made.unwrap().status.success());
    let tls =
        ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let server = Server::start_with(Engine::Redis, &[&tls[..], &["--tls-ca-cert-file", &certificate], more].concat());
    (server, format!("rediss://127.0.0.1:{port}"))
}

fn builder(url: &str, on_failure: OnFailure, quota: Quota) -> RedisBuilder {
    let policy = Policy::per(key_fn(|head| head.extensions().get::<u64>().copied()), quota);
    let builder = RedisLimiter::builder(url, b"a secret for measuring", on_failure).policy(policy);
    if url.starts_with("rediss") { builder.danger_accept_invalid_certificates() } else { builder }
}

fn limiter(url: &str, quota: Quota, lease: u32) -> RedisLimiter {
    let builder = builder(url, OnFailure::Local { share: 1.0 }, quota);
    let builder = if lease > 0 { builder.lease(lease, Duration::from_millis(100)) } else { builder };
    builder.build().unwrap()
}

fn request(key: u64) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(key);
    request
}

/// Decides one request, and says whether Redis did.
type Decide = Arc<dyn Fn(u64) -> BoxFuture<'static, bool> + Send + Sync>;

async fn ours(url: &str) -> Decide {
    let limiter = limiter(url, OPEN, 0);
    while !limiter.is_connected() {
        let _ = limiter.decide(&request(0)).await;
        tokio::task::yield_now().await;
    }
    Arc::new(move |key| {
        let limiter = limiter.clone();
        Box::pin(async move {
            let _ = limiter.decide(&request(key)).await;
            limiter.is_connected()
        })
    })
}

/// A plain limiter over the client's connection manager, as it comes or with the same deadline as ours.
async fn manager(url: &str, deadline: Option<Duration>) -> Decide {
    let client = redis::Client::open(url).unwrap();
    let mut config = ConnectionManagerConfig::new();
    if let Some(deadline) = deadline {
        config = config.set_response_timeout(Some(deadline)).set_connection_timeout(Some(deadline));
    }
    let manager = ConnectionManager::new_with_config(client, config).await.unwrap();
    let script = Arc::new(Script::new(SCRIPT));
    Arc::new(move |key| {
        let (mut manager, script) = (manager.clone(), Arc::clone(&script));
        Box::pin(async move {
            let mut call = script.key(format!("plain:{key}"));
            call.arg(1).arg(1).arg(10).arg(100_000_000).arg(0).arg("").arg(0);
            let call = call.invoke_async::<Vec<i64>>(&mut manager);
            match deadline {
                Some(deadline) => timeout(deadline, call).await.is_ok_and(|reply| reply.is_ok()),
                None => call.await.is_ok(),
            }
        })
    })
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Frozen,
    Killed,
}

struct Seen {
    slow: usize,
    waited: Duration,
    longest: Duration,
    back: Option<Duration>,
}

async fn through(decide: Decide, server: Arc<Mutex<Server>>, fault: Fault) -> Seen {
    let start = Instant::now();
    let healed = Arc::new(AtomicBool::new(false));
    let nemesis = {
        // Kept here, too: with the last of them the server ends.
        let (healed, server) = (Arc::clone(&healed), Arc::clone(&server));
        tokio::spawn(async move {
            sleep_until((start + FAULT[0]).into()).await;
            match fault {
                Fault::Frozen => server.lock().unwrap().signal("-STOP"),
                Fault::Killed => server.lock().unwrap().kill(),
            }
            sleep_until((start + FAULT[1]).into()).await;
            match fault {
                Fault::Frozen => server.lock().unwrap().signal("-CONT"),
                // In a thread that may wait.
                Fault::Killed => tokio::task::spawn_blocking(move || server.lock().unwrap().run()).await.unwrap(),
            }
            healed.store(true, Ordering::Release);
            Instant::now()
        })
    };
    let waits = Arc::new(Mutex::new(Vec::new()));
    let first_back = Arc::new(Mutex::new(None));
    let mut tasks = Vec::new();
    let mut tick = interval(Duration::from_millis(1));
    let mut sent = 0;
    while start.elapsed() < RUN {
        tick.tick().await;
        let due = start.elapsed().as_millis() as u64 * RATE / 1_000;
        while sent < due {
            let (decide, waits, healed, first_back) =
                (Arc::clone(&decide), Arc::clone(&waits), Arc::clone(&healed), Arc::clone(&first_back));
            let key = sent * 7_919 % 10_000;
            sent += 1;
            tasks.push(tokio::spawn(async move {
                let came = Instant::now();
                let by_redis = decide(key).await;
                waits.lock().unwrap().push(came.elapsed());
                if by_redis && healed.load(Ordering::Acquire) {
                    first_back.lock().unwrap().get_or_insert_with(Instant::now);
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let healed_at = nemesis.await.unwrap();
    let waits = waits.lock().unwrap();
    let back = first_back.lock().unwrap().map(|back: Instant| back.saturating_duration_since(healed_at));
    Seen {
        slow: waits.iter().filter(|wait| **wait > SLOW).count(),
        waited: waits.iter().filter(|wait| **wait > SLOW).sum(),
        longest: *waits.iter().max().unwrap(),
        back,
    }
}

async fn failures() {
    println!("| {RATE} requests a second | fault for 1.5 s | over 10 ms | waited in all | longest | back after |");
    println!("|---|---|--:|--:|--:|--:|");
    for fault in [Fault::Frozen, Fault::Killed] {
        for which in ["connection manager", "connection manager, 50 ms", "tower-quota"] {
            let (server, own_url) = tokio::task::spawn_blocking(|| start(&[])).await.unwrap();
            let url = server.url();
            let decide = match which {
                "tower-quota" => ours(&own_url).await,
                "connection manager" => manager(&url, None).await,
                _ => manager(&url, Some(Duration::from_millis(50))).await,
            };
            let Seen { slow, waited, longest, back } = through(decide, Arc::new(Mutex::new(server)), fault).await;
            let back = back.map_or("never".to_owned(), |back| format!("{} ms", back.as_millis()));
            println!(
                "| {which} | {} | {slow} | {:.1} s | {} ms | {back} |",
                format!("{fault:?}").to_lowercase(),
                waited.as_secs_f64(),
                longest.as_millis()
            );
        }
    }
}

/// User and system, in hundredths (`man 5 proc`).
fn processor(server: &Server) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", server.id())).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// The `n`th key of a load, from a random number.
type Keys = Arc<dyn Fn(u64) -> u64 + Send + Sync>;

fn zipf(keys: u64) -> Keys {
    let mut sums = Vec::new();
    let mut sum = 0.0;
    for rank in 1..=keys {
        sum += 1.0 / rank as f64;
        sums.push(sum);
    }
    Arc::new(move |random| {
        let at = random as f64 / u64::MAX as f64 * sum;
        sums.partition_point(|sum| *sum < at) as u64
    })
}

async fn loads() {
    const TASKS: u64 = 512;
    println!("\n| {TASKS} at once | round trips a decision | server µs a decision | decisions a second |");
    println!("|---|--:|--:|--:|");
    let ten = Quota::per_second(10);
    let alike = || -> Keys { Arc::new(|random| random % 10_000) };
    let loads: [(&str, Quota, Keys, u32); 6] = [
        ("one hot key, open", OPEN, Arc::new(|_| 0), 0),
        ("10,000 keys by Zipf, open", OPEN, zipf(10_000), 0),
        ("…, leases of 64 for 100 ms", OPEN, zipf(10_000), 64),
        ("10,000 keys alike, open", OPEN, alike(), 0),
        ("…, leases of 64 for 100 ms", OPEN, alike(), 64),
        ("abuse: 16 keys at 10 a second", ten, Arc::new(|random| random % 16), 0),
    ];
    for (name, quota, keys, lease) in loads {
        let (server, url) = tokio::task::spawn_blocking(|| start(&[])).await.unwrap();
        let limiter = limiter(&url, quota, lease);
        while !limiter.is_connected() {
            let _ = limiter.decide(&request(0)).await;
            tokio::task::yield_now().await;
        }
        let (before, used) = (limiter.calls(), processor(&server));
        let start = Instant::now();
        let decided = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (limiter, keys, decided) = (limiter.clone(), Arc::clone(&keys), Arc::clone(&decided));
                tokio::spawn(async move {
                    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (task + 1).wrapping_mul(0xff51_afd7_ed55_8ccd);
                    while start.elapsed() < Duration::from_secs(3) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let _ = limiter.decide(&request(keys(random))).await;
                        if decided.fetch_add(1, Ordering::Relaxed) % 64 == 0 {
                            // Denials that are known wait for nothing: others want to run, too.
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let (decided, took) = (decided.load(Ordering::Relaxed) as f64, start.elapsed().as_secs_f64());
        let calls = (limiter.calls().calls - before.calls) as f64;
        let used = (processor(&server) - used) * 1e6;
        println!("| {name} | {:.5} | {:.3} | {:.0} |", calls / decided, used / decided, decided / took);
    }
}

/// What is done to the server, once a second, and undone a third of a second later where it can be.
const FAULTS: [(&str, &[&str], &[&str]); 6] = [
    ("frozen", &[], &[]),
    ("killed", &[], &[]),
    ("connections cut", &["CLIENT", "KILL", "TYPE", "normal"], &[]),
    ("script flushed", &["SCRIPT", "FLUSH"], &[]),
    ("full", &["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]),
    ("paused", &["CLIENT", "PAUSE", "300", "ALL"], &[]),
];

/// A fault each second, at random: how long requests wait, and whether any key has more than its limit and what restarts forget.
async fn chaos() {
    const KEYS: u64 = 50;
    const SECONDS: u64 = 60;
    let (mut server, url) = tokio::task::spawn_blocking(|| start(&[])).await.unwrap();
    // Whatever passes has passed by Redis.
    let limiter = builder(&url, OnFailure::Closed, Quota::per_second(20)).build().unwrap();
    assert!(limiter.connect(Duration::from_secs(5)).await);
    let admitted: Arc<Vec<AtomicU64>> = Arc::new((0..KEYS).map(|_| AtomicU64::new(0)).collect());
    let waits = Arc::new(Mutex::new(Vec::new()));
    let start = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let load = {
        let (limiter, admitted, waits, done) =
            (limiter.clone(), Arc::clone(&admitted), Arc::clone(&waits), Arc::clone(&done));
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(1));
            let mut number = 0_u64;
            while !done.load(Ordering::Relaxed) {
                ticks.tick().await;
                for _ in 0..2 {
                    number += 1;
                    let (limiter, admitted, waits, key) =
                        (limiter.clone(), Arc::clone(&admitted), Arc::clone(&waits), number % KEYS);
                    tokio::spawn(async move {
                        let begun = Instant::now();
                        if limiter.decide(&request(key)).await.is_allowed() {
                            admitted[key as usize].fetch_add(1, Ordering::Relaxed);
                        }
                        waits.lock().unwrap().push(begun.elapsed());
                    });
                }
            }
        })
    };
    let (mut random, mut restarts) = (0x9e37_79b9_7f4a_7c15_u64, 0);
    let mut counts = [0; FAULTS.len()];
    while start.elapsed() < Duration::from_secs(SECONDS) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let which = random as usize % FAULTS.len();
        counts[which] += 1;
        let (name, fault, mend) = FAULTS[which];
        server = tokio::task::spawn_blocking(move || {
            match name {
                "frozen" => server.signal("-STOP"),
                "killed" => server.kill(),
                _ => drop(server.cli(fault)),
            }
            std::thread::sleep(Duration::from_millis(333));
            match name {
                "frozen" => server.signal("-CONT"),
                "killed" => server.run(),
                _ if !mend.is_empty() => drop(server.cli(mend)),
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(667));
            server
        })
        .await
        .unwrap();
        restarts += u64::from(name == "killed");
    }
    done.store(true, Ordering::Relaxed);
    load.await.unwrap();
    let took = start.elapsed().as_secs_f64();
    let mut waits = waits.lock().unwrap().clone();
    waits.sort();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let most = admitted.iter().map(|admitted| admitted.load(Ordering::Relaxed)).max().unwrap();
    let bound = 20 + (took * 20.0) as u64 + restarts * 20;
    println!("\n| {SECONDS} s of faults | |\n|---|--:|");
    for ((name, ..), count) in FAULTS.iter().zip(counts) {
        println!("| {name} | {count} |");
    }
    println!("| decisions | {} |", waits.len());
    println!(
        "| waited: median, 99 %, 99.9 %, longest (ms) | {:.1}, {:.1}, {:.1}, {:.1} |",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    println!("| admitted of the key that had most; bound | {most}; {bound} |");
    assert!(most <= bound, "more than the limit and what restarts forget");
}

/// A week of quiet, in small.
async fn quiet() {
    let started = tokio::task::spawn_blocking(|| (start(&["--timeout", "1"]), start(&[]))).await.unwrap();
    let ((_closes, closing), (_forgets, forgotten)) = started;
    let through = |url: &str| {
        let port = url.rsplit(':').next().unwrap().parse().unwrap();
        let proxy = Proxy::before(port);
        proxy.forget_after(Duration::from_secs(2));
        url.replace(&port.to_string(), &proxy.port.to_string())
    };
    let ways = [
        ("a server that closes after 1 s", closing.clone()),
        ("a way that forgets after 2 s", through(&forgotten)),
        ("both", through(&closing)),
    ];
    println!("| a request every 3 s for 120 s | by Redis | not by Redis |\n|---|--:|--:|");
    let runs = ways.map(|(name, url)| async move {
        let limiter = builder(&url, OnFailure::Closed, OPEN).build().unwrap();
        assert!(limiter.connect(Duration::from_secs(5)).await);
        let (mut by_redis, mut not) = (0, 0);
        for _ in 0..40 {
            match limiter.decide(&request(0)).await.is_allowed() {
                true => by_redis += 1,
                false => not += 1,
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        println!("| {name} | {by_redis} | {not} |");
        not
    });
    assert_eq!(join_all(runs).await.into_iter().sum::<u32>(), 0, "the servers were well");
}

#[tokio::main]
async fn main() {
    match std::env::args().nth(1).filter(|what| what != "tls").as_deref() {
        None => {
            failures().await;
            loads().await;
        }
        Some("chaos") => chaos().await,
        Some("quiet") => quiet().await,
        Some(other) => panic!("`chaos`, `quiet`, or nothing, and `tls`; not {other}"),
    }
}
