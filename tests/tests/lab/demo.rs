//! The demo succeeds, and it fails if a Pod does not answer.

use std::process::Command;
use std::time::Duration;

use lb_tests::demo::{self, Plan, Screen};
use lb_tests::lab::require_privileges;
use lb_tests::stop::Stop;

#[test]
fn the_demo_succeeds() {
    if !require_privileges() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_lb-demo"))
        .args(["--requests", "30", "--interval-ms", "10"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{}\n{errors}", output.status);
    let verdict = text.lines().last().unwrap_or_default();
    assert!(
        verdict.starts_with("all ") && verdict.ends_with(" requests succeeded"),
        "{verdict}"
    );
    assert!(!text.contains('\u{1b}'), "escape sequences, but no terminal");
}

#[test]
fn a_pod_that_does_not_answer_fails_the_demo() {
    if !require_privileges() {
        return;
    }
    let plan = Plan {
        requests: 30,
        interval: Duration::from_millis(10),
        silent: Some("web-3".to_owned()),
        ..Plan::default()
    };
    let outcome = demo::run(&plan, &Screen::new().unwrap(), &Stop::never()).unwrap();
    let failures = outcome.failures.join("\n");
    assert!(failures.contains("ConnectionRefused"), "{failures}");
    assert!(!outcome.answers.contains_key("web-3"), "{outcome:?}");
    assert!(outcome.answers.contains_key("web-1"), "{outcome:?}");
}
