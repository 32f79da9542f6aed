//! Making a template.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};

use super::{TemplateError, UNFINISHED_PREFIX, reach, recipe};
use crate::control_file::{ClusterState, ControlFile, wal};
use crate::installation::{Installation, bounded};
use roost_durable::{Disk, RealDisk};

/// How long `initdb` may take.
const INITDB_WITHIN: Duration = Duration::from_secs(300);
/// How long one step of the recipe may take.
const STEP_WITHIN: Duration = Duration::from_secs(120);

/// Makes a template at `dest`, which must not exist and whose parent directory must. Blocks for a second or two.
///
/// `run_as` is the user and group that the cluster's files belong to and that `initdb` and Postgres run as, without
/// further groups; `None` is the caller's own, which must not be root (Postgres refuses to run as root). The user needs no
/// entry in the machine's user database and no access to the directories above `dest`; where it lacks either, the
/// privileged caller must be able to make a mount namespace.
///
/// When two build the same template at once, both succeed and one of the results remains.
///
/// # Errors
/// [`TemplateError`]. Nothing is then left at `dest`.
pub fn build(
    installation: &Installation,
    dest: &Path,
    run_as: Option<(u32, u32)>,
) -> Result<(), TemplateError> {
    let no_destination = || TemplateError::Destination(dest.to_owned());
    let name = dest.file_name().ok_or_else(no_destination)?;
    // Children get the path too and have another idea of what is relative.
    let parent = dest.parent().ok_or_else(no_destination)?.canonicalize().map_err(|_| no_destination())?;
    let dest = parent.join(name);
    if fs::symlink_metadata(&dest).is_ok() {
        return Err(TemplateError::Exists(dest));
    }

    static UNFINISHED: AtomicU64 = AtomicU64::new(0);
    let number = UNFINISHED.fetch_add(1, Ordering::Relaxed);
    let unfinished =
        parent.join(format!("{UNFINISHED_PREFIX}{}-{}-{number}", name.to_string_lossy(), process::id()));
    let result = build_in(installation, &unfinished, &dest, run_as)
        .and_then(|()| RealDisk.sync_dir(&parent).map_err(io_at(&parent)));
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %unfinished.display(), %error, "an unfinished template could not be removed");
        }
        _ => {}
    }
    result
}

fn build_in(
    installation: &Installation,
    unfinished: &Path,
    dest: &Path,
    run_as: Option<(u32, u32)>,
) -> Result<(), TemplateError> {
    // Not writable for the user that the cluster is built as, so that nothing is renamed under our hands.
    DirBuilder::new().mode(0o711).create(unfinished).map_err(io_at(unfinished))?;
    let cluster = unfinished.join("cluster");
    DirBuilder::new().mode(0o700).create(&cluster).map_err(io_at(&cluster))?;
    match run_as {
        Some((uid, gid)) => {
            chown(&cluster, Some(uid), Some(gid)).map_err(io_at(&cluster))?;
            reach::within(&cluster, uid, gid, || initialise(installation, &cluster, run_as))?;
        }
        None => initialise(installation, &cluster, None)?,
    }
    verify(installation, &cluster)?;
    trim_wal(&cluster)?;
    sync_tree(&cluster)?;

    match rustix::fs::renameat_with(CWD, &cluster, CWD, dest, RenameFlags::NOREPLACE) {
        // Somebody else was first with the same template.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(io_at(dest)(error.into())),
    }
}

fn initialise(
    installation: &Installation,
    cluster: &Path,
    run_as: Option<(u32, u32)>,
) -> Result<(), TemplateError> {
    let mut initdb = command(&installation.initdb(), run_as);
    initdb.arg("-D").arg(cluster).args(recipe::initdb_arguments(installation.major));
    bounded::run(&mut initdb, None, INITDB_WITHIN).map_err(TemplateError::Initdb)?;

    for step in recipe::steps(installation.major) {
        let mut single = command(&installation.postgres(), run_as);
        single.args(["--single", "-j", "-D"]).arg(cluster);
        // The tree is synced when it is complete; until then nobody has been promised anything.
        for setting in ["exit_on_error=on", "fsync=off", "search_path=pg_catalog", "log_checkpoints=off"] {
            single.args(["-c", setting]);
        }
        single.arg(step.database);
        bounded::run(&mut single, Some(&step.script()), STEP_WITHIN)
            .map_err(|error| TemplateError::Recipe { database: step.database, error })?;
    }
    Ok(())
}

/// A command with nothing of the caller's environment. Setting a user also clears the supplementary groups.
fn command(program: &Path, run_as: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TZ", "UTC").env("LC_ALL", "C").current_dir("/");
    if let Some((uid, gid)) = run_as {
        command.uid(uid).gid(gid);
    }
    command
}

fn verify(installation: &Installation, cluster: &Path) -> Result<(), TemplateError> {
    let version = fs::read_to_string(cluster.join("PG_VERSION")).map_err(io_at(cluster))?;
    if version.trim() != installation.major.to_string() {
        return Err(TemplateError::Unusable(format!("its version is {}", version.trim())));
    }
    let control = ControlFile::read(cluster)?;
    if control.state != ClusterState::ShutDown {
        return Err(TemplateError::Unusable(format!("its state is {:?}", control.state)));
    }
    if control.wal_segment_bytes != recipe::WAL_SEGMENT_MIB << 20 {
        return Err(TemplateError::Unusable(format!(
            "its WAL segments have {} bytes",
            control.wal_segment_bytes
        )));
    }
    if control.data_checksum_version == 0 {
        return Err(TemplateError::Unusable("it has no data checksums".to_owned()));
    }
    Ok(())
}

/// Leaves only the WAL that a start needs: the segment with the final checkpoint, and in it nothing after that. A
/// segment that was kept for reuse would be copied by every volume at its first start.
fn trim_wal(cluster: &Path) -> Result<(), TemplateError> {
    let control = ControlFile::read(cluster)?;
    let directory = cluster.join("pg_wal");
    let needed = wal::segment_name(control.timeline, control.checkpoint, control.wal_segment_bytes);
    for entry in fs::read_dir(&directory).map_err(io_at(&directory))? {
        let path = entry.map_err(io_at(&directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if wal::is_segment_name(name) && name != needed {
            fs::remove_file(&path).map_err(io_at(&path))?;
        }
    }

    let path = directory.join(needed);
    let file = OpenOptions::new().write(true).open(&path).map_err(io_at(&path))?;
    // The record begins on its page and ends, being shorter than a page, on the next one at the latest.
    let page = u64::from(wal::PAGE_BYTES);
    let end = (control.checkpoint % u64::from(control.wal_segment_bytes)) / page * page + 2 * page;
    let whole = u64::from(control.wal_segment_bytes);
    file.set_len(end.min(whole)).and_then(|()| file.set_len(whole)).map_err(io_at(&path))
}

/// Syncs every file and directory below `directory`, and itself.
fn sync_tree(directory: &Path) -> Result<(), TemplateError> {
    for entry in fs::read_dir(directory).map_err(io_at(directory))? {
        let entry = entry.map_err(io_at(directory))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(io_at(&path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(io_at(&path))?;
        }
    }
    RealDisk.sync_dir(directory).map_err(io_at(directory))
}

pub(super) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> TemplateError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| TemplateError::Io { path, source }
}
