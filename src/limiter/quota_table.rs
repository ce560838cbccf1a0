//! Contains [`QuotaTable`], the quotas that the buckets of one policy were last decided by, each
//! with a number of 16 bits that fits beside a bucket.
//!
//! This file must not know of buckets, nor of maps.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, DefaultHasher},
    sync::{OnceLock, PoisonError},
};

use crate::{
    observe::events,
    policy::Basis,
    quota::Quota,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
};

/// The number of a quota. Zero is the number of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct QuotaId(u16);

/// Numbers are given to quotas while a bucket is locked, and are read from a locked bucket. So a
/// number that is in a bucket stays the number of its quota: it is freed only after every bucket
/// was looked at, under its lock.
pub(super) struct QuotaTable {
    first: Box<[Slot; FIRST]>,
    /// Each as large as all before it. Allocated when first needed.
    rest: [OnceLock<Box<[Slot]>>; CHUNKS],
    /// The number that was given last, which most new buckets get.
    recent: AtomicU16,
    names: Mutex<Names>,
    reclaiming: Mutex<()>,
    /// Whether a quota found no number. Reported when no bucket is locked.
    overflowed: AtomicBool,
}

/// A basis in words. They change only while the number is free.
#[derive(Default)]
struct Slot {
    words: [AtomicU64; 3],
    /// No bucket had this number when all were looked at. It is given again only under the lock of
    /// the names.
    retired: AtomicBool,
}

#[derive(Default)]
struct Names {
    /// Without a seed, because a model must do the same in each run. Clients choose no quotas.
    ids: HashMap<Basis, u16, BuildHasherDefault<DefaultHasher>>,
    free: Vec<u16>,
    /// The largest number that was ever given.
    last: u16,
}

/// How many slots are there from the beginning.
const FIRST: usize = if cfg!(tower_quota_loom) { 4 } else { 16 };

/// With the first slots, 65,536 in all.
const CHUNKS: usize = if cfg!(tower_quota_loom) { 0 } else { 12 };

/// The largest number.
#[allow(clippy::cast_possible_truncation, reason = "65,535 at most")]
const LAST: u16 = ((FIRST << CHUNKS) - 1) as u16;

/// As many quotas stay whether or not a bucket has them: to look for them would be in vain.
const FEW: usize = if cfg!(tower_quota_loom) { 1 } else { 64 };

impl QuotaTable {
    pub(super) fn new() -> Self {
        Self {
            first: Box::new([(); FIRST].map(|()| Slot::default())),
            rest: [const { OnceLock::new() }; CHUNKS],
            recent: AtomicU16::new(0),
            names: Mutex::default(),
            reclaiming: Mutex::default(),
            overflowed: AtomicBool::new(false),
        }
    }

    /// The quota of a number that a locked bucket has.
    #[inline(always)]
    pub(super) fn get(&self, QuotaId(id): QuotaId) -> Option<Basis> {
        if id == 0 { None } else { self.slot(id).map(Slot::basis) }
    }

    /// Whether a number that a locked bucket has is that of `basis`.
    #[inline(always)]
    pub(super) fn is(&self, QuotaId(id): QuotaId, basis: Basis) -> bool {
        // The slot of the number of none is never written.
        self.slot(id).is_some_and(|slot| slot.is(basis))
    }

    #[inline(always)]
    fn slot(&self, id: u16) -> Option<&Slot> {
        self.first.get(usize::from(id)).or_else(|| self.later_slot(id))
    }

    #[inline(never)]
    fn later_slot(&self, id: u16) -> Option<&Slot> {
        let (chunk, at) = place(id);
        self.rest.get(chunk)?.get()?.get(at)
    }

    /// The number of this quota, for a bucket that is locked until it has the number. Zero where
    /// the table is full: the bucket then remembers no quota, and a change of quota keeps its time.
    #[inline]
    pub(super) fn id(&self, basis: Basis) -> QuotaId {
        let recent = self.recent.load(Ordering::Acquire);
        let usable = |slot: &Slot| !slot.retired.load(Ordering::Acquire) && slot.is(basis);
        if recent != 0 && self.slot(recent).is_some_and(usable) { QuotaId(recent) } else { self.id_under_lock(basis) }
    }

    #[cold]
    fn id_under_lock(&self, basis: Basis) -> QuotaId {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.ids.get(&basis).copied();
        let unused = || names.free.pop().or_else(|| (names.last < LAST).then(|| names.last + 1));
        let Some(id) = known.or_else(unused) else {
            self.overflowed.store(true, Ordering::Relaxed);
            return QuotaId::default();
        };
        names.last = names.last.max(id);
        names.ids.insert(basis, id);
        let slot = self.slot(id).unwrap_or_else(|| self.allocate(id));
        if known.is_none() {
            slot.write(basis);
        }
        if slot.retired.load(Ordering::Relaxed) {
            slot.retired.store(false, Ordering::Release);
        }
        self.recent.store(id, Ordering::Release);
        QuotaId(id)
    }

    fn allocate(&self, id: u16) -> &Slot {
        let (chunk, at) = place(id);
        &self.rest[chunk].get_or_init(|| slots(FIRST << chunk))[at]
    }

    /// Lets buckets forget that their quota was chosen, unless it `stays` so. From then on it
    /// counts as what the policy's own quota was at the time.
    pub(super) fn forget_plans(&self, stays: impl Fn(Quota) -> bool) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = names.ids.iter().filter(|(basis, _)| basis.planned && !stays(basis.quota));
        for (basis, id) in planned.map(|(basis, id)| (*basis, *id)).collect::<Vec<_>>() {
            // One bit of one word: no reader sees half of a change.
            if let Some(slot) = self.slot(id) {
                slot.words[2].fetch_and(!PLANNED, Ordering::Relaxed);
            }
            names.ids.remove(&basis);
            // Where this quota has another number, the buckets that have this one stay with it.
            names.ids.entry(Basis { planned: false, ..basis }).or_insert(id);
        }
    }

    /// Frees the numbers that no bucket has. `see_all` shows the number in every bucket, each under
    /// the lock of its bucket.
    ///
    /// It takes two calls. The first retires a number that it does not see. A thread may have read
    /// that number before, and still write it into a bucket that it has locked. The second call
    /// waits for that lock, and sees it. A thread that locks a bucket later sees that the number is
    /// retired.
    pub(super) fn reclaim(&self, see_all: impl FnOnce(&mut dyn FnMut(QuotaId))) {
        // Before anything is locked.
        if self.overflowed.swap(false, Ordering::Relaxed) {
            events::too_many_quotas();
        }
        let _one_at_a_time = self.reclaiming.lock().unwrap_or_else(PoisonError::into_inner);
        if self.names.lock().unwrap_or_else(PoisonError::into_inner).ids.len() <= FEW {
            return;
        }
        let mut seen = vec![false; usize::from(LAST) + 1];
        see_all(&mut |QuotaId(id)| seen[usize::from(id)] = true);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Names { ids, free, .. } = &mut *names;
        ids.retain(|_, id| {
            let Some(slot) = self.slot(*id) else { return true };
            let retired = slot.retired.load(Ordering::Acquire);
            let in_use = seen[usize::from(*id)];
            if retired == in_use {
                slot.retired.store(!in_use, Ordering::Release);
            }
            if retired && !in_use {
                free.push(*id);
            }
            in_use || !retired
        });
    }
}

impl Slot {
    #[inline(always)]
    fn basis(&self) -> Basis {
        let [counts, period, cell] = &self.words;
        let [counts, period, cell] =
            [counts.load(Ordering::Relaxed), period.load(Ordering::Relaxed), cell.load(Ordering::Relaxed)];
        Basis { quota: Quota::from_words([counts, period, cell & !PLANNED]), planned: cell & PLANNED != 0 }
    }

    #[inline(always)]
    fn is(&self, basis: Basis) -> bool {
        let ([counts, _, cell], wanted) = (&self.words, words(basis));
        // With the same counts and the same time of a cell, any period decides alike.
        counts.load(Ordering::Relaxed) == wanted[0] && cell.load(Ordering::Relaxed) == wanted[2]
    }

    fn write(&self, basis: Basis) {
        for (word, new) in self.words.iter().zip(words(basis)) {
            word.store(new, Ordering::Relaxed);
        }
    }
}

#[inline(always)]
fn words(Basis { quota, planned }: Basis) -> [u64; 3] {
    let [counts, period, cell] = quota.to_words();
    [counts, period, cell | u64::from(planned) << 63]
}

/// No cell takes so long.
const PLANNED: u64 = 1 << 63;

fn slots(count: usize) -> Box<[Slot]> {
    (0..count).map(|_| Slot::default()).collect()
}

/// The chunk of a number beyond the first slots, and its place there.
fn place(id: u16) -> (usize, usize) {
    let id = usize::from(id);
    let chunk = (id / FIRST).ilog2() as usize;
    (chunk, id - (FIRST << chunk))
}

#[cfg(all(test, not(tower_quota_loom)))]
mod tests {
    use super::*;

    fn quota(n: u32) -> Basis {
        Basis { quota: Quota::per_hour(n / 2 + 1), planned: n % 2 == 1 }
    }

    #[test]
    fn a_number_is_that_of_its_quota() {
        let table = QuotaTable::new();
        assert_eq!(table.get(QuotaId::default()), None);
        let ids: Vec<_> = (0..1_000).map(|n| table.id(quota(n))).collect();
        for (n, id) in (0..).zip(&ids) {
            assert_eq!(table.get(*id), Some(quota(n)));
            assert_eq!(table.id(quota(n)), *id);
        }
    }

    #[test]
    fn a_full_table_gives_no_number_and_forgets_none() {
        let table = QuotaTable::new();
        let numbered = (0..70_000).filter(|n| table.id(quota(*n)) != QuotaId::default());
        assert_eq!(numbered.count(), 65_535);
        assert_eq!(table.get(table.id(quota(65_000))), Some(quota(65_000)));
        assert_eq!(table.id(quota(69_000)), QuotaId::default());
    }

    #[test]
    fn numbers_that_no_bucket_has_are_free_after_two_looks() {
        let table = QuotaTable::new();
        let ids: Vec<_> = (0..65_535).map(|n| table.id(quota(n))).collect();
        let used = |see: &mut dyn FnMut(QuotaId)| ids[..10].iter().for_each(|id| see(*id));
        table.reclaim(used);
        assert_eq!(table.id(quota(70_000)), QuotaId::default(), "one look is not enough");
        // Given again since.
        assert_eq!(table.id(quota(20)), ids[20]);
        table.reclaim(used);
        for n in (0..10).chain([20]) {
            assert_eq!((table.get(ids[n as usize]), table.id(quota(n))), (Some(quota(n)), ids[n as usize]));
        }
        let again = (100_000..170_000).filter(|n| table.id(quota(*n)) != QuotaId::default());
        assert_eq!(again.count(), 65_535 - 11);
    }

    #[test]
    fn a_few_quotas_stay() {
        let table = QuotaTable::new();
        let id = table.id(quota(1));
        for _ in 0..3 {
            table.reclaim(|_| {});
        }
        assert_eq!((table.get(id), table.id(quota(1))), (Some(quota(1)), id));
    }
}

#[cfg(all(test, tower_quota_loom))]
mod models {
    use std::sync::Arc;

    use loom::thread;

    use super::*;

    /// A number that a bucket gets beside two sweeps is not free.
    #[test]
    fn loom_a_number_in_a_bucket_is_not_given_to_another_quota() {
        loom::model(|| {
            let basis = |cells| Basis { quota: Quota::per_hour(cells), planned: false };
            let [old, new] = [1, 2].map(basis);
            let table = Arc::new(QuotaTable::new());
            let bucket = Arc::new(Mutex::new(QuotaId::default()));
            table.id(old);
            table.id(new);
            let writer = thread::spawn({
                let (table, bucket) = (Arc::clone(&table), Arc::clone(&bucket));
                move || {
                    let mut bucket = bucket.lock().unwrap();
                    *bucket = table.id(new);
                }
            });
            for _ in 0..2 {
                table.reclaim(|see| see(*bucket.lock().unwrap()));
            }
            writer.join().unwrap();
            let id = *bucket.lock().unwrap();
            assert_eq!(table.get(id), Some(new));
            let names = table.names.lock().unwrap();
            assert!(names.ids.get(&new) == Some(&id.0) && !names.free.contains(&id.0), "{id:?} is given again");
        });
    }
}
