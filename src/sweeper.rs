//! Contains the background thread that sweeps stores.
//!
//! There is one thread for the whole process, with the schedule of every store that asked for one.
//! The thread references stores weakly, so that no limiter lives longer for being swept, and it
//! ends when the last store is dropped. This file must not know of policies or limiters. It needs
//! no async runtime.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, PoisonError, Weak},
    time::Duration,
};

use crate::{
    clock::{Clock, Nanos, Timestamp},
    observe::{events, metrics},
    store::Sweepable,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        thread,
    },
};

/// Who removes idle keys from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sweep {
    /// A thread of the crate. There is one for the whole process, from the first limiter with a
    /// keyed policy to the drop of the last one. The default for a limiter on the system's clock.
    Background,
    /// You, by calling [`Limiter::sweep`](crate::Limiter::sweep). The default for a limiter on any
    /// other [clock](crate::clock::Clock).
    Manual,
}

/// The membership of a store in the schedule. Dropping it ends the store's sweeping, and with the
/// last one the thread.
pub(crate) struct Sweeping {
    sweeper: Arc<Sweeper>,
    id: u64,
    requested: Arc<AtomicBool>,
}

impl Sweeping {
    /// Sweeps the store of `policy` every `period`. Starts the thread if there is none.
    pub(crate) fn start(policy: Arc<str>, store: Weak<dyn Sweepable>, period: Duration) -> Self {
        Self::by(&SWEEPER, policy, store, period)
    }

    fn by(sweeper: &Arc<Sweeper>, policy: Arc<str>, store: Weak<dyn Sweepable>, period: Duration) -> Self {
        let requested = Arc::new(AtomicBool::new(false));
        let mut schedule = sweeper.lock();
        let id = schedule.new_id();
        let now = schedule.now();
        schedule.jobs.push(Job {
            id,
            policy,
            near_cap: false,
            store,
            period,
            due: now.saturating_add(period.into()),
            earliest: now,
            requested: Arc::clone(&requested),
        });
        let started = schedule.start_thread(sweeper);
        drop(schedule);
        sweeper.changed.notify_one();
        if let Err(error) = started {
            events::no_sweeper_thread(&error);
        }
        Self { sweeper: Arc::clone(sweeper), id, requested }
    }

    /// Requests an early sweep, because the store is full. Repeated requests are cheap. Requested
    /// sweeps take at most a tenth of the thread's time.
    pub(crate) fn request(&self) {
        if !self.requested.swap(true, Ordering::AcqRel) {
            // Locked, so that the thread either waits or reads the flag before it waits.
            drop(self.sweeper.lock());
            self.sweeper.changed.notify_one();
        }
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        // The thread locks the schedule to read it, and never during a sweep.
        self.sweeper.lock().jobs.retain(|job| job.id != self.id);
        self.sweeper.changed.notify_one();
    }
}

/// The sweeper of the process.
static SWEEPER: LazyLock<Arc<Sweeper>> = LazyLock::new(Arc::default);

#[derive(Default)]
struct Sweeper {
    schedule: Mutex<Schedule>,
    changed: Condvar,
}

impl Sweeper {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Schedule {
    /// The id of the thread, if one runs.
    thread: Option<u64>,
    last_id: u64,
    jobs: Vec<Job>,
    /// The thread's own clock: a limiter's manual clock does not move the schedule.
    clock: Option<Clock>,
}

struct Job {
    id: u64,
    policy: Arc<str>,
    /// Whether the store was near its cap after the last sweep. Reported when it becomes true.
    near_cap: bool,
    store: Weak<dyn Sweepable>,
    period: Duration,
    due: Timestamp,
    /// From this time on a requested sweep may run.
    earliest: Timestamp,
    requested: Arc<AtomicBool>,
}

impl Schedule {
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Without a thread the process still has its limits, and the caps bound its memory. The next
    /// limiter tries again.
    fn start_thread(&mut self, sweeper: &Arc<Sweeper>) -> io::Result<()> {
        if self.thread.is_none() {
            let id = self.new_id();
            let sweeper = Arc::clone(sweeper);
            thread::Builder::new().name("tower-quota".to_owned()).spawn(move || {
                let _running = RunningThread { sweeper: &sweeper, id };
                run(&sweeper);
            })?;
            self.thread = Some(id);
        }
        Ok(())
    }

    fn now(&mut self) -> Timestamp {
        self.clock.get_or_insert_with(Clock::system).now()
    }

    /// The next job, and when it is due.
    fn next(&mut self) -> Option<(Timestamp, &mut Job)> {
        self.jobs.iter_mut().map(|job| (job.when(), job)).min_by_key(|(when, _)| *when)
    }
}

impl Job {
    fn when(&self) -> Timestamp {
        if self.requested.load(Ordering::Acquire) { self.due.min(self.earliest) } else { self.due }
    }
}

/// Marks that a thread runs. If the thread ends by a panic, the next limiter starts another one.
struct RunningThread<'a> {
    sweeper: &'a Sweeper,
    id: u64,
}

impl Drop for RunningThread<'_> {
    fn drop(&mut self) {
        let mut schedule = self.sweeper.lock();
        if schedule.thread == Some(self.id) {
            schedule.thread = None;
        }
    }
}

fn run(sweeper: &Sweeper) {
    let mut schedule = sweeper.lock();
    loop {
        let now = schedule.now();
        let Some((when, job)) = schedule.next() else {
            // Under this lock, so that a new limiter finds either a thread that will see it or
            // none.
            schedule.thread = None;
            return;
        };
        if when > now {
            let wait = when.since(now).into();
            (schedule, _) = sweeper.changed.wait_timeout(schedule, wait).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        job.requested.store(false, Ordering::Release);
        let (id, policy, was_near_cap) = (job.id, Arc::clone(&job.policy), job.near_cap);
        let store = job.store.upgrade();
        drop(schedule);
        // No sweep is known to panic, but a subscriber of events may. The other stores are swept
        // on.
        let swept = catch_unwind(AssertUnwindSafe(|| store.is_some_and(|store| sweep(&policy, &*store, was_near_cap))));
        let near_cap = swept.unwrap_or_else(|_| {
            // The subscriber may panic again.
            let _ = catch_unwind(events::sweep_panicked);
            was_near_cap
        });
        schedule = sweeper.lock();
        let end = schedule.now();
        let took = end.since(now);
        if let Some(job) = schedule.jobs.iter_mut().find(|job| job.id == id) {
            job.near_cap = near_cap;
            job.due = end.saturating_add(job.period.into());
            job.earliest = end.saturating_add(took.saturating_mul(9).max(Nanos::SECOND));
        }
    }
}

/// Returns whether the store is still near its cap. The schedule is not locked meanwhile, nor while
/// a store is dropped whose limiter has ended.
fn sweep(policy: &str, store: &dyn Sweepable, was_near_cap: bool) -> bool {
    sweep_now(policy, store);
    let near_cap = store.is_near_cap();
    if near_cap && !was_near_cap {
        if let Some(capacity) = store.capacity() {
            events::near_cap(policy, capacity.live(), capacity.max());
        }
    }
    near_cap
}

/// Sweeps a store once, and returns how many keys were removed.
pub(crate) fn sweep_now(policy: &str, store: &dyn Sweepable) -> usize {
    let clock = Clock::system();
    let start = clock.now();
    let removed = store.sweep();
    if let Some(capacity) = store.capacity() {
        metrics::swept(policy, removed, capacity.live(), clock.now().since(start));
    }
    removed
}

/// Half the time in which an exhausted bucket is full again, between a second and a minute. So most
/// keys are removed after one and a half of that time, and a long window does not make sweeps rare.
pub(crate) fn period(time_to_fill: Duration) -> Duration {
    (time_to_fill / 2).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

/// A lost notification makes a wait here last for ever, because loom's has no timeout.
#[cfg(all(test, tower_quota_loom))]
mod models {
    use super::*;
    use crate::{
        bucket::Bucket,
        clock::ManualClock,
        key::Key,
        store::{AtCap, Cap, Store},
    };

    const HOUR: Duration = Duration::from_secs(3_600);

    fn models(model: impl Fn(&Arc<Sweeper>, &ManualClock) + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(3));
        builder.check(move || {
            let (sweeper, clock) = (Arc::<Sweeper>::default(), ManualClock::new());
            sweeper.lock().clock = Some(clock.clone().into());
            model(&sweeper, &clock);
        });
    }

    /// A store with an idle bucket.
    fn store(clock: &ManualClock) -> Arc<Store> {
        let store = Arc::new(Store::new(Cap::new(2, AtCap::Overflow), clock.clone().into()));
        store.guard(Key::GLOBAL).write(Bucket::from_bits(1));
        clock.advance(Duration::from_nanos(2));
        store
    }

    fn start(sweeper: &Arc<Sweeper>, store: &Arc<Store>) -> Sweeping {
        let store: Weak<Store> = Arc::downgrade(store);
        Sweeping::by(sweeper, "user".into(), store, HOUR)
    }

    fn wait_until_swept(store: &Store) {
        while store.len() > 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn loom_the_thread_ends_with_the_last_store() {
        // A thread that waits on is a deadlock to loom.
        models(|sweeper, clock| {
            let (a, b) = (store(clock), store(clock));
            let (first, second) = (start(sweeper, &a), start(sweeper, &b));
            let other = thread::spawn(move || drop(first));
            drop(second);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_a_store_added_while_the_thread_ends_is_swept() {
        models(|sweeper, clock| {
            let (a, b) = (store(clock), store(clock));
            let first = start(sweeper, &a);
            let other = thread::spawn(move || drop(first));
            let second = start(sweeper, &b);
            second.request();
            wait_until_swept(&b);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_a_full_store_is_swept_on_request() {
        models(|sweeper, clock| {
            let store = store(clock);
            let sweeping = Arc::new(start(sweeper, &store));
            let also = Arc::clone(&sweeping);
            let other = thread::spawn(move || also.request());
            sweeping.request();
            wait_until_swept(&store);
            other.join().unwrap();
        });
    }
}
