//! One line limits every client, by the address of its connection, to 10 requests a second and 20 at once.
//!
//! ```sh
//! cargo run --example quickstart
//! for i in $(seq 30); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/; done; echo
//! curl -i localhost:3000/
//! ```
//!
//! The loop prints 200s, then 429s; the last command shows `Retry-After` while the bucket is empty.
//! `PORT` and `QUOTA` (`QUOTA=100/s`) change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_quota::{Quota, RateLimitLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("10/s, burst 20").parse()?;

    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::per_ip(quota));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    // `PeerIp` needs connect info. Without it every request fails with 500.
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
