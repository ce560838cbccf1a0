//! The page of the example `dashboard` in a real browser: it is clicked, read, and photographed.

#[path = "support/browser.rs"]
mod browser;
#[path = "support/example.rs"]
mod example;

use std::{fs, path::Path};

use browser::Browser;
use example::Example;

fn text(browser: &Browser, id: &str) -> String {
    browser.run(&format!("return document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

fn number(browser: &Browser, script: &str) -> u64 {
    let value = browser.run(&format!("return {script}"));
    value.as_u64().unwrap_or_else(|| panic!("{script}: {value}"))
}

fn is_live(browser: &Browser) -> bool {
    text(browser, "state") == "live"
}

/// Where somebody can look at it: `target/tmp/dashboard-….png`.
fn screenshot(browser: &Browser, name: &str) {
    let picture = browser.screenshot();
    assert!(picture.starts_with(b"\x89PNG"));
    fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-{name}.png")), picture).unwrap();
}

/// No part is wider than the window.
fn assert_fits(browser: &Browser) {
    let (page, window) = (number(browser, "document.documentElement.scrollWidth"), number(browser, "innerWidth"));
    assert!(page <= window, "{page} in {window}");
}

#[test]
fn the_page_shows_none_one_and_ten_thousand_keys() {
    let example = Example::run("dashboard");
    let browser = Browser::open(1_100, 900);
    browser.go(&format!("http://{}/", example.address));
    browser.wait(is_live);
    assert_eq!(
        (text(&browser, "keys"), number(&browser, "document.querySelectorAll('#buckets li').length")),
        ("0".to_owned(), 0)
    );
    assert_eq!(number(&browser, "document.getElementById('none').hidden ? 0 : 1"), 1, "it says what to do");
    assert_fits(&browser);
    screenshot(&browser, "0");

    browser.click("#attack");
    browser.wait(|browser| text(browser, "top").starts_with("amber"));
    browser.wait(|browser| text(browser, "buckets").contains("amberempty, full in"));
    browser.wait(|browser| text(browser, "denied") != "0");
    assert_eq!(text(&browser, "keys"), "1");
    screenshot(&browser, "1");

    browser.click("#flood");
    browser.wait(|browser| text(browser, "keys").starts_with("10,00"));
    browser.wait(|browser| text(browser, "shown").contains("48 of 10,00"));
    assert_eq!(number(&browser, "document.querySelectorAll('#buckets li').length"), 48);
    browser.click("#ten");
    // The six that one knows come first.
    browser.wait(|browser| text(browser, "buckets").contains("fjord"));
    browser.click("#flood");
    browser.wait(|browser| text(browser, "shown").contains("48 of 10,00"));
    assert!(text(&browser, "buckets").starts_with("amber"));
    assert_fits(&browser);
    screenshot(&browser, "10000");
}

#[test]
fn the_page_is_used_without_a_mouse_in_a_narrow_window() {
    let example = Example::run("dashboard");
    let browser = Browser::open(360, 740);
    browser.go(&format!("http://{}/", example.address));
    browser.wait(is_live);
    assert_fits(&browser);
    assert_eq!(number(&browser, "document.getElementById('rate').labels.length"), 1, "it has a name");
    let focused = || browser.run("return document.activeElement.id").as_str().unwrap().to_owned();
    // Tab, and then the arrow to the right (the protocol's numbers).
    browser.press("\u{E004}");
    assert_eq!(focused(), "rate");
    browser.press(&"\u{E014}".repeat(8));
    browser.wait(|browser| text(browser, "rate-out") == "10");
    browser.press("\u{E004}");
    assert_eq!(focused(), "burst");
    browser.press(&"\u{E012}".repeat(5));
    browser.wait(|browser| text(browser, "burst-out") == "15");
    // The server has it: a client has fifteen at once from now on.
    browser.press("\u{E004}");
    assert_eq!(focused(), "ten");
    browser.press("\u{E007}");
    browser.wait(|browser| text(browser, "buckets").contains(" of 15"));
    browser.wait(|browser| number(browser, "document.querySelectorAll('#buckets li').length") == 6);
    assert_fits(&browser);
    screenshot(&browser, "narrow");
}
