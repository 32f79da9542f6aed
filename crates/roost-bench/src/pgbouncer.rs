//! The peer of the relay: PgBouncer in session mode, and pgbench as the client of both.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use roost_wire::scram::{self, Verifier};
use rustix::process::{Pid, Signal, kill_process};

use crate::bare::run;
use crate::scratch::Scratch;

/// Who logs in to PgBouncer, and with what.
pub(crate) const USER: &str = "bench";
/// The password of [`USER`]: the process listens on loopback and ends with the run.
pub(crate) const PASSWORD: &str = "of-no-value";

/// A running PgBouncer. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    child: Child,
    address: SocketAddr,
}

impl PgBouncer {
    /// The program, if the machine has it.
    pub(crate) fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
    }

    /// Starts one called `name` before the server whose socket is in the directory `socket`, which it reaches as the
    /// socket's owner. Clients log in by SCRAM over TCP without TLS, as they do at the gateway.
    pub(crate) fn start(program: &Path, scratch: &Scratch, name: &str, socket: &Path) -> Result<Self> {
        let folder = scratch.data().join("bare").join(name);
        fs::create_dir(&folder)?;
        let owner = fs::metadata(socket.join(".s.PGSQL.5432")).context("the server is not running")?;
        // The port may be taken by another process before PgBouncer does; then the start fails and says so.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let socket = socket.display();
        let users = folder.join("users.txt");
        // With the password itself PgBouncer would derive keys at each login, which Roost's catalog has done before.
        let verifier = Verifier::from_password(PASSWORD, &scram::fresh_salt(), scram::DEFAULT_ITERATIONS);
        fs::write(&users, format!("\"{USER}\" \"{verifier}\"\n"))?;
        let configuration = folder.join("pgbouncer.ini");
        fs::write(
            &configuration,
            format!(
                "[databases]\n\
                 postgres = host={socket} port=5432 user=postgres dbname=postgres\n\
                 [pgbouncer]\n\
                 listen_addr = 127.0.0.1\n\
                 listen_port = {port}\n\
                 unix_socket_dir =\n\
                 auth_type = scram-sha-256\n\
                 auth_file = {}\n\
                 pool_mode = session\n\
                 max_client_conn = 200\n\
                 default_pool_size = 90\n\
                 ignore_startup_parameters = extra_float_digits\n\
                 logfile = {}\n\
                 pidfile = {}\n",
                users.display(),
                folder.join("log").display(),
                folder.join("pid").display(),
            ),
        )?;
        let mut command = Command::new(program);
        command.arg("--quiet").arg(&configuration).current_dir("/").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            for path in [&folder, &users, &configuration] {
                chown(path, Some(owner.uid()), Some(owner.gid()))?;
            }
            command.uid(owner.uid()).gid(owner.gid());
        }
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut peer = Self { child, address };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            ensure!(peer.child.try_wait()?.is_none(), "PgBouncer ended:\n{}", log());
            ensure!(Instant::now() < end, "PgBouncer does not listen:\n{}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(peer)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // SIGTERM is an immediate shutdown. A process that has ended needs none.
        if let Some(process) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// How pgbench reaches a database.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Host name, or directory of a unix socket.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// User.
    pub(crate) user: String,
    /// Password; empty for none.
    pub(crate) password: String,
}

/// `pgbench`, beside the server's program.
#[derive(Debug, Clone)]
pub(crate) struct Pgbench {
    program: PathBuf,
}

impl Pgbench {
    /// The one of the installation that `postgres` belongs to.
    pub(crate) fn beside(postgres: &Path) -> Result<Self> {
        let program = postgres.with_file_name("pgbench");
        ensure!(program.is_file(), "{} is not there", program.display());
        Ok(Self { program })
    }

    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["-h", &target.host, "-p", &target.port.to_string(), "-U", &target.user]);
        // TLS would be offered by one peer and not by the other.
        command
            .env("PGPASSWORD", &target.password)
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable");
        command
    }

    /// Makes the tables, at scale 1: they fit in the smallest shared buffers.
    pub(crate) fn initialize(&self, target: &Target) -> Result<()> {
        run(self.command(target).args(["--initialize", "--quiet", "--scale=1", "postgres"])).map(drop)
    }

    /// Selects single rows with prepared statements for a while. Returns how many transactions there were.
    pub(crate) fn select(&self, target: &Target, clients: u32, duration: Duration) -> Result<u64> {
        let threads = clients.min(2);
        let output = run(self.command(target).args([
            "--select-only",
            "--protocol=prepared",
            "--no-vacuum",
            &format!("--client={clients}"),
            &format!("--jobs={threads}"),
            &format!("--time={}", duration.as_secs().max(1)),
            "postgres",
        ]))?;
        transactions(&output).with_context(|| format!("pgbench said:\n{output}"))
    }
}

fn transactions(output: &str) -> Option<u64> {
    let line =
        output.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "))?;
    line.split(['/', ' ']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_read_from_the_report_of_every_version() {
        let old = "scale: 1\nnumber of transactions actually processed: 123/500\n";
        let new = "scale: 1\nnumber of transactions actually processed: 4567\nlatency average = 1\n";
        assert_eq!(transactions(old), Some(123));
        assert_eq!(transactions(new), Some(4567));
        assert_eq!(transactions("tps = 5"), None);
    }
}
