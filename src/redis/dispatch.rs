//! The one task that talks to Redis: it asks for requests of one kind together, watches the connection, and dials.
//!
//! Owns connection, breaker and the requests that wait for an answer. It is started by the first decision, ends with the last
//! handle, and no request has a task of its own. Knows nothing of policies.
//!
//! While a call for some limits is under way, further requests for the same limits wait for it and are asked for together with
//! the next: nobody waits for a timer, and what is granted is what would have been granted one by one.

use std::{
    collections::{HashMap, VecDeque},
    future::pending,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    link::{Fault, Link, Server},
    script::{Limit, Limits, Owed, Reply},
};
use crate::{
    clock::{Clock, nanos},
    key::entropy,
    observe,
};

/// A request that waits for its answer. Without one (the sender is dropped) it is decided without Redis.
pub(super) struct Ask {
    pub(super) limits: Limits,
    pub(super) answer: oneshot::Sender<Answer>,
}

pub(super) struct Answer {
    pub(super) granted: bool,
    pub(super) owed: Owed,
}

/// What handles see of the task: a few atomics, read before anything is asked.
pub(super) struct Health {
    clock: Clock,
    /// Whether there is a connection that has proved itself.
    up: AtomicBool,
    /// Calls that have no answer yet.
    under_way: AtomicUsize,
    /// When the last answer came, or the first call after a pause went out.
    progress: AtomicU64,
    /// Requests that were handed over.
    asked: AtomicU64,
    /// Calls that went out.
    calls: AtomicU64,
}

impl Health {
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::system(),
            up: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            progress: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Whether it is worth asking: there is a connection, and it is answering.
    pub(super) fn answers(&self) -> bool {
        self.is_up() && !self.is_stalled()
    }

    fn is_stalled(&self) -> bool {
        self.under_way.load(Ordering::Acquire) > 0
            && self.clock.now().saturating_sub(self.progress.load(Ordering::Acquire)) > nanos(STALL)
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn sent(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.under_way.fetch_add(1, Ordering::AcqRel) == 0 {
            self.progress.store(self.clock.now(), Ordering::Release);
        }
    }

    fn answered(&self) {
        self.under_way.fetch_sub(1, Ordering::AcqRel);
    }

    fn progressed(&self) {
        self.progress.store(self.clock.now(), Ordering::Release);
    }
}

/// Without any answer for so long, new requests are decided without Redis; those that wait already go on waiting.
const STALL: Duration = Duration::from_millis(10);
/// Calls under way at once. Beyond, requests are decided without Redis.
pub(super) const MOST_CALLS: usize = 1_024;
/// Requests that are asked for together.
const MOST_TOGETHER: usize = 1_024;
/// Answers in a row that did not come, until the connection is given up.
const MOST_LATE: u32 = 3;
/// Between attempts to dial: doubled each time, up to the second.
const BACKOFF: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(250)];

pub(super) struct Dispatcher {
    pub(super) server: Server,
    pub(super) probe: Limit,
    pub(super) patience: Duration,
    pub(super) health: Arc<Health>,
}

/// A call that has ended.
struct Done {
    limits: Limits,
    asks: Vec<Ask>,
    reply: Result<Reply, Fault>,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

struct State {
    task: Dispatcher,
    link: Option<Link>,
    late: u32,
    /// How often in a row dialling has failed.
    attempt: u32,
    dialling: Option<Boxed<Result<Link, Fault>>>,
    under_way: FuturesUnordered<Boxed<Done>>,
    /// Who waits for a call for the same limits.
    waiting: HashMap<Limits, VecDeque<Ask>>,
}

impl Dispatcher {
    /// Runs until the last handle is gone.
    pub(super) async fn run(self, mut asks: mpsc::Receiver<Ask>) {
        let mut state = State {
            task: self,
            link: None,
            late: 0,
            attempt: 0,
            dialling: None,
            under_way: FuturesUnordered::new(),
            waiting: HashMap::new(),
        };
        state.dial();
        loop {
            let State { dialling, under_way, .. } = &mut state;
            let dialled = async {
                match dialling {
                    Some(dialling) => dialling.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => state.take(ask),
                    None => break,
                },
                Some(done) = under_way.next() => state.settle(done),
                link = dialled => state.dialled(link),
            }
        }
        state.task.health.up.store(false, Ordering::Release);
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Also where the runtime ends first: nobody asks what is gone.
        self.task.health.up.store(false, Ordering::Release);
    }
}

impl State {
    fn take(&mut self, ask: Ask) {
        if self.link.is_none() {
            return;
        }
        self.task.health.asked.fetch_add(1, Ordering::Relaxed);
        // Where too many wait already, the sender ends here: decided without Redis.
        if let Some(waiting) = self.waiting.get_mut(&ask.limits) {
            if waiting.len() < MOST_TOGETHER {
                waiting.push_back(ask);
            }
        } else if self.under_way.len() < MOST_CALLS {
            let limits = Arc::clone(&ask.limits);
            self.waiting.insert(Arc::clone(&limits), VecDeque::new());
            self.call(limits, vec![ask]);
        }
    }

    fn call(&mut self, limits: Limits, asks: Vec<Ask>) {
        let Some(mut link) = self.link.clone() else { return };
        let patience = self.task.patience;
        let want = u32::try_from(asks.len()).unwrap_or(u32::MAX);
        self.task.health.sent();
        self.under_way.push(Box::pin(async move {
            let reply = timeout(patience, link.acquire(&limits, 1, want)).await.unwrap_or(Err(Fault::Late));
            Done { limits, asks, reply }
        }));
    }

    fn settle(&mut self, done: Done) {
        let Done { limits, asks, reply } = done;
        self.task.health.answered();
        match reply {
            Ok(reply) => {
                self.late = 0;
                self.task.health.progressed();
                for (index, ask) in (0..).zip(asks) {
                    let owed = reply.owed_before(index, &limits);
                    // Who no longer waits has been charged all the same.
                    let _ = ask.answer.send(Answer { granted: index < reply.granted, owed });
                }
            }
            Err(Fault::Key) => {
                self.late = 0;
                self.task.health.progressed();
            }
            Err(Fault::Late) if self.late + 1 < MOST_LATE => self.late += 1,
            Err(fault) => return self.give_up(fault),
        }
        // Those that came meanwhile, and still wait.
        let Some(waiting) = self.waiting.get_mut(&limits) else { return };
        let next: Vec<Ask> = waiting.drain(..).filter(|ask| !ask.answer.is_closed()).collect();
        if next.is_empty() {
            self.waiting.remove(&limits);
        } else {
            self.call(limits, next);
        }
    }

    /// The connection is of no use: nobody waits for it any longer, and another one is dialled.
    fn give_up(&mut self, fault: Fault) {
        self.task.health.up.store(false, Ordering::Release);
        observe::redis_lost(match fault {
            Fault::Late => "no answer in time",
            Fault::Key | Fault::Link => "an error of the connection or the server",
        });
        self.link = None;
        self.late = 0;
        self.waiting.clear();
        // Whoever waits for one of these is told at once, by its end.
        for _ in 0..self.under_way.len() {
            self.task.health.answered();
        }
        self.under_way.clear();
        self.attempt = 0;
        self.dial();
    }

    fn dial(&mut self) {
        let (server, probe, patience) = (self.task.server.clone(), self.task.probe.clone(), self.task.patience);
        let wait = pause(self.attempt);
        self.dialling = Some(Box::pin(async move {
            #[expect(clippy::disallowed_methods, reason = "no test waits for it")]
            sleep(wait).await;
            server.dial(&probe, patience).await
        }));
    }

    fn dialled(&mut self, link: Result<Link, Fault>) {
        self.dialling = None;
        if let Ok(link) = link {
            self.link = Some(link);
            self.attempt = 0;
            self.task.health.up.store(true, Ordering::Release);
            observe::redis_found();
        } else {
            self.attempt += 1;
            self.dial();
        }
    }
}

/// None before the first attempt; then with a random half more or less, so that a fleet does not return together.
fn pause(attempt: u32) -> Duration {
    let [first, most] = BACKOFF;
    match attempt.checked_sub(1) {
        None => Duration::ZERO,
        Some(doubled) => {
            let pause = first.saturating_mul(1 << doubled.min(10)).min(most);
            #[allow(clippy::cast_possible_truncation, reason = "below 1,000")]
            let thousandths = 500 + (entropy() % 1_000) as u32;
            pause * thousandths / 1_000
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_redial_is_at_once_and_later_ones_end_at_a_quarter_second_and_a_half() {
        assert_eq!(pause(0), Duration::ZERO);
        for attempt in 1..100 {
            let most = BACKOFF[0].saturating_mul(1 << (attempt - 1).min(10)).min(BACKOFF[1]);
            let pause = pause(attempt);
            assert!(pause >= most / 2 && pause < most * 3 / 2, "{attempt}: {pause:?}");
        }
    }
}
