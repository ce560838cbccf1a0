//! Contains [`LiveQuota`], a quota that may change while decisions read it.
//!
//! This file must not know what the quota is for.

use std::sync::PoisonError;

use crate::{
    quota::Quota,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
        hint,
    },
};

/// A sequence lock over three words that change rarely and are read by every decision. A reader
/// takes no lock and writes nothing, so readers do not wait for each other as with a reader-writer
/// lock. A reader that meets a change reads again.
pub(super) struct LiveQuota {
    /// Odd while the words change.
    version: AtomicU64,
    words: [AtomicU64; 3],
    writing: Mutex<()>,
}

impl LiveQuota {
    pub(super) fn new(quota: Quota) -> Self {
        Self { version: AtomicU64::new(0), words: quota.to_words().map(AtomicU64::new), writing: Mutex::new(()) }
    }

    #[inline(always)]
    pub(super) fn get(&self) -> Quota {
        loop {
            let before = self.version.load(Ordering::Acquire);
            // Acquire: a reader that sees a new word also sees the odd version from before it.
            let words = [0, 1, 2].map(|word| self.words[word].load(Ordering::Acquire));
            if before % 2 == 0 && self.version.load(Ordering::Acquire) == before {
                return Quota::from_words(words);
            }
            hint::spin_loop();
        }
    }

    pub(super) fn set(&self, quota: Quota) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.version.fetch_add(1, Ordering::AcqRel);
        for (word, new) in self.words.iter().zip(quota.to_words()) {
            word.store(new, Ordering::Release);
        }
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn no_reader_sees_half_of_a_change() {
        let quotas = [Quota::per_second(7).burst(3), Quota::per(1_000_000, Duration::from_secs(86_400)).burst(9)];
        let live = LiveQuota::new(quotas[0]);
        thread::scope(|scope| {
            scope.spawn(|| (0..50_000).for_each(|n| live.set(quotas[n % 2])));
            for _ in 0..2 {
                scope.spawn(|| (0..50_000).for_each(|_| assert!(quotas.contains(&live.get()))));
            }
        });
    }
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use std::{sync::Arc, time::Duration};

    use loom::thread;

    use super::*;

    /// In every interleaving of a change and a reading, the reading returns one of the two quotas.
    #[test]
    fn loom_a_reading_is_never_of_two_quotas() {
        loom::model(|| {
            let [old, new] = [Quota::per_second(7).burst(3), Quota::per(5, Duration::from_secs(60)).burst(9)];
            let live = Arc::new(LiveQuota::new(old));
            let writer = thread::spawn({
                let live = Arc::clone(&live);
                move || live.set(new)
            });
            let seen = live.get();
            assert!([old, new].contains(&seen), "{seen}");
            writer.join().unwrap();
            assert_eq!(live.get(), new);
        });
    }
}
