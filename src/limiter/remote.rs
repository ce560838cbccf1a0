//! What a limiter does for one whose buckets are elsewhere: it makes the charges, and keeps what is known of the buckets.
//!
//! A bucket here is a lower bound of the one there, under the same quota: what was owed when it was last seen can only have
//! become less with time and more with the draws of others. So a refusal from here is a refusal there, and what is known is
//! not forgotten when the store is.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Charges, Grant, Limiter, buckets::Held, is_near};
use crate::{
    bucket::{Bucket, Drawn},
    decision::{Denied, Draw, Draws, Outcome, Trial, Trials},
    key::{Key, RequestHead},
    observe::{self, Source},
    policy::Charge,
    store::Room,
};

impl Limiter {
    /// # Errors
    ///
    /// The refusal of a request that lacks a key.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn charges(&self, head: RequestHead<'_>) -> Result<Charges, Denied> {
        let mut charges = Charges::new();
        self.shared.charge(head, &mut charges)?;
        Ok(charges)
    }

    /// The refusal that is certain already: a key is blocked, or owes too much as far as is known here.
    pub(crate) fn foresee(&self, charges: &Charges) -> Option<Denied> {
        if let Some(denied) = self.shared.blocked(charges) {
            return Some(denied);
        }
        let trials = charges.iter().map(|(policy, charge)| {
            let (bucket, now) = self.known(*policy, charge);
            trial(*policy, charge, bucket, now)
        });
        let trials: Trials = trials.collect();
        self.refusal(trials, charges, Source::Remembered)
    }

    /// What the store has said of these buckets: what each owed before the request, and whether that was granted. `at` is when
    /// it was asked, or before.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn learn(
        &self,
        charges: &Charges,
        owed: &[u64],
        granted: bool,
        at: u64,
        draws: &mut Draws,
    ) -> Result<Grant, Denied> {
        let mut trials = Trials::new();
        for ((policy, charge), owed) in charges.iter().zip(owed) {
            let trial = trial(*policy, charge, Bucket::from_bits(*owed), 0);
            let after = if granted { trial.backlog } else { *owed };
            self.raise(*policy, charge, Bucket::from_bits(at.saturating_add(after)));
            if granted {
                let left = Bucket::from_bits(after);
                let Charge { key, cells, .. } = *charge;
                let added = after - *owed;
                draws.push(Draw { trial, key, cells, added, generation: 0, left, from_overflow: false });
            }
            trials.push(trial);
        }
        if granted {
            for trial in &trials {
                // In shadow mode it may have refused.
                let allowed = trial.outcome == Outcome::Granted;
                let outcome = if allowed { observe::Outcome::Allowed } else { observe::Outcome::Refused };
                let policy = (trial.policy, self.shared.policies[trial.policy].name());
                let near = || allowed && is_near(trial.backlog, trial.quota);
                self.shared.meters.count(policy, outcome, trial.shadow, Source::Redis, near);
            }
            return Ok(Grant { at, wait: 0 });
        }
        // Where the server's arithmetic, which is in doubles, refuses what ours would not: by nanoseconds, in bursts of months.
        if !trials.iter().any(Trial::refuses) {
            if let Some(enforced) = trials.iter_mut().find(|trial| !trial.shadow) {
                enforced.outcome = Outcome::Wait(1);
            }
        }
        self.refusal(trials, charges, Source::Redis).map_or(Ok(Grant { at, wait: 0 }), Err)
    }

    /// Decides in the buckets here, as if there were no others.
    #[expect(clippy::result_large_err, reason = "made where it is returned, on the path that is not taken often")]
    pub(crate) fn decide_here(&self, charges: &Charges, draws: &mut Draws) -> Result<Grant, Denied> {
        self.shared.judge_all(charges, Some(draws), 0)
    }

    /// The refusal of a policy that will not decide without its store.
    pub(crate) fn unavailable(&self, policy: usize) -> Denied {
        let named = (policy, self.shared.policies[policy].name());
        self.shared.meters.count(named, observe::Outcome::Unavailable, false, Source::Alone, || false);
        Denied::unavailable(Arc::clone(&self.shared.policies), policy)
    }

    /// A draw that was learnt at `at` is put back there: so much less may be owed.
    pub(crate) fn unlearn(&self, policy: usize, charge: &Charge, nanos: u64, at: u64) {
        let Some(key) = self.key_under(policy, charge) else { return };
        let returned = nanos.saturating_sub(self.now().saturating_sub(at));
        let mut held = self.shared.buckets[policy].hold(key);
        if held.room() != Room::Own {
            return;
        }
        loop {
            let found = held.bucket();
            let less = Bucket::from_bits(found.to_bits().saturating_sub(returned));
            if found == less || held.write(found, less) {
                return;
            }
        }
    }

    /// A policy that lets pass what its store does not decide.
    pub(crate) fn passed(&self, policy: usize) {
        let named = (policy, self.shared.policies[policy].name());
        self.shared.meters.count(named, observe::Outcome::Allowed, false, Source::Open, || false);
    }

    fn refusal(&self, trials: Trials, charges: &Charges, source: Source) -> Option<Denied> {
        if !trials.iter().any(Trial::refuses) {
            return None;
        }
        let short = |(trial, (_, charge)): (&Trial, &(usize, Charge))| {
            matches!(trial.outcome, Outcome::Wait(_)).then_some((trial.policy, charge.key)).filter(|_| !trial.shadow)
        };
        let refused: SmallVec<[_; 4]> = trials.iter().zip(charges).filter_map(short).collect();
        Some(self.shared.denied(trials, &refused, &refused, self.now(), source))
    }

    fn known(&self, policy: usize, charge: &Charge) -> (Bucket, u64) {
        match self.key_under(policy, charge) {
            Some(key) => self.shared.buckets[policy].peek(key, &self.shared.clock),
            None => (Bucket::default(), self.now()),
        }
    }

    /// There each quota has a bucket of its own, and so it is here. The one bucket of a global policy is that of its own quota;
    /// of others nothing is known.
    fn key_under(&self, policy: usize, charge: &Charge) -> Option<Key> {
        let Charge { key, quota, .. } = *charge;
        if self.shared.policies[policy].is_global() {
            return (quota == self.shared.buckets[policy].quota()).then_some(key);
        }
        Some(self.shared.hasher.under(key, quota.cell_nanos(), quota.burst_size()))
    }

    /// A bucket owes at least so much. One without a place of its own is not told apart from others, and learns nothing.
    fn raise(&self, policy: usize, charge: &Charge, least: Bucket) {
        let buckets = &self.shared.buckets[policy];
        // What responses put back as a rule, here or elsewhere, is no lower bound for long.
        if least.is_idle(self.now()) || self.shared.policies[policy].asks_the_response() {
            return;
        }
        let Some(key) = self.key_under(policy, charge) else { return };
        let mut held: Held<'_> = buckets.hold(key);
        if held.room() != Room::Own {
            return;
        }
        loop {
            let found = held.bucket();
            if found.to_bits() >= least.to_bits() || held.write(found, least) {
                return;
            }
        }
    }
}

/// How a policy answers out of this bucket.
fn trial(policy: usize, charge: &Charge, bucket: Bucket, now: u64) -> Trial {
    let Charge { quota, cells, shadow, .. } = *charge;
    let drawn: Drawn = bucket.draw(now, quota, cells, 0);
    let after = if drawn.is_granted() { drawn.after } else { drawn.clamped };
    Trial { shadow, ..Trial::of(policy, quota, after, drawn, now) }
}
