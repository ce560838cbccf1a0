//! Control at run time, on a separate port that only operators reach: list keys, block, reset,
//! change a limit.
//!
//! ```sh
//! ADMIN_TOKEN=s3cret cargo run --example admin
//! for i in $(seq 9); do curl -s -o /dev/null -w '%{http_code} ' localhost:3000/; done; echo
//! alias admin='curl -s -H "authorization: Bearer s3cret"'
//! admin localhost:3001/policies; admin localhost:3001/policies/per-ip/keys; admin localhost:3001/denied
//! admin -X PUT localhost:3001/policies/per-ip/limit -d '"50/s"' -H 'content-type: application/json'
//! admin -X POST 'localhost:3001/policies/per-ip/keys/KEY/block?seconds=60'
//! admin -X DELETE localhost:3001/policies/per-ip/keys/KEY
//! ```
//!
//! The same over Redis, for all processes that share the limits, with `REDIS_URL=redis://127.0.0.1 cargo run --example admin
//! --features redis`; a page of keys is continued with `?from=NEXT`.
//!
//! KEY is a key from the list. `PORT`, `ADMIN_PORT` and `ADMIN_TOKEN` change the defaults; without a token there is no
//! admin port.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post, put},
};
use http::{StatusCode, header::AUTHORIZATION};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_quota::{
    Key, Limiter, Policy, Quota, RateLimitLayer,
    decision::Standing,
    key::PeerIp,
    limit::Limit,
    limiter::{BlockError, LimitError, UnknownPolicy},
};

#[derive(Clone)]
struct Admin {
    limiter: AnyLimiter,
    token: String,
}

/// One process, or many that share their limits over Redis: the methods have the same names.
#[derive(Clone)]
enum AnyLimiter {
    Memory(Limiter),
    #[cfg(feature = "redis")]
    Redis(tower_quota::redis::RedisLimiter),
}

/// Does the same with either limiter. What asks Redis has to be awaited.
macro_rules! either {
    ($limiter:expr, |$name:ident| async $call:expr) => {
        match &$limiter {
            AnyLimiter::Memory($name) => $call?,
            #[cfg(feature = "redis")]
            AnyLimiter::Redis($name) => $call.await?,
        }
    };
    ($limiter:expr, |$name:ident| $call:expr) => {
        match &$limiter {
            AnyLimiter::Memory($name) => $call,
            #[cfg(feature = "redis")]
            AnyLimiter::Redis($name) => $call,
        }
    };
}

/// An error, as a problem.
struct Failure(StatusCode, String);

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "status": self.0.as_u16(), "detail": self.1 }))).into_response()
    }
}

impl From<UnknownPolicy> for Failure {
    fn from(unknown: UnknownPolicy) -> Self {
        Self(StatusCode::NOT_FOUND, unknown.to_string())
    }
}

impl From<LimitError> for Failure {
    fn from(error: LimitError) -> Self {
        match error {
            LimitError::UnknownPolicy(unknown) => unknown.into(),
            error => Self(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::UnknownPolicy(unknown) => unknown.into(),
            error => Self(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
        }
    }
}

#[cfg(feature = "redis")]
impl From<tower_quota::redis::ControlError> for Failure {
    fn from(error: tower_quota::redis::ControlError) -> Self {
        match error {
            tower_quota::redis::ControlError::UnknownPolicy(unknown) => unknown.into(),
            tower_quota::redis::ControlError::Limit(error) => (*error).into(),
            error => Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        }
    }
}

type Answer = Result<Json<Value>, Failure>;

async fn authenticate(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let given = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    // Compared as keyed hashes: the time of the comparison does not depend on how much of a guess is right.
    let is_right = |token| either!(admin.limiter, |limiter| limiter.key(token) == limiter.key(&admin.token));
    if given.is_some_and(is_right) {
        next.run(request).await
    } else {
        (StatusCode::UNAUTHORIZED, [("www-authenticate", "Bearer")]).into_response()
    }
}

fn shown(key: Key, standing: &Standing<'_>) -> Value {
    json!({
        "key": key.to_string(),
        "address": key.address(),
        "remaining": standing.remaining(),
        "limit": standing.limit(),
        "full_in_ms": standing.until_full().as_millis(),
    })
}

fn key(text: &str) -> Result<Key, Failure> {
    text.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{text}: {error}")))
}

async fn policies(State(admin): State<Admin>) -> Answer {
    let policies = either!(admin.limiter, |limiter| {
        let policies = limiter.policies().iter().map(|policy| {
            let limit = limiter.limit(policy.name())?;
            Ok(json!({ "name": policy.name(), "limit": limit, "global": policy.is_global() }))
        });
        policies.collect::<Result<Vec<_>, UnknownPolicy>>()?
    });
    let keys = match &admin.limiter {
        AnyLimiter::Memory(limiter) => json!(limiter.len()),
        #[cfg(feature = "redis")]
        AnyLimiter::Redis(_) => Value::Null,
    };
    Ok(Json(json!({ "policies": policies, "keys": keys })))
}

#[derive(Deserialize)]
struct Paging {
    from: Option<String>,
}

async fn keys(State(admin): State<Admin>, Path(policy): Path<String>, Query(paging): Query<Paging>) -> Answer {
    let wrong = |error: &dyn std::fmt::Display| Failure(StatusCode::BAD_REQUEST, error.to_string());
    let shown_all =
        |keys: &[(Key, Standing<'_>)]| -> Vec<_> { keys.iter().map(|(key, standing)| shown(*key, standing)).collect() };
    let (keys, next) = match &admin.limiter {
        AnyLimiter::Memory(limiter) => {
            let from = paging.from.map(|from| from.parse()).transpose().map_err(|error| wrong(&error))?;
            let page = limiter.list(&policy, from.unwrap_or(0), 100)?;
            (shown_all(&page.keys), page.next.map(|next| next.to_string()))
        }
        #[cfg(feature = "redis")]
        AnyLimiter::Redis(limiter) => {
            let from = paging.from.map(|from| from.parse()).transpose().map_err(|error| wrong(&error))?;
            let page = limiter.list(&policy, from, 100).await?;
            (shown_all(&page.keys), page.next.map(|next| next.to_string()))
        }
    };
    Ok(Json(json!({ "keys": keys, "next": next })))
}

async fn peek(State(admin): State<Admin>, Path((policy, name)): Path<(String, String)>) -> Answer {
    let key = key(&name)?;
    let blocked = either!(admin.limiter, |limiter| async limiter.blocked_for(&policy, key));
    let mut shown = shown(key, &either!(admin.limiter, |limiter| async limiter.peek(&policy, key)));
    shown["blocked_for_ms"] = json!(blocked.map(|left| left.as_millis()));
    Ok(Json(shown))
}

async fn reset(State(admin): State<Admin>, Path((policy, name)): Path<(String, String)>) -> Answer {
    let key = key(&name)?;
    Ok(Json(json!({ "reset": either!(admin.limiter, |limiter| async limiter.reset(&policy, key)) })))
}

#[derive(Deserialize)]
struct Block {
    seconds: u64,
}

async fn block(
    State(admin): State<Admin>,
    Path((policy, name)): Path<(String, String)>,
    Query(block): Query<Block>,
) -> Answer {
    let (key, time) = (key(&name)?, Duration::from_secs(block.seconds));
    either!(admin.limiter, |limiter| async limiter.block(&policy, key, time));
    Ok(Json(json!({ "blocked_for": block.seconds })))
}

async fn set_limit(State(admin): State<Admin>, Path(policy): Path<String>, Json(limit): Json<Limit>) -> Answer {
    either!(admin.limiter, |limiter| async limiter.set_limit(&policy, &limit));
    Ok(Json(json!({ "limit": limit })))
}

/// Over Redis, those of this process.
async fn denied(State(admin): State<Admin>) -> Json<Value> {
    let denied = either!(admin.limiter, |limiter| limiter.top_denied());
    let shown = denied.iter().map(|denied| {
        json!({
            "policy": &*denied.policy,
            "key": denied.key.to_string(),
            "address": denied.key.address(),
            "denials": denied.denials,
            "overestimate": denied.overestimate,
        })
    });
    Json(json!({ "denied": shown.collect::<Vec<_>>() }))
}

fn admin_router(admin: Admin) -> Router {
    Router::new()
        .route("/policies", get(policies))
        .route("/policies/{policy}/keys", get(keys))
        .route("/policies/{policy}/keys/{key}", get(peek))
        .route("/policies/{policy}/keys/{key}", delete(reset))
        .route("/policies/{policy}/keys/{key}/block", post(block))
        .route("/policies/{policy}/limit", put(set_limit))
        .route("/denied", get(denied))
        .layer(from_fn_with_state(admin.clone(), authenticate))
        // Limits guesses of the token, per address, so that a guesser does not lock out operators.
        .layer(RateLimitLayer::new(
            Policy::per(PeerIp, Quota::per_minute(20))
                .named("wrong-token")
                .count_if(|response| response.status() == StatusCode::UNAUTHORIZED),
        ))
        .with_state(admin)
}

async fn listen(variable: &str, default: &str) -> Result<TcpListener, Box<dyn Error>> {
    let port = env::var(variable).as_deref().unwrap_or(default).parse()?;
    Ok(TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let policy = Policy::per(PeerIp, Quota::per_minute(5));
    let app = Router::new().route("/", get(|| async { "Hello!\n" }));
    let (limiter, app) = match env::var("REDIS_URL") {
        #[cfg(feature = "redis")]
        Ok(url) => {
            use tower_quota::redis::{OnFailure, RedisLimiter};
            let limiter = RedisLimiter::builder(url, b"keep this out of the sources", OnFailure::Local { share: 0.5 });
            let limiter = limiter.policy(policy).top_denied(32).build()?;
            (AnyLimiter::Redis(limiter.clone()), app.layer(RateLimitLayer::new(&limiter)))
        }
        #[cfg(not(feature = "redis"))]
        Ok(_) => return Err("over Redis this example needs `--features redis`".into()),
        Err(_) => {
            let limiter = Limiter::builder().policy(policy).top_denied(32).build()?;
            (AnyLimiter::Memory(limiter.clone()), app.layer(RateLimitLayer::new(&limiter)))
        }
    };
    let listener = listen("PORT", "3000").await?;
    println!("listening on http://{}", listener.local_addr()?);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>());

    let Ok(token) = env::var("ADMIN_TOKEN") else { return Ok(served.await?) };
    let listener = listen("ADMIN_PORT", "3001").await?;
    println!("admin on http://{}", listener.local_addr()?);
    let admin = admin_router(Admin { limiter, token }).into_make_service_with_connect_info::<SocketAddr>();
    let admin = axum::serve(listener, admin);
    tokio::try_join!(served.into_future(), admin.into_future())?;
    Ok(())
}
