//! Contains [`Permit`], one request's place among those in flight, and [`InFlightPermit`], by which
//! a handler shares it.
//!
//! This file must not know of futures, of bodies, or of who may have a permit.

use std::{fmt, sync::Arc};

use http::{HeaderMap, Method, Request, header};
use smallvec::SmallVec;

use super::state::InFlightState;
use crate::{key::Key, observe::metrics::PermitStart, policy::Demand};

/// One request's place among those in flight. Dropping it returns it.
pub(super) struct Permit {
    state: Arc<InFlightState>,
    key: Key,
    /// `None` until the metrics count it.
    start: Option<PermitStart>,
}

impl Permit {
    /// The permit of a request that is counted as one of so many in flight.
    #[inline(always)]
    pub(super) fn begun(state: &Arc<InFlightState>, demand: &Demand, in_flight: u32) -> Self {
        // Made before anything is reported, so that a recorder of metrics that panics loses no
        // permit, and is not called again by the drop.
        let mut permit = Self { state: Arc::clone(state), key: demand.key, start: None };
        permit.start = Some(state.report_begin());
        state.report(demand, in_flight);
        permit
    }
}

impl Drop for Permit {
    #[inline(always)]
    fn drop(&mut self) {
        self.state.end(self.key, self.start);
    }
}

/// A permit, until the request's response has ended.
pub(super) enum PermitGuard {
    Own {
        _permit: Permit,
    },
    /// A handler may have it longer.
    Shared {
        _permit: Arc<Permit>,
    },
}

impl PermitGuard {
    /// Puts the permit into the extensions of a request that asks for an upgrade of the connection,
    /// or `always`.
    #[inline(always)]
    pub(super) fn new<Q>(permit: Permit, request: &mut Request<Q>, always: bool) -> Self {
        if always || asks_for_upgrade(request.method(), request.headers()) {
            return Self::share(permit, request);
        }
        Self::Own { _permit: permit }
    }

    #[cold]
    fn share<Q>(permit: Permit, request: &mut Request<Q>) -> Self {
        let permit = Arc::new(permit);
        let extensions = request.extensions_mut();
        // An outer layer may have put its own there.
        let mut shared: InFlightPermit = extensions.remove().unwrap_or_default();
        shared.permits.push(Arc::clone(&permit));
        extensions.insert(shared);
        Self::Shared { _permit: permit }
    }
}

/// Over HTTP/1.1 by a field (RFC 9110 §7.8), over HTTP/2 by a method (RFC 8441 §4).
fn asks_for_upgrade(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::CONNECT || headers.contains_key(header::UPGRADE)
}

/// A request's place among those in flight, for a connection that outlives the response. Returned
/// when it is dropped.
///
/// The layer puts it into the extensions of requests that ask for an upgrade of the connection, and
/// with [`permits`](super::InFlightLayer::permits) into those of all requests. The handler takes it
/// out, and moves it to where the connection is served. Otherwise it is returned with the response,
/// which ends at once. In handlers of axum the type is an extractor (feature `axum`):
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::{extract::ws::WebSocketUpgrade, response::Response};
/// use tower_quota::in_flight::InFlightPermit;
///
/// async fn chat(permit: InFlightPermit, upgrade: WebSocketUpgrade) -> Response {
///     upgrade.on_upgrade(|mut socket| async move {
///         let _permit = permit;
///         while let Some(Ok(_message)) = socket.recv().await {}
///     })
/// }
/// # }
/// ```
///
/// Elsewhere it is `request.extensions_mut().remove::<InFlightPermit>()`.
///
/// There is one: a clone is empty, so that a copy of the extensions, in a log or for a retry, does
/// not count as a request in flight.
#[derive(Default)]
#[must_use = "the permit is returned when this is dropped"]
pub struct InFlightPermit {
    /// Those of nested layers, from the outermost.
    permits: SmallVec<[Arc<Permit>; 1]>,
}

impl InFlightPermit {
    /// Whether this has no permit, because it is a clone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.permits.is_empty()
    }
}

/// Returns an empty one. Extensions ask for it when they are cloned.
impl Clone for InFlightPermit {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for InFlightPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlightPermit").field("permits", &self.permits.len()).finish()
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl fmt::Debug for PermitGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PermitGuard").finish_non_exhaustive()
    }
}
