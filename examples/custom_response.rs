//! A custom response: a page for browsers, and JSON in the API's own form for other clients.
//!
//! ```sh
//! cargo run --example custom_response
//! curl -i localhost:3000/; curl -i localhost:3000/; curl -i -H 'accept: text/html' localhost:3000/
//! ```
//!
//! The first is served, the second is denied in JSON, the third with a page. `Retry-After`, `Cache-Control` and the
//! `RateLimit` fields are added to both. `PORT` and `QUOTA` change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    response::{Html, IntoResponse as _},
    routing::get,
};
use http::{StatusCode, header::ACCEPT};
use serde_json::json;
use tokio::net::TcpListener;
use tower_quota::{Quota, RateLimitLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("1/10s").parse()?;

    let limit = RateLimitLayer::per_ip(quota).respond_to(|head, denied| {
        // Browsers name HTML; what else is asked for does not matter here.
        let accept = head.headers().get(ACCEPT).map_or(&b""[..], |value| value.as_bytes());
        let seconds = denied.retry_after();
        if accept.windows(9).any(|part| part == b"text/html") {
            let when = seconds.map_or_else(String::new, |seconds| format!(" in {seconds} seconds"));
            (denied.status(), Html(format!("<h1>One moment</h1>\n<p>Please try again{when}.</p>\n"))).into_response()
        } else {
            // Also called for requests that have no key, whose status is another one.
            let code = if denied.status() == StatusCode::TOO_MANY_REQUESTS { "rate_limited" } else { "rejected" };
            let error = json!({ "code": code, "policies": denied.advertised_policies().collect::<Vec<_>>(), "retry_in": seconds });
            (denied.status(), Json(json!({ "error": error }))).into_response()
        }
    });
    let app = Router::new().route("/", get(|| async { "Hello!\n" })).layer(limit);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
