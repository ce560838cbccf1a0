//! The stacks that people build of axum, hyper and tower-http: a limit outside of each compiles as it is, and answers.

use std::{convert::Infallible, time::Duration};

use axum::{
    BoxError, Router,
    body::Body,
    error_handling::HandleErrorLayer,
    handler::Handler as _,
    http::{HeaderName, HeaderValue, Request, Response, StatusCode},
    routing::{get, get_service},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tower::{ServiceBuilder, ServiceExt as _, service_fn, util::BoxCloneSyncService};
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::CorsLayer,
    decompression::DecompressionLayer,
    limit::RequestBodyLimitLayer,
    normalize_path::NormalizePathLayer,
    request_id::PropagateRequestIdLayer,
    sensitive_headers::SetSensitiveHeadersLayer,
    services::ServeDir,
    set_header::SetResponseHeaderLayer,
    timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
};
use tower_quota::{InFlightLayer, Quota, RateLimitLayer, key::PeerIp};

const ONE: Quota = Quota::per_hour(1);

fn limit() -> RateLimitLayer {
    RateLimitLayer::global(ONE)
}

/// The first request is served, and the second one has the default response.
async fn limits<S, B>(service: S)
where
    S: tower::Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let served = service.clone().oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(served.status(), StatusCode::OK);
    let denied = service.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    let body = denied.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"{\"type\":"), "{body:?}");
}

async fn hello() -> &'static str {
    "Hello!"
}

/// An application with these layers at each place where axum takes layers, the limit outermost.
macro_rules! axum_takes {
    ($($layer:expr),+ $(,)?) => {{
        let builder = || ServiceBuilder::new().layer(limit())$(.layer($layer))+;
        limits(Router::new().route("/", get(hello)).layer(builder())).await;
        limits(Router::new().route("/", get(hello)).route_layer(builder())).await;
        limits(Router::new().route("/", get(hello).layer(builder()))).await;
        limits(Router::new().route("/", get(hello.layer(builder())))).await;
        limits(Router::new().route("/", get(hello).route_layer(builder()))).await;
        limits(Router::new().fallback(hello).layer(builder())).await;
    }};
}

#[tokio::test]
async fn a_limit_outside_of_limits_of_requests_in_flight() {
    let two = || ServiceBuilder::new().layer(InFlightLayer::global(9)).layer(InFlightLayer::global(9).named("inner"));
    axum_takes!(two());
    axum_takes!(two(), CompressionLayer::new());
    axum_takes!(InFlightLayer::global(9).queue(Duration::from_secs(1), |_| std::future::pending::<()>()));
    axum_takes!(
        TraceLayer::new_for_http(),
        InFlightLayer::global(9).shadow(),
        TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(1),)
    );
    let bare = service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Full::from("Hello!"))));
    limits(ServiceBuilder::new().layer(limit()).layer(InFlightLayer::per(PeerIp, 9).shadow()).service(bare)).await;
}

#[tokio::test]
async fn a_limit_outside_of_compression() {
    axum_takes!(CompressionLayer::new());
    axum_takes!(CompressionLayer::new(), RequestBodyLimitLayer::new(1_000));
}

#[tokio::test]
async fn a_limit_outside_of_tracing() {
    axum_takes!(TraceLayer::new_for_http());
    axum_takes!(TraceLayer::new_for_http(), CompressionLayer::new(), CorsLayer::permissive());
}

#[tokio::test]
async fn a_limit_outside_of_a_limit_on_the_body() {
    axum_takes!(RequestBodyLimitLayer::new(1_000));
}

#[tokio::test]
async fn a_limit_outside_of_timeouts() {
    let second = Duration::from_secs(1);
    axum_takes!(ResponseBodyTimeoutLayer::new(second));
    axum_takes!(RequestBodyTimeoutLayer::new(second));
    axum_takes!(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, second));
}

/// Where rustc shows neither the body nor a hint of ours.
#[tokio::test]
async fn a_limit_outside_of_layers_that_fail_and_their_handler() {
    let handled = || HandleErrorLayer::new(async |_: BoxError| StatusCode::REQUEST_TIMEOUT);
    let timeout = || tower::timeout::TimeoutLayer::new(Duration::from_secs(1));
    axum_takes!(handled(), timeout());
    axum_takes!(TraceLayer::new_for_http(), handled(), timeout(), CompressionLayer::new());
    // The limit between the handler and what fails.
    let builder = ServiceBuilder::new().layer(handled()).layer(limit()).layer(timeout()).layer(CompressionLayer::new());
    limits(Router::new().route("/", get(hello)).layer(builder)).await;
}

#[tokio::test]
async fn a_limit_outside_of_a_layer_that_catches_panics() {
    axum_takes!(CatchPanicLayer::new());
}

#[tokio::test]
async fn a_limit_outside_of_layers_that_leave_the_body_as_it_is() {
    let name = HeaderName::from_static("x-request-id");
    axum_takes!(
        PropagateRequestIdLayer::new(name.clone()),
        SetSensitiveHeadersLayer::new([name.clone()]),
        SetResponseHeaderLayer::overriding(name.clone(), HeaderValue::from_static("7")),
        NormalizePathLayer::trim_trailing_slash(),
    );
}

#[tokio::test]
async fn a_limit_outside_of_other_limits() {
    let wide = || RateLimitLayer::global(Quota::per_hour(100));
    axum_takes!(wide(), CompressionLayer::new(), wide());
}

/// As `cargo add` finds it, beside the version that axum uses.
#[cfg(feature = "tower-http")]
#[tokio::test]
async fn a_limit_outside_of_the_layers_of_the_next_tower_http() {
    use tower_http_07::{compression::CompressionLayer, limit::RequestBodyLimitLayer, trace::TraceLayer};

    axum_takes!(CompressionLayer::new());
    axum_takes!(TraceLayer::new_for_http(), RequestBodyLimitLayer::new(1_000));
}

#[tokio::test]
async fn a_limit_outside_of_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let files =
        || ServiceBuilder::new().layer(limit()).service(ServeDir::new(folder).append_index_html_on_directories(false));
    let file = || Request::builder().uri("/lib.rs").body(Body::empty()).unwrap();
    for app in [Router::new().fallback_service(files()), Router::new().route("/lib.rs", get_service(files()))] {
        assert_eq!(app.clone().oneshot(file()).await.unwrap().status(), StatusCode::OK);
        assert_eq!(app.oneshot(file()).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    }
}

#[tokio::test]
async fn a_limit_outside_of_a_body_that_is_mapped() {
    use tower_http::map_response_body::MapResponseBodyLayer;

    axum_takes!(MapResponseBodyLayer::new(|body: Body| Limited::new(body, 1_000)));
    axum_takes!(MapResponseBodyLayer::new(|body: Body| body.map_err(std::io::Error::other)));
    axum_takes!(MapResponseBodyLayer::new(|body: Body| body.map_err(std::io::Error::other).boxed_unsync()));
    axum_takes!(MapResponseBodyLayer::new(|body: Body| Box::pin(body)));
}

/// In a struct, say, whose fields have to have types.
#[tokio::test]
async fn a_layer_with_a_boxed_responder_names_the_body_of_its_responses() {
    use tower_http::compression::CompressionBody;
    use tower_quota::{
        Limiter,
        response::{BoxRespond, ResponseBody},
    };

    type Compressed = CompressionBody<Full<Bytes>>;
    let boxed: RateLimitLayer<Limiter, BoxRespond<Compressed, ResponseBody<Compressed>>> = limit().boxed();
    let full =
        service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello!")))));
    limits(ServiceBuilder::new().layer(boxed).layer(CompressionLayer::new()).service(full)).await;
}

#[tokio::test]
async fn a_limit_outside_of_a_stack_without_a_framework() {
    let full =
        service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello!")))));
    limits(ServiceBuilder::new().layer(limit()).service(full)).await;
    limits(ServiceBuilder::new().layer(limit()).layer(CompressionLayer::new()).service(full)).await;
    limits(ServiceBuilder::new().layer(limit()).layer(TraceLayer::new_for_http()).service(full)).await;
    let streamed = service_fn(async |_: Request<Body>| {
        let frames = [Ok::<_, Infallible>(Frame::data(Bytes::from("Hello!")))];
        Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
    });
    limits(ServiceBuilder::new().layer(limit()).service(streamed)).await;
    limits(BoxCloneSyncService::new(ServiceBuilder::new().layer(limit()).service(streamed))).await;
}

/// A server of hyper, and a client whose responses have hyper's own body, compressed and not.
#[tokio::test]
async fn a_limit_outside_of_a_client_of_hyper() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = ServiceBuilder::new()
        .layer(RateLimitLayer::global(Quota::per_hour(100)))
        .layer(CompressionLayer::new())
        .service(service_fn(async |_: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("Hello!"))))
        }));
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let server = TowerToHyperService::new(server.clone());
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), server));
        }
    });
    let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let here = move |mut request: Request<Body>| {
        *request.uri_mut() = format!("http://{address}/").parse().unwrap();
        request
    };
    limits(ServiceBuilder::new().map_request(here).layer(limit()).service(client.clone())).await;
    let decompressed = ServiceBuilder::new().map_request(here).layer(limit()).layer(DecompressionLayer::new());
    limits(decompressed.service(client.clone())).await;
    let proxy = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_| StatusCode::BAD_GATEWAY))
        .layer(limit())
        .map_request(here)
        .service(client);
    limits(Router::new().fallback_service(proxy)).await;
    // A client with a type of request and of response of its own.
    let reqwest = ServiceBuilder::new()
        .layer(limit().any_body())
        .map_request(|request| reqwest::Request::try_from(request).unwrap())
        .map_response(|response: reqwest::Response| Response::<reqwest::Body>::from(response))
        .service(reqwest::Client::new());
    let ours = || Request::get(format!("http://{address}/")).body(reqwest::Body::default()).unwrap();
    let first = reqwest.clone().oneshot(ours()).await.unwrap();
    let first = reqwest::Response::from(first.map(reqwest::Body::wrap));
    assert_eq!(first.text().await.unwrap(), "Hello!");
    assert_eq!(reqwest.oneshot(ours()).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    serving.abort();
}
