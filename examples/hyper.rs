//! hyper without a framework: a tower service with `Full<Bytes>` bodies, limited per address.
//!
//! ```sh
//! cargo run --example hyper
//! for i in $(seq 8); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/; done; echo
//! ```
//!
//! Five times 200, then 429. `PORT` changes the port.

use std::{convert::Infallible, env, error::Error, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_quota::{Quota, RateLimitLayer, key::PeerAddr};

async fn hello(_request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("Hello!\n")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // One layer for all connections: its services share the buckets.
    let limit = RateLimitLayer::per_ip(Quota::per_second(5));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let service = ServiceBuilder::new()
            // The peer, for the limit.
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                request
            })
            .layer(limit.clone())
            .service(service_fn(hello));
        tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new());
            let served = connection.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
            if let Err(error) = served {
                eprintln!("connection of {peer}: {error}");
            }
        });
    }
}
