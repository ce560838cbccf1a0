//! JSON-RPC over HTTP, as for the tool calls of a language model: one endpoint, whose methods cost differently. The
//! method is in the body, and a batch has many.
//!
//! ```sh
//! cargo run --example tool_calls
//! call() { curl -si -H "x-api-key: k1" --json "$1" localhost:3000/rpc; }
//! call '{"jsonrpc": "2.0", "id": 1, "method": "ping"}'
//! call '[{"jsonrpc": "2.0", "id": 2, "method": "search"}, {"jsonrpc": "2.0", "id": 3, "method": "search"}]'
//! call '[{"jsonrpc": "2.0", "id": 4, "method": "render"}, {"jsonrpc": "2.0", "id": 5, "method": "search"}]'
//! ```
//!
//! A ping costs nothing, a search one cell, a rendering ten, of ten a minute. The first two are answered. The last batch
//! costs eleven, so it can never be granted: 429 without `Retry-After`. A rendering alone would be denied for 12 seconds.
//! `PORT` changes the default.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer};

#[derive(Deserialize)]
struct Call {
    id: Value,
    method: String,
}

/// One call, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Calls {
    Batch(Vec<Call>),
    One(Call),
}

/// A method that does not exist costs as much as a search: trying names is not for nothing.
fn cost(method: &str) -> u32 {
    match method {
        "ping" => 0,
        "render" => 10,
        _ => 1,
    }
}

fn answer(call: &Call) -> Value {
    match &*call.method {
        method @ ("ping" | "render" | "search") => json!({"jsonrpc": "2.0", "id": call.id, "result": method}),
        _ => json!({"jsonrpc": "2.0", "id": call.id, "error": {"code": -32601, "message": "Method not found"}}),
    }
}

async fn rpc(State(limiter): State<Limiter>, headers: HeaderMap, Json(request): Json<Calls>) -> Response {
    let Some(key) = headers.get("x-api-key") else { return StatusCode::UNAUTHORIZED.into_response() };
    let calls = match &request {
        Calls::Batch(calls) => &calls[..],
        Calls::One(call) => std::slice::from_ref(call),
    };
    // A batch is granted as a whole, or not at all. A sum that is too large stays too large.
    let cost_of_all = calls.iter().fold(0_u32, |sum, call| sum.saturating_add(cost(&call.method)));
    if let Err(denied) = limiter.acquire_n("tools", key.as_bytes(), cost_of_all) {
        return denied.into_response();
    }
    match &request {
        Calls::Batch(calls) => Json(calls.iter().map(answer).collect::<Value>()).into_response(),
        Calls::One(call) => Json(answer(call)).into_response(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let limiter = Limiter::new(Policy::by_key(Quota::per_minute(10)).named("tools"));
    let app = Router::new()
        .route("/rpc", post(rpc))
        .layer(RateLimitLayer::per_ip(Quota::per_second(100)))
        .with_state(limiter);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
