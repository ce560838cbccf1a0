//! The header fields that advertise limits to clients.
//!
//! This module contains the syntax of the fields, as pure functions of policies and of how they
//! stand. What does not change is rendered when the layer is made. It must not know of services,
//! nor of how a decision was reached.
//!
//! By default the fields are `RateLimit-Policy` and `RateLimit` in the syntax of
//! draft-ietf-httpapi-ratelimit-headers-11:
//!
//! ```text
//! RateLimit-Policy: "per-ip";q=20;w=2
//! RateLimit: "per-ip";r=19;t=1
//! ```
//!
//! | parameter | meaning | computed as |
//! |---|---|---|
//! | `q`, `w` | `q` cells in `w` seconds | of a rate: `w = max(1, ⌈B·P/R⌉)`, `q = max(B, ⌊w/T⌋)` for `R` cells in `P` seconds, a burst of `B` and the [cell period](Quota::cell_period) `T`; of a window: its limit, and its length |
//! | `qu` | what a cell is, where it is not a request | [`Policy::unit`](crate::Policy::unit) |
//! | `r` | cells that would be granted now | [`Standing::remaining`] |
//! | `t` | of a rate: seconds until one more cell, omitted when the bucket is full; of a window: seconds to its end | [`Standing::next_cell`], rounded up, at least 1 |
//!
//! A limit of [requests in flight](crate::in_flight) has no `w` and no `t`: their end is unknown.
//!
//! Clients read cells as requests, unless `qu` says what they are: see
//! [`Policy::unit`](crate::Policy::unit).
//!
//! Each policy says whether and when it is advertised: see [`Advertise`]. A denial lists the
//! policies that denied, and `Retry-After` is never earlier than their `t`. Items from the inner
//! service stay, and those of the layer follow. A gRPC response gets no fields, because they may
//! become trailers.
//!
//! A script from another origin sees the fields only if the server exposes them:
//! `Access-Control-Expose-Headers: RateLimit, RateLimit-Policy, Retry-After`, and `X-RateLimit-*`
//! if they are sent.
//!
//! [`Standing::remaining`]: crate::decision::Standing::remaining
//! [`Standing::next_cell`]: crate::decision::Standing::next_cell

use std::time::Duration;

use http::{HeaderMap, HeaderValue, header};

use super::{
    grpc::is_grpc,
    line::{self, Line, number},
    template::{HeaderTemplate, MAX_FIELDS, blank, name, no_store},
};
use crate::{
    clock::{self, Nanos},
    decision::{Denied, LONGEST_ADVERTISED, PolicyOutcome, Receipt, Standing, WindowLeft},
    key::entropy,
    limit::Limit,
    observe::events,
    policy::{Advertise, Policy},
    quota::Quota,
    window::Window,
};

/// The syntax of the fields. They are defined by an Internet-Draft, which has changed them before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Draft {
    /// draft-ietf-httpapi-ratelimit-headers-07, of 2023: `RateLimit-Policy: 100;w=60` and
    /// `RateLimit: limit=100, remaining=50, reset=30`, the latter for the policy with the least
    /// left.
    V7,
    /// draft-ietf-httpapi-ratelimit-headers-11, of 2026, whose syntax is that of 08 and later.
    #[default]
    V11,
}

/// The unit of `X-RateLimit-Reset`. Both are in use under the same name, and the field does not say
/// which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The seconds from now until the bucket is full.
    DeltaSeconds,
    /// That time in seconds since 1970, by the server's wall clock. Send `Date` as well, as HTTP
    /// servers do, so that clients can correct their clocks.
    EpochSeconds,
}

/// How a layer advertises limits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FieldStyle {
    pub(crate) draft: Draft,
    pub(crate) legacy: Option<Reset>,
    /// Whole seconds, added to `Retry-After`.
    pub(crate) jitter: u64,
}

/// Writes the fields of a limiter's responses.
#[derive(Debug)]
pub(crate) struct FieldWriter {
    style: FieldStyle,
    /// One for each policy, in the limiter's order.
    items: Box<[PolicyItem]>,
    /// `RateLimit-Policy` of the policies that every response lists, with their own quotas.
    always: Option<HeaderValue>,
    /// `RateLimit-Policy` of the policies that a denial lists, with their own quotas.
    on_denial: Option<HeaderValue>,
    /// For a policy that is listed.
    denial: HeaderTemplate,
    /// For a policy that discloses the wait only.
    nameless_denial: HeaderTemplate,
    /// How many policies apply to requests.
    for_requests: usize,
    /// The maximum length of a field in bytes.
    longest: usize,
}

#[derive(Debug)]
struct PolicyItem {
    /// A string of structured fields, with its quotes.
    name: Box<str>,
    /// `;qu="tokens"`, or nothing.
    unit: Box<str>,
    /// What nearly all requests are decided by.
    limit: FieldLimit,
    advertise: Advertise,
    /// Whether the policy applies where a caller names a key, and to no request.
    by_key: bool,
    /// Whether the policy counts requests in flight, so that it has no window.
    in_flight: bool,
}

/// Whether a policy is listed.
type Listed = fn(Advertise) -> bool;

const ALWAYS: Listed = |advertise| advertise == Advertise::Everything;
const ON_DENIAL: Listed = Advertise::names_the_policy;

impl FieldWriter {
    pub(crate) fn new(policies: &[Policy], style: FieldStyle) -> Self {
        let items = policies.iter().map(|policy| {
            let name = format!("\"{}\"", policy.escaped_name()).into();
            let unit = policy.cell_unit().map(|unit| format!(";qu=\"{unit}\"")).unwrap_or_default().into();
            let limit = FieldLimit::of(policy.limit());
            let (by_key, in_flight) = (policy.is_by_key(), policy.is_in_flight());
            PolicyItem { name, unit, limit, advertise: policy.advertised(), by_key, in_flight }
        });
        let items: Box<[PolicyItem]> = items.collect();
        // For each item its name, and three parameters with a separator and at most 20 digits each.
        let longest = items.iter().map(|item| item.name.len() + item.unit.len() + 96).sum();
        let mut writer = Self {
            style,
            items,
            always: None,
            on_denial: None,
            denial: HeaderTemplate::default(),
            nameless_denial: HeaderTemplate::of_denial(None),
            longest,
            for_requests: policies.iter().filter(|policy| !policy.is_by_key()).count(),
        };
        let for_requests = || writer.items.iter().enumerate().filter(|(_, item)| !item.by_key);
        let all = || for_requests().map(|(index, item)| (index, item.limit));
        (writer.always, writer.on_denial) =
            (writer.render_policies(all(), ALWAYS), writer.render_policies(all(), ON_DENIAL));
        writer.denial = HeaderTemplate::of_denial(writer.on_denial.clone());
        writer
    }

    pub(crate) fn style(&self) -> FieldStyle {
        self.style
    }

    /// Whether responses to allowed requests get fields.
    #[inline]
    pub(crate) fn writes_always(&self) -> bool {
        self.always.is_some()
    }

    /// The seconds to add to a `Retry-After`.
    pub(crate) fn jitter(&self) -> u64 {
        match self.style.jitter {
            0 => 0,
            // The modulus favours small values by less than 1 in 10¹⁵.
            most => entropy() % (most + 1),
        }
    }

    /// Renders the fields of the response to an allowed request. They are rendered before the
    /// service is called, because they show how the policies stood when the request was decided.
    pub(crate) fn allowed(&self, receipts: &[Receipt]) -> Option<AllowedFields> {
        self.allowed_by(&receipts.iter().map(|receipt| &receipt.outcome))
    }

    /// Like [`allowed`](Self::allowed), for outcomes without receipts.
    #[inline(always)]
    pub(crate) fn allowed_by<'a>(
        &self,
        outcomes: &(impl ExactSizeIterator<Item = &'a PolicyOutcome> + Clone),
    ) -> Option<AllowedFields> {
        let outcomes = || outcomes.clone();
        let listed = || outcomes().filter(|outcome| !outcome.shadow && ALWAYS(self.items[outcome.policy].advertise));
        let limits = self.render_limits(listed())?;
        let changed = self.changed_policies(outcomes(), ALWAYS);
        let policies = changed.or_else(|| self.always.clone());
        Some(AllowedFields { draft: self.style.draft, policies, limits, legacy: self.legacy(listed()).map(Box::new) })
    }

    /// Renders all fields of a denial with this content-type.
    pub(crate) fn denial(&self, denied: &Denied, content_type: HeaderValue) -> HeaderMap {
        match self.usual_denial(denied) {
            Some((seconds, Some(limits))) => self.denial.fill(content_type, number(seconds), limits),
            Some((seconds, None)) => self.nameless_denial.fill(content_type, number(seconds), blank()),
            None => {
                let mut headers = HeaderMap::with_capacity(MAX_FIELDS);
                headers.insert(header::CONTENT_TYPE, content_type);
                self.complete_denial(denied, &mut headers);
                headers
            }
        }
    }

    /// The values of a denial that has all the fields of its template, and no others.
    fn usual_denial(&self, denied: &Denied) -> Option<(u64, Option<HeaderValue>)> {
        let (policy, seconds) = (denied.single_exceeded()?, denied.retry_after()?);
        if !ON_DENIAL(self.items[policy].advertise) {
            return Some((seconds, None));
        }
        if self.style.legacy.is_some() || !self.is_usual(&denied.outcomes()) {
            return None;
        }
        Some((seconds, Some(self.render_limits(denied.exceeded())?)))
    }

    /// Adds the fields that a denial lacks. Fields that are there already stay.
    pub(crate) fn complete_denial(&self, denied: &Denied, headers: &mut HeaderMap) {
        headers.entry(header::CACHE_CONTROL).or_insert(no_store());
        if is_grpc(headers) {
            return;
        }
        headers.reserve(MAX_FIELDS.saturating_sub(headers.len()));
        if let Some(challenge) = denied.challenge() {
            headers.entry(header::WWW_AUTHENTICATE).or_insert_with(|| challenge.clone());
        }
        if let Some(seconds) = denied.retry_after() {
            headers.entry(header::RETRY_AFTER).or_insert_with(|| number(seconds));
        }
        let listed = || denied.exceeded().filter(|outcome| ON_DENIAL(self.items[outcome.policy].advertise));
        // A responder that set the field takes precedence.
        if !headers.contains_key(name!("ratelimit")) {
            if let Some(limits) = self.render_limits(listed()) {
                let changed = self.changed_policies(denied.outcomes(), ON_DENIAL);
                append(headers, self.style.draft, changed.as_ref().or(self.on_denial.as_ref()).cloned(), limits);
            }
        }
        if let Some(legacy) = self.legacy(listed()) {
            legacy.write(headers);
        }
    }

    /// `RateLimit-Policy` for this request, where it differs from what was rendered in advance: a
    /// policy has another quota, or does not apply.
    fn changed_policies<'a>(
        &self,
        outcomes: impl ExactSizeIterator<Item = &'a PolicyOutcome> + Clone,
        listed: Listed,
    ) -> Option<HeaderValue> {
        if self.is_usual(&outcomes) {
            return None;
        }
        let enforced = outcomes.filter(|outcome| !outcome.shadow);
        self.render_policies(enforced.map(|outcome| (outcome.policy, FieldLimit::decided(outcome))), listed)
    }

    /// Whether every policy applied, by its own quota, and is enforced.
    fn is_usual<'a>(&self, outcomes: &(impl ExactSizeIterator<Item = &'a PolicyOutcome> + Clone)) -> bool {
        outcomes.len() == self.for_requests
            && outcomes.clone().all(|outcome| {
                let item = &self.items[outcome.policy];
                FieldLimit::decided(outcome) == item.limit && !outcome.shadow && !item.by_key
            })
    }

    fn render_policies(
        &self,
        limits: impl Iterator<Item = (usize, FieldLimit)>,
        listed: Listed,
    ) -> Option<HeaderValue> {
        line::field(self.longest, |line| {
            for (index, limit) in limits {
                let PolicyItem { name, unit, advertise, in_flight, .. } = &self.items[index];
                if !listed(*advertise) {
                    continue;
                }
                line.separate();
                if *in_flight {
                    line.put(name);
                    line.put(";q=");
                    line.number(limit.quota.burst_size().into());
                    line.put(unit);
                    continue;
                }
                let AdvertisedQuota { quota: q, seconds } = limit.advertised();
                match self.style.draft {
                    Draft::V11 => {
                        line.put(name);
                        line.put(";q=");
                    }
                    Draft::V7 => {}
                }
                line.number(q);
                if self.style.draft == Draft::V11 {
                    line.put(unit);
                }
                line.put(";w=");
                line.number(seconds);
            }
        })
    }

    fn render_limits<'a>(&self, listed: impl Iterator<Item = &'a PolicyOutcome>) -> Option<HeaderValue> {
        line::field(self.longest, |line: &mut Line<'_>| match self.style.draft {
            Draft::V11 => listed.for_each(|outcome| {
                let standing = outcome.unnamed();
                line.separate();
                line.put(&self.items[outcome.policy].name);
                line.put(";r=");
                line.number(standing.remaining().into());
                let end = outcome.limit.window().map(|window| window.left.into());
                if let Some(next) = end.or_else(|| standing.next_cell()) {
                    line.put(";t=");
                    line.number(advertised_seconds(next).max(1));
                }
            }),
            Draft::V7 => {
                let Some(outcome) = tightest(listed) else { return };
                let standing = outcome.unnamed();
                line.put("limit=");
                line.number(FieldLimit::decided(outcome).advertised().quota);
                line.put(", remaining=");
                line.number(standing.remaining().into());
                line.put(", reset=");
                // On a denial the same time as `Retry-After`.
                line.number(advertised_seconds(standing.wait().unwrap_or(standing.until_full())));
            }
        })
    }

    fn legacy<'a>(&self, listed: impl Iterator<Item = &'a PolicyOutcome>) -> Option<LegacyFields> {
        let reset = self.style.legacy?;
        let standing = tightest(listed)?.unnamed();
        let until_full = advertised_seconds(standing.until_full());
        Some(LegacyFields {
            limit: number(standing.limit().into()),
            remaining: number(standing.remaining().into()),
            reset: number(match reset {
                Reset::DeltaSeconds => until_full,
                Reset::EpochSeconds => clock::unix_seconds().saturating_add(until_full),
            }),
        })
    }
}

/// The fields of one response to an allowed request. Of the layer it shares one value: each further
/// count of references would be written by every response, on every core.
#[derive(Debug)]
pub(crate) struct AllowedFields {
    draft: Draft,
    policies: Option<HeaderValue>,
    limits: HeaderValue,
    legacy: Option<Box<LegacyFields>>,
}

impl AllowedFields {
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        if is_grpc(headers) {
            return;
        }
        let Self { draft, policies, limits, legacy } = self;
        append(headers, draft, policies, limits);
        if let Some(legacy) = legacy {
            legacy.write(headers);
        }
    }
}

fn append(headers: &mut HeaderMap, draft: Draft, policies: Option<HeaderValue>, limits: HeaderValue) {
    // The field is one dictionary: the keys of a second line would replace those of the first.
    if draft == Draft::V7 && headers.contains_key(name!("ratelimit")) {
        return;
    }
    // A response may have the maximum number of fields already. Then there is no place for more.
    if let Some(policies) = policies {
        let _ = headers.try_append(name!("ratelimit-policy"), policies);
    }
    if let Ok(true) = headers.try_append(name!("ratelimit"), limits) {
        events::duplicate_policy_name(|| duplicate_name(headers));
    }
}

/// The name of a policy that another layer's item has too. The items of this layer are the last.
fn duplicate_name(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(name!("ratelimit")).into_iter().rev().map(HeaderValue::as_bytes);
    let own = lines.next()?;
    let others: Vec<_> = lines.collect();
    line::names(own).find(|name| others.iter().any(|line| line.windows(name.len()).any(|part| part == name.as_bytes())))
}

#[derive(Debug)]
struct LegacyFields {
    limit: HeaderValue,
    remaining: HeaderValue,
    reset: HeaderValue,
}

impl LegacyFields {
    /// These fields have one value each: those of the inner service stay, without ours.
    fn write(self, headers: &mut HeaderMap) {
        let names = [name!("x-ratelimit-limit"), name!("x-ratelimit-remaining"), name!("x-ratelimit-reset")];
        if !names.iter().any(|name| headers.contains_key(name)) {
            headers.insert(name!("x-ratelimit-limit"), self.limit);
            headers.insert(name!("x-ratelimit-remaining"), self.remaining);
            headers.insert(name!("x-ratelimit-reset"), self.reset);
        }
    }
}

/// What a request is decided by, as far as the fields show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FieldLimit {
    quota: Quota,
    /// The length of the window, if it is one.
    window: Option<Nanos>,
}

impl FieldLimit {
    /// Where windows differ in length, that of the longest: the others are rendered.
    fn of(limit: &Limit) -> Self {
        Self { quota: limit.basis(), window: limit.window().map(Window::longest) }
    }

    #[inline]
    fn decided(outcome: &PolicyOutcome) -> Self {
        Self { quota: outcome.quota(), window: outcome.limit.window().map(WindowLeft::length) }
    }

    fn advertised(self) -> AdvertisedQuota {
        match self.window {
            Some(length) => AdvertisedQuota { quota: self.quota.burst_size().into(), seconds: length.seconds_up() },
            None => AdvertisedQuota::of(self.quota),
        }
    }
}

/// A quota in whole seconds, as the fields advertise it: never less than the burst, never more than
/// the rate.
struct AdvertisedQuota {
    quota: u64,
    seconds: u64,
}

impl AdvertisedQuota {
    /// The time is computed from the rate as it was written: by the cell period, which is rounded
    /// up, 3 a second would take 2 seconds. The count is what is granted in that time, which shows
    /// the rounding at very high rates.
    fn of(quota: Quota) -> Self {
        const SECOND: u128 = 1_000_000_000;
        let (cells, period) = (u128::from(quota.cells()), quota.period().as_nanos());
        let seconds = (u128::from(quota.burst_size()) * period).div_ceil(cells * SECOND).max(1);
        let quota = (seconds * SECOND / quota.cell_period().as_nanos()).max(quota.burst_size().into());
        // Neither is reached: a burst comes back within 146 years, at 10⁹ a second at most.
        Self { quota: at_most_15_digits(quota), seconds: at_most_15_digits(seconds) }
    }
}

/// The maximum of integers in structured fields (RFC 9651 §3.3.1).
fn at_most_15_digits(number: u128) -> u64 {
    const MOST: u64 = 999_999_999_999_999;
    u64::try_from(number).map_or(MOST, |number| number.min(MOST))
}

/// The standing with the least left; among those of policies that denied, the one with the longest
/// wait.
fn tightest<'a>(outcomes: impl Iterator<Item = &'a PolicyOutcome>) -> Option<&'a PolicyOutcome> {
    let wait = |standing: &Standing<'_>| {
        if standing.is_violated() { standing.wait().unwrap_or(Duration::MAX) } else { Duration::ZERO }
    };
    let left = |standing: &Standing<'_>| u64::from(standing.remaining());
    outcomes.reduce(|first, second| {
        let [a, b] = [first.unnamed(), second.unnamed()];
        let share = (left(&a) * u64::from(b.limit())).cmp(&(left(&b) * u64::from(a.limit())));
        if wait(&b).cmp(&wait(&a)).then(share).is_le() { first } else { second }
    })
}

/// Whole seconds, rounded up, with the bound of all times that clients learn.
fn advertised_seconds(duration: Duration) -> u64 {
    let duration = duration.min(LONGEST_ADVERTISED);
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
