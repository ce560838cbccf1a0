//! A real browser in front: what a script from another origin can read.

#[path = "support/example.rs"]
mod example;

use std::{
    path::Path,
    process::{Command, Stdio},
};

use example::Example;

/// The document as it is once its scripts have run.
fn dump(url: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found =
        Command::new("sh").arg(root.join("tests/support/chromium.sh")).stderr(Stdio::inherit()).output().unwrap();
    assert!(found.status.success(), "this test needs Chromium: install it, or run as root on Debian");
    let binary = String::from_utf8(found.stdout).unwrap();
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chromium-{}", std::process::id()));
    let output = Command::new(binary.trim())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(["--virtual-time-budget=20000", "--dump-dom", url])
        .output()
        .unwrap();
    // What is left behind goes with the target folder.
    let _ = std::fs::remove_dir_all(profile);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn c_cors_a_script_from_another_origin_reads_the_denial_and_its_preflights_cost_nothing() {
    let example = Example::run_with("cors", &[("QUOTA", "3/h")]);
    let page = dump(&format!("http://localhost:{}/", example.address.port()));
    let log = page.split_once("<pre id=\"log\">").unwrap().1.split_once("</pre>").unwrap().0;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 5, "{log}");
    for (line, left) in lines[..3].iter().zip([2, 1, 0]) {
        assert!(line.starts_with("200  "), "{log}");
        assert!(line.contains(&format!("RateLimit: \"per-ip\";r={left};t=")), "{log}");
        assert!(line.contains("RateLimit-Policy: \"per-ip\";q=3;w=3600"), "{log}");
    }
    assert!(lines[3].starts_with("429  RateLimit: \"per-ip\";r=0;t="), "{log}");
    let seconds: u64 = lines[3].split_once("Retry-After: ").unwrap().1.parse().unwrap();
    assert!((1_100..=1_200).contains(&seconds), "{log}");
    assert_eq!(lines[4], "Quota Exceeded", "the body as well");
}
