//! A limited server whose decisions Prometheus reads at /metrics.
//!
//! ```sh
//! cargo run --example prometheus --features metrics
//! for i in $(seq 12); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000; done; echo
//! curl -s localhost:3000/metrics | grep tower_quota
//! ```
//!
//! Queries for a dashboard or an alert:
//!
//! ```promql
//! # Denials a second, by policy. A step is an attack, or a limit that is too narrow.
//! sum by (policy) (rate(tower_quota_decisions_total{outcome="denied",mode="enforced"}[5m]))
//! # The share of requests that a policy in shadow mode would deny: look before you enforce.
//! sum by (policy) (rate(tower_quota_decisions_total{outcome="denied",mode="shadow"}[1h]))
//!   / sum by (policy) (rate(tower_quota_decisions_total{mode="shadow"}[1h]))
//! # Clients that will soon be denied.
//! sum by (policy) (rate(tower_quota_near_limit_total[5m]))
//! # Alert: the server cannot tell its clients apart (a proxy or the connect info is not set up).
//! rate(tower_quota_decisions_total{outcome="missing_key"}[5m]) > 1
//! # Alert: new clients share buckets, for the map is full. Raise `max_keys`, or look for a flood of addresses.
//! rate(tower_quota_overflow_total[5m]) > 0
//! # Alert: Redis does not answer, for all or for some keys: processes use the fallback, or requests pass uncounted.
//! tower_quota_redis_connections < 1
//! sum by (source) (rate(tower_quota_decisions_total{source=~"fallback|open"}[5m])) > 0
//! ```

use std::{env, net::SocketAddr};

use axum::{Router, routing::get};
use metrics_exporter_prometheus::PrometheusBuilder;
use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Before the first request: earlier counts are lost.
    let prometheus = PrometheusBuilder::new().install_recorder()?;
    let limits = RateLimitLayer::new([
        Policy::per(PeerIp, Quota::per_minute(10)),
        // Counts, and denies nothing.
        Policy::per(PeerIp, Quota::per_minute(5)).named("tighter").shadow(),
    ]);
    let app = Router::new()
        .route("/", get(|| async { "Hello!\n" }))
        .layer(limits)
        // Without a limit: Prometheus must see an attack, and must not be denied.
        .route("/metrics", get(move || async move { prometheus.render() }));
    let port = env::var("PORT").map_or(Ok(3000), |port| port.parse())?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
