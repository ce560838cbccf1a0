//! A server that limits itself, and a page that shows its buckets empty and refill.
//!
//! ```sh
//! cargo run --example dashboard
//! # Open http://localhost:3000, or send requests from here and watch:
//! for i in $(seq 40); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-client: amber' localhost:3000/hello; done; echo
//! curl -s -N localhost:3000/events | head -2
//! curl -i -X PUT 'localhost:3000/quota?rate=5&burst=10' -H 'x-dashboard: yes'
//! ```
//!
//! For your own machine only: anyone who reaches the port may change the quota. `PORT` changes the default.

use std::{
    convert::Infallible,
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Query, Request, State},
    middleware::{Next, from_fn},
    response::{Html, IntoResponse, Response, Sse, sse::Event},
    routing::{get, post, put},
};
use futures_util::{Stream, stream};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    time::{Interval, MissedTickBehavior, interval},
};
use tower_quota::{Key, Limiter, Policy, Quota, RateLimitLayer, key::Header};

/// The clients that the page sends requests as. A limiter stores no names: other clients are shown by their key.
const CLIENTS: [&str; 6] = ["amber", "birch", "cedar", "dune", "ember", "fjord"];
const POLICY: &str = "client";
/// The number of clients on the page.
const SHOWN: usize = 48;
/// Includes keys whose bucket is full and that are not swept yet.
const LOOKED_AT: usize = 4_096;

#[derive(Clone)]
struct Dashboard {
    limiter: Limiter,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    allowed: AtomicU64,
    denied: AtomicU64,
}

impl Dashboard {
    fn name(&self, key: Key) -> String {
        let known = CLIENTS.into_iter().find(|client| self.limiter.key(*client) == key);
        known.map_or_else(|| key.to_string(), str::to_owned)
    }

    /// What the page shows, as of now.
    fn snapshot(&self) -> Value {
        let Self { limiter, counts } = self;
        let limit = limiter.limit(POLICY).expect("the policy is there");
        let mut keys = limiter.list(POLICY, 0, LOOKED_AT).map(|page| page.keys).unwrap_or_default();
        // The clients with a button come first, however many others there are.
        let own = CLIENTS.map(|client| limiter.key(client));
        let known = own.iter().filter_map(|key| Some((*key, limiter.peek(POLICY, *key).ok()?)));
        let known: Vec<_> = known.filter(|(_, standing)| standing.remaining() < limit.cells()).collect();
        keys.retain(|(key, standing)| !own.contains(key) && standing.remaining() < limit.cells());
        let buckets: Vec<Value> = known.into_iter().chain(keys).take(SHOWN).map(|(key, standing)| {
            json!({ "name": self.name(key), "left": standing.remaining(), "full": standing.until_full().as_secs_f64() })
        }).collect();
        let top = limiter.top_denied().into_iter().take(5);
        let top: Vec<Value> = top.map(|top| json!({ "name": self.name(top.key), "denials": top.denials })).collect();
        json!({
            "allowed": counts.allowed.load(Ordering::Relaxed),
            "denied": counts.denied.load(Ordering::Relaxed),
            "keys": limiter.len(),
            "rate": limit.to_string(),
            "burst": limit.cells(),
            "buckets": buckets,
            "top": top,
        })
    }
}

/// A snapshot four times a second, for as long as the page is open.
async fn events(State(dashboard): State<Dashboard>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Sse::new(stream::unfold((ticks, dashboard), |(mut ticks, dashboard): (Interval, Dashboard)| async {
        ticks.tick().await;
        let event = Event::default().data(dashboard.snapshot().to_string());
        Some((Ok(event), (ticks, dashboard)))
    }))
}

#[derive(Deserialize)]
struct NewQuota {
    rate: u32,
    burst: u32,
}

async fn set_quota(State(dashboard): State<Dashboard>, Query(NewQuota { rate, burst }): Query<NewQuota>) -> Response {
    let quota = Quota::new(rate, Duration::from_secs(1)).and_then(|quota| quota.try_burst(burst));
    match quota {
        Ok(quota) => {
            dashboard.limiter.set_limit(POLICY, quota).expect("the policy is there");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response(),
    }
}

#[derive(Deserialize)]
struct Flood {
    clients: u32,
}

/// One request from each of many clients, without a socket for each.
async fn flood(State(dashboard): State<Dashboard>, Query(Flood { clients }): Query<Flood>) -> Response {
    if clients > 100_000 {
        return (StatusCode::UNPROCESSABLE_ENTITY, "100,000 clients at most").into_response();
    }
    for client in 0..clients {
        let request = http::Request::builder().header("x-client", format!("client {client}")).body(());
        let decision = dashboard.limiter.decide(&request.expect("a client's name is a field's value"));
        let counted = if decision.is_allowed() { &dashboard.counts.allowed } else { &dashboard.counts.denied };
        counted.fetch_add(1, Ordering::Relaxed);
    }
    StatusCode::NO_CONTENT.into_response()
}

/// Only under this name: otherwise a page of another site could use this address as its own.
async fn by_its_name(request: Request, next: Next) -> Response {
    let host = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    let name = host.map(|host| host.rsplit_once(':').map_or(host, |(name, _)| name));
    if matches!(name, Some("localhost" | "127.0.0.1")) {
        next.run(request).await
    } else {
        (StatusCode::MISDIRECTED_REQUEST, "open it as localhost").into_response()
    }
}

/// A page of another site can neither set this field nor read the answer.
async fn from_the_page(request: Request, next: Next) -> Response {
    if request.headers().contains_key("x-dashboard") {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "the field x-dashboard is missing").into_response()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let policy = Policy::per(Header::new("x-client"), Quota::per_second(2).burst(20)).named(POLICY);
    let limiter = Limiter::builder().policy(policy).top_denied(64).build()?;
    let dashboard = Dashboard { limiter: limiter.clone(), counts: Arc::default() };
    let (allowed, denied) = (Arc::clone(&dashboard.counts), Arc::clone(&dashboard.counts));
    let layer = RateLimitLayer::new(&limiter).respond_with(move |denial| {
        if denial.status() == StatusCode::TOO_MANY_REQUESTS {
            denied.denied.fetch_add(1, Ordering::Relaxed);
        }
        (denial.status(), denial.to_string()).into_response()
    });
    let hello = get(move || async move {
        allowed.allowed.fetch_add(1, Ordering::Relaxed);
        "Hello!\n"
    });
    let control = Router::new().route("/quota", put(set_quota)).route("/flood", post(flood));
    let app = Router::new()
        .route("/hello", hello.layer(layer))
        .merge(control.layer(from_fn(from_the_page)))
        .route("/events", get(events))
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .layer(from_fn(by_its_name))
        .with_state(dashboard);
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
