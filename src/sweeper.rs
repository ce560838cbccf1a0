//! The background thread that sweeps stores.
//!
//! Owns one thread for the whole process and the schedule of every store that asked for one. Holds stores weakly, so
//! that no limiter lives longer for being swept, and ends when the last of them is gone. Knows nothing of policies or
//! limiters, and needs no async runtime.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, PoisonError, Weak},
    time::Duration,
};

use crate::{
    clock::{Clock, nanos},
    observe,
    store::Store,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        thread,
    },
};

/// The membership of some stores in the schedule. Dropping it ends their sweeping, and with the last one the thread.
pub(crate) struct Sweeping {
    sweeper: Arc<Sweeper>,
    id: u64,
    pressed: Arc<AtomicBool>,
}

impl Sweeping {
    /// Has the store of `policy` swept every `period`. Starts the thread if there is none.
    pub(crate) fn start(policy: Arc<str>, store: &Arc<Store>, period: Duration) -> Self {
        Self::by(&SWEEPER, policy, store, period)
    }

    fn by(sweeper: &Arc<Sweeper>, policy: Arc<str>, store: &Arc<Store>, period: Duration) -> Self {
        let pressed = Arc::new(AtomicBool::new(false));
        let mut schedule = sweeper.lock();
        let id = schedule.new_id();
        let now = schedule.now();
        let due = now.saturating_add(nanos(period));
        schedule.rounds.push(Round {
            id,
            policy,
            near_cap: false,
            store: Arc::downgrade(store),
            period,
            due,
            pressable: now,
            pressed: Arc::clone(&pressed),
        });
        let started = schedule.start_thread(sweeper);
        drop(schedule);
        sweeper.changed.notify_one();
        if let Err(error) = started {
            observe::no_sweeper(&error);
        }
        Self { sweeper: Arc::clone(sweeper), id, pressed }
    }

    /// Asks for a sweep before its time, because the store is full. Cheap to repeat; sweeps asked for this way take at
    /// most a tenth of the thread's time.
    pub(crate) fn press(&self) {
        if !self.pressed.swap(true, Ordering::AcqRel) {
            // Taken, so that the thread is either waiting or will look at the flag before it waits.
            drop(self.sweeper.lock());
            self.sweeper.changed.notify_one();
        }
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        // The thread holds this lock to read the schedule and never while it sweeps.
        self.sweeper.lock().rounds.retain(|round| round.id != self.id);
        self.sweeper.changed.notify_one();
    }
}

/// The one of the process.
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
    /// The id of the thread that runs, if one does.
    thread: Option<u64>,
    last_id: u64,
    rounds: Vec<Round>,
    /// Of the thread, not of any limiter: a manual clock does not move the schedule.
    clock: Option<Clock>,
}

struct Round {
    id: u64,
    policy: Arc<str>,
    /// Whether the store was near its cap after the last sweep: reported when it becomes true.
    near_cap: bool,
    store: Weak<Store>,
    period: Duration,
    due: u64,
    /// From when on a full store may be swept before its time.
    pressable: u64,
    pressed: Arc<AtomicBool>,
}

impl Schedule {
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A process that cannot have another thread still has its limits, and memory is bounded by the cap. The next limiter
    /// tries again.
    fn start_thread(&mut self, sweeper: &Arc<Sweeper>) -> io::Result<()> {
        if self.thread.is_none() {
            let id = self.new_id();
            let sweeper = Arc::clone(sweeper);
            thread::Builder::new().name("tower-quota".to_owned()).spawn(move || {
                let _running = Running { sweeper: &sweeper, id };
                run(&sweeper);
            })?;
            self.thread = Some(id);
        }
        Ok(())
    }

    fn now(&mut self) -> u64 {
        self.clock.get_or_insert_with(Clock::system).now()
    }

    /// The next round and when it is due.
    fn next(&mut self) -> Option<(u64, &mut Round)> {
        self.rounds.iter_mut().map(|round| (round.when(), round)).min_by_key(|(when, _)| *when)
    }
}

impl Round {
    fn when(&self) -> u64 {
        if self.pressed.load(Ordering::Acquire) { self.due.min(self.pressable) } else { self.due }
    }
}

/// That a thread runs. Also if it ends in a panic, the next limiter starts another one.
struct Running<'a> {
    sweeper: &'a Sweeper,
    id: u64,
}

impl Drop for Running<'_> {
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
        let Some((when, round)) = schedule.next() else {
            // Under this lock, so that a limiter which comes now finds either a thread that will see it or none.
            schedule.thread = None;
            return;
        };
        if when > now {
            let wait = Duration::from_nanos(when - now);
            (schedule, _) = sweeper.changed.wait_timeout(schedule, wait).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        round.pressed.store(false, Ordering::Release);
        let (id, policy, was_near_cap) = (round.id, Arc::clone(&round.policy), round.near_cap);
        let store = round.store.upgrade();
        drop(schedule);
        // Nothing in a sweep is known to panic, but what listens to events may: the others are swept on.
        let swept = catch_unwind(AssertUnwindSafe(|| store.is_some_and(|store| sweep(&policy, &store, was_near_cap))));
        let near_cap = swept.unwrap_or_else(|_| {
            // What listens may be what has panicked.
            let _ = catch_unwind(observe::sweep_panicked);
            was_near_cap
        });
        schedule = sweeper.lock();
        let end = schedule.now();
        let took = end.saturating_sub(now);
        if let Some(round) = schedule.rounds.iter_mut().find(|round| round.id == id) {
            round.near_cap = near_cap;
            round.due = end.saturating_add(nanos(round.period));
            round.pressable = end.saturating_add(took.saturating_mul(9).max(1_000_000_000));
        }
    }
}

/// Returns whether the store is still near its cap. Runs outside of the schedule's lock, and so does the end of the
/// store if its limiter was dropped meanwhile.
fn sweep(policy: &str, store: &Store, was_near_cap: bool) -> bool {
    sweep_now(policy, store);
    let near_cap = store.is_near_cap();
    if near_cap && !was_near_cap {
        observe::near_cap(policy, store.len(), store.max_keys());
    }
    near_cap
}

/// Sweeps a store once, and returns how many keys were removed.
pub(crate) fn sweep_now(policy: &str, store: &Store) -> usize {
    let clock = Clock::system();
    let removed = store.sweep();
    observe::swept(policy, removed, store.len(), clock.now());
    removed
}

/// Half the time in which an exhausted bucket is full again, between a second and a minute: most keys are gone after
/// one and a half of it, and a long window does not mean rare sweeps.
pub(crate) fn period(time_to_fill: Duration) -> Duration {
    (time_to_fill / 2).clamp(Duration::from_secs(1), Duration::from_secs(60))
}

/// A notice that is lost makes a wait here last for ever, for loom's has no time-out; the time-out of the thread is for what
/// is due.
#[cfg(all(test, tower_quota_loom))]
mod models {
    use super::*;
    use crate::{bucket::Bucket, clock::ManualClock, key::Key, store::AtCap};

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

    /// With a bucket in it that owes nothing any more.
    fn store(clock: &ManualClock) -> Arc<Store> {
        let store = Arc::new(Store::new(2, AtCap::Overflow, clock.clone().into()));
        store.hold(Key::GLOBAL).write(Bucket::from_bits(1));
        clock.advance(Duration::from_nanos(2));
        store
    }

    fn start(sweeper: &Arc<Sweeper>, store: &Arc<Store>) -> Sweeping {
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
    fn loom_a_store_that_comes_while_the_thread_ends_is_swept() {
        models(|sweeper, clock| {
            let (a, b) = (store(clock), store(clock));
            let first = start(sweeper, &a);
            let other = thread::spawn(move || drop(first));
            let second = start(sweeper, &b);
            second.press();
            wait_until_swept(&b);
            other.join().unwrap();
        });
    }

    #[test]
    fn loom_a_full_store_is_swept_when_it_asks() {
        models(|sweeper, clock| {
            let store = store(clock);
            let sweeping = Arc::new(start(sweeper, &store));
            let also = Arc::clone(&sweeping);
            let other = thread::spawn(move || also.press());
            sweeping.press();
            wait_until_swept(&store);
            other.join().unwrap();
        });
    }
}
