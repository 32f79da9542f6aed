//! What an operator can set about the gateway, with the defaults. The binary reads these from its configuration; the
//! setting names in the documentation here are the ones that error messages mention.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::limits::Rate;

/// What shorter intervals are taken for.
pub(crate) const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// One address to listen on.
#[derive(Debug, Clone)]
pub struct ListenerConfig {
    /// Where. Port 0 lets the system pick one. An IPv6 address takes IPv6 clients only, `::` included.
    pub address: SocketAddr,
    /// Whether a client must use TLS (`gateway.require_tls`). `None` means: unless the address is loopback.
    pub require_tls: Option<bool>,
}

impl ListenerConfig {
    /// A listener with the default TLS rule.
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, require_tls: None }
    }

    /// Whether this listener takes clients without TLS.
    pub(crate) fn requires_tls(&self) -> bool {
        self.require_tls.unwrap_or(!self.address.ip().is_loopback())
    }
}

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum CertificateSource {
    /// PEM files that are loaded again when they change (`tls.certificate`, `tls.key`).
    Files {
        /// The certificate and its chain.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// A certificate that signs itself, made in this directory (DATA/tls) on first start.
    SelfSigned {
        /// The directory.
        directory: PathBuf,
        /// Host names and addresses that it is for, beside `localhost` and the loopback addresses.
        names: Vec<String>,
    },
}

/// Bounds that keep one client from taking what others need.
#[derive(Debug, Clone, Copy)]
pub struct LimitsConfig {
    /// Client connections of all kinds at once (`limits.max_sessions`).
    pub max_sessions: usize,
    /// Connections from one address that have not authenticated yet (`limits.unauthenticated_per_address`).
    pub unauthenticated_per_address: u32,
    /// Failed logins from one address (`limits.failed_logins_per_address`).
    pub failed_logins_per_address: Rate,
    /// Failed logins from one address to one database (`limits.failed_logins_per_address_and_database`).
    pub failed_logins_per_address_and_database: Rate,
    /// Failed logins to one database from anywhere (`limits.failed_logins_per_database`): beyond it, logins from
    /// addresses that have not logged in before are slowed down, never refused.
    pub failed_logins_per_database: Rate,
    /// How much they are slowed down (`limits.failed_login_delay`).
    pub failed_login_delay: Duration,
    /// Cancel requests from one address (`limits.cancels_per_address`).
    pub cancels_per_address: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_sessions: 10_000,
            unauthenticated_per_address: 1_000,
            failed_logins_per_address: Rate { burst: 60, every: Duration::from_secs(1) },
            failed_logins_per_address_and_database: Rate { burst: 10, every: Duration::from_secs(5) },
            failed_logins_per_database: Rate { burst: 100, every: Duration::from_secs(1) },
            failed_login_delay: Duration::from_secs(1),
            cancels_per_address: Rate { burst: 200, every: Duration::from_millis(20) },
        }
    }
}

/// Everything an operator can set about the gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where to listen (`gateway.listen`).
    pub listeners: Vec<ListenerConfig>,
    /// Threads that serve clients (`gateway.workers`). `None` means half the cores, at least one.
    pub workers: Option<usize>,
    /// The certificate.
    pub certificate: CertificateSource,
    /// How long a client has for startup, TLS and authentication together (`gateway.startup_deadline`).
    pub startup_deadline: Duration,
    /// How long an authenticated client waits for its database (`gateway.connect_deadline`).
    pub connect_deadline: Duration,
    /// How often the bytes of open sessions are recorded in the catalog.
    pub usage_interval: Duration,
    /// How often certificate files are looked at for changes.
    pub certificate_interval: Duration,
    /// The bounds.
    pub limits: LimitsConfig,
}

impl GatewayConfig {
    /// The defaults, for a node that keeps its own certificate in `tls_directory` and listens on `listeners`.
    pub fn new(listeners: Vec<ListenerConfig>, tls_directory: PathBuf) -> Self {
        Self {
            listeners,
            workers: None,
            certificate: CertificateSource::SelfSigned { directory: tls_directory, names: Vec::new() },
            startup_deadline: Duration::from_secs(10),
            connect_deadline: Duration::from_secs(30),
            usage_interval: Duration::from_secs(30),
            certificate_interval: Duration::from_secs(5),
            limits: LimitsConfig::default(),
        }
    }

    /// The default address: 127.0.0.1, port 7432.
    pub const fn default_address() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7432)
    }

    pub(crate) fn worker_count(&self) -> usize {
        let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        self.workers.unwrap_or_else(half).clamp(1, 256)
    }
}
