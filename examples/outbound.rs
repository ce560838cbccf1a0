//! A client: calls to a partner are delayed, so that they stay within its limit and none is denied there.
//!
//! ```sh
//! cargo run --example quickstart
//! cargo run --example outbound -- http://localhost:3000/
//! ```
//!
//! Eight calls at once are sent at five a second for each host, the first two together; each line shows when. `RATE` changes
//! the limit.
#![expect(clippy::disallowed_methods, reason = "the calls are timed, and wait, by the real clock")]

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Layer as _, ServiceExt as _};
use tower_quota::{Policy, Quota, RateLimitLayer, key::key_fn};

// On one thread the calls queue up in the order in which they are made.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let url = env::args().nth(1).unwrap_or_else(|| "http://localhost:3000/".to_owned());
    let rate: Quota = env::var("RATE").as_deref().unwrap_or("5/s, burst 2").parse()?;

    let per_host = Policy::per(key_fn(|head| Some(head.key(head.uri().host()?))), rate).named("partner");
    let client = RateLimitLayer::new(per_host)
        .any_body()
        .max_delay(Duration::from_secs(30), tokio::time::sleep)
        .layer(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());

    let start = Instant::now();
    let mut calls = Vec::new();
    for n in 1..=8 {
        let (client, request) = (client.clone(), Request::get(&url).body(Empty::new())?);
        calls.push(tokio::spawn(async move {
            let response = client.oneshot(request).await;
            (n, start.elapsed(), response.map(|response| response.status()))
        }));
    }
    for call in calls {
        let (n, when, status) = call.await?;
        println!("call {n} after {} ms: {}", when.as_millis(), status?);
    }
    Ok(())
}
