//! A worker pool behind limits: a bounded queue, 503 when it is full, cancelled jobs that are skipped, and a shutdown
//! that finishes accepted jobs. No task is spawned for a request.
//!
//! ```sh
//! cargo run --example jobs
//! curl -i -X POST localhost:3000/jobs
//! wrk -t1 -c64 -d5s -s examples/post.lua http://localhost:3000/jobs & sleep 2; pkill -TERM -x jobs; wait
//! ```
//!
//! The first answers with the result of a job. Under load some requests get 503 (the queue is full) and some 429 (over a
//! limit). On SIGTERM the last line says how many jobs were accepted, finished and cancelled. `PORT`, `WORKERS`, `QUEUE`,
//! `WORK_MS` and `QUOTA` change the defaults.

use std::{
    env,
    error::Error,
    fmt,
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::post,
};
use http::{StatusCode, header::RETRY_AFTER};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc, oneshot},
    task::JoinSet,
};
use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp};

/// A job. Its client may wait for the result, or have disconnected.
struct Job {
    number: u64,
    reply: oneshot::Sender<String>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    finished: AtomicU64,
    cancelled: AtomicU64,
    turned_away: AtomicU64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let Self { accepted, finished, cancelled, turned_away } = self;
        let (accepted, finished, cancelled) = (read(accepted), read(finished), read(cancelled));
        write!(f, "accepted {accepted}, finished {finished}, cancelled {cancelled}, turned away {}", read(turned_away))
    }
}

#[derive(Clone)]
struct Pool {
    queue: mpsc::Sender<Job>,
    counts: Arc<Counts>,
}

async fn submit(State(pool): State<Pool>) -> Response {
    // A place first, so that an accepted job is counted before a worker can finish it.
    let Ok(place) = pool.queue.try_reserve() else {
        pool.counts.turned_away.fetch_add(1, Ordering::SeqCst);
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "1")], "The queue is full.\n").into_response();
    };
    let (reply, result) = oneshot::channel();
    let number = pool.counts.accepted.fetch_add(1, Ordering::SeqCst);
    place.send(Job { number, reply });
    // When the client disconnects, this future is dropped with `result`, and the worker skips the job.
    match result.await {
        Ok(result) => result.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[expect(clippy::disallowed_methods, reason = "stands for real work")]
async fn worker(jobs: Arc<Mutex<mpsc::Receiver<Job>>>, counts: Arc<Counts>, work: Duration) {
    loop {
        let job = jobs.lock().await.recv().await;
        // No more jobs can come, and none is left.
        let Some(Job { number, mut reply }) = job else { return };
        tokio::select! {
            biased;
            () = reply.closed() => {
                counts.cancelled.fetch_add(1, Ordering::SeqCst);
            }
            () = tokio::time::sleep(work) => {
                counts.finished.fetch_add(1, Ordering::SeqCst);
                // An error means that the client has just disconnected. The job is finished all the same.
                let _ = reply.send(format!("job {number} is done\n"));
            }
        }
    }
}

fn setting<T: FromStr<Err: Error + 'static>>(name: &str, default: &str) -> Result<T, Box<dyn Error>> {
    Ok(env::var(name).as_deref().unwrap_or(default).parse()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let counts = Arc::new(Counts::default());
    let (queue, jobs) = mpsc::channel(setting("QUEUE", "32")?);
    let jobs = Arc::new(Mutex::new(jobs));
    let work = Duration::from_millis(setting("WORK_MS", "5")?);
    let mut workers = JoinSet::new();
    for _ in 0..setting("WORKERS", "4")? {
        workers.spawn(worker(Arc::clone(&jobs), Arc::clone(&counts), work));
    }

    let limit = RateLimitLayer::new([
        Policy::per(PeerIp, setting::<Quota>("QUOTA", "2000/s")?),
        Policy::global(Quota::per_second(5_000)),
    ]);
    let pool = Pool { queue, counts: Arc::clone(&counts) };
    let app = Router::new().route("/jobs", post(submit)).layer(limit).with_state(pool);

    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], setting("PORT", "3000")?))).await?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on http://{}", listener.local_addr()?);
    // From here on no new connections, and open requests are answered. The server has the last sender of the queue.
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move { _ = terminate.recv().await })
        .await?;
    while let Some(ended) = workers.join_next().await {
        ended?;
    }
    println!("{counts}");
    Ok(())
}
