//! [`Claim`]: one policy's part in a decision.
//!
//! Owns the steps from a held bucket to what is written into it. Knows nothing of the other policies' parts: the
//! limiter tells it whether all have granted.

use std::mem;

use super::buckets::{Buckets, Held};
use crate::{
    bucket::{Bucket, Drawn},
    decision::{Draw, Outcome, Trial},
    policy::{Charge, Policy},
    store::Room,
};

pub(super) struct Claim<'a> {
    policy: usize,
    buckets: &'a Buckets,
    /// `None` where the policy does not apply: then nothing is held, and every step is passed over.
    charge: Option<Charge>,
    held: Held<'a>,
    room: Room,
    found: Bucket,
    /// Of the policy's buckets, as it was before this one was looked at.
    generation: u64,
    drawn: Drawn,
}

impl<'a> Claim<'a> {
    #[inline(always)]
    pub(super) fn new(policy: usize, buckets: &'a Buckets) -> Self {
        let found = Bucket::default();
        let drawn = Drawn::Grant { after: found, added: 0 };
        Self { policy, buckets, charge: None, held: Held::Released, room: Room::Own, found, generation: 0, drawn }
    }

    #[inline(always)]
    pub(super) fn set_charge(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    /// Takes the bucket, and with it its lock.
    #[inline(always)]
    pub(super) fn hold(&mut self, policies: &[Policy]) {
        if let Some(charge) = &mut self.charge {
            self.held = self.buckets.hold(charge.key);
            self.room = self.held.room();
            if self.room == Room::Overflow {
                // Shared by keys of all plans: under a generous one, a client would spend what is others' too.
                let own = policies[self.policy].quota();
                if charge.cells > own.burst_size() && charge.cells <= charge.quota.burst_size() {
                    // It could succeed, but only in a bucket of its own.
                    self.held = Held::Released;
                    self.room = Room::Refused;
                }
                charge.quota = own;
            }
        }
    }

    #[inline(always)]
    pub(super) fn look(&mut self) {
        // In this order: a cut that comes between makes the receipt void too early, and never too late.
        self.generation = self.buckets.generation();
        self.found = self.held.bucket();
    }

    /// Whether the bucket has the cells. Writes nothing.
    #[inline(always)]
    pub(super) fn draw(&mut self, now: u64) -> bool {
        if let Some(Charge { quota, cells, .. }) = &self.charge {
            self.drawn = match self.room {
                Room::Untracked => Drawn::Grant { after: self.found, added: 0 },
                Room::Refused => Drawn::Never { clamped: self.found },
                Room::Own | Room::Overflow => self.found.draw(now, *quota, *cells),
            };
        }
        matches!(self.drawn, Drawn::Grant { .. })
    }

    /// Writes to a bucket without a lock. False if another draw came first: then everything is looked at again.
    #[inline(always)]
    pub(super) fn exchange(&self, granted: bool) -> bool {
        if !matches!(self.held, Held::Lone(_)) {
            return true;
        }
        let Some(after) = self.outcome(granted) else { return true };
        if self.is_cut() {
            // Before the exchange: a receipt that is checked between the two is void too early, not too late.
            self.buckets.advance_generation();
        }
        self.held.exchange(self.found, after)
    }

    /// Writes to a locked bucket what the verdict makes of it, and releases it.
    #[inline(always)]
    pub(super) fn settle(&mut self, granted: bool) {
        let held = mem::replace(&mut self.held, Held::Released);
        if let Some(after) = self.outcome(granted) {
            if self.is_cut() && !matches!(held, Held::Lone(_)) {
                self.buckets.advance_generation();
            }
            held.write(after);
        }
    }

    /// What becomes of the bucket, if anything. A refused request charges nothing, but what is cut off stays cut off:
    /// else a client would be locked out again by going back to its former quota.
    #[inline(always)]
    fn outcome(&self, granted: bool) -> Option<Bucket> {
        let after = match self.drawn {
            Drawn::Grant { after, added } if granted || added == 0 => after,
            Drawn::Grant { .. } => self.found,
            Drawn::Wait { clamped, .. } | Drawn::Never { clamped } => clamped,
        };
        (after != self.found).then_some(after)
    }

    /// Whether backlog is cut off, and not merely added.
    #[inline(always)]
    fn is_cut(&self) -> bool {
        match self.drawn {
            Drawn::Grant { after, added } => added == 0 && after != self.found,
            Drawn::Wait { clamped, .. } | Drawn::Never { clamped } => clamped != self.found,
        }
    }

    /// What was drawn, to be returned by it. To be asked while it is held.
    #[inline(always)]
    pub(super) fn receipt(&self, now: u64) -> Option<Draw> {
        let added = match self.drawn {
            Drawn::Grant { added, .. } => added,
            Drawn::Wait { .. } | Drawn::Never { .. } => 0,
        };
        Some(Draw {
            trial: self.trial(now, true)?,
            key: self.charge.as_ref()?.key,
            added,
            generation: self.generation,
            from_overflow: self.room == Room::Overflow,
        })
    }

    /// How the policy stands, where it applies: after the draw if the request is granted, as it was found if not.
    #[inline(always)]
    pub(super) fn trial(&self, now: u64, granted: bool) -> Option<Trial> {
        let quota = self.charge.as_ref()?.quota;
        let bucket = match self.drawn {
            Drawn::Grant { after, .. } if granted => after,
            _ => self.found,
        };
        let outcome = match (self.room, self.drawn) {
            (Room::Refused, _) => Outcome::AtCapacity,
            (_, Drawn::Grant { .. }) => Outcome::Granted,
            (_, Drawn::Wait { wait, .. }) => Outcome::Wait(wait),
            (_, Drawn::Never { .. }) => Outcome::Never,
        };
        Some(Trial { policy: self.policy, quota, backlog: bucket.backlog(now, quota), outcome })
    }

    /// Whether the policy's map had no room for the key.
    #[inline(always)]
    pub(super) fn is_crowded_out(&self) -> bool {
        self.room != Room::Own
    }

    /// Asks for room.
    pub(super) fn press(&self) {
        self.buckets.press();
    }
}
