//! The example `replay`: what it says of a log is what a limiter decides on the same requests.

#[path = "support/example.rs"]
mod example;
mod support;

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use http::Request;
use tower_quota::{Policy, Quota, key::PeerIp};

/// The policies of `examples/replay/limits.toml`.
const LIMITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/replay/limits.toml");

fn policies() -> [Policy; 2] {
    [Policy::per(PeerIp, Quota::per_second(5).burst(40)), Policy::global(Quota::per_second(2_000))]
}

/// One of its own for each test.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("replay-{}-{name}", std::process::id()))
}

fn replay(arguments: &[&str]) -> Output {
    Command::new(example::path("replay")).args(arguments).output().expect("`cargo test` builds the examples")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap());
    groups.collect::<Vec<_>>().join(",")
}

#[test]
fn windows_start_by_the_calendar_of_the_log() {
    let (limits, log) = (file("windows.toml"), file("windows.log"));
    fs::write(&limits, "[[policies]]\nname = \"day\"\nkey = \"peer-ip\"\nwindow = \"1 daily\"\n").unwrap();
    let line = |time: &str| format!("192.0.2.1 - - [{time} +0000] \"GET / HTTP/1.1\" 200 1\n");
    let times = ["27/Nov/2026:23:59:58", "27/Nov/2026:23:59:59", "28/Nov/2026:00:00:00", "28/Nov/2026:00:00:01"];
    fs::write(&log, times.map(line).concat()).unwrap();
    let said = said(&replay(&[limits.to_str().unwrap(), log.to_str().unwrap()]));
    assert!(said.contains("2 would be denied (50.00 %)") && said.contains("\nday: 2 (50.00 %)"), "{said}");
}

/// As many lines as TOWER_QUOTA_LINES says: ten millions take a minute or so, and the numbers are the same.
#[test]
fn its_totals_are_those_of_the_limiter_on_the_same_requests() {
    let lines = env::var("TOWER_QUOTA_LINES").unwrap_or("40000".to_owned());
    let log = file("generated.log");
    let mut generating = Command::new(example::path("replay"));
    generating.args(["generate", &lines]).stdout(fs::File::create(&log).unwrap());
    assert!(generating.status().unwrap().success());
    let output = replay(&[LIMITS, log.to_str().unwrap()]);
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let said = said(&output);

    // Once more, and read in another way: a second of the log is a second of the clock.
    let (limiter, clock) = support::limiter(policies());
    let (mut second, mut requests, mut denied, mut attacker, mut swept) = (None, 0, 0, 0, 0);
    for line in BufReader::new(fs::File::open(&log).unwrap()).lines() {
        let line = line.unwrap();
        let client: IpAddr = line.split(' ').next().unwrap().parse().unwrap();
        // Hours, minutes and seconds are enough: no log of this test is longer than a day's end.
        let time = line.split(['[', ']']).nth(1).unwrap().split(':').skip(1);
        let time: u64 = time.map(|part| part[..2].parse::<u64>().unwrap()).fold(0, |sum, part| sum * 60 + part);
        let before = *second.get_or_insert(time);
        clock.advance(Duration::from_secs((time + 86_400 - before) % 86_400));
        second = Some(time);
        if time != before && time % 60 == 0 {
            swept += limiter.sweep();
        }
        let mut request = Request::new(());
        request.extensions_mut().insert(SocketAddr::new(client, 0));
        requests += 1;
        if !limiter.decide(&request).is_allowed() {
            denied += 1;
            attacker += usize::from(line.starts_with("203.0.113.66 "));
        }
    }
    assert!(denied > 100 && attacker > 100, "{denied} {attacker}");
    assert!(said.starts_with(&format!("{} requests in ", grouped(requests))), "{said}");
    assert!(said.contains(&format!("\n{} would be denied (", grouped(denied))), "{denied}: {said}");
    let of_the_attacker = format!("  {:<39} {}\n", "203.0.113.66", grouped(attacker));
    assert!(said.contains(&of_the_attacker), "{attacker}: {said}");
    println!("{said}{swept} swept");
    fs::remove_file(log).unwrap();
}

#[test]
fn it_reads_the_formats_and_skips_what_is_none() {
    let log = file("mixed.log");
    let lines = [
        r#"192.0.2.1 - - [10/Oct/2026:13:55:36 -0700] "GET /a HTTP/1.1" 200 12"#,
        r#"192.0.2.1 - frank [10/Oct/2026:13:55:37 -0700] "GET /b?q=\"x\" HTTP/1.1" 200 12 "https://example.org/" "curl \"8\"""#,
        "no line at all",
        "",
        r#"{"time":"2026-10-10T20:55:38Z","remote_addr":"192.0.2.1","method":"POST","path":"/c","headers":{"x-api-key":"k"}}"#,
        r#"{"ts":1791665739.25,"remote_ip":"192.0.2.2","uri":"/d"}"#,
        r#"{"time":"yesterday","remote_addr":"192.0.2.1","path":"/"}"#,
        r#"example.org - - [10/Oct/2026:13:55:39 -0700] "GET / HTTP/1.1" 200 12"#,
        r#"192.0.2.1 - - [32/Oct/2026:13:55:39 -0700] "GET / HTTP/1.1" 200 12"#,
        r#"192.0.2.1 - [x [10/Oct/2026:13:55:39 -0700] "GET / HTTP/1.1" 200 12"#,
        r#"{"ts":"1791665739.5","request":{"remote_ip":"192.0.2.3","method":"GET","uri":"/caddy","headers":{"X-Api-Key":["k"],"Odd":7}}}"#,
        r#"192.0.2.1 - - [10/Oct/1700:13:55:39 -0700] "GET / HTTP/1.1" 200 12"#,
        // Later than the one before it was; a probe in another protocol.
        r#"2001:db8::1 - - [10/Oct/2026:20:55:30 +0000] "\x16\x03\x01" 400 0 "-" "-""#,
    ];
    let mut text = lines.join("\r\n").into_bytes();
    text.extend_from_slice(b"\n\xff\xfe\n");
    text.extend_from_slice(&b"x".repeat(200_000));
    text.extend_from_slice(b"\n192.0.2.1 - - [10/Oct/2026:13:55:40 -0700] \"GET /last HTTP/1.1\" 200 12");
    fs::write(&log, &text).unwrap();
    let said = said(&replay(&[LIMITS, log.to_str().unwrap()]));
    assert!(said.starts_with("8 requests in "), "{said}");
    assert!(said.contains("7 lines were not read, the first in line 3: no time in brackets"), "{said}");
    assert!(said.contains("\n0 would be denied (0.00 %)"), "{said}");
    fs::remove_file(log).unwrap();
}

#[test]
fn it_reads_standard_input_plots_it_and_reports_errors() {
    let (limits, plot) = (file("limits.toml"), file("plot.svg"));
    let shadow = "[[policies]]\nkey = { header = \"x-api-key\" }\nquota = \"1/h\"\nenforce-for = 0.0\non-missing = \"skip\"\n\
        [[policies]]\nkey = \"global\"\nquota = \"2/d\"\n";
    fs::write(&limits, shadow).unwrap();
    let mut process = Command::new(example::path("replay"))
        .args([limits.to_str().unwrap(), "-", "--plot", plot.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = process.stdin.take().unwrap();
    for second in 0..3 {
        let line = format!(
            r#"{{"time":{},"remote_addr":"192.0.2.1","path":"/","headers":{{"x-api-key":"S3CR3T"}}}}"#,
            1_790_000_000 + second * 1_000
        );
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let said = said(&process.wait_with_output().unwrap());
    assert!(said.contains("1 would be denied (33.33 %)") && said.contains("\nglobal: 1 (33.33 %)"), "{said}");
    // In shadow mode it denies nobody, and is told apart.
    assert!(said.contains("\nper-x-api-key: 2 ("), "{said}");
    assert!(!said.contains("S3CR3T"));
    let svg = fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && svg.contains("requests in 8 s"), "{svg}");

    for (arguments, word) in [
        (&[][..], "replay LIMITS.toml"),
        (&["nowhere.toml", "-"], "nowhere.toml"),
        (&[LIMITS, "nowhere.log"], "nowhere.log"),
        (&["generate", "many"], "many"),
        (&[plot.to_str().unwrap(), "-"], "plot.svg"),
    ] {
        let output = replay(arguments);
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && why.contains(word), "{arguments:?}: {why}");
    }
    let empty = said_of_nothing();
    assert!(empty.starts_with("0 requests in 0 s"), "{empty}");
    for file in [limits, plot] {
        fs::remove_file(file).unwrap();
    }
}

#[test]
fn it_says_when_files_are_not_in_order() {
    let log = file("order.log");
    let line = |day: u32| format!("192.0.2.1 - - [{day}/Oct/2026:13:55:36 +0000] \"GET / HTTP/1.1\" 200 12\n");
    fs::write(&log, [12, 11, 10].map(line).concat()).unwrap();
    let said = said(&replay(&[LIMITS, log.to_str().unwrap()]));
    assert!(said.contains("2 lines are over a minute earlier than one before, the first is line 2"), "{said}");
    fs::remove_file(log).unwrap();
}

fn said_of_nothing() -> String {
    let process = Command::new(example::path("replay")).args([LIMITS, "-"]).stdin(Stdio::null()).output().unwrap();
    said(&process)
}
