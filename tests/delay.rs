//! Waiting: in order, never early, bounded in time and in number, and returned when nobody waits any more.

mod support;

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use proptest::prelude::*;
use support::limiter;
use tower::{Layer as _, Service};
use tower_quota::{
    Key, Limiter, Policy, Quota, RateLimitLayer,
    clock::ManualClock,
    delay::{Delay, DelayLayer},
    key::key_fn,
    response::Standard,
};

/// Ends when the clock says so. Polled by hand: it wakes nobody.
struct Timer {
    clock: ManualClock,
    end: Duration,
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<()> {
        if self.clock.elapsed() >= self.end { Poll::Ready(()) } else { Poll::Pending }
    }
}

type Served = Rc<RefCell<Vec<(u32, Duration)>>>;

/// Notes which request it served, and when; asks to be polled ready before.
struct Inner {
    clock: ManualClock,
    served: Served,
    ready: bool,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self { clock: self.clock.clone(), served: Rc::clone(&self.served), ready: false }
    }
}

impl Service<Request<u32>> for Inner {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<u32>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "SVC01: called without having been polled ready");
        self.served.borrow_mut().push((request.into_body(), self.clock.elapsed()));
        ready(Ok(Response::new("served".to_owned())))
    }
}

struct Setup<T> {
    service: Delay<Inner, Limiter, Standard, T>,
    layer: DelayLayer<Limiter, Standard, T>,
    limiter: Limiter,
    clock: ManualClock,
    served: Served,
}

fn setup(policy: Policy, most: Duration, waiters: usize) -> Setup<impl Fn(Duration) -> Timer + Clone> {
    let (limiter, clock) = limiter([policy]);
    let of_timer = clock.clone();
    let timer = move |time| Timer { end: of_timer.elapsed() + time, clock: of_timer.clone() };
    let layer = RateLimitLayer::new(&limiter).max_delay(most, timer).max_waiters(waiters);
    let served = Served::default();
    let service = layer.layer(Inner { clock: clock.clone(), served: Rc::clone(&served), ready: false });
    Setup { service, layer, limiter, clock, served }
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn begin<S: Service<Request<u32>>>(service: &mut S, number: u32) -> Pin<Box<S::Future>> {
    assert!(service.poll_ready(&mut cx()).is_ready());
    Box::pin(service.call(Request::new(number)))
}

fn status<F: Future<Output = Result<Response<String>, Infallible>>>(future: &mut Pin<Box<F>>) -> Option<u16> {
    match future.as_mut().poll(&mut cx()) {
        Poll::Ready(Ok(response)) => Some(response.status().as_u16()),
        Poll::Pending => None,
    }
}

/// T = 100 ms.
const TEN: Quota = Quota::per_second(10).burst(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn requests_wait_for_their_turn_in_order_and_are_never_early() {
    let Setup { mut service, layer, clock, served, .. } = setup(Policy::global(TEN), 450 * MS, 100);
    let mut futures: Vec<_> = (0..7).map(|n| begin(&mut service, n)).collect();
    assert_eq!(layer.waiting(), 4);
    let statuses: Vec<_> = futures.iter_mut().map(status).collect();
    assert_eq!(statuses, [Some(200), None, None, None, None, Some(429), Some(429)], "450 ms are four turns");
    for turn in 1..5 {
        clock.advance(99 * MS);
        // Also if asked in another order.
        assert!(futures[turn..5].iter_mut().rev().all(|future| status(future).is_none()));
        clock.advance(MS);
        assert_eq!(status(&mut futures[turn]), Some(200));
    }
    let expected: Vec<_> = (0..5).map(|n| (n, 100 * n * MS)).collect();
    assert_eq!((&*served.borrow(), layer.waiting()), (&expected, 0));
}

#[test]
fn a_denial_reports_the_wait_that_the_layer_does_not_allow() {
    let Setup { mut service, clock, .. } =
        setup(Policy::global(Quota::every(Duration::from_secs(10))), Duration::from_secs(9), 9);
    assert_eq!(status(&mut begin(&mut service, 0)), Some(200));
    let Poll::Ready(Ok(denial)) = begin(&mut service, 1).as_mut().poll(&mut cx()) else { panic!("at once") };
    assert_eq!((denial.status().as_u16(), denial.headers()["retry-after"].to_str().unwrap()), (429, "10"));
    clock.advance(Duration::from_secs(1));
    assert_eq!(status(&mut begin(&mut service, 2)), None, "nine are left");
}

#[test]
fn no_more_wait_than_may() {
    let Setup { mut service, layer, clock, .. } = setup(Policy::global(TEN), Duration::from_secs(60), 2);
    let mut futures: Vec<_> = (0..5).map(|n| begin(&mut service, n)).collect();
    let statuses: Vec<_> = futures.iter_mut().map(status).collect();
    assert_eq!((statuses, layer.waiting()), (vec![Some(200), None, None, Some(429), Some(429)], 2));
    clock.advance(100 * MS);
    assert_eq!(status(&mut futures[1]), Some(200));
    assert_eq!(layer.waiting(), 1);
    assert_eq!(status(&mut begin(&mut service, 5)), None, "there is a place again");
}

#[test]
fn a_request_that_is_dropped_returns_its_place_in_line() {
    let Setup { mut service, layer, limiter, clock, served, .. } =
        setup(Policy::global(TEN.burst(4)), Duration::from_secs(60), 9);
    let mut futures: Vec<_> = (0..8).map(|n| begin(&mut service, n)).collect();
    let owed = || limiter.peek("global", Key::GLOBAL).unwrap().until_full();
    assert_eq!((owed(), layer.waiting()), (800 * MS, 4));
    clock.advance(30 * MS);
    // As if it had never come: nothing of its cell has been there yet.
    drop(futures.pop());
    assert_eq!((owed(), layer.waiting()), (670 * MS, 3));
    // Those before it keep their times.
    clock.advance(370 * MS);
    assert!(futures.iter_mut().all(|future| status(future) == Some(200)));
    assert_eq!(served.borrow().len(), 7);
    // In the middle of the line nothing comes back: who comes next would be served together with the last.
    let mut line: Vec<_> = (8..12).map(|n| begin(&mut service, n)).collect();
    let before = owed();
    drop(line.remove(1));
    assert_eq!(owed(), before);
    drop(line.pop());
    assert_eq!(owed(), before - 100 * MS, "the last one");
    drop(line);
    // One that was served returns nothing when it is dropped.
    let before = owed();
    drop(futures);
    assert_eq!(owed(), before);
}

#[test]
fn several_policies_are_waited_for_together() {
    let (limiter, clock) = limiter([
        Policy::per(key_fn(|_| Some(0_u64)), Quota::per_second(10).burst(1)).named("fast"),
        Policy::per(key_fn(|_| Some(1_u64)), Quota::per_second(2).burst(1)).named("slow"),
    ]);
    let of_timer = clock.clone();
    let timer = move |time| Timer { end: of_timer.elapsed() + time, clock: of_timer.clone() };
    let layer = RateLimitLayer::new(&limiter).max_delay(Duration::from_secs(2), timer);
    let served = Served::default();
    let mut service = layer.layer(Inner { clock: clock.clone(), served: Rc::clone(&served), ready: false });
    let mut futures: Vec<_> = (0..3).map(|n| begin(&mut service, n)).collect();
    for _ in 0..11 {
        futures.retain_mut(|future| status(future).is_none());
        clock.advance(100 * MS);
    }
    assert_eq!(*served.borrow(), [(0, Duration::ZERO), (1, 500 * MS), (2, 1_000 * MS)], "the slower one sets the pace");
}

/// Found by review: a put-back while others wait in line must not make room for a turn that is taken.
#[test]
fn a_refund_while_others_wait_serves_no_request_together_with_them() {
    let Setup { mut service, clock, served, .. } =
        setup(Policy::global(TEN).count_if(|_| false), Duration::from_secs(9), 9);
    let mut first = begin(&mut service, 0);
    let mut second = begin(&mut service, 1);
    // It does not count, when the second has its turn already.
    assert_eq!(status(&mut first), Some(200));
    let mut third = begin(&mut service, 2);
    for _ in 0..4 {
        clock.advance(50 * MS);
        let _ = (served.borrow().len() < 2 && status(&mut second).is_some(), ());
        if served.borrow().len() == 2 && clock.elapsed() >= 150 * MS {
            let _ = status(&mut third);
        }
    }
    assert_eq!(*served.borrow(), [(0, Duration::ZERO), (1, 100 * MS), (2, 200 * MS)]);
}

#[test]
fn the_fields_after_a_wait_tell_how_things_stand_then() {
    let Setup { mut service, clock, .. } = setup(
        Policy::per(key_fn(|_| Some(0_u64)), Quota::every(Duration::from_secs(10))).named("p"),
        Duration::from_secs(99),
        9,
    );
    let _ = status(&mut begin(&mut service, 0));
    let mut second = begin(&mut service, 1);
    clock.advance(Duration::from_secs(10));
    let Poll::Ready(Ok(response)) = second.as_mut().poll(&mut cx()) else { panic!("its turn") };
    assert_eq!(response.headers()["ratelimit"], "\"p\";r=0;t=10");
}

#[test]
fn a_timer_that_panics_keeps_neither_cells_nor_place() {
    let (limiter, clock) = limiter([Policy::global(TEN)]);
    let layer = RateLimitLayer::new(&limiter).max_delay(Duration::from_secs(9), |_| -> Timer { panic!("no runtime") });
    let mut service = layer.layer(Inner { clock, served: Served::default(), ready: false });
    let _ = status(&mut begin(&mut service, 0));
    let owed = || limiter.peek("global", Key::GLOBAL).unwrap().until_full();
    let before = owed();
    for _ in 0..5 {
        let call = std::panic::AssertUnwindSafe(|| drop(begin(&mut service, 1)));
        assert!(std::panic::catch_unwind(call).is_err());
    }
    assert_eq!((owed(), layer.waiting()), (before, 0));
}

/// A timer that ends at once, like one of a runtime whose time is paused.
#[test]
fn a_timer_that_ends_early_is_set_again() {
    let (limiter, clock) = limiter([Policy::global(TEN)]);
    let set = Rc::new(RefCell::new(0));
    let (counted, moved) = (Rc::clone(&set), clock.clone());
    let timer = move |_time: Duration| {
        *counted.borrow_mut() += 1;
        moved.advance(10 * MS);
        ready(())
    };
    let served = Served::default();
    let mut service = RateLimitLayer::new(&limiter).max_delay(Duration::from_secs(1), timer).layer(Inner {
        clock: clock.clone(),
        served: Rc::clone(&served),
        ready: false,
    });
    let _ = status(&mut begin(&mut service, 0));
    let mut second = begin(&mut service, 1);
    let polls = (0..20).take_while(|_| status(&mut second).is_none()).count();
    assert!(polls > 3, "others run between its tries");
    assert_eq!((served.borrow()[1].1, *set.borrow()), (100 * MS, 10));
}

#[tokio::test(start_paused = true)]
#[expect(clippy::disallowed_methods, reason = "the timer is what is tested; its time is paused")]
async fn it_waits_with_tokios_timer_and_is_send() {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let layer =
        RateLimitLayer::global(Quota::per_second(1_000).burst(1)).max_delay(Duration::from_secs(5), tokio::time::sleep);
    let service =
        layer.layer(tower::service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new())))));
    for _ in 0..5 {
        let response = is_send(tower::ServiceExt::oneshot(service.clone(), Request::new(()))).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Ask,
    Drop(usize),
}

proptest! {
    /// Whoever comes, gives up and is denied: those of one key are served in their order, none before its cells are there,
    /// and in any window no more than a burst and what flows in.
    #[test]
    fn waiters_are_served_in_order_and_no_faster_than_the_quota(
        burst in 1_u32..4,
        steps in prop::collection::vec(prop_oneof![
            3 => (1_u64..250).prop_map(Step::Advance),
            4 => Just(Step::Ask),
            1 => any::<usize>().prop_map(Step::Drop),
        ], 1..120),
    ) {
        let Setup { mut service, layer, clock, served, .. } =
            setup(Policy::global(TEN.burst(burst)), Duration::from_secs(1), 8);
        let mut waiting = Vec::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Advance(ms) => (0..ms).for_each(|_| {
                    clock.advance(MS);
                    waiting.retain_mut(|(_, future)| status(future).is_none());
                }),
                Step::Ask => {
                    let mut future = begin(&mut service, number);
                    if status(&mut future).is_none() {
                        waiting.push((number, future));
                    }
                    number += 1;
                }
                Step::Drop(which) => {
                    if !waiting.is_empty() {
                        drop(waiting.remove(which % waiting.len()));
                    }
                }
            }
            prop_assert_eq!(layer.waiting(), waiting.len());
        }
        let served = served.borrow();
        prop_assert!(served.is_sorted_by_key(|(number, _)| *number), "{:?}", served);
        for (first, (_, from)) in served.iter().enumerate() {
            for (last, (_, to)) in served.iter().enumerate().skip(first) {
                let most = u128::from(burst) + (*to - *from).as_millis() / 100;
                prop_assert!((last - first + 1) as u128 <= most, "{:?}", served);
            }
        }
    }
}
