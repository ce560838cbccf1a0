//! What limits over Redis cost, and what its failures do to requests.
//!
//! ```sh
//! cargo run --release --manifest-path benches/redis/Cargo.toml
//! ```
//!
//! Starts a Redis of its own (Debian's, installed if there is none). First table: requests come at 5,000 a second for four
//! seconds; from the first to two and a half Redis is frozen, or killed and started again. Ours beside the client's own
//! connection manager. Second table: round trips and the server's processor time for each decision, by kind of load.

#[path = "../../../tests/support/redis.rs"]
mod servers;

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use http::Request;
use redis::{Script, aio::ConnectionManager, aio::ConnectionManagerConfig};
use servers::{Engine, Server};
use tokio::time::{interval, sleep_until, timeout};
use tower_quota::{
    Policy, Quota,
    key::key_fn,
    redis::{OnFailure, RedisLimiter},
};

const RATE: u64 = 5_000;
const RUN: Duration = Duration::from_secs(4);
const FAULT: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(2_500)];
const SLOW: Duration = Duration::from_millis(10);
const OPEN: Quota = Quota::per_second(100_000_000);

fn limiter(url: &str, quota: Quota) -> RedisLimiter {
    let policy = Policy::per(key_fn(|head| head.extensions().get::<u64>().copied()), quota);
    RedisLimiter::builder(url, b"a secret for measuring", OnFailure::Local { share: 1.0 }).policy(policy).build().unwrap()
}

fn request(key: u64) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(key);
    request
}

/// Decides one request, and says whether Redis did.
type Decide = Arc<dyn Fn(u64) -> BoxFuture<'static, bool> + Send + Sync>;

async fn ours(url: &str) -> Decide {
    let limiter = limiter(url, OPEN);
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
    let script = Arc::new(Script::new(include_str!("../../../src/redis/acquire.lua")));
    Arc::new(move |key| {
        let (mut manager, script) = (manager.clone(), Arc::clone(&script));
        Box::pin(async move {
            let mut call = script.key(format!("plain:{key}"));
            call.arg(1).arg(10).arg(1_000_000_000).arg(0);
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
            let server = tokio::task::spawn_blocking(|| Server::start(Engine::Redis)).await.unwrap();
            let url = server.url();
            let decide = match which {
                "tower-quota" => ours(&url).await,
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
    let loads: [(&str, Quota, Keys); 4] = [
        ("one hot key, open", OPEN, Arc::new(|_| 0)),
        ("10,000 keys by Zipf, open", OPEN, zipf(10_000)),
        ("10,000 keys alike, open", OPEN, Arc::new(|random| random % 10_000)),
        ("abuse: 16 keys at 10 a second", ten, Arc::new(|random| random % 16)),
    ];
    for (name, quota, keys) in loads {
        let server = tokio::task::spawn_blocking(|| Server::start(Engine::Redis)).await.unwrap();
        let limiter = limiter(&server.url(), quota);
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
                            // Refusals that are known wait for nothing: others want to run, too.
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

#[tokio::main]
async fn main() {
    failures().await;
    loads().await;
}
