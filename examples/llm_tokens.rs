//! Costs that are known only after the work: an estimate of the tokens is acquired, and the actual number settled,
//! also when the client disconnects during a streamed answer.
//!
//! ```sh
//! cargo run --example llm_tokens
//! curl -i -H 'x-api-key: k1' -H 'x-max-tokens: 400' 'localhost:3000/complete?tokens=20'
//! curl -i -H 'x-api-key: k1' -H 'x-max-tokens: 400' 'localhost:3000/complete?tokens=20'
//! curl -i -H 'x-api-key: k1' -H 'x-max-tokens: 2000' localhost:3000/complete
//! ```
//!
//! The first acquires 400 of 1,000 tokens (`r=600`) and uses 20; the second finds 980 (`r=580`). The third asks for more
//! than the burst, which is never granted. `PORT` and `TOKEN_MS`, the time that a token takes, change the defaults.

use std::{convert::Infallible, env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    routing::get,
};
use futures_util::stream;
use http::HeaderMap;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::{Header, PeerIp},
    limiter::Admission,
    policy::Advertise,
};

/// The maximum that a request asks for, up to a limit. At least one, because zero is always granted.
fn most_tokens(headers: &HeaderMap) -> u32 {
    let asked = headers.get("x-max-tokens").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.unwrap_or(200).max(1)
}

/// Settles when it is dropped: at the end of the stream, or when the client disconnects.
struct Meter {
    admission: Admission,
    tokens: u32,
}

impl Drop for Meter {
    fn drop(&mut self) {
        // An error says that no policy of this name applied; then there is nothing to settle.
        let _ = self.admission.settle("tokens", self.tokens);
    }
}

#[derive(Deserialize)]
struct Work {
    #[serde(default)]
    tokens: u32,
}

#[expect(clippy::disallowed_methods, reason = "stands for a model at work")]
async fn complete(
    State(pace): State<Duration>,
    Extension(admission): Extension<Admission>,
    Query(work): Query<Work>,
    headers: HeaderMap,
) -> Body {
    let meter = Meter { admission, tokens: 0 };
    let tokens = work.tokens.min(most_tokens(&headers));
    // A model that sends one token after the other.
    Body::from_stream(stream::unfold((meter, tokens), move |(mut meter, left)| async move {
        let left = left.checked_sub(1)?;
        tokio::time::sleep(pace).await;
        meter.tokens += 1;
        Some((Ok::<_, Infallible>(Bytes::from_static(b"token ")), (meter, left)))
    }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let tokens = Policy::per(Header::new("x-api-key"), Quota::per_hour(1_000))
        .named("tokens")
        .cost_by(|head| most_tokens(head.headers()));
    let pace = Duration::from_millis(env::var("TOKEN_MS").as_deref().unwrap_or("1").parse()?);
    // Clients can invent keys, so a limit by address comes first.
    let requests = Policy::per(PeerIp, Quota::per_second(100)).advertise(Advertise::RetryAfter);
    let app = Router::new()
        .route("/complete", get(complete))
        .layer(RateLimitLayer::new([requests, tokens]).admissions())
        .with_state(pace);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
