//! Contains how the buckets of one policy are saved in a snapshot, and restored from one.
//!
//! This file must not know of the format.

use std::collections::HashMap;

use super::{
    bucket_guard::BucketGuard,
    keyed_buckets::KeyedGuard,
    local_buckets::{PolicyBuckets, Slack},
    policy_set::PolicySet,
    snapshot::{Restored, Shift},
};
use crate::{
    bucket::Bucket,
    clock::{Clock, Nanos, Timestamp},
    key::Key,
    policy::{Basis, Policy},
    snapshot::{PolicyRecord, SavedBucket},
    store::Placement,
};

/// Gives numbers to what buckets were decided by, each the same again.
#[derive(Default)]
struct Numbers {
    ids: HashMap<Basis, u16>,
    bases: Vec<Basis>,
    /// What most buckets were decided by.
    last: Option<(Basis, u16)>,
}

impl Numbers {
    /// Zero where there is none, or there are too many.
    fn of(&mut self, basis: Option<Basis>) -> u16 {
        let Some(basis) = basis else { return 0 };
        if let Some((_, id)) = self.last.filter(|(last, _)| *last == basis) {
            return id;
        }
        let id = self.ids.get(&basis).copied().or_else(|| {
            let id = u16::try_from(self.bases.len() + 1).ok()?;
            self.bases.push(basis);
            self.ids.insert(basis, id);
            Some(id)
        });
        self.last = id.map(|id| (basis, id));
        id.unwrap_or(0)
    }
}

impl PolicyBuckets {
    /// What a snapshot says of the buckets that are used at `now`.
    ///
    /// # Locking behaviour
    ///
    /// Locks one shard at a time, and allocates nothing for the keys under it.
    pub(super) fn save(&self, now: Timestamp) -> PolicyRecord {
        let (mut record, mut numbers) =
            (PolicyRecord { slack: self.slack(), ..PolicyRecord::default() }, Numbers::default());
        match self.keyed() {
            None => {
                let used = self.read_global().filter(|(bucket, _)| !bucket.is_idle(self.idle_until(now)));
                if let Some((bucket, basis)) = used {
                    record.buckets.push((Key::GLOBAL, SavedBucket { bucket, basis: numbers.of(Some(basis)) }));
                }
            }
            Some(keyed) => {
                let (store, quotas) = (keyed.store(), keyed.quotas());
                // Read once for all keys. What is idle at this time is full at every later time.
                let idle_until = self.idle_until(now);
                // Written once, so that no page of it is new to the system while a shard is locked.
                let unused = (Key::GLOBAL, SavedBucket { bucket: Bucket::from_bits(u64::MAX), basis: 0 });
                record.buckets.resize(store.len() + store.len() / 16, unused);
                record.buckets.clear();
                store.see_keys(|key, numbered| {
                    if !numbered.bucket().is_idle(idle_until) {
                        let basis = numbers.of(quotas.get(numbered.quota()));
                        record.buckets.push((key, SavedBucket { bucket: numbered.bucket(), basis }));
                    }
                });
                store.see_overflow(|slot, numbered| {
                    if let (false, Ok(slot)) = (numbered.bucket().is_idle(idle_until), u32::try_from(slot)) {
                        let basis = numbers.of(quotas.get(numbered.quota()));
                        record.overflow.push((slot, SavedBucket { bucket: numbered.bucket(), basis }));
                    }
                });
                record.overflow_len = u32::try_from(store.overflow_len()).unwrap_or(u32::MAX);
            }
        }
        record.window_end = self.window().map(|window| window.end_at(now)).unwrap_or_default();
        record.bases = numbers.bases;
        record.pauses = self.pauses().map(super::pauses::Pauses::save).unwrap_or_default();
        record.resets = self.resets().map(super::resets::Resets::all).unwrap_or_default();
        record
    }

    /// Restores what a snapshot says of the policy's buckets.
    pub(super) fn restore(
        &self,
        set: &PolicySet,
        policy: &Policy,
        record: &PolicyRecord,
        shift: Shift,
        restored: &mut Restored,
    ) {
        self.allow_slack(Slack::OfReservation(record.slack));
        let own = Basis { quota: policy.basis(), planned: false };
        let basis = |saved: SavedBucket| {
            let basis = usize::from(saved.basis).checked_sub(1).and_then(|at| record.bases.get(at)).copied();
            let basis = basis.unwrap_or(own);
            Basis { planned: basis.planned && policy.restores_plan(basis.quota), ..basis }
        };
        let bucket = |saved: SavedBucket| match self.window() {
            Some(window) => window.bucket_of_now(saved.bucket, record.window_end, set.now()),
            None => Bucket::from_bits(shift.apply(saved.bucket.full_at()).as_nanos()),
        };
        for (key, saved) in &record.buckets {
            // What was reset since stays so.
            let reset = self.reset_mark(*key).bucket;
            if reset != Timestamp::ORIGIN && reset >= shift.written_at() {
                continue;
            }
            let guard = self.guard(*key);
            let placement = guard.placement();
            if self.restore_bucket(guard, bucket(*saved), (basis(*saved), own), set.clock()) {
                restored.buckets += 1;
                restored.without_place += usize::from(placement != Placement::Own);
            }
        }
        let Some(keyed) = self.keyed() else { return };
        let slots = keyed.store().overflow_len();
        for (slot, saved) in &record.overflow {
            let slot = *slot as usize;
            // In a table of another length nobody knows whose slot it was: everybody's.
            let all = if slots == record.overflow_len as usize && slot < slots { slot..slot + 1 } else { 0..slots };
            for slot in all {
                let guard = BucketGuard::Keyed(KeyedGuard::slot(keyed, slot));
                self.restore_bucket(guard, bucket(*saved), (basis(*saved), own), set.clock());
            }
        }
    }

    /// Makes a bucket at least as full as it was saved, by whatever it is decided by now. False
    /// where the saved one is empty by now.
    fn restore_bucket(
        &self,
        mut guard: BucketGuard<'_>,
        saved: Bucket,
        (basis, own): (Basis, Basis),
        clock: &Clock,
    ) -> bool {
        self.allow_quota(basis.quota);
        // A slot that keys share is nobody's plan.
        let is_own = guard.placement() == Placement::Own;
        let wanted = if is_own { basis } else { own };
        loop {
            let (found, remembered) = guard.read(wanted);
            let now = self.idle_until(clock.now());
            if saved.is_idle(now) {
                return false;
            }
            let from = basis.quota.cell_nanos();
            let used = !found.is_idle(now);
            let to = if used { remembered.cell(wanted.quota) } else { wanted.quota.cell_nanos() };
            let converted = saved.converted(now, from, to);
            // What was used is not cut, also where the burst is smaller now.
            self.allow_burst(converted.backlog(now));
            let fuller = Bucket::from_bits(found.to_bits().max(converted.to_bits()));
            if (used && fuller == found) || guard.write(found, fuller, (!used).then_some(wanted)) {
                return true;
            }
        }
    }

    /// Pauses a key of a snapshot for the rest of its time. Its bucket has moved with the pause
    /// before it was saved.
    pub(super) fn restore_pause(&self, key: Key, left: Nanos, set: &PolicySet, policy: &Policy) {
        let swept_as = set.swept_as(policy);
        self.pauses_or_new(set.clock(), swept_as.as_ref()).extend(key, set.now(), left);
    }
}
