//! Contains the models of the registry: every interleaving of requests that begin, end, wait, and
//! give up.

use std::{
    sync::Arc,
    task::{Poll, Wake, Waker},
};

use ::loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::registry::{GrantSignal, Queued, Registry, WaitEnd};
use crate::key::Key;

const KEY: Key = Key::GLOBAL;

/// Counts how often it is woken.
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

fn waker() -> (Arc<Wakes>, Waker) {
    let wakes = Arc::new(Wakes(AtomicUsize::new(0)));
    (Arc::clone(&wakes), wakes.into())
}

fn models(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = ::loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(model);
}

/// A registry whose only permit is in use.
fn full() -> Arc<Registry> {
    let registry = Arc::new(Registry::new());
    registry.acquire(KEY, 1).unwrap();
    registry
}

/// Returns a permit on another thread.
fn ending(registry: &Arc<Registry>) -> thread::JoinHandle<()> {
    let registry = Arc::clone(registry);
    thread::spawn(move || registry.release(KEY))
}

fn waits(registry: &Registry, limit: u32) -> Arc<GrantSignal> {
    match registry.acquire_or_wait(KEY, limit, 9) {
        Queued::Behind(signal) => signal,
        Queued::Acquired(_) | Queued::Full(_) => panic!("there is no permit"),
    }
}

#[test]
fn loom_the_last_permit_is_taken_once_and_returned() {
    models(|| {
        let registry = Arc::new(Registry::new());
        let serving = Arc::new(AtomicUsize::new(0));
        let request = |registry: Arc<Registry>, serving: Arc<AtomicUsize>| {
            move || {
                let got = registry.acquire(KEY, 1).is_ok();
                if got {
                    assert_eq!(serving.fetch_add(1, Ordering::AcqRel), 0, "two are in flight");
                    serving.fetch_sub(1, Ordering::AcqRel);
                    registry.release(KEY);
                }
                got
            }
        };
        let threads = [(); 2].map(|()| thread::spawn(request(Arc::clone(&registry), Arc::clone(&serving))));
        let got = threads.map(|thread| thread.join().unwrap());
        assert!(got.contains(&true));
        assert_eq!((registry.in_use(KEY), registry.in_use_of_all()), (0, 0));
    });
}

/// A wake-up that comes between the look and the wait is not lost.
#[test]
fn loom_who_waits_gets_the_permit_and_is_woken() {
    models(|| {
        let registry = full();
        let signal = waits(&registry, 1);
        let ending = ending(&registry);
        let (wakes, waker) = waker();
        let at_once = signal.poll_granted(&waker).is_ready();
        ending.join().unwrap();
        assert!(signal.poll_granted(&waker).is_ready());
        assert!(at_once || wakes.0.load(Ordering::Acquire) == 1, "it was not woken");
        assert_eq!(registry.in_use(KEY), 1);
        registry.release(KEY);
        assert_eq!(registry.in_use(KEY), 0);
    });
}

/// A permit that comes while its waiter gives up goes to the next one.
#[test]
fn loom_giving_up_beside_a_return_loses_no_permit() {
    models(|| {
        let registry = full();
        let (first, second) = (waits(&registry, 1), waits(&registry, 1));
        let (wakes, waker) = waker();
        assert!(second.poll_granted(&waker).is_pending());
        let ending = ending(&registry);
        // As a request does that is dropped while it waits.
        if let WaitEnd::Granted(in_use) = registry.leave(KEY, &first) {
            assert_eq!(in_use, 1);
            registry.release(KEY);
        }
        ending.join().unwrap();
        assert_eq!(second.poll_granted(&waker), Poll::Ready(1));
        assert_eq!(wakes.0.load(Ordering::Acquire), 1);
        assert_eq!(registry.in_use(KEY), 1);
        registry.release(KEY);
        assert_eq!(registry.in_use_of_all(), 0);
    });
}

/// A request that comes while a permit is returned does not overtake the one that waits.
#[test]
fn loom_a_new_request_does_not_overtake() {
    models(|| {
        let registry = full();
        let signal = waits(&registry, 1);
        let ending = ending(&registry);
        assert!(registry.acquire(KEY, 1).is_err());
        assert!(matches!(registry.acquire_or_wait(KEY, 1, 0), Queued::Full(1)));
        ending.join().unwrap();
        assert!(signal.poll_granted(Waker::noop()).is_ready());
        registry.release(KEY);
        assert_eq!(registry.in_use_of_all(), 0);
    });
}
