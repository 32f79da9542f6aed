//! From a configuration to a serving warden: the directories, the locks that keep a second node out, the namespace that
//! hides its mounts, and the kind of isolation that this machine allows.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roost_durable::{Disk, RealDisk};
use roost_postgres::volume::Layout;

use crate::config::{VOLUME_UID, WardenConfig};
use crate::isolation::Isolation;
use crate::mounts;
use crate::node::Supervision;
use crate::premises::RunDirectory;
use crate::process::Process;
use crate::server::{Parts, Server};
use crate::sys;
use crate::uids::NODE_LOCK;
use crate::unprivileged::Unprivileged;
use crate::volumes::Volumes;

/// Where nodes of one machine agree on user ids.
const CLAIMS: &str = "/run/roost-uids";

/// How long another warden on the same directories may take to be gone: one that was just killed leaves processes that
/// hold its locks for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a warden could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another node uses one of the directories.
    #[error("another node uses {0}: two nodes cannot share a data or run directory")]
    InUse(PathBuf),
    /// The node's user is kept out of one of the directories.
    #[error(
        "the node runs as user {uid}, which cannot get to {}: {} does not let it through; choose another place, or \
         let others pass (chmod o+x)",
        .directory.display(), .barrier.display()
    )]
    OutOfReach {
        /// The directory.
        directory: PathBuf,
        /// The directory above it that bars the way.
        barrier: PathBuf,
        /// The node's user.
        uid: u32,
    },
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// Which.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    let step = step.into();
    move |source| RunError::Step { step, source }
}

/// Runs a warden until its node ends, and returns the exit code for the process. Must be called while the process has
/// one thread.
///
/// SIGTERM and SIGINT end it by way of the node, which stops its databases; SIGHUP replaces the node and touches
/// nothing else. If it is killed, the node ends too, the instances go on, and the next warden adopts them.
///
/// # Errors
/// [`RunError`], before anything was started, or if the loop itself fails.
pub fn run(config: WardenConfig) -> Result<i32, RunError> {
    let is_root = rustix::process::geteuid().is_root();
    let node = is_root.then_some((config.node_uid, config.node_gid));
    let (data_mode, run_mode) = if is_root { (0o1770, 0o1771) } else { (0o700, 0o700) };
    let data = make_directory(&config.data, node, data_mode)?;
    let run = make_directory(&config.run, node, run_mode)?;
    let _data_lock = lock(&data.join(NODE_LOCK))?;
    let _run_lock = lock(&run.join(NODE_LOCK))?;
    for directory in [&data, &run] {
        reachable(directory, node)?;
    }
    raise_descriptor_limit().map_err(step("raise the limit on descriptors"))?;

    let owner = is_root.then_some((VOLUME_UID, VOLUME_UID));
    let volumes = Volumes { layout: Layout::new(&data), owner, reader: node };
    volumes.prepare().map_err(step("make the directories of volumes and templates"))?;
    roost_postgres::template::remove_unfinished(&volumes.layout.templates())
        .map_err(step("remove unfinished templates"))?;

    let (isolation, host) = isolate(is_root, &volumes, &config, &run)?;
    let supervision = Supervision::new(config.node_command, node, host);
    let run = RunDirectory { path: run, node };
    let parts = Parts {
        isolation,
        volumes,
        run,
        installations: config.installations,
        node: supervision,
        stop_deadline: config.stop_deadline,
    };
    let mut server = Server::new(parts).map_err(step("prepare the loop"))?;
    server.run().map_err(step("wait for events"))
}

type Isolated = (Box<dyn Isolation>, Option<std::os::fd::OwnedFd>);

fn isolate(
    is_root: bool,
    volumes: &Volumes,
    config: &WardenConfig,
    run: &Path,
) -> Result<Isolated, RunError> {
    if !is_root {
        let process = Unprivileged::prepare(volumes.clone(), config, run)
            .map_err(step("prepare the isolation of instances"))?;
        return Ok((Box::new(process), None));
    }
    let host = sys::own_namespace("mnt").map_err(step("hold the host's mount namespace"))?;
    mounts::leave_host().map_err(step("leave the host's mount namespace"))?;
    let process = Process::prepare(volumes.clone(), config, run, Path::new(CLAIMS))
        .map_err(step("prepare the isolation of instances"))?;
    Ok((Box::new(process), Some(host)))
}

/// Makes a directory that the node may make files in but not take the warden's away from, and returns its real path.
fn make_directory(path: &Path, node: Option<(u32, u32)>, mode: u32) -> Result<PathBuf, RunError> {
    let prepare = || -> io::Result<PathBuf> {
        let missing =
            path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists()).count();
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let real = path.canonicalize()?;
        // Whatever is acknowledged below it needs its name, and those of the directories that were made above it.
        for parent in real.ancestors().skip(1).take(missing) {
            RealDisk.sync_dir(parent)?;
        }
        if let Some((_, gid)) = node {
            chown(&real, Some(0), Some(gid))?;
        }
        fs::set_permissions(&real, fs::Permissions::from_mode(mode))?;
        Ok(real)
    };
    prepare().map_err(step(format!("prepare {}", path.display())))
}

/// Asks the kernel, as the node's user, whether that can get to a directory, and if not, where it is stopped.
fn reachable(directory: &Path, node: Option<(u32, u32)>) -> Result<(), RunError> {
    let Some((uid, gid)) = node else { return Ok(()) };
    let failed = || step("look at directories as the node's user");
    let mut above: Vec<&Path> = directory.ancestors().collect();
    above.reverse();
    let Some(pid) = sys::fork_worker().map_err(failed())? else {
        // Answers with the number of the first directory that it cannot look into.
        let code = match sys::become_user(uid, gid) {
            Ok(()) => {
                above.iter().position(|path| fs::metadata(path.join(".")).is_err()).map_or(0, |at| at + 1)
            }
            Err(_) => usize::from(u8::MAX),
        };
        sys::exit_now(i32::try_from(code).unwrap_or(i32::from(u8::MAX)))
    };
    let pid = rustix::process::Pid::from_raw(pid);
    let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())
        .map_err(io::Error::from)
        .map_err(failed())?;
    let code = ended.and_then(|(_, status)| status.exit_status()).unwrap_or(i32::from(u8::MAX));
    let barrier = usize::try_from(code).ok().and_then(|code| above.get(code.checked_sub(1)?));
    match barrier {
        None if code == 0 => Ok(()),
        None => Err(failed()(io::Error::other("the process that did it ended early"))),
        Some(&barrier) => {
            Err(RunError::OutOfReach { directory: directory.to_owned(), barrier: barrier.to_owned(), uid })
        }
    }
}

fn lock(path: &Path) -> Result<File, RunError> {
    let failed = || step(format!("open {}", path.display()));
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed())?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RunError::InUse(path.parent().unwrap_or(path).to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(failed()(error)),
        }
    }
}

/// Every instance takes a handful of descriptors.
fn raise_descriptor_limit() -> io::Result<()> {
    const WANTED: u64 = 1 << 18;
    let (soft, hard) = sys::limits(libc::RLIMIT_NOFILE)?;
    if soft < WANTED && sys::limit(libc::RLIMIT_NOFILE, WANTED.max(hard)).is_err() {
        sys::limit(libc::RLIMIT_NOFILE, hard)?;
    }
    Ok(())
}
