//! The directories of a run, and the end of everything that was started in them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::keeper::Keeper;

/// Ends the nodes whose warden has its process id in `$1/*.pid`, then the Postgres servers and PgBouncers below `$1`,
/// waits for both, and removes the two directories.
const CLEAN_UP: &str = r#"
end() {
    signal=$1; shift
    for file in "$@"; do
        [ -s "$file" ] || continue
        pid=$(head -n 1 "$file")
        kill -s "$signal" "$pid" 2>/dev/null || continue
        tries=0
        while kill -s 0 "$pid" 2>/dev/null && [ $tries -lt 1200 ]; do sleep 0.1; tries=$((tries + 1)); done
    done
}
end TERM "$1"/*.pid "$1"/bare/*/pid
end INT "$1"/bare/*/data/postmaster.pid
rm -rf "$1" "$2"
"#;

/// A directory for what lasts (on the disk that is to be measured) and one for sockets, with short paths.
#[derive(Debug)]
pub(crate) struct Scratch {
    data: PathBuf,
    run: PathBuf,
    _keeper: Keeper,
}

impl Scratch {
    /// Makes both, `data` below `below`. They are removed when this is dropped, and when this process is killed.
    pub(crate) fn new(below: &Path) -> Result<Self> {
        let data = directory(below)?;
        // Where /run is kept in memory, as it should be; otherwise in what is. Unprivileged, /run is closed.
        let run = [Path::new("/run"), Path::new("/dev/shm")].into_iter().find(|place| is_in_memory(place));
        let run = directory(run.unwrap_or(Path::new("/run"))).or_else(|_| directory(Path::new("/tmp")))?;
        let (Some(data_text), Some(run_text)) = (data.to_str(), run.to_str()) else {
            anyhow::bail!("{} is no UTF-8", data.display());
        };
        let keeper = Keeper::start(CLEAN_UP, &[data_text, run_text])?;
        fs::create_dir(data.join("bare"))?;
        Ok(Self { data, run, _keeper: keeper })
    }

    /// Where files go that a disk is measured with.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Where sockets go.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }
}

fn is_in_memory(place: &Path) -> bool {
    // linux/magic.h: TMPFS_MAGIC.
    rustix::fs::statfs(place).is_ok_and(|file_system| file_system.f_type == 0x0102_1994)
}

/// A new directory that other users, who must reach what is theirs in it, can pass through.
fn directory(below: &Path) -> Result<PathBuf> {
    let made = tempfile::Builder::new()
        .prefix("rb")
        .rand_bytes(6)
        .tempdir_in(below)
        .with_context(|| format!("cannot make a directory in {}", below.display()))?;
    fs::set_permissions(made.path(), fs::Permissions::from_mode(0o711))?;
    Ok(made.keep())
}
