//! [`Claim`]: one policy's part in a decision.
//!
//! Owns the steps from a held bucket to what is written into it. Knows nothing of the other policies' parts: the
//! limiter tells it whether all have granted.

use super::{
    Counted,
    buckets::{Buckets, Held},
    is_near,
};
use crate::{
    bucket::{Bucket, Drawn},
    decision::{Draw, Outcome, Trial},
    key::Key,
    policy::Charge,
    store::Room,
};

pub(super) struct Claim<'a> {
    policy: usize,
    buckets: &'a Buckets,
    charge: Charge,
    held: Held<'a>,
    room: Room,
    found: Bucket,
    /// Of the policy's buckets, as it was before this one was looked at.
    generation: u64,
    drawn: Drawn,
    /// The bucket as it will be if the request waits for its cells.
    reserved: Option<Bucket>,
}

impl<'a> Claim<'a> {
    /// Takes the bucket, and with it its lock, until this is dropped.
    #[inline(always)]
    pub(super) fn hold(policy: usize, mut charge: Charge, buckets: &'a Buckets) -> Self {
        let mut held = buckets.hold(charge.key);
        let mut room = held.room();
        if room == Room::Overflow {
            // Shared by keys of all plans: under a generous one, a client would spend what is others' too.
            let own = buckets.quota();
            if charge.cells > own.burst_size() && charge.cells <= charge.quota.burst_size() {
                // It could succeed, but only in a bucket of its own.
                (held, room) = (Held::Nothing, Room::Refused);
            }
            charge.quota = own;
        }
        let found = Bucket::default();
        Self { policy, buckets, charge, held, room, found, generation: 0, drawn: Drawn::nothing(found), reserved: None }
    }

    #[inline(always)]
    pub(super) fn look(&mut self) {
        // In this order: a cut that comes between makes the receipt void too early, and never too late.
        self.generation = self.buckets.generation();
        self.found = self.held.bucket();
    }

    /// Whether the request may pass as far as this policy is concerned, perhaps after a wait of `patience` nanoseconds at
    /// most. Writes nothing.
    #[inline(always)]
    pub(super) fn draw(&mut self, now: u64, patience: u64) -> bool {
        let Charge { quota, cells, shadow, .. } = self.charge;
        self.drawn = match self.room {
            Room::Own | Room::Overflow => self.found.draw(now, quota, cells, self.buckets.slack()),
            Room::Refused => Drawn::refused(self.found, Drawn::NEVER),
            Room::Untracked => Drawn::nothing(self.found),
        };
        if self.drawn.is_granted() || shadow {
            self.reserved = None;
            return true;
        }
        // With no patience, which is the rule, never true: a wait is at least a nanosecond.
        let worth_waiting = self.drawn.wait <= patience && self.drawn.wait != Drawn::NEVER;
        self.reserved =
            if worth_waiting { self.drawn.clamped.reserve(now, quota, cells, self.buckets.slack()) } else { None };
        self.reserved.is_some()
    }

    /// Nanoseconds that the request waits for this policy, if it is granted.
    pub(super) fn wait(&self) -> u64 {
        if self.reserved.is_some() { self.drawn.wait } else { 0 }
    }

    /// What is drawn if the request is granted. A policy in shadow mode that would refuse draws nothing.
    #[inline(always)]
    fn taken(&self) -> Option<Bucket> {
        self.reserved.or(self.drawn.is_granted().then_some(self.drawn.after))
    }

    /// Writes what the verdict over all makes of the bucket. A refused request charges nothing, but what is cut off stays
    /// cut off: else a client would be locked out again by going back to its former quota.
    ///
    /// False if the bucket has no lock and another draw came first: then everything is looked at again. The limiter's
    /// order puts such a bucket last, and it is written first.
    #[inline(always)]
    pub(super) fn write(&mut self, granted: bool) -> bool {
        let clamped = self.drawn.clamped;
        let outcome = self.taken().filter(|_| granted).unwrap_or(clamped);
        if outcome == self.found {
            return true;
        }
        if clamped != self.found {
            // Before the write: a receipt that is checked between the two is void too early, and not too late.
            self.buckets.advance_generation();
        }
        self.held.write(self.found, outcome)
    }

    /// What was drawn, to be returned by it.
    #[inline(always)]
    pub(super) fn receipt(&self, now: u64) -> Draw {
        let Charge { key, quota, cells, .. } = self.charge;
        let counted = matches!(self.room, Room::Own | Room::Overflow) && self.taken().is_some();
        Draw {
            trial: self.trial(now, true),
            key,
            cells,
            added: if counted { quota.cell_nanos() * u64::from(cells) } else { 0 },
            generation: self.generation,
            left: self.taken().unwrap_or(self.found),
            from_overflow: self.room == Room::Overflow,
        }
    }

    /// For the meters, of a request that is admitted.
    pub(super) fn counted(&self, now: u64) -> Counted {
        let Charge { quota, shadow, .. } = self.charge;
        let taken = self.taken();
        let near = taken.is_some_and(|after| is_near(after.backlog(now), quota));
        Counted { policy: self.policy, allowed: taken.is_some(), shadow, near }
    }

    /// How the policy stands: after the draw if the request is granted, as it was found if not.
    #[inline(always)]
    pub(super) fn trial(&self, now: u64, granted: bool) -> Trial {
        let bucket = self.taken().filter(|_| granted).unwrap_or(self.drawn.clamped);
        let mut trial = Trial::of(self.policy, self.charge.quota, bucket, self.drawn, now);
        trial.shadow = self.charge.shadow;
        if self.room == Room::Refused {
            trial.outcome = Outcome::AtCapacity;
        } else if self.reserved.is_some() {
            trial.outcome = Outcome::Granted;
        }
        trial
    }

    /// The policy and the key, if it refuses for want of cells. Who may wait for them is not refused.
    pub(super) fn strike(&self) -> Option<(usize, Key)> {
        let refuses = !self.drawn.is_granted() && self.reserved.is_none() && !self.charge.shadow;
        let short = refuses && self.drawn.wait != Drawn::NEVER;
        short.then_some((self.policy, self.charge.key))
    }

    /// Whether the policy's map had no room for the key.
    #[inline(always)]
    pub(super) fn is_crowded_out(&self) -> bool {
        self.room != Room::Own
    }
}
