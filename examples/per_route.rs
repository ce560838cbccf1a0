//! A strict limit on one route, and one limit that two other routes share.
//!
//! ```sh
//! cargo run --example per_route
//! for i in $(seq 4); do curl -s -o /dev/null -w '%{http_code} ' -X POST localhost:3000/login; done; echo
//! for i in $(seq 4); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/search localhost:3000/items; done; echo
//! ```
//!
//! Two logins pass and the rest are answered 429. Searches and items together get six 200s, then 429s. `PORT` changes
//! the port.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Router,
    routing::{get, post},
};
use tokio::net::TcpListener;
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, key::PeerIp};

const LOGIN: Quota = Quota::per_minute(5).burst(2); // a zero here would not compile

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let reads = Limiter::new(Policy::per(PeerIp, Quota::per_minute(60).burst(6)).named("reads"));

    let app = Router::new()
        .route("/login", post(|| async { "Welcome!\n" }).layer(RateLimitLayer::per_ip(LOGIN)))
        .route("/search", get(|| async { "Found.\n" }).layer(RateLimitLayer::new(&reads)))
        .route("/items", get(|| async { "Items.\n" }).layer(RateLimitLayer::new(&reads)))
        .route("/health", get(|| async { "Fine.\n" }));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
