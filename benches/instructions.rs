//! Loops over one decision or one call, for `.ci/instructions` to count their instructions under valgrind. Counts and not
//! times: they do not depend on what else the machine does.
//!
//! ```sh
//! bash .ci/instructions
//! ```

use std::{
    convert::Infallible,
    env,
    future::{Ready, ready},
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer as _, Service};
use tower_quota::{
    InFlightLayer, Limiter, Policy, Quota, RateLimitLayer, Window,
    clock::ManualClock,
    key::{ClientIp, PeerAddr, PeerIp},
    policy::Advertise,
};

const MANY: Quota = Quota::per_second(1_000_000_000).burst(4_000_000_000);
const NONE: Quota = Quota::every(std::time::Duration::from_secs(3_600));

/// Not zero-sized, so that nothing around it is optimised away.
struct Inner(u64);

impl Service<Request<()>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        self.0 += request.headers().len() as u64;
        let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
        // As every real response has one: adding to an empty header map would be a case of its own.
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        ready(Ok(response))
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    request.headers_mut().insert("x-forwarded-for", "203.0.113.7".parse().unwrap());
    request.extensions_mut().insert(PeerAddr(SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 4_711))));
    request
}

fn decide(times: u32, policies: impl IntoIterator<Item = Policy>) {
    let limiter = Limiter::builder().policies(policies).clock(ManualClock::new()).build().unwrap();
    let request = request();
    for _ in 0..times {
        black_box(limiter.decide(black_box(&request)).is_allowed());
    }
}

fn acquire(times: u32) {
    let policy = Policy::by_key(MANY).named("account");
    let limiter = Limiter::builder().policy(policy).clock(ManualClock::new()).build().unwrap();
    let key = Ipv4Addr::new(10, 0, 0, 1);
    for _ in 0..times {
        black_box(limiter.acquire("account", black_box(key)).is_ok());
    }
}

fn call<B>(times: u32, mut service: impl Service<Request<()>, Response = Response<B>>) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..times {
        let future = pin!(service.call(request()));
        black_box(future.poll(&mut cx).is_ready());
    }
}

/// To the end of the body: only then is the request in flight no longer.
fn call_and_read<B: Body + Unpin>(times: u32, mut service: impl Service<Request<()>, Response = Response<B>>) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..times {
        let future = pin!(service.call(request()));
        let Poll::Ready(Ok(response)) = future.poll(&mut cx) else { panic!("answers at once") };
        black_box(Pin::new(&mut response.into_body()).poll_frame(&mut cx).is_ready());
    }
}

fn layered(times: u32, policy: Policy) {
    let limiter = Limiter::builder().policy(policy).clock(ManualClock::new()).build().unwrap();
    call(times, RateLimitLayer::new(&limiter).layer(Inner(0)));
}

fn main() {
    let mut arguments = env::args().skip(1);
    // `cargo bench` and `cargo test --benches` call without a case: then there is nothing to count.
    let (Some(case), Some(times)) = (arguments.next(), arguments.next().and_then(|times| times.parse().ok())) else {
        return;
    };
    let per_ip = |quota| Policy::per(PeerIp, quota);
    let quiet = |policy: Policy| policy.advertise(Advertise::RetryAfter);
    match case.as_str() {
        "decide" => decide(times, [per_ip(MANY)]),
        "decide-denied" => decide(times, [per_ip(NONE)]),
        "decide-global" => decide(times, [Policy::global(MANY)]),
        "decide-three" => decide(times, [per_ip(MANY), per_ip(MANY).named("second"), Policy::global(MANY)]),
        "decide-window" => decide(times, [Policy::per(PeerIp, Window::daily(u32::MAX))]),
        "decide-client-ip" => decide(times, [Policy::per(ClientIp::behind(["10.0.0.0/8"]).unwrap(), MANY)]),
        "acquire" => acquire(times),
        "bare" => call(times, Inner(0)),
        "layer" => layered(times, quiet(per_ip(MANY))),
        "layer-fields" => layered(times, per_ip(MANY)),
        "read" => call_and_read(times, Inner(0)),
        "in-flight" => call_and_read(times, InFlightLayer::per(PeerIp, 4).layer(Inner(0))),
        "layer-denied" => layered(times, per_ip(NONE)),
        unknown => panic!("there is no case {unknown:?}"),
    }
}
