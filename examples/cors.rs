//! Scripts from other origins read a denial and its fields, and their preflights cost nothing.
//!
//! ```sh
//! cargo run --example cors
//! curl -i -H 'origin: http://elsewhere.example' localhost:3000/api
//! ```
//!
//! Open <http://localhost:3000/> in a browser: the page calls the API at `127.0.0.1`, which is another origin, until it is
//! denied, and shows what it could read. `PORT` and `QUOTA` change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{Router, response::Html, routing::get};
use http::{HeaderName, Method, header::RETRY_AFTER};
use tokio::net::TcpListener;
use tower_http::cors::{Any, CorsLayer};
use tower_quota::{Policy, Quota, RateLimitLayer, key::PeerIp};

const PAGE: &str = r#"<!doctype html>
<title>Rate limits across origins</title>
<h1>Rate limits across origins</h1>
<pre id="log"></pre>
<script>
  // The custom field makes the browser send a preflight before each call.
  const api = `http://127.0.0.1:${location.port}/api`;
  const fields = ["RateLimit", "RateLimit-Policy", "Retry-After"];
  (async () => {
    for (let n = 1; n <= 6; n++) {
      const response = await fetch(api, { headers: { "x-call": n } });
      const seen = fields.map(name => `${name}: ${response.headers.get(name)}`).join("  ");
      document.getElementById("log").textContent += `${response.status}  ${seen}\n`;
      if (!response.ok) {
        document.getElementById("log").textContent += (await response.json()).title + "\n";
        break;
      }
    }
    document.title = "done";
  })();
</script>
"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let quota: Quota = env::var("QUOTA").as_deref().unwrap_or("1/10s, burst 3").parse()?;

    let limit = RateLimitLayer::new(
        // With the CORS layer outside, preflights do not get here. Where the layer is inside, this line exempts them.
        Policy::per(PeerIp, quota).when(|head| head.method() != Method::OPTIONS),
    );
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers([HeaderName::from_static("x-call")])
        .expose_headers([
            HeaderName::from_static("ratelimit"),
            HeaderName::from_static("ratelimit-policy"),
            RETRY_AFTER,
        ])
        // Browsers cache a preflight. This example wants one before each call.
        .max_age(std::time::Duration::ZERO);
    let app = Router::new()
        .route("/api", get(|| async { "Hello!\n" }))
        // Only the API's routes: the browser also asks for an icon.
        .route_layer(limit)
        // axum's last layer is the outermost: a denial passes through the CORS layer too, or no script could read it.
        .layer(cors)
        .route("/", get(|| async { Html(PAGE) }));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
