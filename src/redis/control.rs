//! Contains the control of a limiter over Redis: peek, charge, refund, block, set, list.
//!
//! What is done to a bucket is done by one script, so it is done or it is not. It is announced to
//! all processes, which forget what they knew. None of this is used by a decision.

use std::{error, fmt, str::FromStr, time::Duration};

use futures_util::future::join_all;

use super::{
    announcement::{Announcement, Listener, quota_field, read_setting},
    limiter::{RedisLimiter, RedisParts},
    lower_bounds::NewBans,
    names::{Principal, slot},
    protocol::{Element, PauseState, Query, boundaries, read_outside, read_plan},
    script::{CONTROL, QUOTAS},
    windows::WindowTimes,
    worker::QueryError,
};
use crate::{
    bucket::{Bucket, MAX_SLACK},
    clock::{Nanos, Timestamp},
    decision::{Allowed, DecidedLimit, Denied, Level, Receipt, Standing, WindowLeft},
    key::{IntoKey, Key},
    limit::{IntoLimit, Limit},
    limiter::{DeniedKey, LimitError, MAX_PATIENCE, Settle as _, UnknownPolicy},
    observe::{events, metrics},
    policy::{Demand, Policy},
    quota::Quota,
};

/// What is done to one bucket.
#[derive(Clone, Copy, Debug)]
enum Action {
    Ban(Nanos),
    Block(Nanos),
    Charge(u32),
    Pause(Nanos),
    Peek,
    Reset,
}

/// A bucket after something was done to it.
struct Controlled {
    /// Whether it was used, or blocked, before.
    was_used: bool,
    /// The quota that was chosen for the key, or the policy's own.
    quota: Quota,
    backlog: Nanos,
    /// The time of a cell that the backlog is in.
    cell: Nanos,
    blocked: Nanos,
    pause: PauseState,
    window: Option<WindowLeft>,
}

impl Controlled {
    /// How the key stands by a quota.
    fn standing<'a>(&self, policy: &'a str, quota: Quota) -> Standing<'a> {
        let start = Timestamp::ORIGIN;
        let bucket = Bucket::with_backlog(start, self.backlog).converted(start, self.cell, quota.cell_nanos());
        let backlog = bucket.backlog(start);
        let level = match self.window {
            Some(window) => self.pause.shown_in_window(quota, backlog, window),
            None => Level { limit: DecidedLimit::Rate(quota), backlog: self.pause.shown(backlog, quota) },
        };
        Standing::of(policy, level)
    }
}

impl RedisLimiter {
    /// Returns how `key` stands under the policy of this name, and acquires nothing. See
    /// [`Limiter::peek`](crate::Limiter::peek).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout). Then nothing has changed.
    pub fn peek<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
    ) -> impl Future<Output = Result<Standing<'_>, ControlError>> + Send + use<'_, K> {
        let asked = self.action(policy, self.key(key), Action::Peek);
        async move { asked.await.map(|(name, bucket)| bucket.standing(name, bucket.quota)) }
    }

    /// Returns how `key` stands by the quota `plan`, as [`acquire_as`](Self::acquire_as) would
    /// decide, and acquires nothing. See [`Limiter::peek_as`](crate::Limiter::peek_as).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or `plan` is no limit for it, or Redis does not answer
    /// within the [timeout](super::RedisBuilder::timeout). Then nothing has changed.
    pub fn peek_as<K: IntoKey, L: IntoLimit>(
        &self,
        policy: &str,
        key: K,
        plan: L,
    ) -> impl Future<Output = Result<Standing<'_>, ControlError>> + Send + use<'_, K, L> {
        let plan = self.basis_of(policy, plan);
        let asked = self.action(policy, self.key(key), Action::Peek);
        async move {
            let plan = plan?;
            asked.await.map(|(name, bucket)| bucket.standing(name, plan))
        }
    }

    /// Charges `cells` whether or not they are there, and returns how `key` stands afterwards. See
    /// [`Limiter::charge`](crate::Limiter::charge).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout): see [`ControlError`].
    pub fn charge<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        cells: u32,
    ) -> impl Future<Output = Result<Standing<'_>, ControlError>> + Send + use<'_, K> {
        let asked = self.action(policy, self.key(key), Action::Charge(cells));
        async move { asked.await.map(|(name, bucket)| bucket.standing(name, bucket.quota)) }
    }

    /// Fills the bucket of `key` under the policy of this name, and ends its blocks and its pause,
    /// for all processes. Earlier receipts of the key are void. Returns true if the bucket was not
    /// full, or the key was blocked or paused. See [`Limiter::reset`](crate::Limiter::reset).
    ///
    /// The denials that processes have counted towards a [ban](crate::Policy::ban) are forgotten by
    /// this process only.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout): see [`ControlError`].
    pub fn reset<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
    ) -> impl Future<Output = Result<bool, ControlError>> + Send + use<'_, K> {
        let asked = self.action(policy, self.key(key), Action::Reset);
        async move { asked.await.map(|(_, bucket)| bucket.was_used) }
    }

    /// Denies every request with `key` under the policy of this name for this time, in all
    /// processes, whatever is in its bucket. A time of zero ends a block, and also a
    /// [ban](crate::Policy::ban). See [`Limiter::block`](crate::Limiter::block).
    ///
    /// A process obeys with its next call for the key, or when it hears the announcement, whichever
    /// comes first. There is no bound on how many keys are blocked but the memory of Redis.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout): see [`ControlError`].
    pub fn block<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        time: Duration,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'_, K> {
        let time = Nanos::from(time).min(MAX_SLACK);
        let asked = self.action(policy, self.key(key), Action::Block(time));
        async move { asked.await.map(drop) }
    }

    /// Returns how long `key` is still blocked or banned under the policy of this name, or `None`
    /// if it is not. See [`Limiter::blocked_for`](crate::Limiter::blocked_for).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout). Then nothing has changed.
    pub fn blocked_for<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
    ) -> impl Future<Output = Result<Option<Duration>, ControlError>> + Send + use<'_, K> {
        let asked = self.action(policy, self.key(key), Action::Peek);
        async move { asked.await.map(|(_, bucket)| (!bucket.blocked.is_zero()).then(|| bucket.blocked.into())) }
    }

    /// Pauses `key` under the policy of this name for this time, in all processes. See
    /// [`Limiter::pause`](crate::Limiter::pause).
    ///
    /// A process obeys with its next call for the key, or when it hears the announcement, whichever
    /// comes first. Reservations that wait already learn of the pause by either. There is no bound
    /// on how many keys are paused but the memory of Redis. A process remembers at most 65,536
    /// under one policy, each for a day after its pause, for its reservations and for the time
    /// without Redis.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout): see [`ControlError`].
    pub fn pause<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
        time: Duration,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'_, K> {
        let time = Nanos::from(time).min(MAX_PATIENCE);
        let asked = self.action(policy, self.key(key), Action::Pause(time));
        async move { asked.await.map(drop) }
    }

    /// Returns how long `key` is still paused under the policy of this name, or `None` if it is
    /// not. See [`Limiter::paused_for`](crate::Limiter::paused_for).
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout). Then nothing has changed.
    pub fn paused_for<K: IntoKey>(
        &self,
        policy: &str,
        key: K,
    ) -> impl Future<Output = Result<Option<Duration>, ControlError>> + Send + use<'_, K> {
        let asked = self.action(policy, self.key(key), Action::Peek);
        async move { asked.await.map(|(_, bucket)| (!bucket.pause.left.is_zero()).then(|| bucket.pause.left.into())) }
    }

    /// Returns the limit of the policy of this name, as this process knows it now.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name.
    pub fn limit(&self, policy: &str) -> Result<Limit, UnknownPolicy> {
        let (index, _) = self.parts.set.find(policy)?;
        let own = self.parts.set.quota(index);
        Ok(match self.parts.windows.window(index) {
            Some(window) => Limit::Window(window),
            None => Limit::Quota(own),
        })
    }

    /// Sets the limit of the policy of this name, for every later decision of all processes. A
    /// change keeps the count. See [`Limiter::set_limit`](crate::Limiter::set_limit).
    ///
    /// The limit stays in Redis: a process that is started later has it too, whatever limit its
    /// policy was built with, and reports that with `tracing`. Set it again to change it back.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or it has a rate and would get a window, or the
    /// reverse; when Redis does not answer within the [timeout](super::RedisBuilder::timeout): see
    /// [`ControlError`].
    pub fn set_limit<L: IntoLimit>(
        &self,
        policy: &str,
        limit: L,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'_, L> {
        self.set_found(self.found(policy, limit).map(|found| vec![found]))
    }

    /// Sets the limits of several policies: all of them, or none. See
    /// [`set_limit`](Self::set_limit).
    ///
    /// # Errors
    ///
    /// When [`set_limit`](Self::set_limit) fails for one of them.
    pub fn set_limits<N: AsRef<str>, L: IntoLimit, I: IntoIterator<Item = (N, L)>>(
        &self,
        limits: I,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'_, N, L, I> {
        self.set_found(limits.into_iter().map(|(name, limit)| self.found(name.as_ref(), limit)).collect())
    }

    fn found(&self, name: &str, limit: impl IntoLimit) -> Result<(usize, Limit), ControlError> {
        let (index, policy) = self.parts.set.find(name)?;
        let limit = limit.into_limit();
        if !policy.limit().is_like(&limit) {
            return Err(LimitError::misfit(policy, limit).into());
        }
        Ok((index, limit))
    }

    fn set_found(
        &self,
        found: Result<Vec<(usize, Limit)>, ControlError>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'_> {
        let names = &self.parts.names;
        async move {
            let found = found?;
            if found.is_empty() {
                return Ok(());
            }
            let start = self.parts.set.now();
            let control = names.control();
            let mut arguments = vec![control.clone(), Announcement::Quotas.to_string()];
            for (policy, limit) in &found {
                arguments.extend([quota_field(self.policies()[*policy].name()), limit.to_string()]);
            }
            self.query(Query::Script { script: &QUOTAS, key: control.clone(), arguments }, start).await?;
            // Read, and not taken as it was sent: others may have set them since. Where that fails,
            // the announcement does it.
            let _ = self.query(Query::Settings { hash: control }, start).await;
            Ok(())
        }
    }

    /// Returns the keys that this process has denied most. See
    /// [`Limiter::top_denied`](crate::Limiter::top_denied). Empty unless the limiter was built with
    /// [`top_denied`](super::RedisBuilder::top_denied). Other processes have lists of their own.
    #[must_use]
    pub fn top_denied(&self) -> Vec<DeniedKey> {
        self.parts.set.denied_keys()
    }

    /// Refunds the cells of an allowed request that is not served, less what time has returned
    /// already. See [`Limiter::refund`](crate::Limiter::refund).
    ///
    /// # Errors
    ///
    /// When Redis does not answer within the [timeout](super::RedisBuilder::timeout): see
    /// [`ControlError`]. In a cluster some policies may be refunded, and others not.
    #[expect(clippy::needless_pass_by_value, reason = "consumed, so that nothing is refunded twice")]
    pub fn refund<'a>(
        &'a self,
        allowed: Allowed<'_>,
    ) -> impl Future<Output = Result<(), ControlError>> + Send + use<'a> {
        let is_own = std::ptr::eq(allowed.policies, self.policies());
        let receipts: Vec<Receipt> = allowed.receipts.iter().filter(|_| is_own).copied().collect();
        let at = allowed.at;
        async move {
            let start = self.parts.set.now();
            let refunds = receipts.iter().filter(|receipt| !receipt.added.is_zero()).map(async |receipt| {
                let Some(settlement) = self.settlement(receipt, receipt.added, 0) else {
                    self.refund_receipt(receipt, at);
                    return Ok(());
                };
                self.record_refund(receipt, at);
                self.query(Query::Settle(settlement), start).await.map(drop)
            });
            join_all(refunds).await.into_iter().collect()
        }
    }

    /// Lists keys that have a bucket in Redis under the policy of this name, or are blocked, with
    /// how they stand: from `from` on, which is `None` for the first page.
    ///
    /// A page has about `limit` keys, and fewer, or none, where the time of a call is over. While
    /// others use the limiter, keys may be listed twice; each key that stays from the first page to
    /// the last is listed, unless nodes join or leave a cluster meanwhile. A key is the one that
    /// this limiter takes, but its address cannot be read from it: in Redis there is only a hash.
    ///
    /// # What it costs
    ///
    /// `SCAN` walks through all names of a server, also those of other policies and of others who
    /// use it. Each key that it finds then takes the call of a script.
    ///
    /// # Errors
    ///
    /// When there is no policy of this name, or Redis does not answer within the
    /// [timeout](super::RedisBuilder::timeout). Then nothing has changed.
    pub async fn list(
        &self,
        policy: &str,
        from: Option<ListCursor>,
        limit: usize,
    ) -> Result<RedisPage<'_>, ControlError> {
        let RedisParts { set, names, topology, config, .. } = &*self.parts;
        let (index, policy) = set.find(policy).map_err(ControlError::UnknownPolicy)?;
        let (mut keys, name) = (Vec::new(), policy.name());
        let nodes = topology.nodes();
        if nodes.is_empty() {
            return Err(ControlError::no_node());
        }
        let start = set.now();
        let first = from.unwrap_or_default();
        let mut next = Some(first);
        while let Some(page @ ListCursor { node: at, cursor }) = next {
            let Some(node) = nodes.get(at).filter(|_| keys.len() < limit.max(1)) else { break };
            let left = config.limits.call_timeout.saturating_sub(set.now().since(start).into());
            // What was found in time is a page, too.
            if left < config.limits.call_timeout / 2 && page != first {
                break;
            }
            let count = limit.clamp(10, 1_000);
            let query = Query::Scan { cursor: cursor.to_string(), pattern: names.pattern(name), count };
            let scanned = node.query(query, left).await.map_err(ControlError::of)?;
            let (cursor, found) = scanned.split_first().ok_or_else(ControlError::garbage)?;
            let cursor = cursor.number().ok_or_else(ControlError::garbage)?;
            let found = found.iter().filter_map(|found| match found {
                Element::Text(found) => names.principal(found, name),
                Element::Number(_) => None,
            });
            let peeked = found.map(async |principal| {
                let bucket = self.on_bucket(index, principal, Action::Peek, start).await?;
                let standing = bucket.standing(name, bucket.quota);
                Ok(bucket.was_used.then_some((principal.key(), standing)))
            });
            let peeked: Vec<Result<Option<_>, ControlError>> = join_all(peeked).await;
            for peeked in peeked {
                keys.extend(peeked?);
            }
            let (at, cursor) = if cursor == 0 { (at + 1, 0) } else { (at, cursor) };
            next = (at < nodes.len()).then_some(ListCursor { node: at, cursor });
        }
        Ok(RedisPage { keys, next: next.filter(|next| next.node < nodes.len()) })
    }

    /// Does something to the bucket of a key, now that the key is known, and returns the policy's
    /// name too.
    fn action(
        &self,
        policy: &str,
        key: Key,
        action: Action,
    ) -> impl Future<Output = Result<(&str, Controlled), ControlError>> + Send + use<'_> {
        let RedisParts { set, lower_bounds, .. } = &*self.parts;
        let found = set.find(policy).map(|(index, policy)| (index, policy.name(), policy.key(key)));
        async move {
            let (index, name, key) = found.map_err(ControlError::UnknownPolicy)?;
            let principal = Principal::of(key, set.hasher());
            let start = set.now();
            // Whenever this ends, and also where nobody knows whether it was done.
            let _forget = (!matches!(action, Action::Peek)).then_some(ForgetAtEnd { parts: &self.parts, principal });
            let bucket = self.on_bucket(index, principal, action, start).await;
            let done = !matches!(&bucket, Err(ControlError::NotDone { .. }));
            if done && matches!(action, Action::Reset | Action::Block(Nanos::ZERO)) {
                set.forgive(index, key);
            }
            let blocked = match action {
                Action::Block(time) => Some(time),
                Action::Reset => Some(Nanos::ZERO),
                Action::Ban(_) | Action::Charge(_) | Action::Pause(_) | Action::Peek => None,
            };
            match (&bucket, action) {
                (Ok(bucket), Action::Pause(_)) => lower_bounds.record_pause(set, index, principal, bucket.pause),
                (_, Action::Reset) if done => lower_bounds.end_pause(set, index, principal),
                _ => {}
            }
            if let (true, Some(time)) = (done, blocked) {
                // For the time without Redis.
                let until = set.now().saturating_add(time);
                lower_bounds.record_block(index, key, until, lower_bounds.epochs.of(principal));
            }
            Ok((name, bucket?))
        }
    }

    /// How the bucket of a demand stands.
    pub(super) async fn standing_of(
        &self,
        (index, demand): &(usize, Demand),
        start: Timestamp,
    ) -> Result<Standing<'_>, ControlError> {
        let set = &self.parts.set;
        let bucket = self.on_bucket(*index, Principal::of(demand.key, set.hasher()), Action::Peek, start).await?;
        let quota = if demand.planned { demand.quota } else { bucket.quota };
        Ok(bucket.standing(set.policies()[*index].name(), quota))
    }

    async fn on_bucket(
        &self,
        index: usize,
        principal: Principal,
        action: Action,
        start: Timestamp,
    ) -> Result<Controlled, ControlError> {
        let RedisParts { set, windows, .. } = &*self.parts;
        let mut times = windows.times(index, start);
        let mut reply = self.query(self.query_of(index, principal, action, times), start).await?;
        if let Some(at) = read_outside(&reply) {
            // Nothing was done: now with the windows around the server's time.
            windows.note(at.timestamp(), start);
            times = windows.times(index, start);
            reply = self.query(self.query_of(index, principal, action, times), start).await?;
        }
        read(&reply, set.quota(index), times).ok_or_else(ControlError::garbage)
    }

    fn query_of(&self, index: usize, principal: Principal, action: Action, times: Option<WindowTimes>) -> Query {
        let RedisParts { set, names, .. } = &*self.parts;
        let announcement = match action {
            // Nobody knows of a bucket what these make untrue.
            Action::Peek | Action::Charge(_) => String::new(),
            Action::Ban(_) | Action::Block(_) => Announcement::Forget(principal).to_string(),
            Action::Pause(_) => Announcement::pause_of(principal),
            Action::Reset => {
                let policy = self.policies()[index].name().to_owned();
                Announcement::Resume { principal, policy }.to_string()
            }
        };
        let what = match action {
            Action::Ban(_) => "ban",
            Action::Block(_) => "block",
            Action::Charge(_) => "charge",
            Action::Pause(_) => "pause",
            Action::Peek => "peek",
            Action::Reset => "reset",
        };
        let mut arguments = vec![what.to_owned(), names.control(), announcement, boundaries(times)];
        match action {
            Action::Ban(time) | Action::Block(time) => arguments.push(time.get().to_string()),
            Action::Pause(time) => {
                arguments.extend([time.get().to_string(), self.policies()[index].name().to_owned()]);
            }
            Action::Charge(cells) => {
                let own = set.quota(index);
                let [debt, line] = [self.debt_slack(index), self.slack(index)].map(Nanos::get);
                let numbers = [u64::from(cells), own.cell_nanos().get(), own.burst_size().into(), debt, line];
                arguments.extend(numbers.map(|number| number.to_string()));
            }
            Action::Peek | Action::Reset => {}
        }
        Query::Script { script: &CONTROL, key: names.bucket(principal, self.policies()[index].name()), arguments }
    }

    /// Asks the server that has the key, within the timeout, also where the key has moved.
    ///
    /// `start` is when the operator began to wait.
    pub(super) async fn query(&self, query: Query, start: Timestamp) -> Result<Vec<Element>, ControlError> {
        let RedisParts { topology, config, set, .. } = &*self.parts;
        let slot = match &query {
            Query::Script { key, .. } | Query::Settings { hash: key } => slot(key),
            Query::Settle(settlement) => settlement.slot(),
            Query::Scan { .. } => 0,
        };
        let Some(mut node) = topology.node_of(slot) else { return Err(ControlError::no_node()) };
        for _ in 0..3 {
            let left = config.limits.call_timeout.saturating_sub(set.now().since(start).into());
            match node.query(query.clone(), left).await {
                Err(QueryError::Redirected(redirect)) => match topology.follow(node, &redirect, slot) {
                    Some(next) if !redirect.asking => node = next,
                    _ => break,
                },
                answer => {
                    #[cfg(test)]
                    if let (Ok(reply), Query::Script { .. } | Query::Settle(_)) = (&answer, &query) {
                        super::server_clock::note_reply(reply);
                    }
                    return answer.map_err(ControlError::of);
                }
            }
        }
        Err(ControlError::NotDone { reason: "the key is moving to another node of the cluster: try again".into() })
    }

    /// Bans keys in all processes, and does not wait for Redis: this process obeys from now on.
    pub(super) fn ban(&self, bans: NewBans) {
        let RedisParts { set, lower_bounds, topology, config, windows, .. } = &*self.parts;
        for (policy, key, length) in bans {
            let principal = Principal::of(key, set.hasher());
            // From here on Redis has it, and an operator may end it there.
            set.hand_over_ban(policy, key);
            let until = set.now().saturating_add(length);
            lower_bounds.record_block(policy, key, until, lower_bounds.epochs.of(principal));
            let times = windows.times(policy, set.now());
            let query = self.query_of(policy, principal, Action::Ban(length), times);
            let Query::Script { key, .. } = &query else { continue };
            if let Some(node) = topology.node_of(slot(key)) {
                node.send_query(query, config.limits.call_timeout);
            }
        }
    }
}

/// Ends the epoch of a principal when it is dropped, also if the caller drops its future.
struct ForgetAtEnd<'a> {
    parts: &'a RedisParts,
    principal: Principal,
}

impl Drop for ForgetAtEnd<'_> {
    fn drop(&mut self) {
        self.parts.lower_bounds.epochs.end(self.principal);
    }
}

fn read(reply: &[Element], own: Quota, times: Option<WindowTimes>) -> Option<Controlled> {
    let [seconds, nanos, was_used, backlog, cell, blocked, Element::Text(plan), paused_for, paused] = reply else {
        return None;
    };
    let (was_used, backlog, cell) = (was_used.number()? == 1, backlog.nanos()?, cell.nanos()?);
    let plan = if plan.is_empty() { None } else { Some(read_plan(plan)?) };
    let quota = plan.filter(|_| !backlog.is_zero()).unwrap_or(own);
    let cell = if cell.is_zero() { quota.cell_nanos() } else { cell };
    let pause = PauseState { left: paused_for.nanos()?, total: paused.nanos()? };
    let at = Timestamp::from_nanos(seconds.number()?.checked_mul(Nanos::SECOND.get())?.checked_add(nanos.number()?)?);
    let window = times.map(|times| times.at(at).left);
    Some(Controlled { was_used, quota, backlog, cell, blocked: blocked.nanos()?, pause, window })
}

impl Listener for RedisParts {
    fn forget(&self, principal: Principal) {
        self.lower_bounds.epochs.end(principal);
    }

    fn pause(&self, principal: Principal, policy: &str, pause: Option<PauseState>) {
        // Its policy may be another limiter's.
        let Ok((index, _)) = self.set.find(policy) else { return };
        match pause {
            Some(pause) => self.lower_bounds.record_pause(&self.set, index, principal, pause),
            None => self.lower_bounds.end_pause(&self.set, index, principal),
        }
    }

    fn forget_all(&self) {
        self.lower_bounds.epochs.end_all();
    }

    fn apply(&self, settings: &[(String, String)]) {
        for setting in settings {
            let found = read_setting(setting).map(|(policy, limit)| (self.set.find(policy), limit));
            match found {
                Some((Ok((index, policy)), limit)) if self.changes(index, policy, &limit) => {
                    self.set.set_quota(index, limit.basis());
                    if let Some(window) = limit.window() {
                        self.windows.set(index, window, self.set.now());
                        self.fallback.set_window(index, &limit);
                    }
                    events::limit_changed(policy.name(), &limit);
                }
                // It is known, or its policy is another limiter's.
                Some(_) => {}
                None => metrics::redis_announcement_ignored(),
            }
        }
    }
}

impl RedisParts {
    /// Whether a limit is another one than the policy has now, and of its kind.
    fn changes(&self, index: usize, policy: &Policy, limit: &Limit) -> bool {
        policy.limit().is_like(limit)
            && (limit.basis() != self.set.quota(index) || limit.window() != self.windows.window(index).as_ref())
    }
}

/// Some of the keys of a policy. Made by [`RedisLimiter::list`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RedisPage<'a> {
    /// The keys, and how each stands.
    pub keys: Vec<(Key, Standing<'a>)>,
    /// Where the next page begins, if there is one.
    pub next: Option<ListCursor>,
}

/// Where a page of [`RedisLimiter::list`] begins. Displays itself as text, and is read from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListCursor {
    /// The number of the node, in a cluster.
    node: usize,
    cursor: u64,
}

impl fmt::Display for ListCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.node, self.cursor)
    }
}

/// Error returned when parsing a [`ListCursor`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseCursorError;

impl fmt::Display for ParseCursorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid cursor: expected two numbers with a hyphen, as `ListCursor` displays itself")
    }
}

impl error::Error for ParseCursorError {}

impl FromStr for ListCursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, ParseCursorError> {
        let (node, cursor) = text.split_once('-').ok_or(ParseCursorError)?;
        let node = node.parse().map_err(|_| ParseCursorError)?;
        Ok(Self { node, cursor: cursor.parse().map_err(|_| ParseCursorError)? })
    }
}

/// Why a request's standings cannot be said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum StandingsError {
    /// The request lacks a key. The denial that a request would get.
    Denied(Box<Denied>),
    /// Redis has not said how the keys stand.
    Control(ControlError),
}

impl fmt::Display for StandingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denied) => denied.fmt(f),
            Self::Control(error) => error.fmt(f),
        }
    }
}

impl error::Error for StandingsError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Denied(_) => None,
            Self::Control(error) => Some(error),
        }
    }
}

/// Why an operator's call over Redis failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// Nothing was done: there is no connection, or the server has refused the call.
    #[non_exhaustive]
    NotDone {
        /// Why, and what to do.
        reason: String,
    },
    /// The limit is none for this policy. Boxed, because it is large.
    Limit(Box<LimitError>),
    /// There was no answer in time. It may have been done, wholly, or not at all.
    Unanswered,
    /// There is no policy of this name.
    UnknownPolicy(UnknownPolicy),
}

impl ControlError {
    fn of(error: QueryError) -> Self {
        match error {
            QueryError::Redirected(_) => Self::no_node(),
            QueryError::Refused(reason) => Self::NotDone { reason },
            QueryError::Unanswered => Self::Unanswered,
        }
    }

    fn no_node() -> Self {
        Self::NotDone { reason: "no node of the cluster is known to have the key: try again".to_owned() }
    }

    /// The script has run, and somebody in between has changed its reply.
    fn garbage() -> Self {
        Self::Unanswered
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(error) => error.fmt(f),
            Self::NotDone { reason } => write!(f, "nothing was changed: {reason}"),
            Self::Unanswered => f.write_str(
                "Redis has not answered in time: the change may have been made, or not at all; look, or repeat it",
            ),
            Self::UnknownPolicy(unknown) => unknown.fmt(f),
        }
    }
}

impl error::Error for ControlError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::UnknownPolicy(unknown) => Some(unknown),
            Self::Limit(error) => Some(error),
            Self::NotDone { .. } | Self::Unanswered => None,
        }
    }
}

impl From<LimitError> for ControlError {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::UnknownPolicy(unknown) => Self::UnknownPolicy(unknown),
            misfit @ LimitError::Misfit { .. } => Self::Limit(Box::new(misfit)),
        }
    }
}

impl From<UnknownPolicy> for ControlError {
    fn from(unknown: UnknownPolicy) -> Self {
        Self::UnknownPolicy(unknown)
    }
}
