//! A rate, a window and a cap: 10 a second and 1,000 a day for each API key, and 100 a second for
//! all together. A request that one of them denies takes no cells from the others.
//!
//! ```sh
//! cargo run --example windows
//! for i in $(seq 12); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: k1' localhost:3000/; done; echo
//! curl -i -H 'x-api-key: k1' localhost:3000/
//! curl -i -H 'x-api-key: k2' localhost:3000/
//! ```
//!
//! Key `k1` gets its 10 (and one more for each tenth of a second that passes), then 429s that name
//! the policy; key `k2` is not concerned. `PORT` changes the port.

use std::{env, error::Error, net::SocketAddr};

use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tower_quota::{Policy, Quota, RateLimitLayer, Window, key::Header};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let layer = RateLimitLayer::new([
        Policy::per(Header::new("x-api-key"), Quota::per_second(10)).named("rate"),
        Policy::per(Header::new("x-api-key"), Window::daily(1_000)).named("day"),
        Policy::global(Quota::per_second(100)).named("cap"),
    ]);

    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(layer);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}
