//! The header fields that tell a client its limits.
//!
//! Owns their syntax, as pure functions of policies and of how they stand; the parts that do not change are rendered when
//! the layer is made. Knows nothing of services, nor of how a decision was reached.
//!
//! By default these are `RateLimit-Policy` and `RateLimit` in the syntax of draft-ietf-httpapi-ratelimit-headers-11:
//!
//! ```text
//! RateLimit-Policy: "per-ip";q=20;w=2
//! RateLimit: "per-ip";r=19;t=1
//! ```
//!
//! | parameter | says | computed as |
//! |---|---|---|
//! | `q`, `w` | `q` cells in `w` seconds | `w = max(1, ⌈B·P/R⌉)`, `q = max(B, ⌊w/T⌋)` for `R` cells in `P` seconds, a burst of `B` and the [time of a cell](Quota::cell_period) `T` |
//! | `r` | cells that would be granted now | [`Standing::remaining`] |
//! | `t` | seconds until there is one more; left out when nothing is owed | [`Standing::next_cell`], rounded up, at least 1 |
//!
//! Clients read cells as requests. Where a request [costs](crate::Policy::cost_by) more than one, tell them so.
//!
//! Which policies are told, and when, is up to each: see [`Advertise`]. On a refusal the policies that refused are told,
//! and `Retry-After` is never earlier than their `t`. Items that the service behind has sent stay, and ours follow. A
//! response of gRPC gets none, for its fields may end up in its trailers.
//!
//! A script from another origin sees the fields only if the server exposes them:
//! `Access-Control-Expose-Headers: RateLimit, RateLimit-Policy, Retry-After`, and `X-RateLimit-*` if they are sent.
//!
//! [`Standing::remaining`]: crate::decision::Standing::remaining
//! [`Standing::next_cell`]: crate::decision::Standing::next_cell

use std::{mem, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

use crate::{
    clock,
    decision::{Denied, Draw, Standing, Trial},
    key::{RequestHead, entropy},
    observe,
    policy::{Advertise, Policy},
    quota::Quota,
};

// Made where they are used: a copy of a constant, where cloning a static goes through a table of functions.
macro_rules! name {
    ($name:literal) => {
        const { HeaderName::from_static($name) }
    };
}

/// In which syntax the fields are written. They are those of an Internet-Draft, which has changed them before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Draft {
    /// draft-ietf-httpapi-ratelimit-headers-07, of 2023: `RateLimit-Policy: 100;w=60` and
    /// `RateLimit: limit=100, remaining=50, reset=30`, the latter for the one policy that is nearest to its end.
    V7,
    /// draft-ietf-httpapi-ratelimit-headers-11, of 2026, whose syntax is that of 08 and later.
    #[default]
    V11,
}

/// What `X-RateLimit-Reset` counts. Both are in use under the same name, and nothing in the field tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// Seconds from now until the whole burst is there.
    DeltaSeconds,
    /// That time in seconds since 1970, by the server's wall clock. Send `Date` as well, as HTTP servers do, so that
    /// clients can tell how far their clocks are off.
    EpochSeconds,
}

/// How a layer tells clients their limits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    pub(crate) draft: Draft,
    pub(crate) legacy: Option<Reset>,
    /// Whole seconds, added to `Retry-After`.
    pub(crate) jitter: u64,
}

/// Writes the fields of a limiter's responses.
#[derive(Debug)]
pub(crate) struct Writer {
    style: Style,
    /// One for each policy, in the limiter's order.
    items: Box<[Item]>,
    /// The policies that are told on every response, under their own quotas.
    always: Option<HeaderValue>,
    /// The policies that are told on a refusal, under their own quotas.
    on_refusal: Option<HeaderValue>,
    admission: Template,
    /// By a policy that is told.
    refusal: Template,
    /// By a policy of which nothing is told but the wait.
    nameless_refusal: Template,
    /// No field takes more bytes.
    longest: usize,
}

#[derive(Debug)]
struct Item {
    /// As a string of structured fields, quotes included.
    name: Box<str>,
    quota: Quota,
    advertise: Advertise,
}

/// The fields of a refusal, content-type included. Room for them is made at once; room for more would take another size of
/// allocation, which costs more than all that is written into it.
pub(crate) const MOST: usize = 6;

type Applies = fn(Advertise) -> bool;

const ALWAYS: Applies = |advertise| advertise == Advertise::Everything;
const ON_REFUSAL: Applies = Advertise::names_the_policy;

impl Writer {
    pub(crate) fn new(policies: &[Policy], style: Style) -> Self {
        let items = policies.iter().map(|policy| {
            let name = format!("\"{}\"", policy.escaped_name()).into();
            Item { name, quota: policy.quota(), advertise: policy.advertised() }
        });
        let items: Box<[Item]> = items.collect();
        // Of each item its name, and three parameters with a separator and no more than 20 digits each.
        let longest = items.iter().map(|item| item.name.len() + 96).sum();
        let mut writer = Self {
            style,
            items,
            always: None,
            on_refusal: None,
            admission: Template::default(),
            refusal: Template::default(),
            nameless_refusal: Template::of_refusal(None),
            longest,
        };
        let all = || writer.items.iter().enumerate().map(|(index, item)| (index, item.quota));
        (writer.always, writer.on_refusal) =
            (writer.render_policies(all(), ALWAYS), writer.render_policies(all(), ON_REFUSAL));
        writer.admission = Template::of_admission(writer.always.clone());
        writer.refusal = Template::of_refusal(writer.on_refusal.clone());
        writer
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Whether admitted requests are told anything.
    pub(crate) fn tells_always(&self) -> bool {
        self.always.is_some()
    }

    /// The seconds to add to this `Retry-After`.
    pub(crate) fn jitter(&self) -> u64 {
        match self.style.jitter {
            0 => 0,
            // The modulus favours small values by less than 1 in 10¹⁵.
            most => entropy() % (most + 1),
        }
    }

    /// What a response to an admitted request tells. Rendered before the service is called: what is told is how things
    /// stood when the request was decided.
    pub(crate) fn admitted(self: &Arc<Self>, draws: &[Draw]) -> Option<Fields> {
        let trials = || draws.iter().map(|draw| &draw.trial);
        let told = || trials().filter(|trial| !trial.shadow && ALWAYS(self.items[trial.policy].advertise));
        let limits = self.render_limits(told())?;
        let policies = self.changed_policies(trials(), ALWAYS);
        let legacy = self.legacy(told());
        let rare = (policies.is_some() || legacy.is_some()).then(|| Box::new(Rare { policies, legacy }));
        Some(Fields { writer: Arc::clone(self), limits, rare })
    }

    /// The fields of the response to a refused request, whose content-type is `kind`.
    pub(crate) fn refusal(&self, denied: &Denied, kind: HeaderValue) -> HeaderMap {
        match self.usual_refusal(denied) {
            Some((seconds, Some(limits))) => self.refusal.with(kind, number(seconds), limits),
            Some((seconds, None)) => self.nameless_refusal.with(kind, number(seconds), unwritten()),
            None => {
                let mut headers = HeaderMap::with_capacity(MOST);
                headers.insert(header::CONTENT_TYPE, kind);
                self.refused(denied, &mut headers);
                headers
            }
        }
    }

    /// The values of a refusal that has all the fields of its template, and no others.
    fn usual_refusal(&self, denied: &Denied) -> Option<(u64, Option<HeaderValue>)> {
        let (policy, seconds) = (denied.sole_excess()?, denied.retry_after_seconds()?);
        if !ON_REFUSAL(self.items[policy].advertise) {
            return Some((seconds, None));
        }
        if self.style.legacy.is_some() || !self.is_usual(&denied.trials()) {
            return None;
        }
        Some((seconds, Some(self.render_limits(denied.refusals())?)))
    }

    /// Completes the response to a refused request, whoever made it: what is there already stays.
    pub(crate) fn refused(&self, denied: &Denied, headers: &mut HeaderMap) {
        headers.entry(header::CACHE_CONTROL).or_insert(no_store());
        if is_grpc(headers) {
            return;
        }
        headers.reserve(MOST.saturating_sub(headers.len()));
        if let Some(challenge) = denied.challenge() {
            headers.entry(header::WWW_AUTHENTICATE).or_insert_with(|| challenge.clone());
        }
        if let Some(seconds) = denied.retry_after_seconds() {
            headers.entry(header::RETRY_AFTER).or_insert_with(|| number(seconds));
        }
        let told = || denied.refusals().filter(|trial| ON_REFUSAL(self.items[trial.policy].advertise));
        // Where the answer has the field, whoever made the answer knew better.
        if !headers.contains_key(name!("ratelimit")) {
            if let Some(limits) = self.render_limits(told()) {
                let changed = self.changed_policies(denied.trials(), ON_REFUSAL);
                self.append(headers, changed.as_ref().or(self.on_refusal.as_ref()).cloned(), limits);
            }
        }
        if let Some(legacy) = self.legacy(told()) {
            legacy.write(headers);
        }
    }

    fn append(&self, headers: &mut HeaderMap, policies: Option<HeaderValue>, limits: HeaderValue) {
        // One dictionary: of a second one, the keys would replace those of the first.
        if self.style.draft == Draft::V7 && headers.contains_key(name!("ratelimit")) {
            return;
        }
        // Where a response has as many fields as can be, there is no room for more.
        if let Some(policies) = policies {
            let _ = headers.try_append(name!("ratelimit-policy"), policies);
        }
        if let Ok(true) = headers.try_append(name!("ratelimit"), limits) {
            observe::same_name_twice(|| self.name_taken(headers));
        }
    }

    /// A policy of ours whose name is taken by an item that was there before ours, which are the last.
    fn name_taken(&self, headers: &HeaderMap) -> Option<&str> {
        let lines = || headers.get_all(name!("ratelimit")).into_iter().rev().skip(1).map(HeaderValue::as_bytes);
        let mut items = self.items.iter().filter(|item| item.advertise.names_the_policy());
        let taken = items
            .find(|item| lines().any(|line| line.windows(item.name.len()).any(|part| part == item.name.as_bytes())));
        taken.map(|item| &*item.name)
    }

    /// `RateLimit-Policy` for this request, where it differs from what was rendered beforehand: a quota of its own, or a
    /// policy that does not apply.
    fn changed_policies<'a>(
        &self,
        trials: impl ExactSizeIterator<Item = &'a Trial> + Clone,
        applies: Applies,
    ) -> Option<HeaderValue> {
        if self.is_usual(&trials) {
            return None;
        }
        let told = trials.filter(|trial| !trial.shadow);
        self.render_policies(told.map(|trial| (trial.policy, trial.quota)), applies)
    }

    /// Whether every policy was asked, under its own quota, and is there to refuse.
    fn is_usual<'a>(&self, trials: &(impl ExactSizeIterator<Item = &'a Trial> + Clone)) -> bool {
        trials.len() == self.items.len()
            && trials.clone().all(|trial| trial.quota == self.items[trial.policy].quota && !trial.shadow)
    }

    fn render_policies(&self, quotas: impl Iterator<Item = (usize, Quota)>, applies: Applies) -> Option<HeaderValue> {
        self.line(|line| {
            for (index, quota) in quotas {
                let Item { name, advertise, .. } = &self.items[index];
                if !applies(*advertise) {
                    continue;
                }
                let Window { quota: q, seconds } = Window::of(quota);
                line.separate();
                match self.style.draft {
                    Draft::V11 => {
                        line.put(name);
                        line.put(";q=");
                    }
                    Draft::V7 => {}
                }
                line.number(q);
                line.put(";w=");
                line.number(seconds);
            }
        })
    }

    fn render_limits<'a>(&self, told: impl Iterator<Item = &'a Trial>) -> Option<HeaderValue> {
        self.line(|line| match self.style.draft {
            Draft::V11 => told.for_each(|trial| {
                let standing = trial.unnamed();
                line.separate();
                line.put(&self.items[trial.policy].name);
                line.put(";r=");
                line.number(standing.remaining().into());
                if let Some(next) = standing.next_cell() {
                    line.put(";t=");
                    line.number(seconds_up(next).max(1));
                }
            }),
            Draft::V7 => {
                let Some(standing) = tightest(told) else { return };
                line.put("limit=");
                line.number(Window::of(standing.quota()).quota);
                line.put(", remaining=");
                line.number(standing.remaining().into());
                line.put(", reset=");
                // On a refusal the same moment as `Retry-After`.
                line.number(seconds_up(standing.wait().unwrap_or(standing.until_full())));
            }
        })
    }

    /// A field that `write` fills; `None` where it writes nothing, for a field without an item is left out.
    #[inline(always)]
    fn line(&self, write: impl FnOnce(&mut Line<'_>)) -> Option<HeaderValue> {
        let (mut short, mut long) = ([0; 192], Vec::new());
        let buffer = if self.longest <= short.len() {
            &mut short[..]
        } else {
            long.resize(self.longest, 0);
            &mut long[..]
        };
        let mut line = Line { buffer, length: 0 };
        write(&mut line);
        match &line.buffer[..line.length] {
            [] => None,
            text => HeaderValue::from_bytes(text).ok(),
        }
    }

    fn legacy<'a>(&self, told: impl Iterator<Item = &'a Trial>) -> Option<Legacy> {
        let reset = self.style.legacy?;
        let standing = tightest(told)?;
        let until_full = seconds_up(standing.until_full());
        Some(Legacy {
            limit: number(standing.limit().into()),
            remaining: number(standing.remaining().into()),
            reset: number(match reset {
                Reset::DeltaSeconds => until_full,
                Reset::EpochSeconds => clock::unix_seconds().saturating_add(until_full),
            }),
        })
    }
}

/// Fields that are made once, but for the values of a request. Copied, for to insert them would hash each name anew.
#[derive(Debug, Default)]
struct Template {
    fields: HeaderMap,
}

impl Template {
    fn of_admission(policies: Option<HeaderValue>) -> Self {
        let limits =
            policies.map(|policies| [(name!("ratelimit-policy"), policies), (name!("ratelimit"), unwritten())]);
        Self { fields: limits.into_iter().flatten().collect() }
    }

    fn of_refusal(policies: Option<HeaderValue>) -> Self {
        let Self { fields: limits } = Self::of_admission(policies);
        let mut fields = HeaderMap::with_capacity(MOST);
        fields.insert(header::CONTENT_TYPE, unwritten());
        fields.insert(header::CACHE_CONTROL, no_store());
        fields.insert(header::RETRY_AFTER, unwritten());
        fields.extend(limits);
        Self { fields }
    }

    /// With these values, as far as it has their fields.
    fn with(&self, mut content_type: HeaderValue, mut retry_after: HeaderValue, mut limits: HeaderValue) -> HeaderMap {
        let mut fields = self.fields.clone();
        for (name, value) in fields.iter_mut().filter(|(_, value)| value.is_empty()) {
            // Not looked up: that would hash each name, and these are few.
            if *name == header::CONTENT_TYPE {
                mem::swap(value, &mut content_type);
            } else if *name == header::RETRY_AFTER {
                mem::swap(value, &mut retry_after);
            } else if *name == name!("ratelimit") {
                mem::swap(value, &mut limits);
            }
        }
        fields
    }
}

fn unwritten() -> HeaderValue {
    const { HeaderValue::from_static("") }
}

/// RFC 6585 §4 forbids caches to store a 429; not every cache knows, and gRPC's is a 200.
fn no_store() -> HeaderValue {
    const { HeaderValue::from_static("no-store") }
}

/// What one response to an admitted request tells.
#[derive(Debug)]
pub(crate) struct Fields {
    writer: Arc<Writer>,
    limits: HeaderValue,
    rare: Option<Box<Rare>>,
}

#[derive(Debug)]
struct Rare {
    policies: Option<HeaderValue>,
    legacy: Option<Legacy>,
}

impl Fields {
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        if is_grpc(headers) {
            return;
        }
        let Self { writer, limits, rare } = self;
        if headers.is_empty() && rare.is_none() {
            *headers = writer.admission.with(unwritten(), unwritten(), limits);
            return;
        }
        let (policies, legacy) = rare.map_or((None, None), |rare| (rare.policies, rare.legacy));
        writer.append(headers, policies.or_else(|| writer.always.clone()), limits);
        if let Some(legacy) = legacy {
            legacy.write(headers);
        }
    }
}

#[derive(Debug)]
struct Legacy {
    limit: HeaderValue,
    remaining: HeaderValue,
    reset: HeaderValue,
}

impl Legacy {
    /// These fields hold one value each: what the service behind has sent stays alone.
    fn write(self, headers: &mut HeaderMap) {
        let names = [name!("x-ratelimit-limit"), name!("x-ratelimit-remaining"), name!("x-ratelimit-reset")];
        if !names.iter().any(|name| headers.contains_key(name)) {
            headers.insert(name!("x-ratelimit-limit"), self.limit);
            headers.insert(name!("x-ratelimit-remaining"), self.remaining);
            headers.insert(name!("x-ratelimit-reset"), self.reset);
        }
    }
}

const GRPC: &[u8] = b"application/grpc";

/// A quota as the fields tell it: in whole seconds, never less than the burst, never more than the rate.
struct Window {
    quota: u64,
    seconds: u64,
}

impl Window {
    /// The time is that of the rate as it was written: by the time of one cell, which is rounded up, 3 a second would take 2
    /// seconds. The count is what is granted in it, which shows that rounding at very high rates.
    fn of(quota: Quota) -> Self {
        const SECOND: u128 = 1_000_000_000;
        let (cells, period) = (u128::from(quota.cells()), quota.period().as_nanos());
        let seconds = (u128::from(quota.burst_size()) * period).div_ceil(cells * SECOND).max(1);
        let quota = (seconds * SECOND / quota.cell_period().as_nanos()).max(quota.burst_size().into());
        // Neither can be reached: a burst comes back within 146 years, at 10⁹ a second at most.
        Self { quota: at_most_15_digits(quota), seconds: at_most_15_digits(seconds) }
    }
}

/// Integers of structured fields have no more (RFC 9651 §3.3.1).
fn at_most_15_digits(number: u128) -> u64 {
    const MOST: u64 = 999_999_999_999_999;
    u64::try_from(number).map_or(MOST, |number| number.min(MOST))
}

/// The policy that is nearest to its end; among those that refused, the one to wait for longest.
fn tightest<'a>(trials: impl Iterator<Item = &'a Trial>) -> Option<Standing<'static>> {
    let wait = |standing: &Standing<'_>| {
        if standing.is_violated() { standing.wait().unwrap_or(Duration::MAX) } else { Duration::ZERO }
    };
    let left = |standing: &Standing<'_>| u64::from(standing.remaining());
    trials.map(Trial::unnamed).reduce(|a, b| {
        let share = (left(&a) * u64::from(b.limit())).cmp(&(left(&b) * u64::from(a.limit())));
        if wait(&b).cmp(&wait(&a)).then(share).is_le() { a } else { b }
    })
}

/// Whether a request is a call of gRPC, which is a `POST` over HTTP/2 or later. By the content-type alone, any client could
/// have its refusal answered with a 200.
pub(crate) fn is_grpc_call(head: RequestHead<'_>) -> bool {
    head.method() == Method::POST && head.version() >= Version::HTTP_2 && is_grpc(head.headers())
}

/// Whether a message is gRPC's: its content-type is `application/grpc`, alone or followed by `+` or `;`.
/// `application/grpc-web` is another protocol.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    let kind = kind.as_bytes();
    kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// A field that is being written, into room that is known to be enough.
struct Line<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl Line<'_> {
    #[inline(always)]
    fn put(&mut self, text: &str) {
        self.buffer[self.length..][..text.len()].copy_from_slice(text.as_bytes());
        self.length += text.len();
    }

    fn number(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number));
    }

    fn separate(&mut self) {
        if self.length > 0 {
            self.put(", ");
        }
    }
}

/// Without an allocation below a hundred, which most waits are.
fn number(number: u64) -> HeaderValue {
    const DIGITS: &str = "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243\
                          4445464748495051525354555657585960616263646566676869707172737475767778798081828384858687\
                          888990919293949596979899";
    match usize::try_from(number) {
        Ok(small @ 0..10) => HeaderValue::from_static(&DIGITS[2 * small + 1..2 * small + 2]),
        Ok(small @ 10..100) => HeaderValue::from_static(&DIGITS[2 * small..2 * small + 2]),
        // Digits are valid. Refused: `From<u64>`, which allocates twice.
        _ => HeaderValue::from_bytes(itoa::Buffer::new().format(number).as_bytes()).unwrap_or_else(|_| number.into()),
    }
}

fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
