//! Two servers share one limit over Redis. Starts a Redis of its own unless `REDIS_URL` names one.
//!
//! ```sh
//! cargo run --example redis --features redis
//! # Both together have five an hour:
//! for i in 1 2 3 4; do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/ localhost:3001/; done; echo
//! # From another process, with the address that the first one prints: your customer is reset, and another one blocked.
//! REDIS_URL=redis://127.0.0.1:PORT cargo run --example redis --features redis -- reset 127.0.0.1
//! REDIS_URL=redis://127.0.0.1:PORT cargo run --example redis --features redis -- block 127.0.0.2 60
//! curl -i localhost:3001/; curl -i --interface 127.0.0.2 127.0.0.1:3000/
//! # Stop Redis: the denied client stays denied, and another one gets half of the limit at each server.
//! pkill -f 'redis-server.*tower-quota'
//! curl -i localhost:3000/
//! for i in 1 2 3; do curl -s -o /dev/null -w '%{http_code} ' --interface 127.0.0.2 127.0.0.1:3000/; done; echo
//! ```

use std::{
    env, io,
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{Router, routing::get};
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::PeerIp,
    redis::{OnFailure, RedisConfigError, RedisLimiter},
};

/// Each process builds the same limiter: with the same secret and policies they share the limits.
fn limiter(redis: &str) -> Result<RedisLimiter, RedisConfigError> {
    RedisLimiter::builder(redis, b"keep this out of the sources", OnFailure::Local { share: 0.5 })
        .policy(Policy::per(PeerIp, Quota::per_hour(5)).named("per-ip"))
        .build()
}

async fn app(redis: &str) -> Result<Router, RedisConfigError> {
    let limiter = limiter(redis)?;
    // Building does not connect. Without this the first requests are decided without Redis.
    if !limiter.connect(Duration::from_secs(1)).await {
        eprintln!("Redis does not answer; limits use the fallback until it does");
    }
    Ok(Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::new(&limiter)))
}

/// What an operator does, from a process of its own. The servers obey at once.
async fn operate(redis: &str, command: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let limiter = limiter(redis)?;
    match command {
        [reset, address] if reset == "reset" => {
            let was_used = limiter.reset("per-ip", address.parse::<IpAddr>()?).await?;
            println!("{address} has its whole limit{}", if was_used { " again" } else { ", as before" });
        }
        [block, address, seconds] if block == "block" => {
            let time = Duration::from_secs(seconds.parse()?);
            limiter.block("per-ip", address.parse::<IpAddr>()?, time).await?;
            println!("{address} is blocked for {time:?}");
        }
        _ => return Err("expected `reset ADDRESS` or `block ADDRESS SECONDS`".into()),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command: Vec<String> = env::args().skip(1).collect();
    if !command.is_empty() {
        return operate(&env::var("REDIS_URL")?, &command).await;
    }
    let (redis, _server) = if let Ok(url) = env::var("REDIS_URL") {
        (url, None)
    } else {
        let (url, server) = start_redis()?;
        (url, Some(server))
    };
    let ports: Vec<u16> = match env::var("PORT") {
        Ok(port) => vec![port.parse()?, 0],
        Err(_) => vec![3000, 3001],
    };
    let mut servers = Vec::new();
    for port in ports {
        let app = app(&redis).await?.into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        println!("listening on http://{}", listener.local_addr()?);
        servers.push(tokio::spawn(async move { axum::serve(listener, app).await }));
    }
    for server in servers {
        server.await??;
    }
    Ok(())
}

/// Stops the server when the example ends.
struct Redis(Child);

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn start_redis() -> io::Result<(String, Redis)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let settings =
        ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--proc-title-template", "redis-server tower-quota"];
    let server = Command::new("redis-server").args(settings).stdout(Stdio::null()).spawn().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot start redis-server ({error}): install it, or set REDIS_URL to the address of one"),
        )
    })?;
    println!("redis-server on port {port}");
    Ok((format!("redis://127.0.0.1:{port}"), Redis(server)))
}
