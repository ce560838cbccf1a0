//! The other crates, as their documentation says to use them, with a quota that no measurement reaches.

use std::{
    convert::Infallible,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, FromRequestParts},
    response::IntoResponse as _,
};
use axum_limit::{FixedWindowPerDay, FixedWindowPolicy, Key, Limit, LimitState, StorageKey, TokenBucketPolicy};
use http::{Request, Response, request::Parts};
use tower::Service;
use tower_governor::{GovernorError, key_extractor::KeyExtractor};

/// axum-governor, which tells its limits always.
pub fn axum_governor(quota: axum_governor::Quota) -> axum_governor::GovernorLayer<IpAddr> {
    let config = axum_governor::GovernorConfigBuilder::default()
        .with_extractor(axum_governor::extractor::PeerIp::default())
        .quota_default(quota)
        .expect_connect_info()
        .gc_disable();
    axum_governor::GovernorLayer::new(config.finish().unwrap())
}

pub fn many() -> axum_governor::Quota {
    axum_governor::Quota::requests_per_second(100_000_000.try_into().unwrap())
}

pub fn once_an_hour() -> axum_governor::Quota {
    axum_governor::Quota::seconds_per_request(3_600.try_into().unwrap())
}

/// throttle-kit, which tells its limits always.
pub fn throttle_kit() -> throttle_kit::RateLimitLayer<throttle_kit::InMemoryBackend> {
    let quota = throttle_kit::Quota::per_second(100_000_000).allow_burst(100_000_000);
    throttle_kit::RateLimitLayer::new(quota, throttle_kit::InMemoryBackend::new())
}

/// By GCRA in memory, which tells its limits always.
#[cfg(feature = "tower-rate-limiter")]
pub fn tower_rate_limiter(
    rate: u32,
    seconds: u64,
) -> tower_rate_limiter::RateLimitLayer<tower_rate_limiter::IpKeyExtractor, tower_rate_limiter::MemoryGcra> {
    let quota = tower_rate_limiter::GcraQuota::new(rate, std::time::Duration::from_secs(seconds), rate).unwrap();
    let policy = tower_rate_limiter::MemoryGcra::new(quota);
    let layer = tower_rate_limiter::RateLimitLayer::builder(tower_rate_limiter::IpKeyExtractor::new());
    layer.policy_name("per-ip").with_policy(policy).build().unwrap()
}

/// tower_governor by an API key: it has no extractor for one.
#[derive(Clone, Debug)]
pub struct ApiKey;

impl KeyExtractor for ApiKey {
    type Key = String;

    fn extract<T>(&self, request: &Request<T>) -> Result<String, GovernorError> {
        let key = request.headers().get("x-api-key").and_then(|key| key.to_str().ok());
        key.map(str::to_owned).ok_or(GovernorError::UnableToExtractKey)
    }
}

/// The key of axum-limit, which has none for addresses.
#[derive(Clone)]
pub struct Peer(IpAddr);

impl Key for Peer {
    type Extractor = ConnectInfo<SocketAddr>;

    fn from_extractor(ConnectInfo(address): &Self::Extractor) -> Self {
        Self(address.ip())
    }
}

impl StorageKey for Peer {
    fn storage_key(&self) -> String {
        self.0.to_string()
    }
}

pub type TokenBucket = (Limit<100_000_000, 1_000, Peer>, LimitState<Peer, TokenBucketPolicy>);
pub type DailyWindow = (FixedWindowPerDay<100_000_000, Peer>, LimitState<Peer, FixedWindowPolicy>);
pub type OnceADay = (Limit<1, 86_400_000, Peer>, LimitState<Peer, TokenBucketPolicy>);

/// axum-limit limits in the arguments of a handler, so this service extracts them, and then calls the inner one.
pub fn by_extractor<L: Extracts>(inner: crate::layer::Inner) -> Extractor<L::State> {
    Extractor { inner, state: L::State::default(), extract: L::extract }
}

/// An extractor, and its state.
pub trait Extracts {
    type State: Clone + Default;

    fn extract(parts: Parts, state: Self::State) -> Extracted;
}

type Extracted = Pin<Box<dyn Future<Output = Result<Parts, Response<Body>>>>>;

impl<E, S> Extracts for (E, S)
where
    E: FromRequestParts<S>,
    S: Clone + Default + Send + Sync + 'static,
{
    type State = S;

    fn extract(mut parts: Parts, state: S) -> Extracted {
        Box::pin(async move {
            match E::from_request_parts(&mut parts, &state).await {
                Ok(_) => Ok(parts),
                Err(rejection) => Err(rejection.into_response()),
            }
        })
    }
}

#[derive(Clone)]
pub struct Extractor<S> {
    inner: crate::layer::Inner,
    state: S,
    extract: fn(Parts, S) -> Extracted,
}

impl<S: Clone + 'static> Service<Request<Body>> for Extractor<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let (extracted, mut inner) = ((self.extract)(parts, self.state.clone()), self.inner.clone());
        Box::pin(async move {
            match extracted.await {
                Ok(parts) => inner.call(Request::from_parts(parts, body)).await,
                Err(response) => Ok(response),
            }
        })
    }
}
