//! The servers that `http_load` drives: axum's hello, bare and behind a layer, on one thread.

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, routing::get};
use tower_governor::{GovernorLayer, governor::GovernorConfigBuilder, key_extractor::PeerIpKeyExtractor};
use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp, policy::Advertise};

pub const CRATES: [&str; 6] =
    ["bare", "a layer that does nothing", "tower-quota", "tower-quota, quiet", "tower_governor", "axum-governor"];

/// Prints its address and serves until it is killed.
pub fn run(which: &str, traffic: &str) {
    let all = traffic == "allowed";
    let hello = Router::new().route("/", get(|| async { "Hello!" }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    runtime.block_on(async {
        let app = match which {
            "bare" => hello,
            // axum boxes what is layered, whatever it does.
            "a layer that does nothing" => hello.layer(tower::layer::layer_fn(|service: axum::routing::Route| service)),
            "tower-quota" | "tower-quota, quiet" => {
                let quota = if all { Quota::per_second(100_000_000) } else { Quota::per_hour(1) };
                if which == "tower-quota" {
                    hello.layer(RateLimitLayer::per_ip(quota))
                } else {
                    // As little as the others tell.
                    let policy = Policy::per(PeerIp, quota).advertise(Advertise::RetryAfter);
                    hello.layer(RateLimitLayer::new(policy).plain_text())
                }
            }
            "tower_governor" => {
                let mut config = GovernorConfigBuilder::default();
                if all {
                    config.per_nanosecond(10).burst_size(100_000_000);
                } else {
                    config.per_second(3_600).burst_size(1);
                }
                let config = config.key_extractor(PeerIpKeyExtractor).finish().unwrap();
                hello.layer(GovernorLayer::new(Arc::new(config)))
            }
            "axum-governor" => {
                let rate = axum_governor::Quota::requests_per_second;
                let quota = if all { rate(100_000_000.try_into().unwrap()) } else { crate::peers::once_an_hour() };
                hello.layer(crate::peers::axum_governor(quota))
            }
            unknown => panic!("there is no server {unknown:?}"),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
    });
}
