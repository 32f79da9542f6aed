//! `roost up`: reads the configuration, finds the Postgres installations, and becomes the warden, which starts the node.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use roost_postgres::installation::{DiscoverOptions, discover};
use roost_postgres::module::Modules;
use roost_warden::WardenConfig;

use crate::cli::UpArgs;
use crate::config::{Config, default_file};
use crate::spec::{NodeSpec, VARIABLE};
use crate::terminal::Terminal;
use crate::{logging, user};

/// What the node has on top of its own deadlines before the warden ends it.
const MARGIN: Duration = Duration::from_secs(15);

/// Runs a node on this machine until it is told to end.
pub(crate) fn run(arguments: &UpArgs, run: Option<&Path>, terminal: &Terminal) -> Result<ExitCode> {
    if arguments.print_config {
        terminal.line(default_file().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    match NodeSpec::from_environment() {
        Ok(Some(spec)) if spec.warden == std::process::id() => warden(&spec),
        _ => prepare(arguments, run, terminal),
    }
}

/// Reads the configuration and executes this program again with it in the environment.
fn prepare(arguments: &UpArgs, run: Option<&Path>, terminal: &Terminal) -> Result<ExitCode> {
    let config =
        Config::load(arguments.config.as_deref(), &arguments.settings, run)?.with_absolute_paths()?;
    let spec = NodeSpec {
        warden: std::process::id(),
        config,
        sudo_uid: sudo_uid(),
        demo: arguments.demo,
        json: terminal.json,
    };
    let program = std::env::current_exe().context("cannot find this program")?;
    let error =
        Command::new(&program).args(std::env::args_os().skip(1)).env(VARIABLE, spec.to_variable()?).exec();
    Err(error).with_context(|| format!("cannot execute {}", program.display()))
}

/// The user who started this process through sudo, if it is root that says so.
fn sudo_uid() -> Option<u32> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

/// Becomes the warden.
fn warden(spec: &NodeSpec) -> Result<ExitCode> {
    let config = &spec.config;
    logging::begin(&config.log)?;
    let installations = discover(&DiscoverOptions { extra: config.postgres.installations.clone() });
    if installations.is_empty() {
        bail!(
            "no Postgres was found on this machine: install one (Debian: apt install postgresql), or name its \
             directory in postgres.installations"
        );
    }
    if let Some(major) = config.postgres.default_major.value()
        && !installations.iter().any(|installation| installation.major == major)
    {
        bail!("postgres.default_major is {major}, but no Postgres {major} was found on this machine");
    }
    let user = user::node_user(&config.node_user)?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let code = roost_warden::run(WardenConfig {
        data: config.data.clone(),
        run: config.run.clone(),
        node_command: vec![program.into(), OsString::from("node")],
        node_uid: user.uid,
        node_gid: user.gid,
        installations,
        modules: Modules {
            extensions: config.postgres.extensions.clone(),
            preload: config.postgres.preload.clone(),
        },
        stop_deadline: config.shutdown.drain.0 + config.shutdown.deadline.0 + MARGIN,
    })?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
