//! What is said through `tracing`, as lines.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};

#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    /// What is said at INFO and above while `work` runs.
    pub(crate) fn collect(&self, work: impl FnOnce()) -> String {
        self.collect_from(LevelFilter::INFO, work)
    }

    /// What is said at `level` and above while `work` runs.
    pub(crate) fn collect_from(&self, level: LevelFilter, work: impl FnOnce()) -> String {
        // Whether anybody listens is remembered for each event: two threads that begin to listen at once may miss theirs.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _others_wait = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let subscriber =
            tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(self.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        self.text()
    }

    /// From here on what is said by any thread of the process.
    pub(crate) fn collect_everywhere(&self) {
        let subscriber = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_ansi(false);
        tracing::subscriber::set_global_default(subscriber.with_writer(self.clone()).finish()).unwrap();
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
