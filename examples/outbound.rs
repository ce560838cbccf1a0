//! A client: calls to a partner are delayed, so that they stay within its limit. Where the partner says `Retry-After` all
//! the same, everybody obeys.
//!
//! ```sh
//! QUOTA='3/s, burst 2' cargo run --example quickstart
//! cargo run --example outbound -- http://localhost:3000/
//! ```
//!
//! Eight calls at once are sent at five a second for each host, the first two together. That is more than this partner
//! allows: it denies some. Then all calls pause for as long as it says, and go on in their order. Each line shows when a
//! call was answered, and how often it was sent. `RATE` changes the limit.
//!
//! A client that is a tower service needs less: `RateLimitLayer::max_delay` makes a layer that waits.
#![expect(clippy::disallowed_methods, reason = "the calls are timed, and wait, by the real clock")]

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri, header::RETRY_AFTER};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tower_quota::{Limiter, Policy, Quota};

type Failure = Box<dyn Error + Send + Sync>;

#[derive(Clone)]
struct Partner {
    client: Client<HttpConnector, Empty<Bytes>>,
    limiter: Limiter,
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Partner {
    /// Calls until the partner does not deny, and returns how often.
    async fn call(&self, url: Uri) -> Result<(u32, Response<Incoming>), Failure> {
        let host = url.host().unwrap_or_default().to_owned();
        for sent in 1.. {
            // Waits in line, and so much longer if the host is paused meanwhile.
            self.limiter.reserve("partner", &host, PATIENCE)?.ready(tokio::time::sleep).await;
            let response = self.client.request(Request::get(url.clone()).body(Empty::new())?).await?;
            let denies = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&response.status());
            let Some(wait) = response.headers().get(RETRY_AFTER).filter(|_| denies) else {
                return Ok((sent, response));
            };
            // It may also be a date, which this client takes for ten seconds.
            let seconds = wait.to_str().ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(10);
            self.limiter.pause("partner", &host, Duration::from_secs(seconds))?;
        }
        unreachable!("the patience ends before the numbers do")
    }
}

// On one thread the calls queue up in the order in which they are made.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let url: Uri = env::args().nth(1).as_deref().unwrap_or("http://localhost:3000/").parse()?;
    let rate: Quota = env::var("RATE").as_deref().unwrap_or("5/s, burst 2").parse()?;
    let partner = Partner {
        client: Client::builder(TokioExecutor::new()).build_http(),
        limiter: Limiter::new(Policy::by_key(rate).named("partner")),
    };

    let start = Instant::now();
    let mut calls = Vec::new();
    for n in 1..=8 {
        let (partner, url) = (partner.clone(), url.clone());
        calls.push(tokio::spawn(async move {
            let answer = partner.call(url).await;
            (n, start.elapsed(), answer)
        }));
    }
    for call in calls {
        let (n, when, answer) = call.await?;
        let (sent, response) = answer?;
        println!("call {n} after {} ms: {}, sent {sent} times", when.as_millis(), response.status());
    }
    Ok(())
}
