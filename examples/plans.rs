//! Plans and policies from a file, which is read again on SIGHUP: quotas change, rules come and go, buckets stay.
//!
//! ```sh
//! cargo run --example plans
//! for i in $(seq 7); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: free-1' localhost:3000/; done; echo
//! sed -i 's/free = "5/free = "100/' examples/plans.toml; pkill -HUP -x plans
//! curl -si -H 'x-api-key: free-1' localhost:3000/ | grep -i ratelimit
//! printf '\n[[policies]]\nname = "exports"\nkey = { header = "x-api-key" }\nquota = "1/h"\npaths = ["/export/**"]\n' \
//!     >> examples/plans.toml; pkill -HUP -x plans
//! for i in 1 2; do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: pro-1' localhost:3000/export/all; done; echo
//! ```
//!
//! Five times 200, then 429. After the upgrade 94 of 100 are left: the count stays. The rule for exports is there from the
//! second reload on: 200, 429. An invalid file changes nothing, and the message names the line.
//! `PORT` and `LIMITS` (the path of the file) change the defaults.

use std::{env, error::Error, fs, net::SocketAddr};

use axum::{Router, routing::get};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_quota::{Policy, RateLimitLayer, key::RequestHead};

#[derive(Deserialize)]
struct Limits {
    policies: Vec<Policy>,
}

/// The file says the plans and their quotas, and code says which plan a request has.
fn read(path: &str) -> Result<Vec<Policy>, Box<dyn Error>> {
    let Limits { policies } = toml::from_str(&fs::read_to_string(path)?)?;
    let choose = |policy: Policy| if policy.name() == "plan" { policy.plan_by(plan) } else { policy };
    Ok(policies.into_iter().map(choose).collect())
}

/// Your database knows the plan of a key. Here it is the first part of the key.
fn plan(head: RequestHead<'_>) -> Option<&str> {
    let (plan, _) = head.headers().get("x-api-key")?.to_str().ok()?.split_once('-')?;
    Some(plan)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var("LIMITS").unwrap_or_else(|_| "examples/plans.toml".to_owned());
    let layer = RateLimitLayer::try_new(read(&path)?)?.reloadable();

    let mut hangups = signal(SignalKind::hangup())?;
    let reloading = layer.clone();
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            let reloaded = read(&path).and_then(|policies| Ok(reloading.set_policies(policies)?));
            match reloaded {
                Ok(()) => println!("limits were read again"),
                Err(error) => println!("limits stay as they are: {}", error.to_string().replace('\n', " ")),
            }
        }
    });

    let hello = || async { "Hello!\n" };
    let app = Router::new().route("/", get(hello)).route("/export/{*what}", get(hello)).layer(layer);
    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
