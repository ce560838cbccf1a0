//! Contains what may be wrong with a deployment: a forgotten proxy, a balancer that appends its own
//! address, a proxy that sends nothing, a layer around a router, one limiter in two layers.
//!
//! Each makes many clients one, or counts a request twice, and no request fails. So each is
//! reported, once per process. Only the first requests are examined, so that the checks cost the
//! others nothing. This file must not know of policies.

#![cfg_attr(not(feature = "tracing"), allow(dead_code, unused_variables, reason = "nothing is reported"))]

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

/// What one request shows of proxies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forwarding {
    /// It comes from a trusted proxy without the field that the proxy should send.
    Absent,
    /// It is counted by `address`, and a proxy may have written `value` before that address: the
    /// hash of another address.
    BeforeLast { address: IpAddr, value: u64 },
    /// It comes from a public address, and a field with this hash is ignored.
    Ignored { address: IpAddr, value: u64 },
    /// It comes from a private address, and the field is ignored.
    IgnoredPrivate,
    /// It has no field, and none is expected.
    Plain,
    /// It comes from a trusted proxy with the field.
    Sent,
}

/// How many values one address sends before it seems to be a proxy's.
const VALUES: u32 = 10;

/// How many requests a trusted proxy sends without the field before that seems wrong. Health checks
/// of balancers have none either.
const WITHOUT_FIELD: u32 = 10;

/// How many requests have no route before the layer seems to be in the wrong place.
#[cfg(feature = "axum")]
const WITHOUT_ROUTE: u32 = 100;

/// A request that shows nothing of proxies counts once, and another one a hundred times: health
/// checks that come first do not end the examination.
static TO_EXAMINE: AtomicU32 = AtomicU32::new(100_000);
static FORWARDING: Mutex<Examined> = Mutex::new(Examined::new());

/// What was seen in the requests so far.
struct Examined {
    /// Of requests whose field is ignored.
    ignored: Addresses,
    /// Of requests that are counted by an address which may be a balancer's own.
    before_last: Addresses,
    /// The number of requests that lack the field of a trusted proxy. `None` after one had it.
    absent: Option<u32>,
    reported: Reported,
}

#[derive(Default)]
struct Reported {
    absent: bool,
    before_last: bool,
    ignored: bool,
}

impl Examined {
    const fn new() -> Self {
        Self {
            ignored: Addresses::new(),
            before_last: Addresses::new(),
            absent: Some(0),
            reported: Reported { absent: false, before_last: false, ignored: false },
        }
    }

    /// Returns what to report because of this request.
    fn add(&mut self, forwarding: Forwarding) -> Option<Report> {
        let (reported, report) = match forwarding {
            Forwarding::Plain => return None,
            Forwarding::Sent => {
                self.absent = None;
                return None;
            }
            Forwarding::Absent => {
                let absent = self.absent.as_mut()?;
                *absent += 1;
                if *absent < WITHOUT_FIELD {
                    return None;
                }
                (&mut self.reported.absent, Report::Absent)
            }
            Forwarding::BeforeLast { address, value } => {
                self.absent = None;
                if self.before_last.add(address, value) < VALUES {
                    return None;
                }
                (&mut self.reported.before_last, Report::BeforeLast)
            }
            Forwarding::Ignored { address, value } => {
                if self.ignored.add(address, value) < VALUES {
                    return None;
                }
                (&mut self.reported.ignored, Report::Ignored)
            }
            Forwarding::IgnoredPrivate => (&mut self.reported.ignored, Report::Ignored),
        };
        (!std::mem::replace(reported, true)).then_some(report)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Absent,
    BeforeLast,
    Ignored,
}

/// How many different values some addresses have sent. An address may displace another one: then
/// it takes longer to see what it sends.
struct Addresses([Option<(IpAddr, u64)>; 16]);

impl Addresses {
    const fn new() -> Self {
        Self([None; 16])
    }

    /// Returns the number of different values of this address so far. A few are taken for one.
    fn add(&mut self, address: IpAddr, value: u64) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "less than 16")]
        let slot = &mut self.0[(hash(address) % 16) as usize];
        let (_, values) = match slot {
            Some(found) if found.0 == address => found,
            _ => slot.insert((address, 0)),
        };
        *values |= 1 << (value % 64);
        values.count_ones()
    }
}

/// The hash of a value: values are compared by it.
pub(crate) fn value_of(value: impl Hash) -> u64 {
    hash(value)
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Examines what a request shows of proxies, and reports what seems wrong.
#[inline(always)]
pub(crate) fn forwarding(examine: impl FnOnce() -> Forwarding) {
    if cfg!(feature = "tracing") && TO_EXAMINE.load(Ordering::Relaxed) > 0 {
        add_forwarding(examine());
    }
}

#[cold]
fn add_forwarding(forwarding: Forwarding) {
    // Two threads may count one request. Then more are examined.
    let left = TO_EXAMINE.load(Ordering::Relaxed);
    let counts = if matches!(forwarding, Forwarding::Plain) { 1 } else { 100 };
    TO_EXAMINE.store(left.saturating_sub(counts), Ordering::Relaxed);
    let report = FORWARDING.lock().unwrap_or_else(PoisonError::into_inner).add(forwarding);
    #[cfg(feature = "tracing")]
    match report {
        None => {}
        Some(Report::Absent) => tracing::warn!(
            remedy = "configure the proxy to send the field, or take its network out of the list",
            "trusted proxies send requests without the field with the client's address; \
             these requests are counted as one client, the proxy (health checks look like this)"
        ),
        Some(Report::BeforeLast) => tracing::warn!(
            remedy = "if the address is your balancer's own, add it to `ClientIp::behind([...])` or count one hop more; \
                      never add that of a client's proxy",
            "requests of many clients are counted by one address; \
             it may be that of a balancer that appends its own address to the field, or of a client's proxy"
        ),
        Some(Report::Ignored) => tracing::warn!(
            remedy = "count by `ClientIp::behind([...])` with the proxy's network in the list",
            "one address sends X-Forwarded-For or Forwarded and is counted as one client; \
             it may be a proxy with many clients"
        ),
    }
}

#[cfg(feature = "axum")]
pub(crate) const ROUTE_REMEDY: &str = "apply the layer with `Router::layer` or `route_layer` of the router that has the \
                                       routes; for a fallback, set `Policy::on_missing`";

/// Counts requests by whether the route of axum is known. Around a router it never is.
#[cfg(feature = "axum")]
#[inline]
pub(crate) fn route(known: bool) {
    static KNOWN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    static UNKNOWN: AtomicU32 = AtomicU32::new(0);
    if cfg!(not(feature = "tracing")) || KNOWN.load(Ordering::Relaxed) {
        return;
    }
    if known {
        KNOWN.store(true, Ordering::Relaxed);
    } else if UNKNOWN.fetch_add(1, Ordering::Relaxed) + 1 == WITHOUT_ROUTE {
        #[cfg(feature = "tracing")]
        tracing::warn!(remedy = ROUTE_REMEDY, "no request so far has a route, so none has a key by `RouteTemplate`");
    }
}

/// The limiters whose layers an examined request has passed.
#[derive(Clone, Debug)]
struct Passed(Vec<usize>);

static TO_FOLLOW: AtomicU32 = AtomicU32::new(1_000);

/// Follows a request through the layers of the limiter `limiter`, and reports a request that passes
/// two layers of one limiter, or one layer twice: it is counted twice.
#[inline]
pub(crate) fn passes<B>(request: &mut http::Request<B>, limiter: usize) {
    #[cfg(feature = "tracing")]
    if TO_FOLLOW.load(Ordering::Relaxed) > 0 && tracing::enabled!(tracing::Level::WARN) {
        follow(request.extensions_mut(), limiter);
    }
}

#[cold]
fn follow(extensions: &mut http::Extensions, limiter: usize) {
    let left = TO_FOLLOW.load(Ordering::Relaxed);
    TO_FOLLOW.store(left.saturating_sub(1), Ordering::Relaxed);
    match extensions.get_mut::<Passed>() {
        Some(Passed(limiters)) if limiters.contains(&limiter) => {
            if TO_FOLLOW.swap(0, Ordering::Relaxed) > 0 {
                #[cfg(feature = "tracing")]
                tracing::warn!(
                    remedy = "remove the limiter, or the layer, from one of the two places",
                    "a request passes two layers of one limiter, or one layer twice, and is counted twice"
                );
            }
        }
        Some(Passed(limiters)) => limiters.push(limiter),
        None => drop(extensions.insert(Passed(vec![limiter]))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const PROXY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));

    fn reports(requests: impl IntoIterator<Item = Forwarding>) -> Vec<Report> {
        let mut examined = Examined::new();
        requests.into_iter().filter_map(|request| examined.add(request)).collect()
    }

    #[test]
    fn many_values_from_one_address_are_reported_once() {
        let ignored = |value: u64| Forwarding::Ignored { address: PROXY, value };
        assert_eq!(reports((0..100).map(ignored)), [Report::Ignored]);
        assert_eq!(reports((0..100).map(|_| ignored(7))), []);
        let before_last = |value| Forwarding::BeforeLast { address: PROXY, value };
        assert_eq!(reports((0..100).map(before_last)), [Report::BeforeLast]);
    }

    #[test]
    fn one_value_from_each_of_many_addresses_is_nothing() {
        let client = |host: u32| Forwarding::Ignored { address: Ipv4Addr::from_bits(host).into(), value: host.into() };
        assert_eq!(reports((0..1_000).map(client)), []);
    }

    #[test]
    fn a_proxy_that_never_sends_the_field_is_reported_and_one_that_does_is_not() {
        let absent = std::iter::repeat_n(Forwarding::Absent, 100);
        assert_eq!(reports(absent.clone()), [Report::Absent]);
        assert_eq!(reports(std::iter::once(Forwarding::Sent).chain(absent)), []);
    }
}
