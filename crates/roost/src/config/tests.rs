use super::*;
use clap::{Args, Command, FromArgMatches};
use keys::KEYS;
use std::collections::BTreeSet;

fn flags(arguments: &[&str]) -> ConfigFlags {
    let command = ConfigFlags::augment_args(Command::new("up").no_binary_name(true));
    ConfigFlags::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap()
}

fn load(file: &str, arguments: &[&str]) -> anyhow::Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roost.toml");
    std::fs::write(&path, file).unwrap();
    Config::load(Some(&path), &flags(arguments), None)
}

fn paths(prefix: &str, value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                paths(
                    &if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") },
                    value,
                    found,
                );
            }
        }
        _ => {
            found.insert(prefix.to_owned());
        }
    }
}

#[test]
fn every_setting_has_a_default_a_flag_a_variable_and_documentation() {
    let config = Config::load(None, &ConfigFlags::default(), None).unwrap();
    let mut in_config = BTreeSet::new();
    paths("", &serde_json::to_value(&config).unwrap(), &mut in_config);
    let documented: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(in_config, documented);
    let file = default_file();
    for key in KEYS {
        assert!(key.doc.ends_with('.') && key.doc.len() > 20, "{}", key.path);
        assert!(key.default.is_some() || key.doc.contains("Default:"), "{}", key.path);
        assert!(
            file.contains(&format!("--{}", key.flag())) && file.contains(&key.variable()),
            "{}",
            key.path
        );
    }
}

#[test]
fn the_printed_file_means_the_defaults() {
    let file = default_file();
    assert_eq!(load(&file, &[]).unwrap(), Config::load(None, &ConfigFlags::default(), None).unwrap());
    assert!(file.lines().all(|line| line.len() <= 102), "{file}");
}

#[test]
fn flags_go_over_the_file_and_the_file_over_the_defaults() {
    let file = "http = '127.0.0.1:1'\n[defaults]\nmemory = '512MiB'\nidle_stop = 'never'\n";
    let config = load(
        file,
        &[
            "--http",
            "off",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
            "--gateway-workers",
            "3",
            "--postgres-extensions",
            "bloom,xml2",
        ],
    );
    let config = config.unwrap();
    assert_eq!(config.http.0, None);
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.postgres.extensions.len(), 2);
    assert_eq!(config.gateway.workers, Auto::Value(3));
    assert_eq!(config.defaults.memory, Size(512 << 20));
    assert_eq!(config.defaults.idle_stop.to_string(), "never");
    assert_eq!(config.defaults.max_connections, 100);
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = load("listens = []", &[]).unwrap_err();
    assert!(format!("{error:#}").contains("listens"), "{error:#}");
    let error = load("[limits]\nmemory = '1GiB'", &[]).unwrap_err();
    assert!(format!("{error:#}").contains("memory"), "{error:#}");
}

#[test]
fn a_value_out_of_bounds_is_refused_with_the_bound() {
    for (file, word) in [
        ("[defaults]\nmemory = '1MiB'", "64MiB"),
        ("[defaults]\nmax_connections = 5", "10 to 10000"),
        ("[limits]\nmax_sessions = 0", "at least 1"),
        ("[limits]\nxid_age = 399999999", "400000000 to 2000000000"),
        ("[limits]\nxid_age = 2000000001", "400000000 to 2000000000"),
        ("[gateway]\nconnect_deadline = '1ms'", "100ms"),
        ("[tls]\ncertificate = 'x.pem'", "tls.key"),
        ("[postgres]\ndefault_major = 9", "14 to 18"),
        ("[postgres]\nextensions = ['pageinspect', '../evil']", "`../evil` is not the name of an extension"),
        ("[log]\nlevel = '=='", "log.level"),
        ("[limits]\ncancels_per_address = '5'", "such as 60/1s"),
        ("[gateway]\nrequire_tls = 'perhaps'", "auto"),
        ("purge_after = '7'", "not a duration"),
    ] {
        let error = format!("{:#}", load(file, &[]).unwrap_err());
        assert!(error.contains(word), "{file}: {error}");
    }
}

#[test]
fn the_configuration_survives_its_way_to_the_node() {
    let config = load("[limits]\nmemory_budget = '4GiB'\n[defaults]\ncpu = '1.5'", &[]).unwrap();
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
}
