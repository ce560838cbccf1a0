//! An API whose OpenAPI document says what a limited client gets: the status 429, its fields, and its body.
//!
//! ```sh
//! cargo run --example openapi
//! curl -s localhost:3000/openapi.json
//! for i in 1 2 3; do curl -si localhost:3000/items; done
//! ```
//!
//! The document has the response 429 of `/items`; the third request gets it. `PORT` changes the default.

use std::{env, error::Error, net::SocketAddr};

use axum::{Json, Router, routing::get};
use serde::Serialize;
use tokio::net::TcpListener;
use tower_quota::{Quota, RateLimitLayer};
use utoipa::{OpenApi, ToSchema};

/// The body of a denial: a problem (RFC 9457).
#[derive(Serialize, ToSchema)]
struct Denial {
    /// The kind of the problem. Absent where the status says all.
    #[schema(example = "https://iana.org/assignments/http-problem-types#quota-exceeded")]
    r#type: Option<String>,
    #[schema(example = "Quota Exceeded")]
    title: String,
    #[schema(example = 429)]
    status: u16,
    /// What to do, for people.
    #[schema(example = "Too many requests for the policy \"per-ip\". Retry in 30 s.")]
    detail: String,
    /// The policies that denied, as `RateLimit-Policy` names them.
    #[serde(rename = "violated-policies")]
    violated_policies: Option<Vec<String>>,
}

/// Lists the items.
#[utoipa::path(get, path = "/items", responses(
    (
        status = 200,
        body = Vec<String>,
        headers(
            ("RateLimit-Policy" = String, description = "The quotas: `\"per-ip\";q=2;w=60`"),
            ("RateLimit" = String, description = "What is left: `\"per-ip\";r=1;t=30`"),
        ),
    ),
    (
        status = 429,
        description = "Too many requests. Wait for `Retry-After`.",
        body = Denial,
        content_type = "application/problem+json",
        headers(
            ("Retry-After" = u64, description = "Seconds. Absent where no wait helps."),
            ("RateLimit-Policy" = String, description = "The quotas"),
            ("RateLimit" = String, description = "What is left of those that denied"),
        ),
    ),
))]
async fn items() -> Json<Vec<String>> {
    Json(vec!["one".to_owned(), "two".to_owned()])
}

#[derive(OpenApi)]
#[openapi(paths(items), components(schemas(Denial)))]
struct Api;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let limited = Router::new().route("/items", get(items)).layer(RateLimitLayer::per_ip(Quota::per_minute(2)));
    let app = Router::new().route("/openapi.json", get(|| async { Json(Api::openapi()) })).merge(limited);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
