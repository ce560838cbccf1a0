//! API keys with plans. Keys are checked first, then counted: the free plan has 3 requests a minute, the pro plan 100 a
//! second. Before both, a limit per address protects the check from clients that guess keys.
//!
//! ```sh
//! cargo run --example api_keys
//! curl -i localhost:3000/                                # 401: no key
//! curl -i -H 'x-api-key: wrong' localhost:3000/          # 403: not one of ours
//! for i in $(seq 5); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: free-1' localhost:3000/; done; echo
//! for i in $(seq 5); do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: pro-1' localhost:3000/; done; echo
//! ```
//!
//! The free key gets three 200s, then 429s. The pro key is still served. `PORT` changes the port.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use tokio::net::TcpListener;
use tower_quota::{Policy, Quota, RateLimitLayer, key::Header};

#[derive(Clone, Copy)]
enum Plan {
    Free,
    Pro,
}

const FREE: Quota = Quota::per_minute(3);
const PRO: Quota = Quota::per_second(100);

/// Stands for a look-up in a database.
async fn authenticate(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    if let Some(key) = request.headers().get("x-api-key") {
        let plan = match key.as_bytes() {
            b"free-1" | b"free-2" => Plan::Free,
            b"pro-1" => Plan::Pro,
            _ => return Err(StatusCode::FORBIDDEN),
        };
        request.extensions_mut().insert(plan);
    }
    // A request without a key is rejected with 401 by the policy that needs one.
    Ok(next.run(request).await)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The bucket belongs to the key and survives a change of its plan.
    let per_key =
        Policy::per(Header::new("x-api-key"), FREE).quota_by(|head| match head.extensions().get::<Plan>()? {
            Plan::Free => Some(FREE),
            Plan::Pro => Some(PRO),
        });

    let app = Router::new()
        .route("/", get(|| async { "Hello!\n" }))
        // The last layer is the first to see a request.
        .layer(RateLimitLayer::new(per_key))
        .layer(middleware::from_fn(authenticate))
        .layer(RateLimitLayer::per_ip(Quota::per_second(50)));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
