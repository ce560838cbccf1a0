//! A login that counts failures only, by address and by account, discloses nothing to an attacker, and blocks repeat
//! offenders for increasing durations.
//!
//! ```sh
//! cargo run --example login
//! for i in $(seq 5); do curl -s -w ' %{http_code}\n' -d 'user=ann&password=guess' localhost:3000/login; done
//! curl -si -d 'user=ann&password=right' localhost:3000/login
//! curl -si -d 'user=bob&password=right' localhost:3000/login
//! ```
//!
//! Three failures get 401, then come 429s without a field that counts down. Ann is locked out for a while even with the
//! right password. Bob is not, until the address has failed, or been denied, too often. `PORT` and `QUOTA` (that of an address) change the defaults.

use std::{env, error::Error, net::SocketAddr, time::Duration};

use axum::{
    Form, RequestExt as _, Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
    routing::post,
};
use http::StatusCode;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_quota::{
    Policy, Quota, RateLimitLayer,
    key::{PeerIp, key_fn},
    policy::{Advertise, Ban},
};

#[derive(Clone, Deserialize)]
struct Credentials {
    user: String,
    password: String,
}

/// The account is in the body, which policies do not see. So this layer reads it, and puts it into the extensions.
async fn read_credentials(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let form = Request::from_parts(parts.clone(), body).extract::<Form<Credentials>, _>().await;
    match form {
        Ok(Form(credentials)) => {
            let mut request = Request::from_parts(parts, axum::body::Body::empty());
            request.extensions_mut().insert(credentials);
            next.run(request).await
        }
        Err(rejection) => rejection.into_response(),
    }
}

async fn login(request: Request) -> (StatusCode, &'static str) {
    match request.extensions().get::<Credentials>() {
        Some(credentials) if credentials.password == "right" => (StatusCode::OK, "Welcome!\n"),
        _ => (StatusCode::UNAUTHORIZED, "Wrong.\n"),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let of_address: Quota = env::var("QUOTA").as_deref().unwrap_or("20/h").parse()?;
    let failures_of = |policy: Policy| {
        policy.count_if(|response| response.status() == StatusCode::UNAUTHORIZED).advertise(Advertise::Nothing)
    };
    // Ten denials within ten minutes: blocked for ten minutes, then for twenty, up to a day.
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let ban = Ban::after(10, minutes(10)).initial(minutes(10)).max(minutes(24 * 60));
    let limit = RateLimitLayer::new([
        // Whoever goes on guessing for an account that is locked costs its address cells all the same.
        failures_of(Policy::per(PeerIp, of_address)).named("address").count_denied().ban(ban),
        failures_of(Policy::per(
            key_fn(|head| Some(head.key(head.extensions().get::<Credentials>()?.user.as_str()))),
            Quota::per_hour(3),
        ))
        .named("account"),
    ]);
    // The first of them is the outermost.
    let layers = ServiceBuilder::new().layer(from_fn(read_credentials)).layer(limit);
    let app = Router::new().route("/login", post(login).layer(layers));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
