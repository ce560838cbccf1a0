//! A login whose account is in a JSON body: the handler limits failures by account, where the name is known, and a layer
//! limits each address.
//!
//! ```sh
//! cargo run --example account
//! try() { curl -s -o /dev/null -w '%{http_code} ' --json "{\"email\": \"$1\", \"password\": \"$2\"}" localhost:3000/login; }
//! for i in $(seq 4); do try ann@example.com guess; done; try ANN@example.com right; try bob@example.com right; echo
//! ```
//!
//! Three failures get 401. Then the account is locked for a while, however it is written and also with the right password:
//! 429 twice. Bob gets 200. `PORT` and `FAILURES` (of an account) change the defaults.

use std::{env, error::Error, net::SocketAddr};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::post,
};
use http::StatusCode;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_quota::{Limiter, Policy, Quota, RateLimitLayer, policy::Advertise};

#[derive(Deserialize)]
struct Credentials {
    email: String,
    password: String,
}

async fn login(State(accounts): State<Limiter>, Json(credentials): Json<Credentials>) -> Response {
    // One account, however it is written.
    let account = credentials.email.trim().to_lowercase();
    // Before the password is checked: guesses that come at the same time count, too.
    let failure = match accounts.acquire("account", account) {
        Ok(failure) => failure,
        Err(denied) => return denied.into_response(),
    };
    if credentials.password != "right" {
        return (StatusCode::UNAUTHORIZED, "Wrong.\n").into_response();
    }
    // Not a failure after all.
    failure.refund();
    "Welcome!\n".into_response()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let failures: Quota = env::var("FAILURES").as_deref().unwrap_or("3/h").parse()?;
    // Advertises nothing: it must not count down for an attacker.
    let accounts = Limiter::new(Policy::by_key(failures).named("account").advertise(Advertise::Nothing));
    let app = Router::new()
        .route("/login", post(login))
        // Whoever tries many accounts is limited by address.
        .layer(RateLimitLayer::per_ip(Quota::per_minute(60)))
        .with_state(accounts);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
