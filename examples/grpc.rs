//! tonic: a denied call gets a gRPC status with the time to retry. The layer recognizes gRPC by the content-type.
//!
//! ```sh
//! cargo run --example grpc
//! cargo run --example grpc -- http://localhost:3000
//! curl --http2-prior-knowledge -si -H 'content-type: application/grpc' -H 'te: trailers' --data-binary '' localhost:3000/
//! ```
//!
//! The first is the server, the second a client that calls it six times: five answers, then `ResourceExhausted` with the
//! delay that the server asks for. The last shows the raw answer, while the bucket is empty. `PORT` and `QUOTA` change the
//! defaults.

use std::{env, error::Error, net::SocketAddr};

use tokio::net::TcpListener;
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;
use tower_quota::{Quota, RateLimitLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1) {
        Some(server) => call(server).await,
        None => serve().await,
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("1/5s, burst 5").parse()?;
    let (_reporter, health) = tonic_health::server::health_reporter();

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    Server::builder()
        .layer(RateLimitLayer::per_ip(quota))
        .add_service(health)
        .serve_with_incoming(TcpIncoming::from(listener))
        .await?;
    Ok(())
}

async fn call(server: String) -> Result<(), Box<dyn Error>> {
    let mut client = HealthClient::new(Endpoint::from_shared(server)?.connect().await?);
    for _ in 0..6 {
        match client.check(HealthCheckRequest::default()).await {
            Ok(response) => println!("{:?}", response.get_ref().status()),
            Err(status) => {
                let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
                println!("{:?}: {} Retry delay: {delay:?}", status.code(), status.message());
            }
        }
    }
    Ok(())
}
