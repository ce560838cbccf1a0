//! A call through the layer: without it, with it, and with what it tells clients.
//!
//! ```sh
//! cargo bench --bench layer
//! ```

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer as _, Service};
use tower_quota::{
    InFlightLayer, Policy, Quota, RateLimitLayer,
    key::{PeerAddr, PeerIp},
    policy::Advertise,
};

const MANY: Quota = Quota::per_second(100_000_000).burst(100_000_000);
const NONE: Quota = Quota::per_hour(1);

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
        ready(Ok(Response::new(Full::new(Bytes::from_static(b"hello")))))
    }
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(PeerAddr(SocketAddr::from(([192, 0, 2, 1], 4_711))));
    request
}

/// From the call to the end of the response's body, as a server does it.
fn calls<B: Body + Unpin>(
    criterion: &mut Criterion,
    name: &str,
    mut service: impl Service<Request<()>, Response = Response<B>, Error = Infallible>,
) {
    let mut cx = Context::from_waker(Waker::noop());
    criterion.bench_function(name, |bencher| {
        bencher.iter_batched(
            request,
            |request| {
                let Poll::Ready(Ok(response)) = pin!(service.call(request)).poll(&mut cx) else {
                    panic!("answers at once");
                };
                let mut body = response.into_body();
                black_box(Pin::new(&mut body).poll_frame(&mut cx).is_ready())
            },
            BatchSize::SmallInput,
        );
    });
}

fn layers(criterion: &mut Criterion) {
    let layer = |quota, advertise| RateLimitLayer::new(Policy::per(PeerIp, quota).advertise(advertise));
    calls(criterion, "no layer", Inner(0));
    calls(criterion, "the layer", layer(MANY, Advertise::RetryAfter).layer(Inner(0)));
    calls(criterion, "the layer with fields", layer(MANY, Advertise::Everything).layer(Inner(0)));
    calls(criterion, "a denial", layer(NONE, Advertise::RetryAfter).layer(Inner(0)));
    calls(criterion, "a denial with fields", layer(NONE, Advertise::Everything).layer(Inner(0)));
    calls(criterion, "a limit in flight", InFlightLayer::per(PeerIp, 4).layer(Inner(0)));
    calls(criterion, "a limit in flight for all", InFlightLayer::global(4).layer(Inner(0)));
    let queue = InFlightLayer::per(PeerIp, 4).queue(Duration::from_secs(1), |_| ready(()));
    let inner =
        tower::service_fn(|_| ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))));
    calls(criterion, "a limit in flight with a queue", queue.layer(inner));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    layers(&mut criterion);
    criterion.final_summary();
}
