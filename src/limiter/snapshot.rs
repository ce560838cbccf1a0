//! Contains snapshots: the state of a limiter, for the next process.
//!
//! This file must not know how buckets are locked, nor how a snapshot is written.

use std::{
    io::{Read, Write},
    time::Duration,
};

use super::Limiter;
use crate::{
    clock::{Nanos, Timestamp},
    snapshot::{self, PolicyRecord, Records, SnapshotError},
};

/// What was restored from a snapshot. Made by [`Limiter::restore`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// How many buckets are as full as they were, or fuller. Those that are empty by now are not
    /// counted.
    pub buckets: usize,
    /// How many of these share a bucket of the overflow, or none, because the limiter has no place
    /// for their keys: see [`Policy::at_cap`](crate::Policy::at_cap).
    pub without_place: usize,
    /// Policies of the snapshot that the limiter does not have: under another name, or global and
    /// not keyed, or with a window and not a rate, or the reverse.
    pub skipped_policies: Vec<String>,
}

impl Limiter {
    /// Writes a snapshot: what the buckets of all policies contain, blocks, bans and pauses.
    ///
    /// Write it when the process ends, and now and then, to a new file that is renamed when it is
    /// complete. What happens after the last snapshot is lost if the process is killed.
    /// [`restore`](Self::restore) reads it.
    ///
    /// The limiter needs a [`secret`](super::Builder::secret), with which the snapshot is signed.
    /// It contains no key that could be read without the secret, except addresses and integers.
    ///
    /// ```
    /// use tower_quota::{Limiter, Policy, Window};
    ///
    /// let build = || {
    ///     let policy = Policy::by_key(Window::weekly(100)).named("account");
    ///     Limiter::builder().policy(policy).secret(b"keep this out of the sources").build()
    /// };
    /// let limiter = build()?;
    /// limiter.acquire_n("account", "ann", 70)?;
    /// let mut file = Vec::new();
    /// limiter.snapshot(&mut file)?;
    ///
    /// // The next process.
    /// let limiter = build()?;
    /// let restored = limiter.restore(&file[..])?;
    /// assert_eq!(restored.buckets, 1);
    /// assert_eq!(limiter.peek("account", "ann")?.remaining(), 30);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard of a policy's map at a time, for as long as a sweep does, and nothing while
    /// it writes. The snapshot is in memory before it is written: 26 bytes for each key.
    ///
    /// # Errors
    ///
    /// When the limiter has no secret, or writing fails.
    pub fn snapshot(&self, to: impl Write) -> Result<(), SnapshotError> {
        let set = self.set();
        if !set.has_secret() {
            return Err(SnapshotError::NoSecret);
        }
        let (wall, now) = self.both_clocks();
        let policies = set.policies().iter().enumerate().zip(&self.parts.buckets.each);
        let record = policies.map(|((index, policy), buckets)| PolicyRecord {
            name: policy.name().to_owned(),
            is_global: policy.is_global(),
            has_windows: policy.limit().window().is_some(),
            penalties: set.penalties(index).map(super::penalties::Penalties::save).unwrap_or_default(),
            ..buckets.save(now)
        });
        snapshot::write(&Records { wall, now, policies: record.collect() }, set.hasher(), to)
    }

    /// Restores a snapshot that a limiter under the same [`secret`](super::Builder::secret) has
    /// written, and returns what was restored. Policies are found by their names; their limits may
    /// have changed, and what was used is used.
    ///
    /// Restoring never forgives: a bucket is as full as it is, or as full as the snapshot says,
    /// whichever is more. Time has passed for a bucket of a snapshot as for any other. A key that
    /// was [`reset`](Self::reset) in this limiter after the snapshot was written stays so. The plan
    /// that a key had is restored with its bucket, unless its policy does not have it any more.
    ///
    /// Restore before the first request, or at any time after it.
    ///
    /// # Errors
    ///
    /// When the limiter has no secret; when the snapshot cannot be read, is incomplete or altered,
    /// was written under another secret, by another version, or by a clock that was a second ahead
    /// of this one: then nothing has changed.
    pub fn restore(&self, from: impl Read) -> Result<Restored, SnapshotError> {
        let set = self.set();
        if !set.has_secret() {
            return Err(SnapshotError::NoSecret);
        }
        let caps = set.policies().iter().map(|policy| policy.cap().max_keys);
        // The sum of two caps can overflow where `usize` has 32 bits.
        let max_keys = caps.fold(0, usize::saturating_add);
        let records = snapshot::read(set.hasher(), max_keys, from)?;
        let (wall, now) = self.both_clocks();
        let ahead = Duration::from(records.wall.since(wall));
        // Clocks of two machines differ by less.
        if ahead >= Duration::from_secs(1) {
            return Err(SnapshotError::FromTheFuture(ahead));
        }
        let shift = Shift { from: (records.wall, records.now), to: (wall, now) };
        let mut restored = Restored::default();
        for record in records.policies {
            let same = |policy: &crate::Policy| {
                policy.name() == record.name
                    && policy.is_global() == record.is_global
                    && policy.limit().window().is_some() == record.has_windows
            };
            match set.policies().iter().position(same) {
                Some(index) => self.restore_policy(index, &record, shift, &mut restored),
                None => restored.skipped_policies.push(record.name),
            }
        }
        Ok(restored)
    }

    fn restore_policy(&self, index: usize, record: &PolicyRecord, shift: Shift, restored: &mut Restored) {
        let set = self.set();
        let (policy, buckets) = (&set.policies()[index], &self.parts.buckets.each[index]);
        buckets.restore(set, policy, record, shift, restored);
        let written_at = shift.written_at();
        // Not what was ended since.
        let stands = |key| {
            let ended = buckets.reset_mark(key).block;
            ended == Timestamp::ORIGIN || ended < written_at
        };
        let penalties = &record.penalties;
        if !penalties.blocks.is_empty() || penalties.bans.is_some() {
            buckets.know_penalties();
            set.penalties_or_new(index).restore(penalties, |time| shift.apply(time), stands, set.now());
        }
        for (key, until) in record.pauses.iter().filter(|(key, _)| stands(*key)) {
            let left = shift.left(*until, set.now());
            if !left.is_zero() {
                buckets.restore_pause(*key, left, set, policy);
            }
        }
        for (key, mark) in &record.resets {
            buckets.remember_reset(*key, mark.shifted(|time| shift.apply(time)), set, policy);
        }
    }

    /// The wall clock's time, and the limiter's.
    fn both_clocks(&self) -> (Timestamp, Timestamp) {
        let clock = self.set().clock();
        let now = clock.now();
        (clock.wall_time().unwrap_or(now), now)
    }
}

/// From times of the limiter that has written a snapshot to those of this one.
#[derive(Clone, Copy)]
pub(super) struct Shift {
    /// The wall clock's and the limiter's time when it was written.
    from: (Timestamp, Timestamp),
    /// The same of this limiter, now.
    to: (Timestamp, Timestamp),
}

impl Shift {
    /// What happened at one moment of the wall clock stays at it.
    pub(super) fn apply(self, time: Timestamp) -> Timestamp {
        if time == Timestamp::ORIGIN {
            return time;
        }
        let signed = |time: Timestamp| i128::from(time.as_nanos());
        let by = signed(self.to.1) - signed(self.to.0) - (signed(self.from.1) - signed(self.from.0));
        let shifted = (signed(time) + by).clamp(0, i128::from(u64::MAX));
        Timestamp::from_nanos(u64::try_from(shifted).unwrap_or(u64::MAX))
    }

    /// When the snapshot was written, by this limiter's clock.
    pub(super) fn written_at(self) -> Timestamp {
        self.apply(self.from.1)
    }

    /// The rest of a time that was left when it was written.
    pub(super) fn left(self, until: Timestamp, now: Timestamp) -> Nanos {
        self.apply(until).since(now)
    }
}
