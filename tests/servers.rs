//! Behind real sockets: state that routes and connections share, and permits that denials do not keep.
#![cfg(feature = "axum")]

#[path = "support/server.rs"]
mod server;
mod support;
#[path = "support/wire.rs"]
mod wire;

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use server::{Server, serve, serve_axum};
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, service_fn};
use tower_quota::{
    Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    key::{PeerAddr, PeerIp, RouteTemplate},
    policy::Missing,
    response::Respond,
};
use wire::{Connection, statuses};

/// hyper without a framework, as the example `hyper` has it.
fn serve_hyper<R>(layer: RateLimitLayer<Limiter, R>) -> Server
where
    R: Respond<Full<Bytes>, Body = Full<Bytes>> + Clone + Send + Sync + 'static,
{
    serve(|listener| async move {
        let below = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .service(service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("served")))) }));
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let service = ServiceBuilder::new()
                .map_request(move |mut request: Request<hyper::body::Incoming>| {
                    request.extensions_mut().insert(PeerAddr(peer));
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
    })
}

fn serve_tonic(layer: RateLimitLayer) -> Server {
    serve(|listener| async move {
        let (_reporter, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().layer(layer).add_service(health);
        server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)).await.unwrap();
    })
}

/// The answer to one request over HTTP/2, with its body and its trailers collected. True where the head alone ended it.
fn over_http2<B>(address: SocketAddr, request: Request<B>) -> (Response<http_body_util::Collected<Bytes>>, bool)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = async {
        let stream = TokioIo::new(tokio::net::TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let ended = body.is_end_stream();
        (Response::from_parts(head, body.collect().await.unwrap()), ended)
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), answer).await }).expect("an answer in time")
}

fn get_over_http2(address: SocketAddr, content_type: &str) -> (Response<http_body_util::Collected<Bytes>>, bool) {
    let request = Request::post(format!("http://{address}/")).header("content-type", content_type);
    over_http2(address, request.body(Empty::<Bytes>::new()).unwrap())
}

fn admitted(statuses: &[u16]) -> usize {
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

fn on_manual_clock(policy: Policy) -> (Limiter, ManualClock) {
    support::limiter([policy])
}

/// hyper takes no body off what it sends over HTTP/2, and clients reset a stream with one.
#[test]
fn a_denied_head_has_no_body_and_its_length() {
    let (limiter, _clock) = on_manual_clock(Policy::global(Quota::per_hour(1)));
    let ask = |server: &Server, method: &str| {
        let request = Request::builder().method(method).uri(format!("http://{}/", server.address));
        over_http2(server.address, request.body(Empty::<Bytes>::new()).unwrap())
    };
    let length = |answer: &Response<http_body_util::Collected<Bytes>>| {
        answer.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap()
    };
    let routed = Router::new().route("/", get(|| async { "served" })).layer(RateLimitLayer::new(&limiter));
    for server in [serve_hyper(RateLimitLayer::new(&limiter)), serve_axum(routed)] {
        let _ = ask(&server, "GET");
        let (get, _) = ask(&server, "GET");
        let (head, ended) = ask(&server, "HEAD");
        assert_eq!((get.status().as_u16(), head.status().as_u16()), (429, 429));
        assert!(ended, "its head alone ends it");
        assert_eq!(length(&get), get.into_body().to_bytes().len());
        assert_eq!(length(&head), 159);
        assert_eq!(head.headers()["content-type"], "application/problem+json");
        // Over HTTP/1.1 a body would be taken for the next answer.
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
            .write_all(b"HEAD / HTTP/1.1\r\nhost: t\r\n\r\nHEAD / HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 429").count(), 2, "{answers}");
        assert_eq!(answers.to_lowercase().matches("content-length: 159").count(), 2, "{answers}");
        assert!(!answers.contains("Quota Exceeded"), "{answers}");
    }
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
    let denial = Connection::open(server.address).send("GET", "/a", &[]);
    assert_eq!((denial.field("retry-after"), denial.field("cache-control")), (Some("1"), Some("no-store")));
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
    let policy = || Policy::per((PeerIp, RouteTemplate), Quota::per_second(3)).named("per-ip-path");
    let serve = |limiter: &Limiter| {
        let app = Router::new()
            .route("/users/{id}", get(|| async { "" }))
            .route("/other", get(|| async { "" }))
            .fallback(|| async { "" })
            .layer(RateLimitLayer::new(limiter));
        serve_axum(app)
    };
    let (limiter, _clock) = on_manual_clock(policy());
    let server = serve(&limiter);
    let each = |prefix: &str| -> Vec<u16> {
        (0..6).flat_map(|n| statuses(server.address, &format!("{prefix}{n}"), &[], 1)).collect()
    };
    assert_eq!(admitted(&each("/users/")), 3);
    assert_eq!(admitted(&statuses(server.address, "/other", &[], 6)), 3);
    assert_eq!(each("/invented/"), [404; 6], "no route, no key");

    let (limiter, _clock) = on_manual_clock(policy().on_missing(Missing::Share));
    let server = serve(&limiter);
    let invented = (0..6).flat_map(|n| statuses(server.address, &format!("/invented/{n}"), &[], 1));
    assert_eq!(invented.filter(|status| *status == 200).count(), 3, "all that match no route count as one");
}

/// Where no route is known, no request has a key: not one bucket for all routes.
#[test]
fn a_layer_that_no_route_reaches_rejects_every_request() {
    use tower::{Layer as _, ServiceExt as _};
    let layer = |missing: Option<Missing>| {
        let policy = Policy::per(RouteTemplate, Quota::per_hour(1));
        RateLimitLayer::new(match missing {
            Some(missing) => policy.on_missing(missing),
            None => policy,
        })
    };
    let routes = || Router::new().route("/a", get(async || ())).route("/b", get(async || ()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let status = |app: Router, path: &str| {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        runtime.block_on(app.oneshot(request)).unwrap().status().as_u16()
    };
    for (missing, expected) in [(None, 404), (Some(Missing::Reject(http::StatusCode::INTERNAL_SERVER_ERROR)), 500)] {
        let around = Router::new().fallback_service(layer(missing).layer(routes()));
        let nested = Router::new().nest_service("/x", routes()).nest_service("/y", routes()).layer(layer(missing));
        let inside = routes().layer(layer(missing));
        assert_eq!(["/a", "/b"].map(|path| status(around.clone(), path)), [expected; 2]);
        assert_eq!(["/x/a", "/y/b"].map(|path| status(nested.clone(), path)), [expected; 2]);
        assert_eq!(["/a", "/b", "/a"].map(|path| status(inside.clone(), path)), [200, 200, 429]);
    }
}

#[test]
fn in_a_nested_router_the_original_path_is_there_beside_what_is_left_of_it() {
    let limited = |condition: fn(tower_quota::key::RequestHead<'_>) -> bool| {
        let uploads = Policy::global(Quota::per_hour(1)).when(condition);
        let inner = Router::new().route("/uploads", get(async || ())).layer(RateLimitLayer::new(uploads));
        let server = serve_axum(Router::new().nest("/api/v1", inner));
        statuses(server.address, "/api/v1/uploads?a=b", &[], 2)
    };
    assert_eq!(limited(|head| head.original_uri().path() == "/api/v1/uploads"), [200, 429]);
    assert_eq!(limited(|head| head.uri().path() == "/uploads"), [200, 429]);
    assert_eq!(limited(|head| head.uri().path() == "/api/v1/uploads"), [200, 200]);
}

/// A file names paths as clients send them, whatever router the layer is in.
#[test]
fn in_a_nested_router_a_pattern_matches_either_path() {
    for (pattern, expected) in [
        ("/uploads", [200, 429]),
        ("/api/v1/uploads", [200, 429]),
        ("/api/**", [200, 429]),
        ("/v1/uploads", [200, 200]),
        ("/api", [200, 200]),
    ] {
        let uploads = Policy::global(Quota::per_hour(1)).paths([pattern]).unwrap();
        let inner = Router::new().route("/uploads", get(async || ())).layer(RateLimitLayer::new(uploads));
        let server = serve_axum(Router::new().nest("/api/v1", inner));
        assert_eq!(statuses(server.address, "/api/v1/uploads?a=b", &[], 2), expected, "{pattern}");
    }
}

/// An address that the application shares with its handlers is not the peer's.
#[test]
fn an_address_that_means_something_else_changes_no_client() {
    use std::net::Ipv4Addr;
    let upstream = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 80), 5_432));
    let (limiter, _clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_hour(1)));
    let app = Router::new()
        .route("/", get(|| async { "" }))
        .layer(RateLimitLayer::new(&limiter))
        .layer(axum::Extension(upstream));
    let server = serve_axum(app);
    assert_eq!(statuses(server.address, "/", &[], 2), [200, 429]);
    assert_eq!(limiter.peek("per-ip", Ipv4Addr::LOCALHOST).unwrap().remaining(), 0);
    assert_eq!(limiter.peek("per-ip", upstream).unwrap().remaining(), 1);
}

#[test]
fn id08_without_connect_info_every_request_is_answered_500() {
    let app = Router::new().route("/", get(|| async { "" })).layer(RateLimitLayer::per_ip(Quota::per_second(1_000)));
    let server = serve(|listener| async move { axum::serve(listener, app).await.unwrap() });
    assert_eq!(statuses(server.address, "/", &[], 3), [500, 500, 500]);
}

/// THREATS of a service below that hands out a permit when polled ready: a denial must not keep it, though its
/// connection stays open.
fn denials_keep_no_permit(address: SocketAddr, limiter: &Limiter, clock: &ManualClock) {
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
fn svc02_in_axum_a_denial_keeps_no_permit_of_a_concurrency_limit_below() {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(1)));
    let app = Router::new()
        .route("/", get(|| async { "" }))
        .layer(ServiceBuilder::new().layer(RateLimitLayer::new(&limiter)).layer(ConcurrencyLimitLayer::new(1)));
    let server = serve_axum(app);
    denials_keep_no_permit(server.address, &limiter, &clock);
}

#[test]
fn svc02_in_hyper_a_denial_keeps_no_permit_of_a_concurrency_limit_below() {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per_second(1)));
    let server = serve_hyper(RateLimitLayer::new(&limiter));
    denials_keep_no_permit(server.address, &limiter, &clock);
}

const FIELDS: [&str; 4] = ["ratelimit-policy", "ratelimit", "retry-after", "content-type"];

/// What a client sees over HTTP/1.1 and HTTP/2, allowed and denied.
fn fields_arrive(server: &Server, served_as: &str) {
    let mut connection = Connection::open(server.address);
    let (allowed, _denied) = (connection.send("GET", "/", &[]), connection.send("GET", "/", &[]));
    let (denied, _) = get_over_http2(server.address, "text/plain");
    let over_1 = FIELDS.map(|name| allowed.field(name));
    assert_eq!(over_1, [Some(r#""per-ip";q=2;w=7200"#), Some(r#""per-ip";r=1;t=3600"#), None, Some(served_as)]);
    let over_2 = FIELDS.map(|name| denied.headers().get(name).map(|value| value.to_str().unwrap()));
    let problem = Some("application/problem+json");
    assert_eq!(over_2, [Some(r#""per-ip";q=2;w=7200"#), Some(r#""per-ip";r=0;t=3600"#), Some("3600"), problem]);
    assert_eq!(denied.status().as_u16(), 429);
    assert!(denied.body().trailers().is_none(), "C-RL1");
}

fn two_an_hour() -> (RateLimitLayer, ManualClock) {
    let (limiter, clock) = on_manual_clock(Policy::per(PeerIp, Quota::per(2, Duration::from_secs(7_200))));
    (RateLimitLayer::new(&limiter), clock)
}

#[test]
fn the_fields_arrive_from_axum() {
    let (layer, _clock) = two_an_hour();
    fields_arrive(
        &serve_axum(Router::new().route("/", get(|| async { "served" })).layer(layer)),
        "text/plain; charset=utf-8",
    );
}

#[test]
fn the_fields_arrive_from_hyper() {
    let (layer, _clock) = two_an_hour();
    let server = serve_hyper(layer);
    let (allowed, _) = get_over_http2(server.address, "text/plain");
    assert_eq!(allowed.headers()["ratelimit"], r#""per-ip";r=1;t=3600"#);
    assert_eq!(get_over_http2(server.address, "text/plain").0.status().as_u16(), 200);
    let mut connection = Connection::open(server.address);
    let denied = connection.send("GET", "/", &[]);
    let seen = FIELDS.map(|name| denied.field(name).unwrap());
    assert_eq!(seen, [r#""per-ip";q=2;w=7200"#, r#""per-ip";r=0;t=3600"#, "3600", "application/problem+json"]);
}

#[test]
fn c_grpc1_tonic_answers_a_denied_call_with_one_headers_frame_that_ends_the_stream() {
    let (layer, _clock) = two_an_hour();
    let server = serve_tonic(layer);
    for _ in 0..2 {
        let (unimplemented, _) = get_over_http2(server.address, "application/grpc");
        assert_eq!(unimplemented.headers()["grpc-status"], "12", "there is no such method");
        assert!(!unimplemented.headers().contains_key("ratelimit"), "C-RL1: these are its trailers");
    }
    let (denied, ended) = get_over_http2(server.address, "application/grpc");
    assert!(ended, "END_STREAM is on the head");
    assert_eq!((denied.status().as_u16(), denied.headers()["grpc-status"].to_str().unwrap()), (200, "8"));
    assert_eq!(denied.headers()["grpc-retry-pushback-ms"], "3600000");
    assert!(denied.body().trailers().is_none());
}

#[test]
fn c_grpc1_a_tonic_client_sees_the_code_and_decodes_the_delay() {
    let (layer, _clock) = two_an_hour();
    let server = serve_tonic(layer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        for _ in 0..2 {
            client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
        }
        let status = client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        let delay = tonic_types::StatusExt::get_details_retry_info(&status).unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_secs(3_600)));
    });
}

/// Outside and inside of the layer that translates gRPC-Web, over both versions of HTTP.
#[test]
fn a_client_of_grpc_web_sees_the_code_and_decodes_the_delay() {
    fn serve_web(inside: bool, layer: RateLimitLayer) -> Server {
        serve(move |listener| async move {
            let (_reporter, health) = tonic_health::server::health_reporter();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let server = tonic::transport::Server::builder().accept_http1(true);
            let web = tonic_web::GrpcWebLayer::new();
            if inside {
                server.layer(web).layer(layer).add_service(health).serve_with_incoming(incoming).await.unwrap();
            } else {
                server.layer(layer).layer(web).add_service(health).serve_with_incoming(incoming).await.unwrap();
            }
        })
    }
    for (inside, http2) in [(true, false), (true, true), (false, false), (false, true)] {
        let (layer, _clock) = two_an_hour();
        let server = serve_web(inside, layer);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut builder = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
            let http = builder.http2_only(http2).build_http();
            let service = ServiceBuilder::new().layer(tonic_web::GrpcWebClientLayer::new()).service(http);
            let origin = format!("http://{}", server.address).parse().unwrap();
            let mut client = tonic_health::pb::health_client::HealthClient::with_origin(service, origin);
            for _ in 0..2 {
                client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
            }
            let status = client.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::ResourceExhausted, "inside {inside}, HTTP/2 {http2}: {status}");
            let delay = tonic_types::StatusExt::get_details_retry_info(&status).unwrap().retry_delay;
            assert_eq!(delay, Some(Duration::from_secs(3_600)));
        });
    }
}

/// A client whose first request is admitted, and whose second one is denied while it sends more than any buffer holds.
#[test]
fn c_body_over_http1_the_denial_reaches_a_client_that_is_still_sending() {
    let (layer, _clock) = two_an_hour();
    let server = serve_axum(Router::new().route("/", axum::routing::post(|| async { "" })).layer(layer));
    for _ in 0..2 {
        assert_eq!(Connection::open(server.address).send("POST", "/", &[]).status, 200);
    }
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000000\r\n\r\n").unwrap();
    let mut sending = stream.try_clone().unwrap();
    // Ends when the server closes the connection, as it must: the rest of the body is nobody's request.
    let sender = thread::spawn(move || while sending.write_all(&[b'x'; 8_192]).is_ok() {});
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while !answer.windows(4).any(|part| part == b"\r\n\r\n") {
        let read = stream.read(&mut buffer).expect("the answer before the connection ends");
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 429 "), "{}", String::from_utf8_lossy(&answer));
    sender.join().unwrap();
}

#[test]
fn c_body_over_http2_the_denial_reaches_a_client_that_is_still_sending() {
    let (layer, _clock) = two_an_hour();
    let server = serve_axum(Router::new().route("/", axum::routing::post(|| async { "" })).layer(layer));
    for _ in 0..2 {
        assert_eq!(get_over_http2(server.address, "text/plain").0.status().as_u16(), 200);
    }
    let endless = futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[b'x'; 4_096]))));
    let request = Request::post(format!("http://{}/", server.address)).body(StreamBody::new(endless)).unwrap();
    assert_eq!(over_http2(server.address, request).0.status().as_u16(), 429);
}
