//! A page that shows customers what they have left under their plan, without taking anything of it.
//!
//! ```sh
//! cargo run --example usage
//! for i in 1 2 3; do curl -s -H 'x-api-key: pro-1' localhost:3000/; done
//! curl -s -H 'x-api-key: pro-1' localhost:3000/usage
//! curl -s -H 'x-api-key: free-1' localhost:3000/usage
//! curl -si localhost:3000/usage
//! ```
//!
//! Pro has 97 of 100 left, and looking again changes nothing. Free has 10 of 10. Without a key: 401. `PORT` changes the
//! default.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    extract::{Request, State},
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::get,
};
use serde_json::json;
use tokio::net::TcpListener;
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, key::Header};

const FREE: Quota = Quota::per_hour(10);
const PRO: Quota = Quota::per_hour(100);

/// The quota of a customer's plan.
#[derive(Clone)]
struct Plan(Quota);

/// Outside of the limit, so that it knows the plan; and of the page, which shows it.
async fn find_plan(mut request: Request, next: Next) -> Response {
    let is_pro = request.headers().get("x-api-key").is_some_and(|key| key.as_bytes().starts_with(b"pro-"));
    request.extensions_mut().insert(Plan(if is_pro { PRO } else { FREE }));
    next.run(request).await
}

async fn usage(State(limiter): State<Limiter>, request: Request) -> Response {
    let standings = match limiter.standings(&request) {
        Ok(standings) => standings,
        // The request has no key.
        Err(denied) => return denied.into_response(),
    };
    let shown = standings.iter().map(|standing| {
        json!({
            "policy": standing.policy(),
            "limit": standing.limit(),
            "remaining": standing.remaining(),
            "full_in_seconds": standing.until_full().as_secs_f64().ceil(),
        })
    });
    Json(shown.collect::<Vec<_>>()).into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let limiter = Limiter::new([
        Policy::per(Header::new("x-api-key"), FREE)
            .named("plan")
            .quota_by(|head| head.extensions().get::<Plan>().map(|plan| plan.0)),
        // Not shown: a policy that counts all requests discloses the capacity of the service.
        Policy::global(Quota::per_second(5_000)),
    ]);
    let service = Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::new(&limiter));
    let app = Router::new().route("/usage", get(usage)).with_state(limiter).merge(service).layer(from_fn(find_plan));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
