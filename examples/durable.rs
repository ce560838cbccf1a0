//! Quotas that survive a deploy: so many requests a month for each API key, and a rate beside it.
//! The state is written every minute and on SIGTERM, and read at start.
//!
//! ```sh
//! cargo run --example durable
//! for i in 1 2 3; do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: k1' localhost:3000/; done; echo
//! pkill -TERM -x durable; cargo run --example durable
//! curl -si -H 'x-api-key: k1' localhost:3000/ | grep -i '^ratelimit:'
//! ```
//!
//! The month has 96 left of 100, not 99. After `pkill -KILL` as many are forgotten as came since
//! the last minute. `PORT`, `LIMITS` (the file), `LIMITS_SECRET` and `EVERY` (seconds) change the
//! defaults.

use std::{
    env,
    error::Error,
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, routing::get};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task,
    time::{MissedTickBehavior, interval},
};
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, Window, key::Header};

/// Writes a new file and renames it: whoever reads finds the old one or the new one, and both are
/// whole.
fn save(limiter: &Limiter, path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    // One at a time: the last one waits for one that is going on.
    static WRITING: Mutex<()> = Mutex::new(());
    let _writing = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    limiter.snapshot(&mut file)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The name is on the disk, too.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// A file that is there and cannot be read is no reason to give everybody a fresh month: somebody
/// has to look.
fn restore(limiter: &Limiter, path: &Path) -> Result<(), Box<dyn Error + Send + Sync>> {
    match File::open(path) {
        Ok(file) => {
            let restored = limiter.restore(file)?;
            println!("{} buckets were restored", restored.buckets);
            if !restored.skipped_policies.is_empty() {
                println!("these policies are gone: {:?}", restored.skipped_policies);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => println!("0 buckets were restored"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let path = PathBuf::from(env::var("LIMITS").unwrap_or_else(|_| "limits.snapshot".to_owned()));
    let secret = env::var("LIMITS_SECRET").unwrap_or_else(|_| "keep this out of the sources".to_owned());
    let every = Duration::from_secs_f64(env::var("EVERY").as_deref().unwrap_or("60").parse()?);
    let limiter = Limiter::builder()
        .policies([
            Policy::per(Header::new("x-api-key"), Quota::per_second(50)).named("rate"),
            Policy::per(Header::new("x-api-key"), Window::monthly(100)).named("month"),
        ])
        .secret(secret)
        .build()?;

    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::new(&limiter));
    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    restore(&limiter, &path)?;

    let (saved, file) = (limiter.clone(), path.clone());
    let saving = tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (limiter, path) = (saved.clone(), file.clone());
            // On a thread that may wait for the disk.
            if let Ok(Err(error)) = task::spawn_blocking(move || save(&limiter, &path)).await {
                println!("the state was not saved: {error}");
            }
        }
    });

    let mut terminated = signal(SignalKind::terminate())?;
    let ended = async move {
        terminated.recv().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(ended).await?;
    // After the last request.
    saving.abort();
    save(&limiter, &path)?;
    println!("the state was saved");
    Ok(())
}
