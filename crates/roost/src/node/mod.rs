//! The node: the one place where everything is wired together.
//!
//! It comes up in this order: catalog, warden, lifecycle (which adopts what runs), addresses, API, gateway, and only
//! then says that it is ready. It ends for one of three reasons:
//!
//! - **SIGTERM or SIGINT**: [`shutdown::clean`], in the order that is documented there; then the warden ends too;
//! - **SIGHUP**: the warden replaces it; sessions get a moment to finish, instances run on for the successor to adopt;
//! - **the warden is gone**: it ends at once; instances run on, and the next `roost up` adopts them.

mod configuration;
mod demo;
mod ready;
mod shutdown;

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use prometheus_client::registry::Registry;
use roost_api::Api;
use roost_api::socket::ApiSocket;
use roost_catalog::{Catalog, CatalogOptions};
use roost_gateway::{Gateway, Serving};
use roost_lifecycle::Lifecycle;
use roost_warden::Warden;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::command::SOCKET;
use crate::logging;
use crate::spec::NodeSpec;

/// The descriptor at which the warden leaves the node's end of their socket pair.
const WARDEN_SOCKET: i32 = 3;
/// The catalog's file in the data directory.
const CATALOG: &str = "catalog.sqlite";
/// How often deleted databases are looked at whether their time is over.
const PURGE_INTERVAL: Duration = Duration::from_secs(600);
/// The exit code when the warden is gone.
const ORPHANED: u8 = 70;

/// Runs the node's process.
pub(crate) fn run() -> Result<ExitCode> {
    let Some(spec) = NodeSpec::from_environment()? else {
        bail!("this is the node's own process, which `roost up` starts; `roost status` shows a node");
    };
    logging::begin(&spec.config.log)?;
    let socket = warden_socket()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("roost-node").build()?;
    let code = runtime.block_on(serve(spec, socket));
    // Threads that still wait for a disk or a pipe are not waited for: everything that lasts is written.
    runtime.shutdown_background();
    code
}

/// Takes over the descriptor that the warden left.
fn warden_socket() -> Result<OwnedFd> {
    let link = std::fs::read_link(format!("/proc/self/fd/{WARDEN_SOCKET}"));
    if !link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
        bail!("the warden left no socket: the node's process is started by `roost up` only");
    }
    // SAFETY: the descriptor is open, by the check above; it is the warden's to give and nobody else in this process
    // knows it, because nothing was opened before and this function is called once.
    #[expect(unsafe_code, reason = "a descriptor that was inherited can only be had by its number")]
    Ok(unsafe { OwnedFd::from_raw_fd(WARDEN_SOCKET) })
}

/// What the node is made of while it runs.
struct Parts {
    spec: NodeSpec,
    catalog: Catalog,
    warden: Warden,
    lifecycle: Lifecycle,
    api: Api,
    gateway: Serving<Lifecycle>,
    /// Told when the API is to end.
    stop_api: watch::Sender<bool>,
    /// The API's listeners.
    servers: JoinSet<()>,
}

/// Why the node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was told to.
    Told,
    /// Another one takes its place.
    Replaced,
    /// Its warden is gone.
    Orphaned,
}

async fn serve(spec: NodeSpec, socket: OwnedFd) -> Result<ExitCode> {
    // From the first moment on, a signal is an order and not a crash.
    let signals = Signals::new()?;
    let parts = assemble(spec, socket).await?;
    match run_until_end(&parts, signals).await {
        End::Told => Ok(shutdown::clean(parts).await),
        End::Replaced => Ok(shutdown::hand_over(parts).await),
        End::Orphaned => {
            tracing::error!("the warden is gone; databases run on until the next `roost up` adopts them");
            Ok(ExitCode::from(ORPHANED))
        }
    }
}

/// Makes everything, in the order of the module's documentation, and says that the node is ready.
async fn assemble(mut spec: NodeSpec, socket: OwnedFd) -> Result<Parts> {
    let predecessor = ready::Announcement::of_predecessor(&spec.config.run, spec.warden);
    if let Some(predecessor) = &predecessor {
        configuration::keep_addresses(&mut spec.config, predecessor.listeners(), predecessor.http());
    }
    let config = &spec.config;
    let path = config.data.join(CATALOG);
    let catalog = tokio::task::spawn_blocking(move || Catalog::open(&path, CatalogOptions::default()))
        .await?
        .context("cannot open the catalog")?;
    let warden = Warden::connect(socket).context("cannot speak to the warden")?;
    let ladder = configuration::lifecycle(config)?;
    let lifecycle = Lifecycle::begin(catalog.clone(), warden.clone(), ladder, Vec::new())
        .await
        .context("cannot take over the databases")?;

    let mut registry = Registry::default();
    lifecycle.register(registry.sub_registry_with_prefix("roost"));
    let door = configuration::gateway(config);
    let gateway = Gateway::bind(door, catalog.clone(), lifecycle.clone(), &mut registry).await?;
    let addresses = gateway.addresses();
    let http = match config.http.0 {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("cannot listen on {address} (http)"))?)
        }
        None => None,
    };
    let http_address = http.as_ref().map(TcpListener::local_addr).transpose()?;
    let api_socket = ApiSocket::bind(&config.run.join(SOCKET), spec.sudo_uid).await?;
    let about = configuration::api(config, &addresses, http_address);
    let api = Api::new(about, catalog.clone(), Arc::new(lifecycle.clone()), Arc::new(registry));

    let (stop_api, stopping) = watch::channel(false);
    let mut servers = JoinSet::new();
    servers.spawn({
        let (api, stopping) = (api.clone(), stopping.clone());
        async move { api.serve_management(api_socket, stopping).await }
    });
    if let Some(listener) = http {
        let api = api.clone();
        servers.spawn(async move { api.serve_public(listener, stopping).await });
    }
    let gateway = gateway.serve()?;
    api.set_ready(true);
    let parts = Parts { spec, catalog, warden, lifecycle, api, gateway, stop_api, servers };
    let announcement = ready::Announcement::new(&parts.spec, &addresses, http_address);
    announcement.write(&parts.spec.config.run)?;
    if predecessor.is_none() {
        announcement.tell(parts.spec.json)?;
        if parts.spec.demo {
            demo::offer(&parts).await?;
        }
    }
    Ok(parts)
}

/// Signals that tell the node to end.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.terminate.recv() => End::Told,
            _ = self.interrupt.recv() => End::Told,
            _ = self.hangup.recv() => End::Replaced,
        }
    }
}

/// Waits for the end, and purges what was deleted long enough ago meanwhile.
async fn run_until_end(parts: &Parts, mut signals: Signals) -> End {
    let mut purges = tokio::time::interval(PURGE_INTERVAL);
    purges.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let templates = build_templates(parts);
    let purging = async {
        loop {
            purges.tick().await;
            if let Err(error) = parts.api.purge_expired().await {
                tracing::warn!(%error, "will be tried again");
            }
        }
    };
    let chores = async { tokio::join!(templates, purging) };
    tokio::select! {
        end = signals.next() => end,
        () = parts.warden.closed() => End::Orphaned,
        ((), ()) = chores => End::Told,
    }
}

/// Builds the templates that are missing, that of the default version first, so that no first wake has to wait for one.
async fn build_templates(parts: &Parts) {
    let default = parts.spec.config.postgres.default_major.value();
    let mut majors: Vec<u16> =
        parts.lifecycle.capabilities().versions.iter().map(|version| version.major).collect();
    majors.sort_by_key(|major| (Some(*major) != default, std::cmp::Reverse(*major)));
    for major in majors {
        if let Err(error) = parts.warden.ensure_template(major).await {
            tracing::error!(major, %error, "databases of this version cannot be made");
        }
    }
}
