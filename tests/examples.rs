//! Every example, run as its users run it: the binary that `cargo test` has built, over a socket.

#[path = "support/example.rs"]
mod example;
#[path = "support/waiting.rs"]
mod waiting;
#[path = "support/wire.rs"]
mod wire;

use std::{env, fs, process::Command, time::Duration};

use example::{Example, path};
use waiting::within_a_minute;
use wire::{Connection, Reply, statuses};

fn get(example: &Example, fields: &[(&str, &str)], times: usize) -> Vec<u16> {
    statuses(example.address, "/", fields, times)
}

/// As many 200s as the burst, or a few more for the time that passed; then nothing but 429s.
fn burst_then_denials(statuses: &[u16], burst: usize) {
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    assert!(statuses[..burst].iter().all(|status| *status == 200), "{statuses:?}");
    assert!(admitted < statuses.len(), "nothing was denied: {statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
}

#[test]
fn quickstart() {
    let example = Example::run("quickstart");
    burst_then_denials(&get(&example, &[], 200), 20);
    // One cell in an hour: none comes back while the answer is read.
    let example = Example::run_with("quickstart", &[("QUOTA", "1/h")]);
    assert_eq!(get(&example, &[], 1), [200]);
    let denial = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!(denial.status, 429);
    let seconds: u64 = denial.field("retry-after").unwrap().parse().unwrap();
    assert!((3_000..=3_600).contains(&seconds), "{denial:?}");
    assert_eq!(denial.field("cache-control"), Some("no-store"));
    assert_eq!(denial.field("content-type"), Some("application/problem+json"));
    assert_eq!(denial.field("ratelimit-policy"), Some(r#""per-ip";q=1;w=3600"#));
}

#[cfg(feature = "metrics")]
#[test]
fn prometheus() {
    let example = Example::run("prometheus");
    let statuses = get(&example, &[], 14);
    burst_then_denials(&statuses, 10);
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    let page = Connection::open(example.address).send("GET", "/metrics", &[]);
    assert_eq!(page.status, 200);
    let count = |policy: &str, outcome: &str, mode: &str| {
        let labels = format!(r#"{{policy="{policy}",outcome="{outcome}",mode="{mode}",source="memory"}} "#);
        page.body.split(&labels).nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap())
    };
    assert_eq!(count("per-ip", "allowed", "enforced"), admitted);
    assert_eq!(count("per-ip", "denied", "enforced"), 14 - admitted);
    assert_eq!(count("tighter", "allowed", "shadow") + count("tighter", "denied", "shadow"), admitted);
    assert!(count("tighter", "denied", "shadow") >= 3);
}

#[test]
fn global() {
    burst_then_denials(&get(&Example::run("global"), &[], 100), 5);
}

#[test]
fn api_keys() {
    let example = Example::run("api_keys");
    let unknown = Connection::open(example.address).send("GET", "/", &[]);
    assert_eq!((unknown.status, unknown.field("www-authenticate").is_some()), (401, true));
    assert_eq!(get(&example, &[("x-api-key", "wrong")], 1), [403]);
    assert_eq!(get(&example, &[("x-api-key", "free-1")], 5), [200, 200, 200, 429, 429]);
    assert_eq!(get(&example, &[("x-api-key", "free-2")], 1), [200], "another key, another bucket");
    assert_eq!(get(&example, &[("x-api-key", "pro-1")], 20), [200; 20]);
    let guessed = get(&example, &[("x-api-key", "guess")], 200);
    assert!(guessed.contains(&429), "guessing keys is limited by address");
}

#[test]
fn per_route() {
    let example = Example::run("per_route");
    let login = || Connection::open(example.address).send("POST", "/login", &[]).status;
    assert_eq!([login(), login(), login(), login()], [200, 200, 429, 429]);
    let mut reads = Vec::new();
    for _ in 0..4 {
        reads.extend(statuses(example.address, "/search", &[], 1));
        reads.extend(statuses(example.address, "/items", &[], 1));
    }
    assert_eq!(reads[..6], [200; 6]);
    assert!(reads[6..].contains(&429), "{reads:?}");
    assert_eq!(statuses(example.address, "/health", &[], 20), [200; 20]);
}

#[test]
fn windows() {
    let example = Example::run("windows");
    let key = [("x-api-key", "k1")];
    burst_then_denials(&get(&example, &key, 80), 10);
    assert_eq!(get(&example, &[("x-api-key", "k2")], 1), [200]);
    assert_eq!(get(&example, &[], 1), [401]);
}

#[test]
fn hyper() {
    let example = Example::run("hyper");
    burst_then_denials(&get(&example, &[], 100), 5);
}

#[test]
fn a_quota_that_cannot_be_read_ends_the_example_with_the_reason() {
    let output = Command::new(path("quickstart")).env("QUOTA", "0/s").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("ZeroCells"), "{output:?}");
}

#[test]
fn behind_proxy() {
    let example = Example::run("behind_proxy");
    let through = |list: &str| Connection::open(example.address).send("GET", "/", &[("x-forwarded-for", list)]);
    for _ in 0..5 {
        let reply = through("203.0.113.7");
        assert_eq!((reply.status, reply.body.as_str()), (200, "Hello, 203.0.113.7!\n"));
    }
    assert_eq!(through("203.0.113.7").status, 429);
    assert_eq!(through("203.0.113.8").status, 200, "another client");
    assert_eq!(through("6.6.6.6, 203.0.113.7").status, 429, "a forgery");
}

#[test]
fn cors() {
    let example = Example::run("cors");
    let call = |method: &str| {
        let fields = [
            ("origin", "http://elsewhere.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-headers", "x-call"),
        ];
        Connection::open(example.address).send(method, "/api", &fields)
    };
    for _ in 0..10 {
        assert_eq!(call("OPTIONS").status, 200);
    }
    assert_eq!([(); 4].map(|()| call("GET").status), [200, 200, 200, 429]);
    let denial = call("GET");
    assert_eq!(denial.field("access-control-allow-origin"), Some("*"));
    assert_eq!(denial.field("access-control-expose-headers"), Some("ratelimit,ratelimit-policy,retry-after"));
}

#[test]
fn custom_response() {
    let example = Example::run("custom_response");
    let accept = |kind| Connection::open(example.address).send("GET", "/", &[("accept", kind)]);
    assert_eq!(accept("*/*").status, 200);
    let json = accept("*/*");
    assert_eq!((json.status, json.field("content-type")), (429, Some("application/json")));
    let error: serde_json::Value = serde_json::from_str(&json.body).unwrap();
    assert_eq!(error["error"]["policies"], serde_json::json!(["per-ip"]));
    let html = accept("text/html,application/xhtml+xml");
    assert_eq!((html.status, html.field("content-type")), (429, Some("text/html; charset=utf-8")));
    for denial in [json, html] {
        assert_eq!(denial.field("cache-control"), Some("no-store"));
        assert_eq!(denial.field("ratelimit-policy"), Some(r#""per-ip";q=1;w=10"#));
        assert!(denial.field("retry-after").is_some());
    }
}

#[test]
fn grpc() {
    let example = Example::run("grpc");
    let client = Command::new(path("grpc")).arg(format!("http://{}", example.address)).output().unwrap();
    let said = String::from_utf8(client.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..5], ["Serving"; 5]);
    let told = "ResourceExhausted: Too many requests for the policy \"per-ip\". Retry in 5 s. Retry delay: Some(";
    assert!(lines[5].starts_with(told), "{said}");
}

#[test]
fn plans() {
    let file = env::temp_dir().join(format!("tower-quota-plans-{}.toml", std::process::id()));
    let text = fs::read_to_string("examples/plans.toml").unwrap();
    fs::write(&file, &text).unwrap();
    let mut example = Example::run_with("plans", &[("LIMITS", file.to_str().unwrap())]);
    let free = |times| statuses(example.address, "/", &[("x-api-key", "free-1")], times);
    assert_eq!(free(7), [200, 200, 200, 200, 200, 429, 429]);
    assert_eq!(statuses(example.address, "/", &[("x-api-key", "pro-1")], 20), [200; 20]);
    // A mistake changes nothing, and the message names the line.
    let mut reload = |text: &str| {
        fs::write(&file, text).unwrap();
        example.signal("HUP");
        example.line()
    };
    let said = reload(&text.replace("5/m", "5/parsec"));
    assert!(said.starts_with("limits stay as they are:") && said.contains("5/parsec"), "{said}");
    let line = 1 + text.lines().position(|line| line.contains("5/m")).unwrap();
    assert!(said.contains(&format!("line {line},")), "{said}");
    let said = reload(&text.replace("name = \"per-ip\"", "name = \"global\""));
    assert!(said.contains("two policies are named"), "{said}");
    let upgraded = text.replace("free = \"5/m\"", "free = \"100/m\"");
    let rule = "[[policies]]\nname = \"exports\"\nkey = { header = \"x-api-key\" }\nquota = \"1/h\"\npaths = [\"/export/**\"]\n";
    assert_eq!(reload(&upgraded), "limits were read again");
    let free = Connection::open(example.address).send("GET", "/", &[("x-api-key", "free-1")]);
    assert_eq!((free.status, free.field("ratelimit-policy")), (200, Some("\"plan\";q=100;w=60")));
    assert!(free.field("ratelimit").unwrap().starts_with("\"plan\";r=94;"), "{free:?}");
    // A rule is added, and goes again.
    let exports = |address, times| statuses(address, "/export/all", &[("x-api-key", "pro-1")], times);
    assert_eq!(exports(example.address, 3), [200; 3]);
    fs::write(&file, format!("{upgraded}\n{rule}")).unwrap();
    example.signal("HUP");
    assert_eq!(example.line(), "limits were read again");
    assert_eq!(exports(example.address, 3), [200, 429, 429]);
    fs::write(&file, upgraded).unwrap();
    example.signal("HUP");
    assert_eq!(example.line(), "limits were read again");
    assert_eq!(exports(example.address, 3), [200; 3]);
    fs::remove_file(file).unwrap();
}

#[test]
fn llm_tokens() {
    let example = Example::run("llm_tokens");
    let ask = |key: &str, most: &str, tokens: u32| {
        let fields = [("x-api-key", key), ("x-max-tokens", most)];
        Connection::open(example.address).send("GET", &format!("/complete?tokens={tokens}"), &fields)
    };
    let left = |reply: &Reply| {
        let field = reply.field("ratelimit").unwrap_or_else(|| panic!("{reply:?}"));
        field.split("r=").nth(1).unwrap().split(';').next().unwrap().parse::<u32>().unwrap()
    };
    let first = ask("k1", "400", 20);
    assert_eq!((first.status, left(&first), first.body.split_whitespace().count()), (200, 600, 20));
    // 20 were used of the 400: 980 are there, or a little less for the time that the work took.
    let second = ask("k1", "400", 700);
    assert!((575..=580).contains(&left(&second)), "what was not used came back");
    assert_eq!(second.body.split_whitespace().count(), 400, "and not more than was reserved");
    let third = ask("k1", "100", 0);
    assert!((470..=485).contains(&left(&third)), "{third:?}");
    assert_eq!(ask("k1", "0", 500).body.split_whitespace().count(), 1, "nothing is for nothing");
    let never = ask("k1", "2000", 0);
    assert_eq!((never.status, never.field("retry-after")), (429, None));

    // A client that goes away in the middle pays for what it was sent, and not for its estimate.
    let mut gone = Connection::open(example.address);
    gone.begin("GET", "/complete?tokens=100000000", &[("x-api-key", "k2"), ("x-max-tokens", "1000")], "");
    assert!(gone.line().contains("200"), "it was admitted");
    drop(gone);
    let mut tries = 0;
    // As long as the estimate is charged, there is less than half of it.
    while ask("k2", "500", 0).status != 200 {
        tries += 1;
        assert!(tries < 100_000, "its tokens are not settled");
    }
}

#[test]
fn login() {
    let example = Example::run("login");
    let login = |user: &str, password: &str| {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let body = format!("user={user}&password={password}");
        Connection::open(example.address).send_body("POST", "/login", &form, &body)
    };
    for _ in 0..50 {
        assert_eq!(login("ann", "right").status, 200, "successes do not count");
    }
    assert_eq!([(); 4].map(|()| login("ann", "guess").status), [401, 401, 401, 429]);
    let denial = login("ann", "right");
    assert_eq!(denial.status, 429, "the account is locked, also for the right password");
    assert_eq!((denial.field("retry-after"), denial.field("ratelimit")), (None, None), "nothing counts down");
    assert!(!denial.body.contains("account"), "{denial:?}");
    assert_eq!(login("bob", "right").status, 200, "another account");

    // One failure in 20 ms, and ten denials: then the address is blocked, and not just for 20 ms.
    let example = Example::run_with("login", &[("QUOTA", "1/20ms")]);
    let guess = |n: u32| {
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let body = format!("user=user{n}&password=guess");
        Connection::open(example.address).send_body("POST", "/login", &form, &body).status
    };
    let denied = (0..10_000).filter(|n| guess(*n) == 429).take(10).count();
    assert_eq!(denied, 10);
    assert!((10_000..12_000).all(|n| guess(n) == 429), "blocked for every account");
}

/// When each call of the example `outbound` was answered, and how often it was sent.
fn outbound_calls(partner: &str, rate: &str) -> Vec<(u64, u64)> {
    let partner = Example::run_with("quickstart", &[("QUOTA", partner)]);
    let url = format!("http://{}/", partner.address);
    let output = Command::new(path("outbound")).arg(url).env("RATE", rate).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let number = |line: &str, before: &str, after: &str| -> u64 {
        line.split(before).nth(1).and_then(|rest| rest.split(after).next()).unwrap().parse().unwrap()
    };
    let calls = said.lines().enumerate().map(|(n, line)| {
        assert!(line.starts_with(&format!("call {} ", n + 1)) && line.contains(": 200 OK, "), "{said}");
        (number(line, "after ", " ms"), number(line, "sent ", " times"))
    });
    let calls: Vec<_> = calls.collect();
    assert_eq!(calls.len(), 8, "{said} {}", String::from_utf8_lossy(&output.stderr));
    calls
}

#[test]
fn outbound() {
    for (n, (when, sent)) in (0..).zip(outbound_calls("1000/s", "18/s, burst 1")) {
        assert!(
            when >= n * 1_000 / 18 && sent == 1,
            "call {n} was early, or denied: after {when} ms, sent {sent} times"
        );
    }
    // All at once, to a partner that takes three, and says `Retry-After: 1` to the others.
    let calls = outbound_calls("3/s", "100/s, burst 8");
    assert!(calls.iter().any(|(when, sent)| *sent > 1 && *when >= 1_000), "{calls:?}");
    assert!(calls.iter().all(|(when, sent)| *sent == 1 || *when >= 1_000), "nobody is early: {calls:?}");
}

fn post_json(example: &Example, path: &str, fields: &[(&str, &str)], json: &serde_json::Value) -> Reply {
    let fields = [&[("content-type", "application/json")], fields].concat();
    Connection::open(example.address).send_body("POST", path, &fields, &json.to_string())
}

#[test]
fn account() {
    let example = Example::run("account");
    let login = |email: &str, password: &str| {
        post_json(&example, "/login", &[], &serde_json::json!({ "email": email, "password": password }))
    };
    for _ in 0..20 {
        assert_eq!(login("ann@example.com", "right").status, 200, "successes do not count");
    }
    assert_eq!([(); 4].map(|()| login("ann@example.com", "guess").status), [401, 401, 401, 429]);
    let denial = login(" ANN@example.com", "right");
    assert_eq!((denial.status, denial.field("retry-after")), (429, None), "locked, and nothing counts down");
    assert!(!denial.body.contains("account"), "{denial:?}");
    assert_eq!(login("bob@example.com", "right").status, 200);
}

#[test]
fn usage() {
    let example = Example::run("usage");
    let show = |key: &str| {
        let page = Connection::open(example.address).send("GET", "/usage", &[("x-api-key", key)]);
        let json: serde_json::Value = serde_json::from_str(&page.body).unwrap();
        assert_eq!(json.as_array().unwrap().len(), 1, "{json}");
        (json[0]["limit"].as_u64().unwrap(), json[0]["remaining"].as_u64().unwrap())
    };
    assert_eq!(get(&example, &[("x-api-key", "pro-1")], 3), [200; 3]);
    assert_eq!([show("pro-1"), show("pro-1"), show("free-1")], [(100, 97), (100, 97), (10, 10)]);
    assert_eq!(statuses(example.address, "/usage", &[], 1), [401]);
}

/// Written on SIGTERM, and now and then; a process that is killed loses what came after the last snapshot, and no more.
#[test]
fn durable() {
    let folder = env::temp_dir().join(format!("tower-quota-durable-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("limits.snapshot");
    let run = |every| Example::run_with("durable", &[("LIMITS", file.to_str().unwrap()), ("EVERY", every)]);
    let ask = |example: &Example, times| get(example, &[("x-api-key", "k1")], times);
    let left = |example: &Example| -> u32 {
        let answer = Connection::open(example.address).send("GET", "/", &[("x-api-key", "k1")]);
        let (_, month) = answer.field("ratelimit").unwrap().split_once("\"month\";r=").unwrap();
        month.split(';').next().unwrap().parse().unwrap()
    };

    let mut first = run("3600");
    assert_eq!(first.line(), "0 buckets were restored");
    assert_eq!(ask(&first, 3), [200; 3]);
    first.signal("TERM");
    assert_eq!(first.line(), "the state was saved");
    first.ended();

    let mut second = run("0.05");
    let line = second.line();
    // That of the rate is perhaps full again.
    assert!(line == "1 buckets were restored" || line == "2 buckets were restored", "{line}");
    assert_eq!(left(&second), 96);
    // Killed at any moment, it has a whole snapshot.
    let mut used = 4;
    let mut running = second;
    for _ in 0..5 {
        used += u32::try_from(ask(&running, 5).len()).unwrap();
        let written = || fs::metadata(&file).and_then(|file| file.modified()).unwrap();
        let before = written();
        within_a_minute(|| written() > before);
        let again = written();
        within_a_minute(|| written() > again);
        // What is asked from here on may be lost.
        ask(&running, 2);
        running.signal("KILL");
        running = run("0.05");
        assert!(running.line().ends_with("buckets were restored"));
        let left = left(&running);
        assert!((100 - used - 3..100 - used).contains(&left), "{left} of 100 are left, and {used} were used");
        used = 100 - left;
    }
    running.signal("KILL");

    // A file that is no snapshot is no reason for a fresh month.
    fs::write(&file, "{}").unwrap();
    let mut refused = run("3600");
    assert_eq!(refused.line(), "");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn plans_db() {
    let example = Example::run("plans_db");
    assert_eq!(get(&example, &[("x-api-key", "free-1")], 3), [200, 200, 429]);
    let pro = Connection::open(example.address).send("GET", "/", &[("x-api-key", "pro-1")]);
    assert_eq!((pro.status, pro.field("ratelimit-policy")), (200, Some(r#""plan";q=100;w=60"#)));
    assert_eq!(get(&example, &[("x-api-key", "guess")], 2), [403, 403]);
    assert_eq!(get(&example, &[], 1), [401]);
    let queries = Connection::open(example.address).send("GET", "/queries", &[]);
    assert_eq!(queries.body, "3", "each key was looked up once");
}

#[test]
fn tool_calls() {
    let example = Example::run("tool_calls");
    let call = |method: &str| serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": method });
    let send = |key: &str, calls: &serde_json::Value| post_json(&example, "/rpc", &[("x-api-key", key)], calls);
    assert_eq!(send("k1", &call("ping")).body, r#"{"id":1,"jsonrpc":"2.0","result":"ping"}"#);
    assert_eq!(send("k1", &serde_json::json!([call("search"), call("search")])).status, 200);
    let never = send("k1", &serde_json::json!([call("render"), call("search")]));
    assert_eq!((never.status, never.field("retry-after")), (429, None));
    let denial = send("k1", &call("render"));
    let wait: u64 = denial.field("retry-after").unwrap().parse().unwrap();
    assert!(denial.status == 429 && (10..=12).contains(&wait), "{denial:?}");
    assert_eq!(send("k2", &call("render")).status, 200, "another key");
    assert!(send("k1", &call("sing")).body.contains("Method not found"));
    let missing = post_json(&example, "/rpc", &[], &call("ping"));
    assert_eq!(missing.status, 401);
}

/// Sends a message, and reads the answer.
fn say(socket: &mut tungstenite::WebSocket<std::net::TcpStream>, text: &str) -> tungstenite::Message {
    socket.send(text.to_owned().into()).unwrap();
    socket.read().unwrap()
}

#[test]
fn websocket() {
    let example = Example::run("websocket");
    let open = |account: &str| {
        let request = http::Request::get(format!("ws://{}/ws", example.address))
            .header("host", "localhost")
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", tungstenite::handshake::client::generate_key())
            .header("x-account", account)
            .body(())
            .unwrap();
        let stream = std::net::TcpStream::connect(example.address).unwrap();
        tungstenite::client(request, stream).unwrap().0
    };
    let answers = |socket: &mut _| -> Vec<bool> {
        (0..4).map(|n| say(socket, &format!("m{n}")).to_text().unwrap().starts_with("echo: m")).collect()
    };
    let [mut first, mut second, mut other] = ["ann", "ann", "bob"].map(open);
    assert_eq!(answers(&mut first), [true, true, true, false], "three of a connection");
    assert_eq!(answers(&mut second), [true, true, false, false], "five of an account");
    assert_eq!(answers(&mut other), [true, true, true, false]);
    let slower = say(&mut first, "again");
    assert!(slower.to_text().unwrap().starts_with("slow down: Too many requests"), "{slower}");
    let closed = (0..20).map(|_| say(&mut second, "on")).find(tungstenite::Message::is_close);
    let Some(tungstenite::Message::Close(Some(close))) = closed else { panic!("{closed:?}") };
    assert_eq!(close.reason.as_str(), "too many messages");

    // The account has two connections at once; which of the handshakes are answered says the status.
    drop((first, second));
    let handshake = |account: &str| {
        let mut connection = Connection::open(example.address);
        let fields = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("x-account", account),
        ];
        connection.begin("GET", "/ws", &fields, "");
        let status = connection.status();
        (connection, status)
    };
    let mut open = Vec::new();
    within_a_minute(|| {
        // Until the server has seen that both are gone.
        open.extend(Some(handshake("ann")).filter(|(_, status)| *status == 101));
        open.len() == 2
    });
    assert_eq!([handshake("ann").1, handshake("bob").1], [429, 101]);
    open.pop();
    within_a_minute(|| handshake("ann").1 == 101);
}

#[test]
fn in_flight() {
    let example = Example::run_with("in_flight", &[("MEGABYTES", "256")]);
    let now = || Connection::open(example.address).send("GET", "/now", &[]).body;
    let mut downloads: Vec<_> = (0..6)
        .map(|_| {
            let mut connection = Connection::open(example.address);
            connection.begin("GET", "/download", &[("x-api-key", "ann")], "");
            (connection.status(), connection)
        })
        .collect();
    downloads.sort_by_key(|(status, _)| *status);
    assert_eq!(downloads.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [200, 200, 200, 200, 429, 429]);
    assert_eq!(now(), "downloads: 4 now, 4 at most\nreports: 0 now, 0 at most\n");
    assert_eq!(Connection::open(example.address).send("GET", "/download", &[]).status, 401);
    drop(downloads);
    within_a_minute(|| now().starts_with("downloads: 0 now, 4 at most\n"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let report = Connection::open(example.address).send("GET", "/report", &[("x-api-key", "ann")]);
                assert_eq!((report.status, report.body.as_str()), (200, "a report\n"));
            });
        }
    });
    assert_eq!(now(), "downloads: 0 now, 4 at most\nreports: 0 now, 2 at most\n");
}

#[test]
fn openapi() {
    let example = Example::run("openapi");
    let page = Connection::open(example.address).send("GET", "/openapi.json", &[]);
    let document: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    let response = &document["paths"]["/items"]["get"]["responses"]["429"];
    assert_eq!(statuses(example.address, "/items", &[], 2), [200, 200]);
    // What is documented is what is sent.
    let denial = Connection::open(example.address).send("GET", "/items", &[]);
    assert_eq!(denial.status, 429);
    for field in response["headers"].as_object().unwrap().keys() {
        assert!(denial.field(&field.to_lowercase()).is_some(), "{field} of {denial:?}");
    }
    assert!(response["content"].get(denial.field("content-type").unwrap()).is_some(), "{response}");
    let body: serde_json::Value = serde_json::from_str(&denial.body).unwrap();
    let documented = &document["components"]["schemas"]["Denial"];
    let properties = documented["properties"].as_object().unwrap();
    assert_eq!(properties.keys().collect::<Vec<_>>(), body.as_object().unwrap().keys().collect::<Vec<_>>());
    for required in documented["required"].as_array().unwrap() {
        assert!(body.get(required.as_str().unwrap()).is_some(), "{required}");
    }
}

#[test]
fn admin() {
    let mut example = Example::run_with("admin", &[("ADMIN_PORT", "0"), ("ADMIN_TOKEN", "s3cret")]);
    let admin = example.line().strip_prefix("admin on http://").unwrap().parse().unwrap();
    let call = |method: &str, path: &str, body: &str| {
        let fields = [("authorization", "Bearer s3cret"), ("content-type", "application/json")];
        let reply = Connection::open(admin).send_body(method, path, &fields, body);
        let json: serde_json::Value = serde_json::from_str(&reply.body).unwrap_or_else(|_| panic!("{reply:?}"));
        (reply.status, json)
    };
    let ask = |times| statuses(example.address, "/", &[], times);
    assert_eq!(statuses(admin, "/policies", &[], 1), [401]);
    assert_eq!(ask(7), [200, 200, 200, 200, 200, 429, 429]);

    let (_, policies) = call("GET", "/policies", "");
    assert_eq!(policies["policies"][0], serde_json::json!({"name": "per-ip", "limit": "5/m", "global": false}));
    let (_, keys) = call("GET", "/policies/per-ip/keys", "");
    assert_eq!((&keys["keys"][0]["address"], &keys["keys"][0]["remaining"]), (&"127.0.0.1".into(), &0.into()));
    let (_, denied) = call("GET", "/denied", "");
    assert_eq!((&denied["denied"][0]["denials"], &denied["denied"][1]), (&2.into(), &serde_json::Value::Null));

    let key = format!("/policies/per-ip/keys/{}", keys["keys"][0]["key"].as_str().unwrap());
    assert_eq!(call("DELETE", &key, "").1["reset"], true);
    assert_eq!(ask(1), [200], "a full bucket again");
    assert_eq!(call("POST", &format!("{key}/block?seconds=3600"), "").0, 200);
    assert_eq!(ask(1), [429]);
    assert!(call("GET", &key, "").1["blocked_for_ms"].as_u64().unwrap() > 3_500_000);
    assert_eq!(call("POST", &format!("{key}/block?seconds=0"), "").0, 200);
    assert_eq!(ask(1), [200]);
    assert_eq!(call("PUT", "/policies/per-ip/limit", "\"50/s\"").0, 200);
    assert_eq!(call("GET", "/policies", "").1["policies"][0]["limit"], "50/s");
    let (status, unknown) = call("PUT", "/policies/nobody/limit", "\"50/s\"");
    assert!(status == 404 && unknown["detail"].as_str().unwrap().contains("per-ip"), "{unknown}");
    assert_eq!(call("GET", "/policies/per-ip/keys/no-key", "").0, 400);
    let guesses = statuses(admin, "/policies", &[("authorization", "Bearer guess")], 60);
    assert!(guesses.starts_with(&[401; 19]) && guesses.ends_with(&[429]), "{guesses:?}");
}

#[test]
fn jobs() {
    let quick = [("WORK_MS", "1"), ("QUOTA", "100000/s")];
    let mut example = Example::run_with("jobs", &quick);
    let first = Connection::open(example.address).send("POST", "/jobs", &[]);
    assert_eq!((first.status, first.body.as_str()), (200, "job 0 is done\n"));
    // More at once than workers and queue take: some are turned away, and none is left without an answer.
    let mut connections: Vec<_> = (0..200).map(|_| Connection::open(example.address)).collect();
    for connection in &mut connections {
        connection.begin("POST", "/jobs", &[], "");
    }
    example.signal("TERM");
    let mut answered = 1;
    for mut connection in connections {
        // What had not reached the server when it stopped listening is not accepted, and not answered.
        let Some(reply) = connection.try_receive() else { continue };
        assert!([200, 503].contains(&reply.status), "{reply:?}");
        assert!(reply.status == 200 || reply.field("retry-after") == Some("1"), "{reply:?}");
        answered += u64::from(reply.status == 200);
    }
    let counts = example.line();
    assert!(counts.starts_with(&format!("accepted {answered}, finished {answered}, cancelled 0,")), "{counts}");
    example.ended();

    // One worker, busy for an hour: jobs of clients that went away make room.
    let mut example = Example::run_with("jobs", &[("WORKERS", "1"), ("QUEUE", "1"), ("WORK_MS", "3600000")]);
    let mut waiting = Vec::new();
    // Two are accepted and not answered: one is worked on, one waits. The third is turned away.
    let turned_away = loop {
        let mut connection = Connection::open(example.address);
        connection.begin("POST", "/jobs", &[], "");
        match connection.receive_within(Duration::from_millis(200)) {
            Some(reply) => break reply.status,
            None => waiting.push(connection),
        }
    };
    assert_eq!((turned_away, waiting.len()), (503, 2));
    drop(waiting);
    example.signal("TERM");
    let counts = example.line();
    let count =
        |name: &str| counts.split(name).nth(1).unwrap().trim().split(',').next().unwrap().parse::<u32>().unwrap();
    assert_eq!([count("accepted"), count("finished"), count("cancelled")], [2, 0, 2], "{counts}");
    example.ended();
}

#[test]
fn jobs_are_limited_like_any_request() {
    let example = Example::run_with("jobs", &[("QUOTA", "2/h"), ("WORK_MS", "1")]);
    let submit = || Connection::open(example.address).send("POST", "/jobs", &[]).status;
    assert_eq!([submit(), submit(), submit()], [200, 200, 429]);
}
