//! The configuration, as each part of the node takes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::num::NonZero;

use anyhow::{Context, Result};
use roost_api::ApiConfig;
use roost_api::resource::{Check, Verdict};
use roost_gateway::{CertificateSource, GatewayConfig, LimitsConfig, ListenerConfig, Rate};
use roost_lifecycle::LifecycleConfig;
use roost_pool::batch;

use crate::config::{self, Auto, Config};

/// The port of Postgres clients unless told.
const PORT: u16 = 7432;
/// What the node has open apart from sessions: the catalog, listeners, the warden's socket, a descriptor a running database.
const OWN_DESCRIPTORS: u64 = 1_024;
/// The directory of certificates in the data directory.
const TLS: &str = "tls";

/// The ladder's part.
pub(super) fn lifecycle(config: &Config) -> Result<LifecycleConfig> {
    let (defaults, limits) = (&config.defaults, &config.limits);
    let memory_budget_bytes = match limits.memory_budget {
        Auto::Value(budget) => budget.0,
        Auto::Auto => machine_memory().context("limits.memory_budget")? / 4 * 3,
    };
    Ok(LifecycleConfig {
        data: config.data.clone(),
        idle_freeze: defaults.idle_freeze.0,
        idle_stop: defaults.idle_stop.0,
        memory_bytes: defaults.memory.0,
        storage_bytes: defaults.storage.0,
        cpu_millicores: defaults.cpu.0,
        max_connections: defaults.max_connections,
        concurrent_starts: limits.concurrent_starts.value().unwrap_or_else(|| cores().saturating_mul(2)),
        start_deadline: limits.start_deadline.0,
        stop_deadline: limits.stop_deadline.0,
        maintenance_budget: limits.maintenance_budget.0,
        memory_budget_bytes,
        storage_reserve_bytes: limits.storage_reserve.0,
        xid_age_limit: limits.xid_age,
        ..LifecycleConfig::default()
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// The machine's memory in bytes: `MemTotal` of proc_meminfo(5).
fn machine_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    total_memory(&text).context("/proc/meminfo has no MemTotal")
}

fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1_024)
}

/// The gateway's part.
pub(super) fn gateway(config: &Config) -> GatewayConfig {
    let require_tls = config.gateway.require_tls.value();
    let listeners =
        listen(config).into_iter().map(|address| ListenerConfig { address, require_tls }).collect();
    let limits = &config.limits;
    let mut gateway = GatewayConfig::new(listeners, config.data.join(TLS));
    gateway.workers = config.gateway.workers.value();
    gateway.certificate = match (&config.tls.certificate, &config.tls.key) {
        (Some(certificate), Some(key)) => {
            CertificateSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
        _ => CertificateSource::SelfSigned {
            directory: config.data.join(TLS),
            names: config.host.iter().cloned().collect(),
        },
    };
    gateway.startup_deadline = config.gateway.startup_deadline.0;
    gateway.connect_deadline = config.gateway.connect_deadline.0;
    gateway.limits = LimitsConfig {
        max_sessions: limits.max_sessions,
        unauthenticated_per_address: limits.unauthenticated_per_address,
        failed_logins_per_address: rate(limits.failed_logins_per_address),
        failed_logins_per_address_and_database: rate(limits.failed_logins_per_address_and_database),
        failed_logins_per_database: rate(limits.failed_logins_per_database),
        failed_login_delay: limits.failed_login_delay.0,
        cancels_per_address: rate(limits.cancels_per_address),
    };
    gateway
}

fn rate(rate: config::Rate) -> Rate {
    Rate { burst: rate.burst, every: rate.every }
}

/// Where Postgres clients connect: as configured, or loopback of both families where the machine has both.
fn listen(config: &Config) -> Vec<SocketAddr> {
    if !config.listen.is_empty() {
        return config.listen.clone();
    }
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, PORT))];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push(SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)));
    }
    addresses
}

/// A node that takes the place of another one keeps the ports that the system picked for that: clients know them.
pub(super) fn keep_addresses(config: &mut Config, listen: Option<Vec<SocketAddr>>, http: Option<SocketAddr>) {
    if let Some(listen) = listen.filter(|listen| listen.len() == config.listen.len()) {
        for (address, before) in config.listen.iter_mut().zip(listen) {
            keep_port(address, before);
        }
    }
    if let (Some(address), Some(before)) = (&mut config.http.0, http) {
        keep_port(address, before);
    }
}

fn keep_port(address: &mut SocketAddr, before: SocketAddr) {
    if address.port() == 0 {
        address.set_port(before.port());
    }
}

/// The API's part.
pub(super) fn api(config: &Config, listen: &[SocketAddr], http: Option<SocketAddr>) -> ApiConfig {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    ApiConfig {
        version: env!("CARGO_PKG_VERSION"),
        host: config.host.clone().unwrap_or_else(|| host(listen)),
        port: listen.first().map_or(PORT, SocketAddr::port),
        listen: listen.to_vec(),
        http,
        data: config.data.clone(),
        default_major: config.postgres.default_major.value(),
        purge_after: config.purge_after.0,
        wake_timeout: config.limits.start_deadline.0,
        stop_timeout: config.limits.stop_deadline.0,
        checks: vec![
            certificate_check(config, listen),
            descriptor_check(descriptors.unwrap_or(u64::MAX), config.limits.max_sessions),
            relay_check(),
        ],
    }
}

fn certificate_check(config: &Config, listen: &[SocketAddr]) -> Check {
    let detail = match &config.tls.certificate {
        Some(path) => format!("the certificate {} is used", path.display()),
        None => "the certificate signs itself: clients cannot check it (set tls.certificate and tls.key)"
            .to_owned(),
    };
    let is_good = config.tls.certificate.is_some() || listen.iter().all(|address| address.ip().is_loopback());
    let verdict = if is_good { Verdict::Good } else { Verdict::Weak };
    Check { subject: "tls".to_owned(), verdict, detail, hint: None }
}

/// A session has its client's descriptor and its server's. The warden has raised the limit as far as it may.
fn descriptor_check(limit: u64, max_sessions: usize) -> Check {
    let needed = (max_sessions as u64).saturating_mul(2).saturating_add(OWN_DESCRIPTORS);
    let enough = limit >= needed;
    Check {
        subject: "descriptors".to_owned(),
        verdict: if enough { Verdict::Good } else { Verdict::Weak },
        detail: format!(
            "the node may have {limit} open; {max_sessions} sessions (limits.max_sessions) need {needed}"
        ),
        hint: (!enough).then(|| {
            "Raise the hard limit of open files for `roost up` (LimitNOFILE in systemd), or lower \
             limits.max_sessions."
                .to_owned()
        }),
    }
}

/// The host of connection URLs: a name where it leads to an address that is listened on, otherwise that address.
fn host(listen: &[SocketAddr]) -> String {
    let everywhere = listen.iter().any(|address| address.ip().is_unspecified());
    let has = |loopback: IpAddr| listen.iter().any(|address| address.ip() == loopback);
    if everywhere || (has(Ipv4Addr::LOCALHOST.into()) && has(Ipv6Addr::LOCALHOST.into())) {
        return "localhost".to_owned();
    }
    listen.first().map_or("localhost".to_owned(), |address| address.ip().to_string())
}

/// What the kernel does for the relay.
fn relay_check() -> Check {
    let (verdict, detail, hint) = if batch::is_available() {
        (Verdict::Good, "sends of one round are made together, by io_uring", None)
    } else {
        let hint = "See kernel.io_uring_disabled, and what confines the node.";
        (Verdict::Weak, "each send is a system call: this process gets no io_uring", Some(hint))
    };
    Check { subject: "relay".to_owned(), verdict, detail: detail.to_owned(), hint: hint.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFlags;

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(total_memory("MemTotal:       24684084 kB\nMemFree: 1 kB\n"), Some(24_684_084 * 1_024));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        assert!(machine_memory().is_ok_and(|bytes| bytes > 0));
    }

    #[test]
    fn a_url_names_a_host_that_is_listened_on() {
        let host = |addresses: &[&str]| {
            host(&addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>())
        };
        assert_eq!(host(&["127.0.0.1:1", "[::1]:1"]), "localhost");
        assert_eq!(host(&["0.0.0.0:1"]), "localhost");
        assert_eq!(host(&["127.0.0.1:1"]), "127.0.0.1");
        assert_eq!(host(&["[::1]:1"]), "::1");
        assert_eq!(host(&["10.1.2.3:1", "127.0.0.1:1"]), "10.1.2.3");
    }

    #[test]
    fn too_few_descriptors_for_the_sessions_are_told_with_what_to_do() {
        let check = descriptor_check(1_048_576, 10_000);
        assert_eq!((check.verdict, check.hint), (Verdict::Good, None));
        let check = descriptor_check(4_096, 10_000);
        assert_eq!(check.verdict, Verdict::Weak);
        assert!(check.detail.contains("4096") && check.detail.contains("21024"), "{}", check.detail);
        assert!(check.hint.is_some_and(|hint| hint.contains("LimitNOFILE")));
    }

    #[test]
    fn only_ports_that_the_system_picked_are_taken_over() {
        let mut config = Config::load(None, &ConfigFlags::default(), None).unwrap();
        config.listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.1:5".parse().unwrap()];
        let before = vec!["127.0.0.1:70".parse().unwrap(), "127.0.0.1:71".parse().unwrap()];
        keep_addresses(&mut config, Some(before), Some("127.0.0.1:72".parse().unwrap()));
        assert_eq!(config.listen, ["127.0.0.1:70".parse().unwrap(), "127.0.0.1:5".parse().unwrap()]);
        assert_eq!(config.http.0, Some("127.0.0.1:7480".parse().unwrap()));
    }

    #[test]
    fn the_defaults_of_the_configuration_are_those_of_the_parts() {
        let config = Config::load(None, &ConfigFlags::default(), None).unwrap();
        let gateway = gateway(&config);
        let fresh = GatewayConfig::new(gateway.listeners.clone(), config.data.join(TLS));
        assert_eq!(gateway.startup_deadline, fresh.startup_deadline);
        assert_eq!(gateway.connect_deadline, fresh.connect_deadline);
        assert_eq!(format!("{:?}", gateway.limits), format!("{:?}", fresh.limits));
        let lifecycle = lifecycle(&config).unwrap();
        let fresh = LifecycleConfig::default();
        assert_eq!(
            lifecycle,
            LifecycleConfig {
                data: config.data,
                concurrent_starts: lifecycle.concurrent_starts,
                memory_budget_bytes: lifecycle.memory_budget_bytes,
                ..fresh
            }
        );
    }
}
