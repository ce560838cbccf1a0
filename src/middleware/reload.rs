//! Replaces the limiter of a layer while it serves: [`ReloadableLayer`].
//!
//! This file must not know which policies stay: see
//! [`Limiter::with_policies`](crate::Limiter::with_policies).

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use super::state::{LayerState, Stateful};
use crate::{
    limiter::{ConfigError, Handle, Limiter},
    policy::Policy,
};

/// A layer whose limiter can be replaced while it serves: for a configuration that is read again.
/// Made by [`RateLimitLayer::reloadable`](crate::RateLimitLayer::reloadable) and
/// [`DelayLayer::reloadable`](super::delay::DelayLayer::reloadable).
///
/// Clones share the limiter: put one into the application, and use another one to change it. Each
/// request is decided by the limiter that is there when it comes. The limiter that the layer was
/// made with stays in memory as long as the layer; its idle keys are removed as before. Until the
/// limiter is replaced for the first time, a request costs one atomic load more than without this,
/// and a lock for reading afterwards.
///
/// ```
/// use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp};
///
/// let layer = RateLimitLayer::new(Policy::per(PeerIp, Quota::per_second(10))).reloadable();
/// // let app = app.layer(layer.clone());
///
/// // When the file has changed. What was used up of `per-ip` still is.
/// layer.set_policies([Policy::per(PeerIp, Quota::per_second(20)), Policy::global(Quota::per_second(5_000))])?;
/// # Ok::<(), tower_quota::limiter::ConfigError>(())
/// ```
#[must_use]
pub struct ReloadableLayer<T, L = Limiter> {
    layer: T,
    current: Arc<Current<L>>,
}

/// What the layers and services of one limiter share.
struct Current<L> {
    /// Changes with the state.
    generation: AtomicU64,
    state: RwLock<Arc<LayerState<L>>>,
    /// Locked while a new state is made of the present one.
    changing: Mutex<()>,
}

impl<L> Current<L> {
    fn state(&self) -> Arc<LayerState<L>> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T, L> ReloadableLayer<T, L> {
    pub(super) fn new(state: Arc<LayerState<L>>, layer: T) -> Self {
        let (generation, state) = (AtomicU64::new(0), RwLock::new(state));
        Self { layer, current: Arc::new(Current { generation, state, changing: Mutex::new(()) }) }
    }
}

#[expect(private_bounds, reason = "only the layers of this crate are reloadable")]
impl<T: Stateful<L>, L: Handle> ReloadableLayer<T, L> {
    /// Returns the limiter that decides now. Do not store it: it stays as it is when the limiter is
    /// replaced.
    #[must_use]
    pub fn limiter(&self) -> L {
        self.current.state().limiter.clone()
    }

    /// Replaces the limiter. In memory use [`set_policies`](Self::set_policies), which lets
    /// policies that stay continue. Over Redis build a `RedisLimiter` with the same prefix and
    /// secret: buckets are there by the names of their policies.
    ///
    /// Requests that wait are served by the limiter that they wait for.
    ///
    /// # Errors
    ///
    /// When all policies of the limiter are [by key](Policy::by_key), so that the layer would limit
    /// nothing. Nothing changes then.
    pub fn replace(&self, limiter: L) -> Result<(), ConfigError> {
        let _changing = self.current.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace_with(limiter)
    }

    fn replace_with(&self, limiter: L) -> Result<(), ConfigError> {
        limiter.policy_set().check_for_requests()?;
        self.layer.prepare(&limiter);
        let next = Arc::new(self.current.state().with_limiter(limiter));
        let former = std::mem::replace(&mut *self.current.state.write().unwrap_or_else(PoisonError::into_inner), next);
        self.current.generation.fetch_add(1, Ordering::Release);
        // Not under the lock: the last handle of a limiter ends its sweeping.
        drop(former);
        Ok(())
    }
}

#[expect(private_bounds, reason = "only the layers of this crate are reloadable")]
impl<T: Stateful<Limiter>> ReloadableLayer<T> {
    /// Replaces the policies. Those that stay have their buckets, blocks, bans and pauses as
    /// before: see [`Limiter::with_policies`]. The quotas are those of the new policies, also where
    /// [`Limiter::set_limit`] had set others.
    ///
    /// # Errors
    ///
    /// When [`Limiter::with_policies`] fails, or all policies are [by key](Policy::by_key). Nothing
    /// changes then.
    pub fn set_policies(&self, policies: impl IntoIterator<Item = Policy>) -> Result<(), ConfigError> {
        // Before the lock: an iterator may do anything.
        let policies: Vec<_> = policies.into_iter().collect();
        let _changing = self.current.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace_with(self.limiter().with_policies_for_requests(policies)?)
    }
}

impl<T: Clone, L> Clone for ReloadableLayer<T, L> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), current: Arc::clone(&self.current) }
    }
}

impl<S, T: Layer<S>, L> Layer<S> for ReloadableLayer<T, L> {
    type Service = Reloadable<T::Service, L>;

    fn layer(&self, inner: S) -> Self::Service {
        // The service has the first state.
        Reloadable { service: self.layer.layer(inner), current: Arc::clone(&self.current), seen: 0 }
    }
}

/// A service whose limiter can be replaced. Made by [`ReloadableLayer`].
pub struct Reloadable<S, L = Limiter> {
    service: S,
    current: Arc<Current<L>>,
    /// The generation of the service's state.
    seen: u64,
}

impl<S: Clone, L> Clone for Reloadable<S, L> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), current: Arc::clone(&self.current), seen: self.seen }
    }
}

impl<S: Service<Request<Q>> + Stateful<L>, L, Q> Service<Request<Q>> for Reloadable<S, L> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        // Acquire: the state is at least as new as its generation.
        let generation = self.current.generation.load(Ordering::Acquire);
        if generation != self.seen {
            *self.service.state_mut() = self.current.state();
            self.seen = generation;
        }
        self.service.call(request)
    }
}

impl<T: fmt::Debug, L> fmt::Debug for ReloadableLayer<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReloadableLayer").field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, L> fmt::Debug for Reloadable<S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloadable").field("service", &self.service).finish_non_exhaustive()
    }
}
