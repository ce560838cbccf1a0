//! Plans and policies from a file, which is read again on SIGHUP: quotas change, buckets stay.
//!
//! ```sh
//! cargo run --example plans
//! for i in $(seq 7); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: free-1' localhost:3000/; done; echo
//! sed -i 's/^free = .*/free = "100\/s"/' examples/plans.toml; pkill -HUP -x plans
//! for i in $(seq 4); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: free-1' localhost:3000/; sleep 1; done; echo
//! ```
//!
//! Five times 200, then 429. After the upgrade the backlog stays, and the next request clamps it to two bursts of the new
//! quota: the key is served again within two seconds, not after a minute. An invalid file changes nothing.
//! `PORT` and `LIMITS` (the path of the file) change the defaults.

use std::{
    collections::HashMap,
    env,
    error::Error,
    fs,
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use axum::{Router, routing::get};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, config::PolicyConfig};

#[derive(Deserialize)]
struct Limits {
    plans: Plans,
    policies: Vec<PolicyConfig>,
}

type Plans = HashMap<String, Quota>;

fn read(path: &str) -> Result<(Plans, Vec<Policy>), Box<dyn Error>> {
    let Limits { plans, policies } = toml::from_str(&fs::read_to_string(path)?)?;
    let policies = policies.into_iter().map(Policy::try_from).collect::<Result<_, _>>()?;
    Ok((plans, policies))
}

/// The quotas of the file take effect, all of them or none. What else changed in it, a key or a policy, does so when the
/// server starts again.
fn reload(path: &str, limiter: &Limiter, plans: &RwLock<Plans>) -> Result<(), Box<dyn Error>> {
    let (new_plans, policies) = read(path)?;
    limiter.set_quotas(policies.iter().map(|policy| (policy.name(), policy.quota())))?;
    *plans.write().unwrap() = new_plans;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env::var("LIMITS").unwrap_or_else(|_| "examples/plans.toml".to_owned());
    let (plans, policies) = read(&path)?;
    let plans = Arc::new(RwLock::new(plans));

    let of_plan = Arc::clone(&plans);
    let policies = policies.into_iter().map(move |policy| {
        let plans = Arc::clone(&of_plan);
        if policy.name() != "plan" {
            return policy;
        }
        // Your database knows the plan of a key. Here it is the first part of the key.
        policy.quota_by(move |head| {
            let key = head.headers().get("x-api-key")?.to_str().ok()?;
            plans.read().unwrap().get(key.split_once('-')?.0).copied()
        })
    });
    let limiter = Limiter::builder().policies(policies).build()?;

    let mut hangups = signal(SignalKind::hangup())?;
    let reloading = limiter.clone();
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            match reload(&path, &reloading, &plans) {
                Ok(()) => println!("quotas were read again"),
                Err(error) => println!("quotas stay as they are: {}", error.to_string().replace('\n', " ")),
            }
        }
    });

    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(RateLimitLayer::new(&limiter));
    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
