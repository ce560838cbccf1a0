//! A real browser, driven by the WebDriver protocol: Chromium and its driver, ended with the test.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "wire.rs"]
mod driver_wire;
#[path = "port.rs"]
mod port;

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use driver_wire::Connection;
use port::free_port;
use serde_json::{Value, json};

pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: std::path::PathBuf,
}

/// What the protocol calls an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    /// With a window of this size.
    pub(crate) fn open(width: u32, height: u32) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = root.join("tests/support/chromium.sh");
        let found = Command::new("sh").arg(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(found.status.success(), "this test needs Chromium: install it, or run as root on Debian");
        let chromium = String::from_utf8(found.stdout).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let profile =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("driven-{}-{}", std::process::id(), address.port()));
        let driver = Command::new("chromedriver")
            .arg(format!("--port={}", address.port()))
            .stdout(Stdio::null())
            .spawn()
            .expect("chromedriver comes with Debian's chromium-driver");
        let mut browser = Self { driver, address, session: String::new(), profile };
        browser
            .wait(|browser| browser.call("GET", "/status", &Value::Null).is_some_and(|status| status["ready"] == true));
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", browser.profile.display()));
        arguments.push(format!("--window-size={width},{height}"));
        let options = json!({ "binary": chromium.trim(), "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let session = browser.call("POST", "/session", &wanted).expect("the driver is ready");
        let id = session["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {session}"));
        id.clone_into(&mut browser.session);
        // A headless window is as narrow as one says only so.
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.ask(
            "POST",
            "/goog/cdp/execute",
            &json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": size }),
        );
        browser
    }

    /// `None` where nobody answers.
    fn call(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let stream = std::net::TcpStream::connect(self.address).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut connection = Connection::over(stream);
        connection.begin(method, path, &[("content-type", "application/json"), ("connection", "close")], &body);
        let reply = connection.try_receive()?;
        let answer: Value = serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
        Some(answer["value"].clone())
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let value = self.call(method, &format!("/session/{}{path}", self.session), body);
        let value = value.unwrap_or_else(|| panic!("{method} {path}: no answer"));
        assert!(value["error"].is_null(), "{method} {path}: {value}");
        value
    }

    pub(crate) fn go(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url }));
    }

    /// What a script returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    pub(crate) fn click(&self, selector: &str) {
        let element = self.ask("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        let id = element[ELEMENT].as_str().unwrap_or_else(|| panic!("no {selector}"));
        self.ask("POST", &format!("/element/{id}/click"), &json!({}));
    }

    /// Presses keys, as one without a mouse does.
    pub(crate) fn press(&self, keys: &str) {
        let actions = keys
            .chars()
            .flat_map(|key| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]);
        let actions = actions.collect::<Vec<_>>();
        self.ask("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": actions }] }));
    }

    /// A PNG.
    pub(crate) fn screenshot(&self) -> Vec<u8> {
        let text = self.ask("GET", "/screenshot", &Value::Null);
        decoded(text.as_str().unwrap())
    }

    #[expect(clippy::disallowed_methods, reason = "a condition of another process is polled")]
    pub(crate) fn wait(&self, mut holds: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not come true");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.call("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// Base64, as the driver sends pictures.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| -> u32 {
        match byte {
            b'A'..=b'Z' => u32::from(byte - b'A'),
            b'a'..=b'z' => u32::from(byte - b'a') + 26,
            b'0'..=b'9' => u32::from(byte - b'0') + 52,
            b'+' => 62,
            _ => 63,
        }
    };
    let mut bytes = Vec::new();
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0, |bits, byte| bits << 6 | digit(*byte)) << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}
