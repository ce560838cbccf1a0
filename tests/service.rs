//! The layer and the service: tower's contract, the default answer, and answers of one's own.

mod support;

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    net::Ipv4Addr,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use support::{from_ip, with_header};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _, service_fn, steer::Steer, util::BoxCloneService};
use tower_quota::{
    Denied, Key, Limiter, Policy, Quota, RateLimit, RateLimitLayer,
    decision::Reason,
    key::{Bearer, Header, PeerIp},
    policy::Missing,
    response::{BoxRespond, DenialBody, Respond},
};

/// Hours, so that no test is slow enough for a cell to come back.
const ONE: Quota = Quota::per_hour(1);

async fn echo<B>(request: Request<B>) -> Result<Response<String>, Infallible> {
    let mut response = Response::new(request.uri().path().to_owned());
    response.headers_mut().insert("x-inner", "kept".parse().unwrap());
    *response.status_mut() = StatusCode::CREATED;
    response.extensions_mut().insert(7_u8);
    Ok(response)
}

async fn call<S, B>(service: &S, request: Request<B>) -> S::Response
where
    S: Service<Request<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    service.clone().oneshot(request).await.unwrap()
}

#[tokio::test]
async fn svc07_an_admitted_response_is_left_as_it_is() {
    let service = RateLimitLayer::global(ONE).layer(service_fn(echo::<()>));
    let response = call(&service, Request::builder().uri("/a").body(()).unwrap()).await;
    let mut expected = HeaderMap::new();
    expected.insert("x-inner", "kept".parse().unwrap());
    assert_eq!(
        (response.status(), response.headers(), response.body().as_str()),
        (StatusCode::CREATED, &expected, "/a")
    );
    assert_eq!(response.extensions().get::<u8>(), Some(&7));
}

#[tokio::test]
async fn a_missing_key_is_answered_with_its_status() {
    let answer = |policy: Policy| {
        let service = RateLimitLayer::new(policy).layer(service_fn(echo::<()>));
        async move { call(&service, Request::new(())).await }
    };
    let unset = answer(Policy::per(PeerIp, ONE)).await;
    assert_eq!(unset.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(unset.body().contains("not configured to identify clients"), "{}", unset.body());
    assert_eq!(unset.headers()["cache-control"], "no-store");

    let keyless = answer(Policy::per(Header::new("X-Api-Key"), ONE)).await;
    assert_eq!(keyless.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(keyless.headers()["www-authenticate"], "ApiKey header=\"x-api-key\"");
    assert!(keyless.body().contains(r#""detail":"The request has no key for the policy \"per-x-api-key\".""#));
    assert!(!keyless.headers().contains_key("retry-after"));

    let both = || (Header::new("k"), Bearer);
    let neither = answer(Policy::per(both(), ONE)).await;
    assert_eq!(neither.headers()["www-authenticate"], "ApiKey header=\"k\"");
    let service = RateLimitLayer::new(Policy::per(both(), ONE)).layer(service_fn(echo::<()>));
    let only_the_first = call(&service, with_header("k", "a")).await;
    assert_eq!(only_the_first.headers()["www-authenticate"], "Bearer", "of the part that is missing");

    let tokenless = answer(Policy::per(Bearer, ONE)).await;
    assert_eq!(tokenless.headers()["www-authenticate"], "Bearer");
    let forbidden = answer(Policy::per(Bearer, ONE).on_missing(Missing::Reject(StatusCode::FORBIDDEN))).await;
    assert_eq!(forbidden.status(), StatusCode::FORBIDDEN);
    assert!(!forbidden.headers().contains_key("www-authenticate"));
}

#[tokio::test]
async fn id13_no_answer_echoes_a_key() {
    let service = RateLimitLayer::new(Policy::per(Header::new("x-api-key"), ONE)).layer(service_fn(echo::<()>));
    let request = || with_header("x-api-key", "S3CR3T-canary");
    call(&service, request()).await;
    let denial = call(&service, request()).await;
    assert_eq!(denial.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!format!("{denial:?}").contains("S3CR3T"));
}

#[tokio::test]
async fn each_layer_call_and_each_clone_shares_the_limiter() {
    let layer = RateLimitLayer::global(Quota::per_hour(10));
    let mut admitted = 0;
    for _ in 0..20 {
        let service = layer.clone().layer(service_fn(echo::<()>));
        for clone in [service.clone(), service] {
            admitted += usize::from(call(&clone, Request::new(())).await.status() == StatusCode::CREATED);
        }
    }
    assert_eq!(admitted, 10);
    assert_eq!(layer.limiter().peek("global", Key::GLOBAL).unwrap().remaining(), 0);
}

/// Neither `Clone` nor `Send`, with an error that converts into nothing.
struct Bare {
    ready: bool,
    calls: Rc<Cell<usize>>,
}

#[derive(Debug, PartialEq)]
struct OwnError;

impl Service<Request<Rc<()>>> for Bare {
    type Response = Response<String>;
    type Error = OwnError;
    type Future = Ready<Result<Response<String>, OwnError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), OwnError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Rc<()>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been polled ready");
        self.calls.set(self.calls.get() + 1);
        ready(if request.uri().path() == "/error" { Err(OwnError) } else { Ok(Response::default()) })
    }
}

#[tokio::test]
async fn svc01_nothing_is_asked_of_the_service_behind_and_the_ready_instance_is_called() {
    let calls = Rc::new(Cell::new(0));
    let mut service =
        RateLimitLayer::global(Quota::per_hour(10_000)).layer(Bare { ready: false, calls: Rc::clone(&calls) });
    for n in 0..10_100 {
        poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
        let response = service.call(Request::new(Rc::new(()))).await.unwrap();
        assert_eq!(response.status() == StatusCode::OK, n < 10_000);
    }
    assert_eq!(calls.get(), 10_000);
}

#[tokio::test]
async fn the_error_of_the_service_behind_passes_unchanged() {
    let mut service = RateLimitLayer::global(ONE).layer(Bare { ready: false, calls: Rc::default() });
    poll_fn(|cx| service.poll_ready(cx)).await.unwrap();
    let request = Request::builder().uri("/error").body(Rc::new(())).unwrap();
    assert_eq!(service.call(request).await.unwrap_err(), OwnError);
}

#[tokio::test]
async fn svc03_readiness_is_that_of_the_service_behind() {
    let (inner, mut handle) = tower_test::mock::pair::<Request<()>, Response<String>>();
    let mut service = RateLimitLayer::global(ONE).layer(inner);
    let mut cx = Context::from_waker(Waker::noop());
    handle.allow(0);
    assert!(service.poll_ready(&mut cx).is_pending());
    handle.allow(1);
    assert!(service.poll_ready(&mut cx).is_ready());
    drop(service.call(Request::new(())));
    // Over the limit, and ready all the same: a limit is never told by keeping the caller waiting.
    handle.allow(1);
    assert!(service.poll_ready(&mut cx).is_ready());
    assert_eq!(service.call(Request::new(())).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
    handle.send_error("broken");
    let Poll::Ready(Err(error)) = service.poll_ready(&mut cx) else { panic!("the error does not pass") };
    assert_eq!(error.to_string(), "broken");
}

#[test]
fn svc04_a_future_dropped_at_any_point_keeps_its_cells_acquired_and_locks_nothing() {
    let layer = RateLimitLayer::per_ip(Quota::per_hour(3_000));
    let mut service = layer.layer(service_fn(|_: Request<()>| async {
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let mut cx = Context::from_waker(Waker::noop());
    for n in 0..3_010 {
        let future = service.call(from_ip(Ipv4Addr::LOCALHOST));
        let mut future = pin!(future);
        let polls = (0..n % 4).take_while(|_| future.as_mut().poll(&mut cx).is_pending()).count();
        assert!(polls <= 3);
    }
    let limiter = layer.limiter();
    assert_eq!(limiter.decide(&from_ip(Ipv4Addr::LOCALHOST)).denied().unwrap().policy(), "per-ip");
    assert!(limiter.decide(&from_ip(Ipv4Addr::new(10, 0, 0, 1))).is_allowed());
}

/// A body of one's own, as a crate would have it.
struct Own(Bytes);

impl DenialBody for Own {
    type Body = Self;

    fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

/// What the second request is answered behind `layer`, by a service whose body is `B`.
async fn denial_in<R, B>(layer: RateLimitLayer<Limiter, R>, body: fn() -> B) -> Response<R::Body>
where
    R: Respond<B> + Clone,
{
    let mut service = layer.layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(body())))));
    let _ = service.call(Request::new(())).await.unwrap();
    service.call(Request::new(())).await.unwrap()
}

#[tokio::test]
async fn the_default_answer_fits_the_common_bodies() {
    let layer = || RateLimitLayer::global(ONE);
    let starts = |bytes: &[u8]| bytes.starts_with(b"{\"type\":");
    assert!(starts(denial_in(layer(), String::new).await.body().as_bytes()));
    assert!(starts(denial_in(layer(), Vec::<u8>::new).await.body()));
    assert!(starts(denial_in(layer(), Bytes::new).await.body()));
    assert!(starts(&denial_in(layer(), || Own(Bytes::new())).await.into_body().0));
    let full = denial_in(layer(), Full::<Bytes>::default).await;
    assert!(starts(&full.into_body().collect().await.unwrap().to_bytes()));
    let boxed = denial_in(layer(), || BoxBody::<Bytes, OwnError>::new(Empty::new().map_err(|_| OwnError))).await;
    assert!(starts(&boxed.into_body().collect().await.unwrap().to_bytes()));
    assert_eq!(denial_in(layer(), || ()).await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(denial_in(layer(), Empty::<Bytes>::new).await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn any_body_wraps_what_cannot_be_made_of_bytes() {
    // Frames, errors and hints of the body behind pass through the wrapper.
    let stream = || Full::new(Bytes::from_static(b"served")).map_err(|_| OwnError);
    let layer = RateLimitLayer::global(Quota::per_hour(2)).any_body();
    let mut service =
        layer.layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(stream())))));
    let served = service.call(Request::new(())).await.unwrap().into_body();
    assert_eq!(http_body::Body::size_hint(&served).exact(), Some(6));
    assert_eq!(served.collect().await.unwrap().to_bytes(), "served");
    let _ = service.call(Request::new(())).await;
    let denied = service.call(Request::new(())).await.unwrap().into_body();
    assert!(!http_body::Body::is_end_stream(&denied));
    assert!(denied.collect().await.unwrap().to_bytes().starts_with(b"{\"type\":"));
}

/// What `ServiceBuilder`, boxed services and `Steer` ask of a layer's service.
/// What an operator does to the handle of a layer takes effect in that layer.
#[tokio::test]
async fn the_limiter_of_a_layer_is_the_one_that_decides() {
    let layer = RateLimitLayer::new(Policy::per(Header::new("k"), ONE)).plain_text();
    let status = async || {
        let service = layer.layer(service_fn(echo::<()>));
        service.oneshot(with_header("k", "a")).await.unwrap().status()
    };
    layer.limiter().block("per-k", "a", Duration::from_secs(60)).unwrap();
    assert_eq!(status().await, StatusCode::TOO_MANY_REQUESTS);
    layer.limiter().reset("per-k", "a").unwrap();
    assert_eq!(status().await, StatusCode::CREATED);
    layer.limiter().set_limit("per-k", Quota::per_hour(3)).unwrap();
    assert_eq!(layer.limiter().peek("per-k", "a").unwrap().limit(), 3);
}

#[tokio::test]
async fn a_boxed_layer_responds_as_its_closure_does() {
    struct Limits {
        layer: RateLimitLayer<Limiter, BoxRespond<String>>,
    }
    let layer = RateLimitLayer::global(ONE).respond_with(|denied| {
        let mut response = Response::new("slow down".to_owned());
        *response.status_mut() = denied.status();
        response
    });
    let limits = Limits { layer: layer.boxed() };
    let mut last = None;
    for _ in 0..2 {
        last = Some(limits.layer.clone().layer(service_fn(echo::<()>)).oneshot(Request::new(())).await.unwrap());
    }
    let denied = last.unwrap();
    assert_eq!((denied.status(), denied.body().as_str()), (StatusCode::TOO_MANY_REQUESTS, "slow down"));
    assert!(denied.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn the_service_composes() {
    fn is_send_sync_static<T: Send + Sync + 'static>(_: &T) {}
    let layer = RateLimitLayer::global(Quota::per_hour(3));
    let service = ServiceBuilder::new().layer(&layer).service_fn(echo::<()>);
    is_send_sync_static(&layer);
    is_send_sync_static(&service);
    let boxed = BoxCloneService::new(service);
    let mut steered = Steer::new([boxed.clone(), boxed.clone()], |_: &Request<()>, _: &[_]| 1);
    let mut statuses = vec![boxed.oneshot(Request::new(())).await.unwrap().status().as_u16()];
    for _ in 0..3 {
        let response = steered.ready().await.unwrap().call(Request::new(())).await.unwrap();
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [201, 201, 201, 429]);
    let twice: RateLimit<RateLimit<_>> = layer.layer(layer.layer(service_fn(echo::<()>)));
    assert!(twice.into_inner().into_inner().oneshot(Request::new(())).await.is_ok());
}

#[tokio::test]
async fn a_denial_differs_from_that_of_an_inner_service_by_its_extension() {
    let inner = || {
        service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::builder().status(429).body(String::new()).unwrap())
        })
    };
    let layer = RateLimitLayer::new(Policy::global(ONE));
    let denied = |response: &Response<String>| response.extensions().get::<Denied>().map(Denied::reason);
    let plain = layer.clone().layer(inner());
    let theirs = call(&plain, Request::new(())).await;
    let ours = call(&plain, Request::new(())).await;
    assert_eq!((theirs.status(), ours.status()), (StatusCode::TOO_MANY_REQUESTS, StatusCode::TOO_MANY_REQUESTS));
    assert_eq!((denied(&theirs), denied(&ours)), (None, None));
    let attached = call(&layer.clone().attach_denied().layer(inner()), Request::new(())).await;
    assert_eq!(denied(&attached), Some(Reason::Exceeded));

    // A layer that waits often paces a client.
    let pacing = RateLimitLayer::new(Policy::global(ONE)).max_delay(Duration::from_secs(1), |_| ready(()));
    let pacing = pacing.layer(inner());
    assert_eq!(denied(&call(&pacing, Request::new(())).await), None);
    assert_eq!(denied(&call(&pacing, Request::new(())).await), Some(Reason::Exceeded));
}
