//! Messages of a WebSocket, limited for each connection and for each account: after the handshake there is no request.
//!
//! ```sh
//! cargo run --example websocket
//! for i in $(seq 6); do echo "message $i"; done | websocat -H 'x-account: ann' ws://localhost:3000/ws
//! ```
//!
//! Any client serves. A connection sends three messages at once, and all connections of an account together five. What is
//! above that is answered with the time to wait, and a client that ignores ten of these answers is disconnected. An
//! account has at most two connections at once, and handshakes are limited by address. `PORT` changes the default.

use std::{
    env,
    error::Error,
    net::SocketAddr,
    sync::atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::any,
};
use tokio::net::TcpListener;
use tower_quota::{InFlightLayer, Limiter, Policy, Quota, RateLimitLayer, in_flight::InFlightPermit, key::Header};

static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

async fn upgrade(
    State(limiter): State<Limiter>,
    permit: InFlightPermit,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    // Stands for authentication.
    let account = headers.get("x-account").and_then(|account| account.to_str().ok()).map(str::to_owned);
    let Some(account) = account else { return StatusCode::UNAUTHORIZED.into_response() };
    upgrade.on_upgrade(move |socket| async move {
        // The handshake's response ends at once. The connection is in flight until this is dropped.
        let _permit = permit;
        echo(limiter, account, socket).await;
    })
}

async fn echo(limiter: Limiter, account: String, mut socket: WebSocket) {
    let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let mut denials = 0;
    while let Some(Ok(message)) = socket.recv().await {
        let text = match message {
            Message::Text(text) => text.to_string(),
            Message::Binary(bytes) => format!("{} bytes", bytes.len()),
            // Answered by the server, or the end.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => continue,
        };
        // Both, or neither: a message that the account has no cell for takes none of the connection.
        let answer = match limiter.acquire_all(&[("connection", &connection, 1), ("account", &account, 1)]) {
            Ok(_) => format!("echo: {text}"),
            Err(denied) => {
                denials += 1;
                if denials > 10 {
                    let close = CloseFrame { code: close_code::POLICY, reason: "too many messages".into() };
                    let _ = socket.send(Message::Close(Some(close))).await;
                    return;
                }
                format!("slow down: {denied}")
            }
        };
        if socket.send(Message::Text(answer.into())).await.is_err() {
            return;
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let limiter = Limiter::new([
        Policy::by_key(Quota::per_minute(20).burst(3)).named("connection"),
        Policy::by_key(Quota::per_minute(40).burst(5)).named("account"),
    ]);
    let app = Router::new()
        .route("/ws", any(upgrade))
        .layer(InFlightLayer::per(Header::new("x-account"), 2).named("connections"))
        .layer(RateLimitLayer::per_ip(Quota::per_minute(60)))
        .with_state(limiter);

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
