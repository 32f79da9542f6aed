//! The command line, as far as it needs no node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

use std::process::{Command, Output};

fn roost(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
    command.args(arguments).env("ROOST_RUN", folder.path()).env_remove("ROOST_CONFIG");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn without_a_node_commands_say_so_and_end_with_4() {
    for command in
        [["list"].as_slice(), &["show", "shop"], &["status"], &["create", "shop"], &["logs", "shop"]]
    {
        let output = roost(command);
        assert_eq!(output.status.code(), Some(4), "{command:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).contains("roost up"), "{command:?}");
    }
}

#[test]
fn errors_are_json_where_answers_are() {
    let output = roost(&["list", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unreachable");
    assert!(error["error"]["hint"].is_string());
}

#[test]
fn wrong_usage_ends_with_2() {
    for command in
        [["nonsense"].as_slice(), &["set", "shop"], &["set", "shop", "memory"], &["create", "Shop"], &[]]
    {
        assert_eq!(roost(command).status.code(), Some(2), "{command:?}");
    }
}

#[test]
fn doctor_says_what_it_can_without_a_node() {
    let output = roost(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["checks"][0]["subject"], "node");
    assert_eq!(report["checks"][0]["verdict"], "bad");
    assert_eq!(report["checks"][1]["subject"], "postgres");
}

#[test]
fn the_printed_configuration_is_accepted_and_a_wrong_one_is_refused_by_key() {
    let printed = roost(&["up", "--print-config"]);
    assert_eq!(printed.status.code(), Some(0));
    let printed = text(&printed.stdout);
    assert!(printed.contains("idle_stop = \"5m\""), "{printed}");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roost.toml");
    std::fs::write(&path, printed.replace("idle_stop = \"5m\"", "idle_stop = \"soon\"")).unwrap();
    let output = roost(&["up", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("`soon` is not an idle time"), "{}", text(&output.stderr));
}

#[test]
fn every_setting_is_in_the_help_of_up() {
    let help = text(&roost(&["up", "--help"]).stdout);
    for flag in [
        "--data",
        "--run",
        "--listen",
        "--http",
        "--defaults-idle-freeze",
        "--limits-memory-budget",
        "--tls-key",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn the_nodes_own_process_is_not_for_people() {
    let output = roost(&["node"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("roost status"));
}

#[test]
fn completion_scripts_know_the_commands() {
    let script = text(&roost(&["completions", "bash"]).stdout);
    assert!(script.contains("undelete") && script.contains("--names-from"));
    assert!(!script.contains("roost__node)"), "hidden commands stay hidden");
}
