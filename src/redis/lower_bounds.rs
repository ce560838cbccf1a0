//! Contains [`LowerBounds`]: what a process knows of the buckets in Redis.
//!
//! What is known of a bucket is a lower bound of it, under one quota: its backlog, when it was last
//! seen, can only have shrunk with time and grown by the requests of others. So a denial that
//! follows from a bound is the denial that Redis would give. A bound is never evicted before its
//! time is over, and ends with its [`Epoch`].

use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use super::{
    epochs::{Epoch, Epochs},
    names::Principal,
    protocol::{BucketState, Decided, PauseState, ServerTime},
    windows::{ServerWindow, WindowTimes},
};
use crate::{
    bucket::{Bucket, Evaluation},
    clock::{Nanos, Timestamp},
    decision::{Denied, Level, PolicyOutcome, PolicyOutcomes, Receipt, ReceiptOrigin, Receipts, Verdict, WindowLeft},
    key::Key,
    limiter::{Demands, Grant, MAX_PATIENCE, Pause, Pauses, PolicySet, is_near_limit, start_sweeping},
    observe::metrics::{DecidedBy, Outcome},
    policy::Demand,
    quota::Quota,
    store::{AtCap, Cap, Expiring, Placement, Store},
    sweeper::Sweeping,
};

pub(super) struct LowerBounds {
    /// One for each policy, in the limiter's order.
    each: Box<[PolicyBounds]>,
    pub(super) epochs: Epochs,
}

/// What is known of one policy.
struct PolicyBounds {
    /// By key and quota.
    buckets: Arc<Store<Known>>,
    /// The ends of blocks, by key.
    blocks: Arc<Store<Known>>,
    /// By the key of the principal. Made with the first one.
    pauses: OnceLock<Pauses>,
    _sweepings: Vec<Sweeping>,
}

/// A time, known in an epoch.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    until: Timestamp,
    epoch: Epoch,
}

impl Expiring for Known {
    fn is_over(self, now: Timestamp) -> bool {
        self.until <= now
    }
}

impl Known {
    fn since(self, epoch: Epoch) -> Timestamp {
        if self.epoch == epoch { self.until } else { Timestamp::ORIGIN }
    }
}

/// What a request asks of a policy, and in which epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) policy: usize,
    pub(super) demand: Demand,
    pub(super) principal: Principal,
    pub(super) epoch: Epoch,
    /// Around now, for a policy with windows.
    pub(super) window: Option<WindowTimes>,
    /// The current window, as far as the server's time is known.
    pub(super) current: Option<ServerWindow>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedBy {
    /// A caller that names keys. The plan of a key may have changed with any call for it, so only
    /// Redis can deny.
    Caller,
    Request,
}

/// What a request asks of all policies, in the limiter's order.
pub(super) type AllAsked = SmallVec<[Asked; 4]>;

pub(super) fn demands_of(asked: &[Asked]) -> Demands {
    asked.iter().map(|asked| (asked.policy, asked.demand)).collect()
}

/// How a policy answers by a bucket.
struct BucketAnswer {
    outcome: PolicyOutcome,
    /// Until the cells of a granted request are there.
    wait: Nanos,
    /// How far the bucket is ahead then.
    ahead: Nanos,
    /// The backlog where another policy denies.
    unacquired: Nanos,
    /// Whether the bucket is then one of the quota of the request.
    takes_over: bool,
}

impl BucketAnswer {
    /// The outcome of a denied request.
    fn denied(mut self) -> PolicyOutcome {
        self.outcome.backlog = self.unacquired;
        self.outcome
    }
}

/// A ban that a denial has brought about: policy, key, and length.
pub(super) type NewBans = SmallVec<[(usize, Key, Nanos); 1]>;

/// A denial, and the bans that it has brought about.
pub(super) type DeniedWithBans = (Denied, NewBans);

/// For a global policy: one for each quota that `quota_by` chooses.
const MAX_GLOBAL_QUOTAS: usize = 1_024;

impl LowerBounds {
    pub(super) fn new(set: &PolicySet, cached_keys: usize) -> Self {
        let each = set.policies().iter().map(|policy| {
            let max_keys = if policy.is_global() { MAX_GLOBAL_QUOTAS } else { cached_keys };
            let cap = Cap::new(max_keys, AtCap::Deny);
            // A key without a place of its own is not cached.
            let store = || Arc::new(Store::new(cap, set.clock().clone()));
            let (buckets, blocks) = (store(), store());
            let sweep = |store: &Arc<Store<Known>>, what: &str| {
                let name = set.swept_as(policy)?;
                Some(start_sweeping(format!("{name}{what}").into(), store, policy))
            };
            let sweepings = [sweep(&buckets, ""), sweep(&blocks, " (blocks)")];
            let sweepings = sweepings.into_iter().flatten().collect();
            PolicyBounds { buckets, blocks, pauses: OnceLock::new(), _sweepings: sweepings }
        });
        Self { each: each.collect(), epochs: Epochs::new() }
    }

    /// The denial that is certain without asking Redis: a key is blocked, or its backlog is known
    /// to be too long for a request that waits no longer than `patience`.
    pub(super) fn cached_denial(
        &self,
        set: &PolicySet,
        asked: &[Asked],
        asked_by: AskedBy,
        patience: Nanos,
    ) -> Option<DeniedWithBans> {
        let known = |asked: &Asked, patience: Nanos| {
            let Asked { policy, demand, epoch, .. } = *asked;
            let entry = self.each[policy].buckets.get(set.hasher().under_quota(demand.key, demand.quota));
            // Read under the lock: a time from before a wait for it would overstate the backlog.
            let now = set.now();
            let until = entry.as_deref().copied().unwrap_or_default().since(epoch);
            drop(entry);
            // What is used of a window is not known here.
            let window = asked.current;
            let known = if window.is_some() { Nanos::ZERO } else { until.since(now) };
            answer(policy, &demand, &BucketState { window, ..BucketState::with_backlog(known) }, patience).denied()
        };
        let blocks = |asked: &Asked| {
            let blocks = &self.each[asked.policy].blocks;
            if blocks.len() == 0 { None } else { blocks.get(asked.demand.key).map(|until| until.since(asked.epoch)) }
        };
        if asked.iter().any(|asked| blocks(asked).is_some()) {
            let denied = set.denial_of_blocked(
                &demands_of(asked),
                DecidedBy::Cache,
                |index| blocks(&asked[index]),
                |index| known(&asked[index], Nanos::ZERO),
            );
            if let Some(denied) = denied {
                return Some((denied, NewBans::new()));
            }
        }
        // A larger quota may have been chosen for the key, by a process that is not known here.
        let may_be_granted =
            |asked: &Asked| !asked.demand.planned && asked.demand.cells > asked.demand.quota.burst_size();
        if asked_by == AskedBy::Caller || asked.iter().any(may_be_granted) {
            return None;
        }
        let outcomes: PolicyOutcomes = asked.iter().map(|asked| known(asked, patience)).collect();
        denial(set, outcomes, asked, |_| false, DecidedBy::Cache)
    }

    /// Records what Redis has replied. `at` is when Redis was asked, or before.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(super) fn record_reply(
        &self,
        set: &PolicySet,
        asked: &[Asked],
        decided: &Decided,
        at: Timestamp,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, DeniedWithBans> {
        let states = decided.buckets.iter().copied();
        let answered: SmallVec<[_; 4]> = asked.iter().copied().zip(states).map(|each| (each, decided.at)).collect();
        self.record_replies(set, &answered, decided.granted, at, patience, receipts)
    }

    /// Records what servers have replied, each at a time of its own.
    #[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
    pub(super) fn record_replies(
        &self,
        set: &PolicySet,
        answered: &[((Asked, BucketState), ServerTime)],
        granted: bool,
        at: Timestamp,
        patience: Nanos,
        receipts: &mut Receipts,
    ) -> Result<Grant, DeniedWithBans> {
        let mut outcomes = PolicyOutcomes::new();
        let mut wait = Nanos::ZERO;
        // Nobody waits for cells under a block.
        let is_blocked =
            |((asked, state), _): &((Asked, BucketState), _)| !asked.demand.shadow && !state.blocked.is_zero();
        let patience = if answered.iter().any(is_blocked) { Nanos::ZERO } else { patience };
        for ((asked, state), replied_at) in answered {
            let Asked { policy, mut demand, .. } = *asked;
            let own = state.plan.is_none();
            demand.quota = state.decided_by(demand.quota);
            self.record_pause_of_reply(set, asked, at, state.pause);
            let mut answer = answer(policy, &demand, state, patience);
            if granted && !demand.shadow {
                // In bursts of months the server, which computes in doubles, may grant by
                // nanoseconds what this process would deny.
                answer.outcome.verdict = Verdict::Granted;
            }
            let acquired = granted && answer.outcome.verdict == Verdict::Granted;
            let bound = if state.window.is_some() || !state.pause.left.is_zero() {
                // A bound says nothing of a pause, and the denial has to.
                None
            } else if acquired {
                Some(answer.outcome.backlog)
            } else if answer.outcome.verdict == Verdict::Granted {
                // What another policy has denied.
                state.from.is_none().then_some(state.backlog)
            } else {
                answer.takes_over.then_some(answer.unacquired)
            };
            let mut asked = *asked;
            if state.from.is_some() && (acquired || answer.takes_over) {
                // What is known of the bucket under its former quota is true no more.
                asked.epoch = self.epochs.end_this(asked.principal, asked.epoch).unwrap_or(asked.epoch);
            }
            if let (Some(bound), true) = (bound, own) {
                self.raise(set, &asked, at.saturating_add(bound));
            }
            self.record_block_of_reply(&asked, at, state.blocked);
            if granted {
                receipts.push(receipt(&demand, state, &answer, acquired, replied_at.timestamp()));
                wait = wait.max(answer.wait);
            }
            outcomes.push(if granted { answer.outcome } else { answer.denied() });
        }
        if granted {
            for outcome in &outcomes {
                // In shadow mode the policy may have denied.
                let allowed = outcome.verdict == Verdict::Granted;
                let counted = if allowed { Outcome::Allowed } else { Outcome::Denied };
                let near_limit = || allowed && is_near_limit(outcome.backlog, outcome.quota());
                let policy = (outcome.policy, &set.policies()[outcome.policy]);
                set.count(policy, counted, outcome.shadow, DecidedBy::Redis, near_limit);
            }
            return Ok(Grant { at, wait });
        }
        denial_of_reply(set, answered, outcomes, at)
    }

    /// The denial of a request one of whose keys was blocked when Redis was last asked: for the
    /// time without it, in which nobody says otherwise.
    pub(super) fn last_known_block(&self, set: &PolicySet, asked: &[Asked]) -> Option<Denied> {
        let until = |index: usize| {
            let Asked { policy, demand, .. } = asked[index];
            let blocks = &self.each[policy].blocks;
            if blocks.len() == 0 { None } else { blocks.get(demand.key).map(|known| known.until) }
        };
        let known = |index: usize| {
            let Asked { policy, demand, current: window, .. } = asked[index];
            let empty = BucketState { window, ..BucketState::with_backlog(Nanos::ZERO) };
            answer(policy, &demand, &empty, Nanos::ZERO).denied()
        };
        if (0..asked.len()).all(|index| until(index).is_none()) {
            return None;
        }
        set.denial_of_blocked(&demands_of(asked), DecidedBy::Cache, until, known)
    }

    /// Records a refund of what was recorded at `at`: the backlog may be so much shorter.
    pub(super) fn record_refund(
        &self,
        set: &PolicySet,
        policy: usize,
        (key, quota): (Key, Quota),
        refund: Nanos,
        at: Timestamp,
    ) {
        if let Some(mut known) = self.each[policy].buckets.get(set.hasher().under_quota(key, quota)) {
            let left = refund.saturating_sub(set.now().since(at));
            known.until = known.until.saturating_sub(left);
        }
    }

    /// Records until when a key is blocked, as it is now: what is known is known from here on, and
    /// outlasts this epoch for the time without Redis.
    pub(super) fn record_block(&self, policy: usize, key: Key, until: Timestamp, epoch: Epoch) {
        let mut guard = self.each[policy].blocks.guard(key);
        if guard.placement() == Placement::Own {
            guard.write(Known { until, epoch });
        }
    }

    /// Records how long a reply says that a key is blocked, which may be not at all. Where its
    /// epoch has ended, that is for the time without Redis, and only if nothing newer is known.
    fn record_block_of_reply(&self, asked: &Asked, at: Timestamp, blocked: Nanos) {
        let Asked { policy, demand, principal, epoch, .. } = *asked;
        let blocks = &self.each[policy].blocks;
        if blocked.is_zero() && blocks.len() == 0 {
            return;
        }
        let known = blocks.get(demand.key).map(|known| known.epoch);
        // One of this epoch that the reply does not know is a ban that is on its way to Redis.
        let is_newer = known == Some(self.epochs.of(principal));
        if !blocked.is_zero() && (!is_newer || known == Some(epoch)) {
            self.record_block(policy, demand.key, at.saturating_add(blocked), epoch);
        } else if blocked.is_zero() && known.is_some() && !is_newer {
            self.record_block(policy, demand.key, Timestamp::ORIGIN, epoch);
        }
    }

    /// The pauses of a principal, as far as they are known here.
    pub(super) fn pause_of(&self, policy: usize, principal: Principal) -> Pause {
        self.each[policy].pauses.get().map(|pauses| pauses.of(principal.key())).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn knows_pauses(&self, policy: usize) -> bool {
        self.each[policy].pauses.get().is_some()
    }

    /// Records how long a principal is paused, from now on.
    pub(super) fn record_pause(&self, set: &PolicySet, policy: usize, principal: Principal, pause: PauseState) {
        let swept_as = set.swept_as(&set.policies()[policy]);
        let pauses = self.each[policy].pauses.get_or_init(|| Pauses::new(set.clock(), swept_as.as_ref()));
        let pause = Pause { until: set.now().saturating_add(pause.left), total: pause.total };
        // Whoever waits does so for no longer than this after the end.
        pauses.record(principal.key(), pause, pause.until.saturating_add(MAX_PATIENCE));
    }

    /// Records what a reply says of a pause, unless something newer is known.
    fn record_pause_of_reply(&self, set: &PolicySet, asked: &Asked, at: Timestamp, pause: PauseState) {
        let Asked { policy, principal, epoch, .. } = *asked;
        let known = self.pause_of(policy, principal);
        // Redis forgets a total only when nobody waits any more.
        let is_longer = !pause.left.is_zero() && known.until < at.saturating_add(pause.left);
        let is_news = known.total != pause.total || is_longer;
        let is_over = pause.left.is_zero() && known.until > at;
        if self.epochs.of(principal) == epoch && (is_news || is_over) {
            self.record_pause(set, policy, principal, pause);
        }
    }

    /// Records that a principal is not paused.
    pub(super) fn end_pause(&self, set: &PolicySet, policy: usize, principal: Principal) {
        if let Some(pauses) = self.each[policy].pauses.get() {
            pauses.end(principal.key(), set.now());
        }
    }

    /// Records that a bucket is not idle before then.
    fn raise(&self, set: &PolicySet, asked: &Asked, until: Timestamp) {
        let Asked { policy, demand, principal, epoch, .. } = asked;
        // Where responses refund regularly, here or in other processes, no bound lasts. Of what
        // only callers ask for, nobody wants one.
        let policy_of = &set.policies()[*policy];
        if until <= set.now() || policy_of.counts_by_response() || policy_of.is_by_key() {
            return;
        }
        let mut guard = self.each[*policy].buckets.guard(set.hasher().under_quota(demand.key, demand.quota));
        if guard.placement() != Placement::Own {
            return;
        }
        // Under the lock. A bound of an epoch that has ended is known by nobody.
        if self.epochs.of(*principal) == *epoch {
            let until = guard.value().since(*epoch).max(until);
            guard.write(Known { until, epoch: *epoch });
        }
    }
}

#[expect(clippy::result_large_err, reason = "built where it is returned, on the rarer path")]
fn denial_of_reply(
    set: &PolicySet,
    answered: &[((Asked, BucketState), ServerTime)],
    mut outcomes: PolicyOutcomes,
    at: Timestamp,
) -> Result<Grant, DeniedWithBans> {
    let asked: AllAsked = answered.iter().map(|((asked, _), _)| *asked).collect();
    let blocked = |index: usize| {
        let left = answered[index].0.1.blocked;
        // By this process's clock now, which is when the block is evaluated.
        (!left.is_zero()).then(|| set.now().saturating_add(left))
    };
    let is_blocked = |index: usize| blocked(index).is_some() && !asked[index].demand.shadow;
    if (0..asked.len()).any(is_blocked) {
        let denied = set.denial_of_blocked(&demands_of(&asked), DecidedBy::Redis, blocked, |index| outcomes[index]);
        if let Some(denied) = denied {
            return Err((denied, NewBans::new()));
        }
    }
    // In bursts of months the server may deny by nanoseconds what this process would grant.
    if !outcomes.iter().any(PolicyOutcome::denies) {
        if let Some(enforced) = outcomes.iter_mut().find(|outcome| !outcome.shadow) {
            enforced.verdict = Verdict::Wait(Nanos::new(1));
        }
    }
    let is_paused = |index: usize| !answered[index].0.1.pause.left.is_zero();
    match denial(set, outcomes, &asked, is_paused, DecidedBy::Redis) {
        Some(denied) => Err(denied),
        None => Ok(Grant { at, wait: Nanos::ZERO }),
    }
}

fn denial(
    set: &PolicySet,
    outcomes: PolicyOutcomes,
    asked: &[Asked],
    is_paused: impl Fn(usize) -> bool,
    decided_by: DecidedBy,
) -> Option<DeniedWithBans> {
    if !outcomes.iter().any(PolicyOutcome::denies) {
        return None;
    }
    let lacking = |(index, outcome): (usize, &PolicyOutcome)| {
        // A paused key is no offender.
        let lacks = matches!(outcome.verdict, Verdict::Wait(_)) && !outcome.shadow && !is_paused(index);
        lacks.then_some((outcome.policy, asked[index].demand.key))
    };
    let keys: SmallVec<[_; 4]> = outcomes.iter().enumerate().filter_map(lacking).collect();
    let now = set.now();
    let mut bans = NewBans::new();
    let denied =
        set.denied(outcomes, &keys, &keys, now, decided_by, |policy, key, length| bans.push((policy, key, length)));
    Some((denied, bans))
}

fn receipt(demand: &Demand, state: &BucketState, answer: &BucketAnswer, acquired: bool, at: Timestamp) -> Receipt {
    Receipt {
        outcome: answer.outcome,
        key: demand.key,
        cells: demand.cells,
        planned: demand.planned || state.plan.is_some(),
        added: if acquired { demand.quota.cost(demand.cells) } else { Nanos::ZERO },
        generation: state.generation,
        // Of a window, from its start: so the receipt says which one it was.
        after: Bucket::with_backlog(state.window.map_or(at, |window| window.start), answer.ahead),
        paused: state.pause.total,
        origin: ReceiptOrigin::Redis { at },
    }
}

/// How a policy answers by a bucket.
fn answer(policy: usize, demand: &Demand, state: &BucketState, patience: Nanos) -> BucketAnswer {
    let BucketState { backlog, from, .. } = *state;
    // Not cut: the server has done that. The backlog does not depend on the clock that it is
    // evaluated by.
    let (now, horizon) = (Timestamp::ORIGIN, Nanos::MAX);
    let Demand { quota, cells, shadow, .. } = *demand;
    let paused_for = if cells > 0 { state.pause.left } else { Nanos::ZERO };
    let bucket = Bucket::with_backlog(now, backlog);
    let (mut evaluation, mut wait_if_reserved, keeps) =
        if let Some(from) = from.filter(|from| *from != quota.cell_nanos()) {
            let converted = bucket.evaluate_converted(now, from, quota, cells, horizon);
            (converted.evaluation, converted.wait_converted, !converted.takes_over)
        } else {
            let evaluation = bucket.evaluate(now, quota, cells, horizon);
            (evaluation, evaluation.wait, false)
        };
    if let Some(window) = state.window {
        return answer_in_window(policy, demand, state, evaluation, window.left);
    }
    let is_granted_then = evaluation.is_granted();
    evaluation.wait = evaluation.wait.saturating_add(paused_for);
    wait_if_reserved = wait_if_reserved.saturating_add(paused_for);
    let mut after = if evaluation.is_granted() { evaluation.after } else { evaluation.clamped };
    let mut outcome = PolicyOutcome::of(policy, demand, after, evaluation, now, None);
    let may_wait =
        !evaluation.is_granted() && !shadow && wait_if_reserved <= patience && wait_if_reserved != Evaluation::NEVER;
    let reserved = match may_wait {
        true if is_granted_then => Some(evaluation.after),
        true => evaluation.clamped.reserve(now, quota, cells, patience),
        false => None,
    };
    let mut wait = Nanos::ZERO;
    if let Some(reserved) = reserved {
        (after, outcome.verdict, wait) = (reserved, Verdict::Granted, wait_if_reserved);
    }
    let shown = |bucket: Bucket| state.pause.shown(bucket.backlog(now), quota);
    let is_reserved = !wait.is_zero();
    // What waits is shown after the wait, and so as it is.
    outcome.backlog = if is_reserved { paused_for.saturating_add(after.backlog(now)) } else { shown(after) };
    BucketAnswer {
        outcome,
        wait,
        unacquired: shown(evaluation.clamped),
        ahead: paused_for.saturating_add(after.backlog(now)),
        takes_over: !keeps,
    }
}

/// The same in a window. A request never waits for its end.
fn answer_in_window(
    policy: usize,
    demand: &Demand,
    state: &BucketState,
    mut evaluation: Evaluation,
    mut window: WindowLeft,
) -> BucketAnswer {
    let start = Timestamp::ORIGIN;
    evaluation.wait_until_end(window.left);
    let after = if evaluation.is_granted() { evaluation.after } else { evaluation.clamped };
    if demand.cells > 0 {
        evaluation.wait = evaluation.wait.max(state.pause.left);
    }
    if !evaluation.is_granted() && evaluation.wait != Evaluation::NEVER {
        // No field says another time than `Retry-After`.
        window.left = evaluation.wait;
    }
    let shown = |bucket: Bucket| -> Level { state.pause.shown_in_window(demand.quota, bucket.backlog(start), window) };
    let mut outcome = PolicyOutcome::of(policy, demand, after, evaluation, start, Some(window));
    let Level { limit, backlog } = shown(after);
    (outcome.limit, outcome.backlog) = (limit, backlog);
    BucketAnswer {
        outcome,
        wait: Nanos::ZERO,
        unacquired: shown(evaluation.clamped).backlog,
        ahead: after.backlog(start),
        takes_over: false,
    }
}
