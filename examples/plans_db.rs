//! API keys whose plan is in a database: an outer layer looks it up, remembers it for a minute, and the limit uses it.
//!
//! ```sh
//! cargo run --example plans_db
//! for i in 1 2 3; do curl -s -o /dev/null -w '%{http_code} ' -H 'x-api-key: free-1' localhost:3000/; done; echo
//! curl -si -H 'x-api-key: pro-1' localhost:3000/
//! curl -si -H 'x-api-key: guess' localhost:3000/
//! curl -s localhost:3000/queries
//! ```
//!
//! Free: 200 twice, then 429. Pro: `q=100`. A key that is no customer's: 403, and it has no bucket. Three queries in all.
//! `PORT` changes the default.

use std::{
    collections::HashMap,
    env,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::StatusCode;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_quota::{Policy, Quota, RateLimitLayer, key::key_fn};

const FREE: Quota = Quota::per_minute(2);

/// Account and plan go into the extensions together: a limit that finds the one finds the other.
#[derive(Clone)]
struct Customer {
    account: u64,
    plan: Quota,
}

/// Stands for a database.
#[derive(Default)]
struct Database {
    queries: AtomicU64,
}

impl Database {
    async fn customer(&self, key: &str) -> Option<Customer> {
        self.queries.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        match key {
            "free-1" => Some(Customer { account: 1, plan: FREE }),
            "pro-1" => Some(Customer { account: 2, plan: Quota::per_minute(100) }),
            _ => None,
        }
    }
}

/// By key, with the time at which it was looked up, also of keys that are no customer's.
type Cache = HashMap<String, (Instant, Option<Customer>)>;

#[derive(Clone, Default)]
struct Customers {
    database: Arc<Database>,
    known: Arc<Mutex<Cache>>,
}

const FRESH_FOR: Duration = Duration::from_secs(60);
/// Whoever invents keys fills no memory.
const MAX_KNOWN: usize = 10_000;

impl Customers {
    #[expect(clippy::disallowed_methods, reason = "the cache ages by the real clock")]
    async fn find(&self, key: &str) -> Option<Customer> {
        let now = Instant::now();
        let known = self.known.lock().unwrap().get(key).cloned();
        if let Some((_, customer)) = known.filter(|(at, _)| now.duration_since(*at) < FRESH_FOR) {
            return customer;
        }
        let customer = self.database.customer(key).await;
        let mut known = self.known.lock().unwrap();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, (at, customer)| customer.is_some() && now.duration_since(*at) < FRESH_FOR);
        }
        if known.len() < MAX_KNOWN {
            known.insert(key.to_owned(), (now, customer.clone()));
        }
        customer
    }
}

async fn authenticate(State(customers): State<Customers>, mut request: Request, next: Next) -> Response {
    let Some(key) = request.headers().get("x-api-key").and_then(|key| key.to_str().ok()) else {
        return (StatusCode::UNAUTHORIZED, "An API key is needed.\n").into_response();
    };
    let Some(customer) = customers.find(key).await else {
        return (StatusCode::FORBIDDEN, "This is no customer's key.\n").into_response();
    };
    request.extensions_mut().insert(customer);
    next.run(request).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let customers = Customers::default();
    let per_account = Policy::per(key_fn(|head| Some(head.extensions().get::<Customer>()?.account)), FREE)
        .named("plan")
        // With the layers in the wrong order nobody is served, and the reason is said.
        .require::<Customer>()
        .quota_by(|head| Some(head.extensions().get::<Customer>()?.plan));
    // In this order: the first is the outermost.
    let layers = ServiceBuilder::new()
        // Whoever guesses keys is limited by address.
        .layer(RateLimitLayer::per_ip(Quota::per_minute(600)))
        .layer(from_fn_with_state(customers.clone(), authenticate))
        .layer(RateLimitLayer::new(per_account));
    let queries = async move || customers.database.queries.load(Ordering::Relaxed).to_string();
    let app = Router::new().route("/", get(|| async { "Hello!\n" }).layer(layers)).route("/queries", get(queries));

    let port = env::var("PORT").as_deref().unwrap_or("3000").parse()?;
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
