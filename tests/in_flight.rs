//! Requests in flight: when a permit is returned, who gets one, and what a denial says.

mod support;

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    future::{pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use proptest::prelude::*;
use support::{from_ip, with_header};
use tower::{Layer as _, Service, ServiceBuilder, service_fn};
use tower_quota::{
    Denied, InFlightLayer, Limiter, Policy, Quota, RateLimitLayer,
    decision::Reason,
    in_flight::{InFlight, InFlightBody, InFlightPermit, InFlightQueue},
    key::{ClientIp, Header, PeerIp, key_fn},
    policy::{Advertise, Missing},
    response::Respond,
};

/// A body whose frames the test provides, and which notes when it is dropped.
#[derive(Clone, Default)]
struct Frames(Rc<RefCell<Script>>);

#[derive(Default)]
struct Script {
    frames: Vec<Option<Result<Frame<Bytes>, &'static str>>>,
    /// Whether the body says by itself that no frame follows.
    announces_end: bool,
    dropped: bool,
}

impl Frames {
    fn then(&self, frame: Option<Result<Frame<Bytes>, &'static str>>) {
        self.0.borrow_mut().frames.insert(0, frame);
    }

    fn then_data(&self) {
        self.then(Some(Ok(Frame::data(Bytes::from_static(b"data")))));
    }

    fn body(&self) -> StreamedBody {
        StreamedBody(self.clone())
    }

    fn is_dropped(&self) -> bool {
        self.0.borrow().dropped
    }
}

struct StreamedBody(Frames);

impl Drop for StreamedBody {
    fn drop(&mut self) {
        self.0.0.borrow_mut().dropped = true;
    }
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        let next = self.0.0.borrow_mut().frames.pop();
        match next {
            Some(Some(Err("panic"))) => panic!("while the body is read"),
            Some(frame) => Poll::Ready(frame),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        let script = self.0.0.borrow();
        script.announces_end && script.frames.is_empty()
    }
}

fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The result of a future that is ready at once.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("the future is ready at once"),
    }
}

type PolledFrame<B> = Poll<Option<Result<Frame<<B as Body>::Data>, <B as Body>::Error>>>;

fn poll_frame<B: Body + Unpin>(body: &mut B) -> PolledFrame<B> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// At most one request of each address at once.
fn one() -> InFlightLayer {
    InFlightLayer::per(PeerIp, 1)
}

const IP: [u8; 4] = [192, 0, 2, 1];

fn request() -> Request<()> {
    from_ip(IP)
}

fn in_flight<R>(layer: &InFlightLayer<R>) -> u32 {
    layer.in_flight(std::net::IpAddr::from(IP))
}

async fn hello<Q>(_request: Request<Q>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello")))
}

fn streaming(
    layer: &InFlightLayer,
    frames: &Frames,
) -> Response<InFlightBody<impl Body<Data = Bytes, Error = &'static str>>> {
    let frames = frames.clone();
    let layer = layer.clone().any_body();
    let mut service =
        layer.layer(service_fn(move |_: Request<()>| ready(Ok::<_, Infallible>(Response::new(frames.body())))));
    at_once(service.call(request())).unwrap()
}

#[test]
fn a_request_is_in_flight_while_its_body_streams_and_no_longer() {
    let (layer, frames) = (one(), Frames::default());
    let mut response = streaming(&layer, &frames);
    assert_eq!(in_flight(&layer), 1, "the head is there, the body is not");
    assert!(poll_frame(response.body_mut()).is_pending());
    frames.then_data();
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(Some(Ok(_)))));
    assert_eq!(in_flight(&layer), 1);
    frames.then(None);
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(None)));
    // Whoever has the body for longer has no permit any more.
    assert_eq!(in_flight(&layer), 0);
    assert!(frames.is_dropped(), "what the body uses is free before the permit is");
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(None)), "and asked again");
    assert!(response.body().is_end_stream());
    assert_eq!(response.body().size_hint().exact(), Some(0));
    drop(response);
    assert_eq!((in_flight(&layer), layer.total_in_flight()), (0, 0));
}

#[test]
fn trailers_are_part_of_a_body() {
    let (layer, frames) = (one(), Frames::default());
    let mut response = streaming(&layer, &frames);
    frames.then_data();
    assert!(poll_frame(response.body_mut()).is_ready());
    assert_eq!(in_flight(&layer), 1, "trailers follow");
    frames.then(Some(Ok(Frame::trailers(HeaderMap::new()))));
    frames.0.borrow_mut().announces_end = true;
    let Poll::Ready(Some(Ok(frame))) = poll_frame(response.body_mut()) else { panic!("a frame") };
    assert!(frame.is_trailers());
    assert_eq!(in_flight(&layer), 0, "nothing follows, as the body says");
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(None)));
}

/// Servers do not ask for the end of a body that says it has none.
#[test]
fn the_last_frame_ends_a_body_that_says_so() {
    let layer = one();
    let mut service = layer.layer(service_fn(hello::<()>));
    let mut response = at_once(service.call(request())).unwrap();
    assert_eq!(in_flight(&layer), 1);
    assert_eq!(response.body().size_hint().exact(), Some(5));
    assert!(poll_frame(response.body_mut()).is_ready());
    assert_eq!(in_flight(&layer), 0);
    assert!(response.body().is_end_stream());
}

#[test]
fn an_error_of_the_body_ends_the_request() {
    let (layer, frames) = (one(), Frames::default());
    let mut response = streaming(&layer, &frames);
    frames.then(Some(Err("reset")));
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(Some(Err("reset")))));
    assert_eq!(in_flight(&layer), 0);
    assert!(matches!(poll_frame(response.body_mut()), Poll::Ready(None)));
}

#[test]
fn dropping_the_response_or_the_future_ends_the_request() {
    let (layer, frames) = (one(), Frames::default());
    let response = streaming(&layer, &frames);
    assert_eq!(in_flight(&layer), 1);
    drop(response);
    assert_eq!(in_flight(&layer), 0);

    let mut waits =
        layer.clone().layer(service_fn(|_: Request<()>| pending::<Result<Response<Full<Bytes>>, Infallible>>()));
    let mut future = Box::pin(waits.call(request()));
    assert!(poll(&mut future).is_pending());
    assert_eq!(in_flight(&layer), 1);
    drop(future);
    assert_eq!(in_flight(&layer), 0);
    drop(waits.call(request()));
    assert_eq!(in_flight(&layer), 0, "never polled");
}

#[test]
fn an_error_of_the_service_ends_the_request() {
    let layer = one();
    let mut service =
        layer.layer(service_fn(|_: Request<()>| ready(Err::<Response<Full<Bytes>>, _>("the service has failed"))));
    let mut future = Box::pin(service.call(request()));
    assert!(matches!(poll(&mut future), Poll::Ready(Err("the service has failed"))));
    assert_eq!(in_flight(&layer), 0, "also while somebody has the future");
}

#[test]
fn a_panic_ends_the_request() {
    type Answer = Result<Response<Full<Bytes>>, Infallible>;

    async fn fail(_request: Request<()>) -> Answer {
        panic!("in the future")
    }

    fn fails(layer: &InFlightLayer, run: impl FnOnce()) {
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        assert_eq!(in_flight(layer), 0);
    }
    let layer = one();
    let mut in_call = layer.layer(service_fn(|_: Request<()>| -> std::future::Ready<Answer> { panic!("in call") }));
    fails(&layer, || drop(in_call.call(request())));
    let mut in_future = layer.layer(service_fn(fail));
    fails(&layer, || drop(at_once(in_future.call(request()))));
    let frames = Frames::default();
    let mut response = streaming(&layer, &frames);
    frames.then(Some(Err("panic")));
    fails(&layer, move || drop(poll_frame(response.body_mut())));
    let broken = one().limit_by(|_| panic!("while the limit is chosen"));
    let mut service = broken.layer(service_fn(hello::<()>));
    fails(&broken, || drop(service.call(request())));
}

/// Servers drop such bodies without reading them, some of them late.
#[test]
fn a_response_without_a_body_ends_the_request_at_once() {
    for (method, status) in [(Method::HEAD, 200), (Method::GET, 304), (Method::GET, 204), (Method::POST, 200)] {
        let layer = one();
        let mut service = layer.layer(service_fn(move |_: Request<()>| {
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            ready(Ok::<_, Infallible>(response))
        }));
        let mut request = request();
        *request.method_mut() = method;
        let response = at_once(service.call(request)).unwrap();
        assert_eq!((response.status().as_u16(), in_flight(&layer)), (status, 0));
    }
}

/// One response after the other, as a client receives them that reads nothing of the bodies.
fn unread<R>(
    layer: &InFlightLayer<R>,
    request: impl Fn() -> Request<()>,
    tries: usize,
) -> Vec<Response<InFlightBody<Full<Bytes>>>>
where
    R: Respond<Full<Bytes>, Body = Full<Bytes>> + Clone,
{
    let mut service = layer.layer(service_fn(hello::<()>));
    (0..tries).map(|_| at_once(service.call(request())).unwrap()).collect()
}

fn served<B>(responses: &[Response<InFlightBody<B>>]) -> usize {
    responses.iter().filter(|response| response.status() == 200).count()
}

fn text<B: Body<Data = Bytes>>(response: Response<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    let body = at_once(response.into_body().collect()).unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

#[test]
fn above_the_limit_of_a_key_the_answer_is_429_and_says_what_is_counted() {
    let layer = InFlightLayer::per(Header::new("x-api-key"), 2);
    let mut responses = unread(&layer, || with_header("x-api-key", "ann"), 3);
    assert_eq!(served(&responses), 2);
    assert!(!responses[0].headers().contains_key("ratelimit"), "of no use when it arrives");
    let denied = responses.pop().unwrap();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    let field = |name| denied.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(field("ratelimit-policy"), Some("\"in-flight-x-api-key\";q=2;qu=\"concurrent-requests\""));
    assert_eq!(field("ratelimit"), Some("\"in-flight-x-api-key\";r=0"));
    assert_eq!(field("retry-after"), None, "nobody knows");
    assert_eq!(field("cache-control"), Some("no-store"));
    assert_eq!(field("content-type"), Some("application/problem+json"));
    assert_eq!(
        text(denied),
        "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\"title\":\"Quota Exceeded\",\
         \"status\":429,\"detail\":\"Too many requests at once for the policy \\\"in-flight-x-api-key\\\".\",\
         \"violated-policies\":[\"in-flight-x-api-key\"]}\n"
    );
    // Others are not concerned, and what is denied is not in flight.
    assert_eq!(layer.in_flight("ann"), 2);
    assert_eq!(served(&unread(&layer, || with_header("x-api-key", "bob"), 1)), 1);
    drop(responses);
    assert_eq!(served(&unread(&layer, || with_header("x-api-key", "ann"), 1)), 1);
}

#[test]
fn above_the_limit_of_all_the_answer_is_503_and_says_nothing_of_the_limit() {
    let layer = InFlightLayer::global(1).retry_after(Duration::from_millis(1_500));
    let mut responses = unread(&layer, || Request::new(()), 2);
    let denied = responses.pop().unwrap();
    assert_eq!(denied.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(denied.headers()["retry-after"], "2");
    assert!(!denied.headers().contains_key("ratelimit"));
    assert_eq!(
        text(denied),
        "{\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"Too many requests at once. Retry in 2 s.\"}\n"
    );
    let mut responses = unread(&layer.clone().plain_text(), || Request::new(()), 1);
    assert_eq!(text(responses.pop().unwrap()), "Too many requests at once. Retry in 2 s.\n");
}

#[test]
fn what_clients_learn_can_be_chosen() {
    let quiet = one().advertise(Advertise::Nothing).retry_after(Duration::from_secs(1));
    let denied = unread(&quiet, request, 2).pop().unwrap();
    assert!(!denied.headers().contains_key("retry-after"));
    assert!(!denied.headers().contains_key("ratelimit"));
    assert_eq!(
        text(denied),
        "{\"type\":\"https://iana.org/assignments/http-problem-types#quota-exceeded\",\
         \"title\":\"Quota Exceeded\",\"status\":429,\"detail\":\"Too many requests.\"}\n"
    );

    let silent = InFlightLayer::global(1).advertise(Advertise::Nothing);
    let denied = unread(&silent, request, 2).pop().unwrap();
    assert_eq!(denied.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(text(denied), "{\"title\":\"Service Unavailable\",\"status\":503,\"detail\":\"Too many requests.\"}\n");

    let open = InFlightLayer::per(PeerIp, 3).advertise(Advertise::Everything).named("downloads");
    let left: Vec<_> = unread(&open, request, 4)
        .iter()
        .map(|response| response.headers()["ratelimit"].to_str().unwrap().to_owned())
        .collect();
    assert_eq!(left, ["\"downloads\";r=2", "\"downloads\";r=1", "\"downloads\";r=0", "\"downloads\";r=0"]);
}

#[test]
fn a_call_of_grpc_gets_a_status() {
    for (layer, code) in [(one(), "8"), (InFlightLayer::global(1), "14")] {
        let call = || {
            let mut call = request();
            *call.method_mut() = Method::POST;
            *call.version_mut() = Version::HTTP_2;
            call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
            call
        };
        let responses = unread(&layer, call, 2);
        assert_eq!(
            (responses[1].status().as_u16(), &responses[1].headers()["grpc-status"]),
            (200, &code.parse().unwrap())
        );
    }
}

#[test]
fn responders_see_the_denial() {
    let layer = one().attach_denied().respond_with(|denied: &Denied| {
        assert_eq!((denied.reason(), denied.policy(), denied.wait()), (Reason::InFlight, "in-flight-ip", None));
        let standing = denied.violated().next().unwrap();
        assert_eq!((standing.limit(), standing.remaining()), (1, 0));
        assert_eq!((standing.quota(), standing.window(), standing.next_cell()), (None, None, None));
        assert_eq!((standing.wait(), standing.until_full()), (None, Duration::ZERO));
        Response::builder().status(418).body(Full::from(denied.to_string())).unwrap()
    });
    let denied = unread(&layer, request, 2).pop().unwrap();
    assert!(denied.extensions().get::<Denied>().is_some());
    assert_eq!(denied.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(text(denied), "Too many requests at once for the policy \"in-flight-ip\".");
    let layer = one().respond_to(|head, _denied: &Denied| Response::new(Full::from(head.method().to_string()))).boxed();
    assert_eq!(text(unread(&layer, request, 2).pop().unwrap()), "GET");
}

#[test]
fn the_limit_can_be_that_of_a_plan() {
    let layer = InFlightLayer::per(PeerIp, 2).limit_by(|head| head.extensions().get::<u32>().copied());
    let with_plan = |limit: u32| {
        move || {
            let mut request = request();
            request.extensions_mut().insert(limit);
            request
        }
    };
    let large = unread(&layer, with_plan(5), 9);
    assert_eq!(served(&large), 5);
    assert_eq!(large[8].headers()["ratelimit-policy"], "\"in-flight-ip\";q=5;qu=\"concurrent-requests\"");
    assert_eq!(served(&unread(&layer, request, 1)), 0, "five are more than two");
    drop(large);
    assert_eq!(served(&unread(&layer, request, 9)), 2, "without a plan, the layer's own limit");
    let none = unread(&layer, with_plan(0), 1);
    assert_eq!((served(&none), layer.total_in_flight()), (0, 0));
}

#[test]
fn in_shadow_mode_requests_are_counted_and_none_is_denied() {
    let layer = one().shadow();
    let responses = unread(&layer, request, 5);
    assert_eq!((served(&responses), in_flight(&layer)), (5, 5));
    drop(responses);
    assert_eq!((in_flight(&layer), layer.total_in_flight()), (0, 0));
    assert_eq!(served(&unread(&one().enforce_for(0.0), request, 5)), 5);
    assert_eq!(served(&unread(&one().enforce_for(1.0), request, 5)), 1);
    let nameless = one().shadow();
    assert_eq!(served(&unread(&nameless, || Request::new(()), 2)), 2, "a missing key is no reason either");
}

#[test]
fn requests_outside_of_the_policy_are_not_counted() {
    let posts = || {
        let mut request = request();
        *request.method_mut() = Method::POST;
        *request.uri_mut() = "/upload".parse().unwrap();
        request
    };
    for layer in [
        one().when(|head| head.method() == Method::POST),
        one().methods([Method::POST]),
        one().paths(["/upload"]).unwrap(),
    ] {
        assert_eq!(served(&unread(&layer, request, 3)), 3);
        assert_eq!(served(&unread(&layer, posts, 3)), 1);
    }
    assert_eq!(served(&unread(&one().except(["192.0.2.0/24"]).unwrap(), request, 3)), 3);
    assert!(one().except(["192.0.2.1/24"]).is_err());
    assert!(one().paths(["upload"]).is_err());
}

#[test]
fn a_missing_key_is_rejected_shared_or_skipped() {
    let keyed = || InFlightLayer::per(Header::new("x-api-key"), 1);
    let rejected = unread(&keyed(), request, 1).pop().unwrap();
    assert_eq!(rejected.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(rejected.headers()["www-authenticate"], "ApiKey header=\"x-api-key\"");
    let forbidden = unread(&keyed().on_missing(Missing::Reject(StatusCode::FORBIDDEN)), request, 1);
    assert_eq!(forbidden[0].status(), StatusCode::FORBIDDEN);
    assert_eq!(served(&unread(&keyed().on_missing(Missing::Share), request, 3)), 1);
    assert_eq!(served(&unread(&keyed().on_missing(Missing::Skip), request, 3)), 3);
    assert_eq!(unread(&one().require::<u8>(), request, 1)[0].status(), StatusCode::INTERNAL_SERVER_ERROR);
    let behind = InFlightLayer::per(ClientIp::hops(1).or(PeerIp), 1);
    assert_eq!(served(&unread(&behind, request, 3)), 1);
}

#[test]
fn a_faulty_configuration_is_refused_with_the_rule() {
    let says = |make: fn() -> InFlightLayer, rule: &str| {
        let panic = catch_unwind(make).unwrap_err();
        let text =
            panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        assert!(text.as_ref().is_some_and(|text| text.contains(rule)), "{text:?}");
    };
    says(|| InFlightLayer::global(0), "at least 1");
    says(|| InFlightLayer::per(PeerIp, 0), "at least 1");
    says(|| one().named(""), "empty");
    says(|| one().named("a\nb"), "printable ASCII");
    says(|| one().on_missing(Missing::Reject(StatusCode::OK)), "400 to 599");
}

#[test]
fn clones_count_together_and_layers_apart() {
    let layer = one();
    let first = unread(&layer.clone(), request, 1);
    assert_eq!((served(&first), served(&unread(&layer, request, 1))), (1, 0));
    assert_eq!(served(&unread(&layer.clone().plain_text().retry_after(Duration::from_secs(1)), request, 1)), 0);
    assert_eq!(served(&unread(&one(), request, 1)), 1);
    assert_eq!(served(&unread(&layer.named("another"), request, 1)), 1);
}

/// Neither `Clone` nor `Send`, and not called before it was ready.
struct Bare<'a> {
    ready: bool,
    calls: &'a RefCell<u32>,
}

impl<'a> Service<Request<Rc<()>>> for Bare<'a> {
    type Response = Response<String>;
    type Error = Rc<str>;
    type Future = LocalBoxFuture<'a, Result<Response<String>, Rc<str>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Rc<str>>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _request: Request<Rc<()>>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without having been polled ready");
        let calls = self.calls;
        async move {
            *calls.borrow_mut() += 1;
            Ok(Response::new("hello".to_owned()))
        }
        .boxed_local()
    }
}

#[test]
fn the_service_needs_to_be_neither_clone_nor_send_nor_static() {
    let calls = RefCell::new(0);
    let layer = InFlightLayer::global(1);
    let mut service: InFlight<_> = layer.layer(Bare { ready: false, calls: &calls });
    for _ in 0..2 {
        assert!(service.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready());
        let response = at_once(service.call(Request::new(Rc::new(())))).unwrap();
        assert_eq!(text(response), "hello");
    }
    assert_eq!((*calls.borrow(), layer.total_in_flight()), (2, 0));
}

/// What the handler takes out of a request.
type Taken = Rc<RefCell<Vec<InFlightPermit>>>;

/// A service that takes the permit, as a handler of WebSockets does.
fn taking(taken: &Taken) -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible> + use<> {
    let taken = Rc::clone(taken);
    service_fn(move |mut request: Request<()>| {
        taken.borrow_mut().extend(request.extensions_mut().remove::<InFlightPermit>());
        ready(Ok(Response::new(Full::default())))
    })
}

fn upgrade() -> Request<()> {
    let mut request = request();
    request.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    request
}

#[test]
fn a_handler_that_takes_the_permit_has_it_beyond_the_response() {
    let connect = || {
        let mut request = request();
        *request.method_mut() = Method::CONNECT;
        request
    };
    for (layer, request) in [(one(), upgrade as fn() -> Request<()>), (one(), connect), (one().permits(), request)] {
        let taken = Taken::default();
        let mut service = layer.layer(taking(&taken));
        drop(at_once(service.call(request())).unwrap());
        assert_eq!((taken.borrow().len(), in_flight(&layer)), (1, 1), "the connection is open");
        assert_eq!(at_once(service.call(request())).unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(!taken.borrow()[0].is_empty());
        let clone = taken.borrow()[0].clone();
        taken.borrow_mut().clear();
        assert_eq!(in_flight(&layer), 0, "a clone is none");
        assert!(clone.is_empty());
    }
}

#[test]
fn a_permit_that_no_handler_takes_ends_with_the_response() {
    let layer = one();
    let mut service = layer.layer(service_fn(hello::<()>));
    let response = at_once(service.call(upgrade())).unwrap();
    assert_eq!(in_flight(&layer), 1);
    drop(response);
    assert_eq!(in_flight(&layer), 0);
}

/// Else each request would take two allocations more.
#[test]
fn a_request_for_no_upgrade_has_no_permit_unless_all_have() {
    let (layer, taken) = (one(), Taken::default());
    drop(at_once(layer.layer(taking(&taken)).call(request())));
    assert!(taken.borrow().is_empty());
}

#[test]
fn a_clone_of_the_extensions_does_not_count() {
    let layer = one();
    let logged = RefCell::new(Vec::new());
    let mut service = layer.layer(service_fn(|request: Request<()>| {
        logged.borrow_mut().push(request.extensions().clone());
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    }));
    drop(at_once(service.call(upgrade())));
    assert_eq!(in_flight(&layer), 0);
    assert!(logged.borrow_mut()[0].remove::<InFlightPermit>().is_some_and(|permit| permit.is_empty()));
}

#[test]
fn of_nested_layers_a_handler_takes_all_permits_together() {
    let (outer, inner, taken) = (InFlightLayer::global(5), one(), Taken::default());
    let mut service = ServiceBuilder::new().layer(outer.clone()).layer(inner.clone()).service(taking(&taken));
    drop(at_once(service.call(upgrade())).unwrap());
    assert_eq!((outer.total_in_flight(), in_flight(&inner)), (1, 1));
    let denied = at_once(service.call(upgrade())).unwrap();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(outer.total_in_flight(), 2, "the denial has a body");
    drop(denied);
    assert_eq!(outer.total_in_flight(), 1);
    taken.borrow_mut().clear();
    assert_eq!((outer.total_in_flight(), in_flight(&inner)), (0, 0));
}

#[test]
fn outside_of_a_rate_a_denial_costs_the_rate_nothing_and_a_denial_of_the_rate_no_permit() {
    let limiter = Limiter::new(Policy::per(PeerIp, Quota::per_hour(2)));
    let layer = one();
    let mut service = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(RateLimitLayer::new(&limiter))
        .service(service_fn(hello::<()>));
    let mut call = || at_once(service.call(request())).unwrap();
    let left = || limiter.peek("per-ip", std::net::IpAddr::from(IP)).unwrap().remaining();
    let first = call();
    assert_eq!((call().status().as_u16(), left()), (429, 1), "in flight, and not counted");
    drop(first);
    assert_eq!((call().status().as_u16(), left()), (200, 0));
    let denied = call();
    assert_eq!((denied.status().as_u16(), in_flight(&layer)), (429, 1));
    assert!(denied.headers().contains_key("retry-after"));
    drop(denied);
    assert_eq!(in_flight(&layer), 0);
}

#[test]
fn inside_of_a_rate_a_denial_has_the_fields_of_both() {
    let limiter = Limiter::new(Policy::per(PeerIp, Quota::per_hour(9)));
    let layer = one();
    let mut service = ServiceBuilder::new()
        .layer(RateLimitLayer::new(&limiter))
        .layer(layer.clone())
        .service(service_fn(hello::<()>));
    let mut call = || at_once(service.call(request())).unwrap();
    let _first = call();
    let denied = call();
    let fields: Vec<_> = denied.headers().get_all("ratelimit").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(denied.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!((fields[0], fields[1].split(';').next(), fields.len()), ("\"in-flight-ip\";r=0", Some("\"per-ip\""), 2));
    assert_eq!(limiter.peek("per-ip", std::net::IpAddr::from(IP)).unwrap().remaining(), 7, "the rate has counted it");
}

/// Two million requests on four threads: never more at once than may be, and none left.
#[test]
fn many_requests_on_threads_leave_nothing() {
    const KEYS: u32 = 3;
    const LIMIT: u32 = 2;
    let serving: Arc<[AtomicU32; KEYS as usize]> = Arc::default();
    let most = Arc::new(AtomicU32::new(0));
    let layer = InFlightLayer::per(key_fn(|head| head.extensions().get::<u32>().copied()), LIMIT);
    let threads: Vec<_> = (0..4_u32)
        .map(|thread| {
            let (layer, serving, most) = (layer.clone(), Arc::clone(&serving), Arc::clone(&most));
            thread::spawn(move || {
                let inner = service_fn(move |request: Request<()>| {
                    let key = *request.extensions().get::<u32>().unwrap() as usize;
                    let now = serving[key].fetch_add(1, Ordering::AcqRel) + 1;
                    assert!(now <= LIMIT, "{now} at once");
                    most.fetch_max(now, Ordering::Relaxed);
                    let ending = Arc::clone(&serving);
                    let body = Counted {
                        _end: OnDrop(Box::new(move || {
                            ending[key].fetch_sub(1, Ordering::AcqRel);
                        })),
                    };
                    ready(Ok::<_, Infallible>(Response::new(body)))
                });
                let mut service = layer.any_body().layer(inner);
                for n in 0..500_000_u32 {
                    let mut request = Request::new(());
                    request.extensions_mut().insert(n.wrapping_add(thread) % KEYS);
                    drop(at_once(service.call(request)).unwrap());
                    if n % 8 == 0 {
                        thread::yield_now();
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(most.load(Ordering::Relaxed) > 0);
    assert_eq!(layer.total_in_flight(), 0);
}

struct OnDrop(Box<dyn FnMut() + Send>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// A body that is never read.
struct Counted {
    _end: OnDrop,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What happens in a test of the queue.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A request of this key comes.
    Come { key: u8, limit: u32 },
    /// The response of a request that is served ends; of those that are, the one at this place.
    End(usize),
    /// A request is dropped, whether it waits or is served.
    Drop(usize),
    /// The time of all that wait is over.
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_u8, 1..4_u32).prop_map(|(key, limit)| Step::Come { key, limit }),
        4 => (0..20_usize).prop_map(Step::End),
        2 => (0..20_usize).prop_map(Step::Drop),
        1 => Just(Step::Expire),
    ];
    prop::collection::vec(step, 1..60)
}

/// A model of the queue: for each key who is served, and who waits.
#[derive(Default)]
struct Model {
    served: Vec<u64>,
    /// With the limit of each.
    waiting: Vec<(u64, u32)>,
}

impl Model {
    fn advance(&mut self) {
        while let Some(at) = self.waiting.iter().position(|(_, limit)| self.served.len() < *limit as usize) {
            self.served.push(self.waiting.remove(at).0);
        }
    }

    fn end(&mut self, number: u64) {
        self.served.retain(|other| *other != number);
        self.waiting.retain(|(other, _)| *other != number);
        self.advance();
    }
}

/// The timer of a test: over when the test says so.
#[derive(Clone, Default)]
struct Timers(Rc<RefCell<u64>>);

impl Timers {
    fn timer(&self) -> impl Fn(Duration) -> LocalBoxFuture<'static, ()> + Clone + use<> {
        let now = Rc::clone(&self.0);
        move |_| {
            let (now, begun) = (Rc::clone(&now), *now.borrow());
            std::future::poll_fn(move |_| if *now.borrow() > begun { Poll::Ready(()) } else { Poll::Pending })
                .boxed_local()
        }
    }

    fn expire(&self) {
        *self.0.borrow_mut() += 1;
    }
}

fn with_limit(limit: u32) -> Request<()> {
    let mut request = request();
    request.extensions_mut().insert(limit);
    request
}

fn by_plan() -> InFlightLayer {
    let layer = InFlightLayer::per(PeerIp, 1).advertise(Advertise::Everything);
    layer.limit_by(|head| head.extensions().get::<u32>().copied())
}

fn limits<B>(response: &Response<B>) -> (u16, &str) {
    (response.status().as_u16(), response.headers()["ratelimit"].to_str().unwrap())
}

/// Otherwise free plans that wait would lock paying customers out.
#[test]
fn a_request_passes_waiters_whose_smaller_limit_is_reached() {
    let layer = by_plan();
    let mut plain = layer.clone().layer(service_fn(hello::<()>));
    let mut queued = layer.queue(Duration::from_secs(1), |_| pending::<()>()).layer(service_fn(hello::<()>));
    let first = at_once(queued.call(with_limit(1))).unwrap();
    let mut small = Box::pin(queued.call(with_limit(1)));
    assert!(poll(&mut small).is_pending());
    let large = at_once(queued.call(with_limit(3))).unwrap();
    let from_another_layer = at_once(plain.call(with_limit(3))).unwrap();
    assert_eq!(limits(&large), (200, "\"in-flight-ip\";r=1"));
    assert_eq!(limits(&from_another_layer), (200, "\"in-flight-ip\";r=0"));
    assert_eq!(limits(&at_once(plain.call(with_limit(3))).unwrap()), (429, "\"in-flight-ip\";r=0"));
    drop((first, large));
    assert!(poll(&mut small).is_pending(), "one is in flight");
    drop(from_another_layer);
    let Poll::Ready(Ok(served)) = poll(&mut small) else { panic!("its turn") };
    assert_eq!(limits(&served), (200, "\"in-flight-ip\";r=0"));
}

#[test]
fn what_a_response_says_is_true_when_its_request_gets_the_permit() {
    let layer = by_plan();
    let mut service = layer.queue(Duration::from_secs(1), |_| pending::<()>()).layer(service_fn(hello::<()>));
    let first = at_once(service.call(with_limit(2))).unwrap();
    let _second = at_once(service.call(with_limit(2))).unwrap();
    let mut waits = Box::pin(service.call(with_limit(2)));
    assert!(poll(&mut waits).is_pending());
    drop(first);
    // Between the permit and the poll.
    let _others: Vec<_> = (0..3).map(|_| at_once(service.call(with_limit(9))).unwrap()).collect();
    let Poll::Ready(Ok(served)) = poll(&mut waits) else { panic!("its turn") };
    assert_eq!(limits(&served), (200, "\"in-flight-ip\";r=0"));
}

#[test]
fn as_many_wait_as_may() {
    let forever = |_: Duration| pending::<()>();
    let waits = |mut service: InFlightQueue<_, _, _>, calls: usize| -> usize {
        let mut service = move |request| service.call(request);
        let mut futures: Vec<_> = (0..calls).map(|_| Box::pin(service(request()))).collect();
        futures.iter_mut().filter_map(|future| poll(future).is_pending().then_some(())).count()
    };
    let served_forever = || service_fn(|_: Request<()>| pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let of_a_key = one().queue(Duration::from_secs(1), forever);
    // One is served, and its response never comes.
    assert_eq!(waits(of_a_key.layer(served_forever()), 100), 1 + 64);
    assert_eq!(waits(of_a_key.clone().max_waiters_per_key(2).layer(served_forever()), 9), 1 + 2);
    assert_eq!(waits(of_a_key.clone().max_waiters(3).layer(served_forever()), 9), 1 + 3);
    let of_all = InFlightLayer::global(1).queue(Duration::from_secs(1), forever);
    assert_eq!(waits(of_all.layer(served_forever()), 100), 100, "the bound of a key is not for all");
    assert_eq!((of_all.waiting(), of_all.total_in_flight(), of_a_key.in_flight(std::net::IpAddr::from(IP))), (0, 0, 0));
}

static REQUESTS: AtomicU64 = AtomicU64::new(0);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Those who wait are served in their order, never above a limit, and no permit is lost.
    #[test]
    fn a_queue_serves_as_its_model_does(steps in steps()) {
        const PER_KEY: usize = 3;
        let timers = Timers::default();
        let limit = |head: tower_quota::key::RequestHead<'_>| head.extensions().get::<u32>().copied();
        let key = key_fn(|head| head.extensions().get::<u8>().copied());
        let layer = InFlightLayer::per(key, 1).limit_by(limit);
        let queue = layer.clone().queue(Duration::from_secs(1), timers.timer()).max_waiters(5).max_waiters_per_key(PER_KEY);
        let mut service = queue.layer(service_fn(|request: Request<()>| {
            let number = *request.extensions().get::<u64>().unwrap();
            ready(Ok::<_, Infallible>(Response::new(Full::from(number.to_string()))))
        }));
        let mut models = HashMap::<u8, Model>::new();
        let mut live = Vec::new();
        let mut responses = Vec::new();
        for step in steps {
            match step {
                Step::Come { key, limit } => {
                    let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
                    let mut request = Request::new(());
                    request.extensions_mut().insert(key);
                    request.extensions_mut().insert(limit);
                    request.extensions_mut().insert(number);
                    let waiting: usize = models.values().map(|model| model.waiting.len()).sum();
                    let model = models.entry(key).or_default();
                    let mut future = Box::pin(service.call(request));
                    let polled = poll(&mut future);
                    if model.served.len() < limit as usize {
                        model.served.push(number);
                        let Poll::Ready(Ok(response)) = polled else { panic!("{number} is served at once") };
                        prop_assert_eq!(response.status(), 200);
                        responses.push((key, number, response));
                    } else if waiting < 5 && model.waiting.len() < PER_KEY {
                        prop_assert!(polled.is_pending());
                        model.waiting.push((number, limit));
                        live.push((key, number, future));
                    } else {
                        let Poll::Ready(Ok(response)) = polled else { panic!("{number} is denied at once") };
                        prop_assert_eq!(response.status(), 429);
                    }
                }
                Step::End(at) if !responses.is_empty() => {
                    let (key, number, response) = responses.remove(at % responses.len());
                    prop_assert_eq!(text(response), number.to_string());
                    models.get_mut(&key).unwrap().end(number);
                }
                Step::Drop(at) if !live.is_empty() => {
                    let (key, number, future) = live.remove(at % live.len());
                    drop(future);
                    models.get_mut(&key).unwrap().end(number);
                }
                Step::Expire => {
                    timers.expire();
                    // One after the other, as they are polled.
                    for (key, number, mut future) in std::mem::take(&mut live) {
                        let model = models.get_mut(&key).unwrap();
                        let Poll::Ready(Ok(response)) = poll(&mut future) else { panic!("its time is over") };
                        let served = model.served.contains(&number);
                        prop_assert_eq!(response.status().as_u16(), if served { 200 } else { 429 });
                        if served {
                            responses.push((key, number, response));
                        } else {
                            model.end(number);
                        }
                    }
                }
                Step::End(_) | Step::Drop(_) => {}
            }
            // Whoever got a permit is served when it is polled, and nobody else.
            for (key, number, mut future) in std::mem::take(&mut live) {
                let served = models[&key].served.contains(&number);
                match poll(&mut future) {
                    Poll::Ready(Ok(response)) => {
                        prop_assert!(served, "{number} is served before its turn");
                        responses.push((key, number, response));
                    }
                    Poll::Pending => {
                        prop_assert!(!served, "{number} has its turn");
                        live.push((key, number, future));
                    }
                }
            }
            let served: usize = models.values().map(|model| model.served.len()).sum();
            prop_assert_eq!(layer.total_in_flight(), served);
            prop_assert_eq!(queue.waiting(), live.len());
        }
        drop((live, responses));
        prop_assert_eq!((layer.total_in_flight(), queue.waiting()), (0, 0));
    }
}
