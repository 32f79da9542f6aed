//! A Postgres of the test's own on a unix socket, ended with the test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A running Postgres.
#[derive(Debug)]
pub(crate) struct Postgres {
    directory: tempfile::TempDir,
    server: Mutex<Child>,
}

impl Postgres {
    /// Makes a cluster and starts it.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let run_as = ordinary_user();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if let Some((uid, gid)) = run_as {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid)).unwrap();
        }
        let data = directory.path().join("data");
        copy_cluster(&data, directory.path(), run_as);
        let mut postgres = program("postgres", run_as);
        postgres.arg("-D").arg(&data).arg("-k").arg(directory.path());
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "shared_buffers=16MB",
            "max_connections=80",
            "unix_socket_permissions=0777",
            "password_encryption=scram-sha-256",
        ] {
            postgres.arg("-c").arg(setting);
        }
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let server = postgres.stdin(Stdio::null()).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let postgres = Self { directory, server: Mutex::new(server) };
        postgres.wait_until_ready();
        postgres
    }

    fn wait_until_ready(&self) {
        let began = Instant::now();
        let log = self.directory.path().join("log");
        while !fs::read_to_string(&log).unwrap_or_default().contains("ready to accept connections") {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The directory of the socket.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Kills the postmaster without a warning.
    pub(crate) fn kill(&self) {
        let _ = self.server.lock().unwrap().kill();
    }

    /// Ends it by an immediate shutdown, which ends the backends too.
    pub(crate) fn stop(&self) {
        let mut server = self.server.lock().unwrap();
        // One that has ended may have given its process id to another.
        if matches!(server.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg("-QUIT").arg(server.id().to_string()).status();
            let _ = server.wait();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Copies the cluster that all tests begin with, making it if this is the first.
fn copy_cluster(data: &Path, scratch: &Path, run_as: Option<(u32, u32)>) {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("roost-gateway-cluster");
    if !kept.exists() {
        let fresh = scratch.join("fresh");
        let status = program("initdb", run_as)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-D"])
            .arg(&fresh)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let arriving = kept.with_extension(std::process::id().to_string());
        copy(&fresh, &arriving);
        // Another test may have been faster; its cluster is as good.
        if fs::rename(&arriving, &kept).is_err() {
            fs::remove_dir_all(&arriving).unwrap();
        }
    }
    copy(&kept, data);
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn program(name: &str, run_as: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(bin().join(name));
    command.current_dir("/").env("LC_ALL", "C");
    if let Some((uid, gid)) = run_as {
        command.uid(uid).gid(gid);
    }
    command
}

/// The newest installation of Debian's layout, or what PATH has.
fn bin() -> PathBuf {
    let majors = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = majors.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    newest.map_or_else(PathBuf::new, |major| format!("/usr/lib/postgresql/{major}/bin").into())
}

/// Postgres refuses to run as root: whom it runs as then.
fn ordinary_user() -> Option<(u32, u32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let root = status.lines().any(|line| line.starts_with("Uid:\t0\t"));
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |line: &str| {
        let mut parts = line.split(':').skip(2);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    root.then(|| {
        users.lines().find(|line| line.starts_with("postgres:")).and_then(ids).unwrap_or((65534, 65534))
    })
}
