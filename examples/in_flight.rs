//! Slow downloads: at most four at once for each API key, and a rate beside it. A download counts until its last byte is
//! read. Reports wait for their turn instead.
//!
//! ```sh
//! cargo run --example in_flight
//! for i in $(seq 6); do
//!     curl -s -o /dev/null -w '%{http_code} ' --limit-rate 8M -H 'x-api-key: ann' localhost:3000/download &
//! done; sleep 1; curl -s localhost:3000/now; wait; echo
//! seq 4 | xargs -P 4 -I{} curl -s -H 'x-api-key: ann' localhost:3000/report; curl -s localhost:3000/now
//! ```
//!
//! Two of the six get 429 at once. Then `/now` shows four downloads at most, and in the end none. The four reports are made
//! two at a time. `PORT` and `MEGABYTES` (of a download) change the defaults.

use std::{
    convert::Infallible,
    env,
    error::Error,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::get,
};
use futures_util::stream;
use tokio::{net::TcpListener, time::sleep};
use tower_quota::{InFlightLayer, Policy, Quota, RateLimitLayer, key::Header};

/// How many are served, as the handlers see it.
struct Serving {
    now: AtomicUsize,
    most: AtomicUsize,
}

static DOWNLOADS: Serving = Serving { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
static REPORTS: Serving = Serving { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };

impl Serving {
    fn begin(&'static self) -> Served {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
        Served(self)
    }
}

struct Served(&'static Serving);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A megabyte at a time, as the client takes it.
fn download(megabytes: usize) -> Body {
    let megabyte = Bytes::from(vec![b'x'; 1 << 20]);
    Body::from_stream(stream::unfold((DOWNLOADS.begin(), megabytes), move |(served, left)| {
        let next = (left > 0).then(|| (Ok::<_, Infallible>(megabyte.clone()), (served, left - 1)));
        async { next }
    }))
}

#[expect(clippy::disallowed_methods, reason = "stands for the work on a report")]
async fn report() -> &'static str {
    let _served = REPORTS.begin();
    sleep(Duration::from_millis(200)).await;
    "a report\n"
}

async fn now() -> String {
    let line = |name: &str, Serving { now, most }: &Serving| {
        format!("{name}: {} now, {} at most\n", now.load(Ordering::Acquire), most.load(Ordering::Acquire))
    };
    line("downloads", &DOWNLOADS) + &line("reports", &REPORTS)
}

#[expect(clippy::disallowed_methods, reason = "how the queue waits")]
#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let api_key = || Header::new("x-api-key");
    let megabytes = env::var("MEGABYTES").as_deref().unwrap_or("32").parse()?;
    let rate = RateLimitLayer::new(Policy::per(api_key(), Quota::per_minute(600)));
    let downloads = InFlightLayer::per(api_key(), 4).named("downloads");
    let reports = InFlightLayer::per(api_key(), 2).named("reports").queue(Duration::from_secs(10), sleep);

    let app = Router::new()
        // The limit of downloads is outside of the rate: a denial costs the rate nothing.
        .route("/download", get(async move || download(megabytes)).layer((downloads, rate.clone())))
        .route("/report", get(report).layer((reports, rate)))
        .route("/now", get(now));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
