//! Contains [`IoThread`], the thread on which everything that talks to servers runs.
//!
//! The thread has a tokio runtime of its own. So connections belong to no runtime of the
//! application, which may end, be blocked, not be driven, or have a paused clock. The thread starts
//! with the first task, and ends after the limiter is dropped and its tasks have ended. This file
//! must not know what runs there.

use std::{
    convert::Infallible,
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::{runtime, sync::mpsc};

use crate::observe::events;

/// The limiter has one, and each task. The thread ends when all of them are gone.
type Guard = mpsc::Sender<Infallible>;

#[derive(Default)]
pub(super) struct IoThread {
    running: Mutex<Option<Running>>,
    /// Whether it was reported that there is no thread: each request tries to start one.
    refused: AtomicBool,
}

struct Running {
    runtime: runtime::Handle,
    guard: Guard,
}

/// Names are resolved by threads of the runtime. A hanging resolver must not fill it with threads.
const RESOLVERS: usize = 4;

impl IoThread {
    /// Runs a task. Without a thread, which the system may refuse, the task is dropped.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            match start() {
                Ok(started) => *running = Some(started),
                Err(error) if !self.refused.swap(true, Ordering::Relaxed) => events::no_redis_thread(&error),
                Err(_) => {}
            }
        }
        if let Some(Running { runtime, guard }) = &*running {
            let guard = guard.clone();
            drop(runtime.spawn(async move {
                task.await;
                drop(guard);
            }));
        }
    }
}

fn start() -> io::Result<Running> {
    let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(RESOLVERS).build()?;
    let handle = runtime.handle().clone();
    let (guard, mut guards) = mpsc::channel(1);
    let subscriber = events::Subscriber::current();
    let run = move || {
        subscriber.enter(|| runtime.block_on(guards.recv()));
        // A resolver that hangs is not waited for.
        runtime.shutdown_background();
    };
    thread::Builder::new().name("tower-quota-redis".to_owned()).spawn(run)?;
    Ok(Running { runtime: handle, guard })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn the_thread_runs_tasks_and_ends_with_the_last_of_them() {
        let thread = IoThread::default();
        let (end, ended) = oneshot::channel::<()>();
        let (report, reported) = oneshot::channel();
        thread.spawn(async move {
            let name = thread::current().name().map(str::to_owned);
            let _ = ended.await;
            let _ = report.send(name);
        });
        let handle = thread.running.lock().unwrap().as_ref().unwrap().runtime.clone();
        drop(thread);
        end.send(()).unwrap();
        assert_eq!(reported.blocking_recv().unwrap().as_deref(), Some("tower-quota-redis"));
        // The runtime is dropped with the thread, and its tasks with it.
        while !handle.spawn(std::future::pending::<()>()).is_finished() {
            thread::yield_now();
        }
    }
}
