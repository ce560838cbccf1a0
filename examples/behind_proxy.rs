//! Behind a proxy: each client counts by its own address, which the proxy appends to `X-Forwarded-For`. An
//! entry that a client writes itself is not trusted, nor is a client that connects without the proxy.
//!
//! ```sh
//! cargo run --example behind_proxy
//! # As the proxy would connect, for two clients:
//! for i in $(seq 8); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-forwarded-for: 203.0.113.7' localhost:3000/; done; echo
//! curl -i -H 'x-forwarded-for: 203.0.113.8' localhost:3000/
//! # What a client has made up stands on the left and changes nothing:
//! curl -i -H 'x-forwarded-for: 6.6.6.6, 203.0.113.7' localhost:3000/
//! ```
//!
//! Five times 200, then 429, for the first client; 200 for the second; 429 for the forgery. Before it, nginx with
//! `proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;` does the appending. `PORT`, `QUOTA` and `TRUSTED`
//! (networks, separated by commas) change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{Router, extract::ConnectInfo, http::HeaderMap, routing::get};
use tokio::net::TcpListener;
use tower_quota::{Policy, Quota, RateLimitLayer, key::ClientIp};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("5/m").parse()?;
    let trusted = env::var("TRUSTED").unwrap_or_else(|_| "127.0.0.1, ::1".to_owned());
    let client_ip = ClientIp::behind(trusted.split(','))?;

    let layer = RateLimitLayer::new(Policy::per(client_ip.clone(), quota));
    // The same rule tells the application who the client is.
    let hello = move |ConnectInfo(peer): ConnectInfo<SocketAddr>, headers: HeaderMap| async move {
        match client_ip.resolve(peer.ip(), &headers) {
            Some(address) => format!("Hello, {address}!\n"),
            None => "Hello!\n".to_owned(),
        }
    };
    let app = Router::new().route("/", get(hello)).layer(layer);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
