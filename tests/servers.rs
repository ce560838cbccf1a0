//! Behind real sockets: state that routes and connections share, and permits that refusals do not keep.
#![cfg(feature = "axum")]

mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, service_fn};
use tower_quota::{
    Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    key::{MatchedPath, PeerIp},
};
use wire::{Connection, statuses};

/// A server in the background, which ends with its runtime.
struct Server {
    address: SocketAddr,
    _runtime: Runtime,
}

fn serve_axum(app: Router) -> Server {
    serve(|listener| async move {
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await.unwrap();
    })
}

fn serve<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(TcpListener) -> F) -> Server {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let server = {
        let _entered = runtime.enter();
        run(listener)
    };
    runtime.spawn(server);
    Server { address, _runtime: runtime }
}

fn admitted(statuses: &[u16]) -> usize {
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

fn on_manual_clock(policy: Policy) -> (Limiter, ManualClock) {
    support::limiter([policy])
}

/// tower#764: axum calls `Layer::layer` for each route, and clones for each connection.
#[test]
fn one_layer_is_one_limit_over_all_routes_and_connections() {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(10)));
    let app = Router::new()
        .route("/a", get(|| async { "a" }))
        .route("/b", get(|| async { "b" }))
        .nest("/deep", Router::new().route("/c", get(|| async { "c" })))
        .fallback(|| async { "fallback" })
        .layer(RateLimitLayer::new(&limiter));
    let server = serve_axum(app);
    let mut all = Vec::new();
    for _ in 0..5 {
        for path in ["/a", "/b", "/deep/c", "/nowhere"] {
            all.extend(statuses(server.address, path, &[], 1));
        }
    }
    assert_eq!(admitted(&all), 10);
    let refusal = Connection::open(server.address).send("GET", "/a", &[]);
    assert_eq!((refusal.field("retry-after"), refusal.field("cache-control")), (Some("1"), Some("no-store")));
    clock.advance(Duration::from_secs(1));
    assert_eq!(statuses(server.address, "/a", &[], 1), [200], "waiting as long as told helps");
}

#[test]
fn layers_on_routes_share_what_they_are_given_and_nothing_else() {
    let (shared, _clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(4)));
    let (own, _clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(2)));
    let app = Router::new()
        .route("/search", get(|| async { "" }).layer(RateLimitLayer::new(&shared)))
        .route("/items", get(|| async { "" }).route_layer(RateLimitLayer::new(&shared)))
        .route("/login", get(|| async { "" }).layer(RateLimitLayer::new(&own)))
        .route("/free", get(|| async { "" }));
    let server = serve_axum(app);
    let mut together = statuses(server.address, "/search", &[], 3);
    together.extend(statuses(server.address, "/items", &[], 3));
    assert_eq!(admitted(&together), 4);
    assert_eq!(admitted(&statuses(server.address, "/login", &[], 5)), 2);
    assert_eq!(admitted(&statuses(server.address, "/free", &[], 20)), 20);
}

#[test]
fn the_matched_path_is_the_template_and_not_what_the_client_invents() {
    let (limiter, _clock) =
        on_manual_clock(Policy::per((PeerIp, MatchedPath), Quota::per_second(3)).named("per-ip-path"));
    let app = Router::new()
        .route("/users/{id}", get(|| async { "" }))
        .route("/other", get(|| async { "" }))
        .fallback(|| async { "" })
        .layer(RateLimitLayer::new(&limiter));
    let server = serve_axum(app);
    let each = |prefix: &str| -> Vec<u16> {
        (0..6).flat_map(|n| statuses(server.address, &format!("{prefix}{n}"), &[], 1)).collect()
    };
    assert_eq!(admitted(&each("/users/")), 3);
    assert_eq!(admitted(&statuses(server.address, "/other", &[], 6)), 3);
    assert_eq!(admitted(&each("/invented/")), 3, "what matches no route counts as one route");
}

#[test]
fn id08_without_connect_info_every_request_is_answered_500() {
    let app = Router::new().route("/", get(|| async { "" })).layer(RateLimitLayer::per_ip(Quota::per_second(1_000)));
    let server = serve(|listener| async move { axum::serve(listener, app).await.unwrap() });
    assert_eq!(statuses(server.address, "/", &[], 3), [500, 500, 500]);
}

/// THREATS of a service below that hands out a permit when polled ready: a refusal must not keep it, though its
/// connection stays open.
fn refusals_keep_no_permit(address: SocketAddr, limiter: &Limiter, clock: &ManualClock) {
    let mut kept_open: Vec<Connection> = (0..8).map(|_| Connection::open(address)).collect();
    assert_eq!(kept_open[0].send("GET", "/", &[]).status, 200);
    for connection in &mut kept_open {
        assert_eq!(connection.send("GET", "/", &[]).status, 429);
    }
    clock.advance(Duration::from_secs(1));
    // Behind a limit of one call at a time, a single kept permit would make this wait for ever.
    assert_eq!(Connection::open(address).send("GET", "/", &[]).status, 200);
    assert!(!limiter.is_empty());
    drop(kept_open);
}

#[test]
fn svc02_in_axum_a_refusal_keeps_no_permit_of_a_concurrency_limit_below() {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(1)));
    let app = Router::new()
        .route("/", get(|| async { "" }))
        .layer(ServiceBuilder::new().layer(RateLimitLayer::new(&limiter)).layer(ConcurrencyLimitLayer::new(1)));
    let server = serve_axum(app);
    refusals_keep_no_permit(server.address, &limiter, &clock);
}

#[test]
fn svc02_in_hyper_a_refusal_keeps_no_permit_of_a_concurrency_limit_below() {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(1)));
    let layer = RateLimitLayer::new(&limiter);
    let server = serve(|listener| async move {
        let below = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .service(service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::new()))) }));
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let service = ServiceBuilder::new()
                .map_request(move |mut request: Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert::<SocketAddr>(peer);
                    request
                })
                .layer(layer.clone())
                .service(below.clone());
            tokio::spawn(async move {
                let connection = auto::Builder::new(TokioExecutor::new());
                // An error is a client that went away.
                let _ = connection.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
            });
        }
    });
    refusals_keep_no_permit(server.address, &limiter, &clock);
}
