//! A cap for the whole service, over all clients: 5 requests a second.
//!
//! ```sh
//! cargo run --example global
//! for i in $(seq 8); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/; done; echo
//! ```
//!
//! Five times 200, then 429, from any number of addresses. `PORT` and `QUOTA` (`QUOTA=100/s`) change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_quota::{Quota, RateLimitLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("5/s").parse()?;

    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::global(quota));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
