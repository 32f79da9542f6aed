//! What this machine has: programs, Postgres installations, and the processes, mounts and cgroups that belong to a node.
//!
//! A node's things are recognised by the database ids it made and by its folder, both of which occur nowhere else.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

/// The folder of this crate.
pub fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `roost` binary: `ROOST_BINARY`, or the one that was built beside this test.
pub fn roost_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ROOST_BINARY") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("roost"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("no `roost` beside {}: run `cargo build --bin roost`, or `make test`", own.display())
        })
}

/// The Python that has the clients of `clients/python/requirements.txt`.
pub fn python() -> Result<PathBuf> {
    // The path decides which environment Python takes itself to be in, so it is to have no links before the last part.
    let path = crate_folder().join("../..").canonicalize()?.join(".venv/bin/python");
    if !path.exists() {
        bail!("the Python clients are not installed: run scripts/install-test-dependencies");
    }
    Ok(path)
}

/// A Postgres server that the tests may use besides what Roost finds by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Its major version.
    pub major: u16,
    /// The folder that holds `bin`.
    pub folder: PathBuf,
}

impl Installation {
    /// One of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }
}

/// Debian's newest Postgres: server, client programs and contrib modules.
pub fn debian_postgres() -> Result<Installation> {
    let mut found: Vec<Installation> = fs::read_dir("/usr/lib/postgresql")
        .context("Debian's Postgres is not installed: run scripts/install-test-dependencies")?
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            let major = folder.file_name()?.to_str()?.parse().ok()?;
            folder.join("bin/postgres").is_file().then_some(Installation { major, folder })
        })
        .collect();
    found.sort_by_key(|installation| installation.major);
    found.pop().context("there is no Postgres server under /usr/lib/postgresql")
}

/// The majors that come from `clients/node`, the server and initdb only. Debian has another one.
pub const FURTHER_MAJORS: [u16; 4] = [14, 16, 17, 18];

/// What is installed of [`FURTHER_MAJORS`].
pub fn further_postgres() -> Vec<Installation> {
    FURTHER_MAJORS
        .into_iter()
        .map(|major| Installation {
            major,
            folder: crate_folder().join(format!("clients/node/node_modules/postgres{major}/native")),
        })
        .filter(|installation| installation.program("postgres").is_file())
        .collect()
}

/// One process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id on the host.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// The kernel's short name of it.
    pub name: String,
    /// Its arguments, separated by spaces.
    pub arguments: String,
}

/// All processes that are not zombies, for which `wanted(process, cgroups)` holds; `cgroups` is `/proc/PID/cgroup`.
pub fn processes(wanted: impl Fn(&Process, &str) -> bool) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let process = process(pid)?;
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            wanted(&process, &cgroups).then_some(process)
        })
        .collect()
}

/// One process; `None` if there is none of this id, or only a zombie.
pub fn process(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold spaces and parentheses itself.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ").trim().to_owned();
    Some(Process { pid, parent, name, arguments })
}

/// Resident memory of a process, in bytes.
pub fn resident_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS line")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// Number of open file descriptors of a process.
pub fn open_descriptors(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).filter(|pid| pid.as_raw_nonzero().get() > 1).context("not a process id")?;
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("signal to {pid:?}")),
    }
}

/// Mount points that mention `text`, innermost first.
pub fn mounts_with(text: &str) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter(|line| line.contains(text))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    points.reverse();
    points
}

/// cgroup folders that one of the databases with these ids gave its name, innermost first.
pub fn cgroups_of(ids: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if ids.iter().any(|id| name.contains(id.as_str())) {
                found.push(path.clone());
            }
            waiting.push(path);
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
    found
}

/// Bytes that an unprivileged process may still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Raises this process's limit of open files to at least `count`.
pub fn allow_open_files(count: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= count) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(count));
    setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum })
        .with_context(|| format!("this test needs {count} open files (ulimit -n)"))
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program on PATH or at a usual place.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(OsStr::new(name)))
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_with_its_name_and_memory() -> Result<()> {
        let own = i32::try_from(std::process::id())?;
        let seen = process(own).context("not seen")?;
        assert!(seen.parent > 0 && !seen.name.is_empty() && !seen.arguments.is_empty());
        assert!(resident_bytes(own)? > 100_000);
        assert!(open_descriptors(own)? > 2);
        assert_eq!(processes(|process, _| process.pid == own).len(), 1);
        Ok(())
    }
}
