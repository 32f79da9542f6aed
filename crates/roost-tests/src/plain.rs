//! A Postgres that Roost has nothing to do with: to compare answers with, and to look into copied clusters.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::command;
use crate::machine::{self, Installation};
use crate::psql;

const DEADLINE: Duration = Duration::from_secs(120);

/// A running server that only its unix socket reaches. Dropping it stops it.
#[derive(Debug)]
pub struct PlainPostgres {
    server: Child,
    folder: PathBuf,
    superuser: String,
}

impl PlainPostgres {
    /// A new cluster under `folder`, which is made, with the same encoding, locale and checksums as Roost's templates.
    pub fn create(installation: &Installation, folder: &Path, settings: &[&str]) -> Result<Self> {
        let cluster = folder.join("cluster");
        own_folder(folder)?;
        let mut initdb = as_server_user(&installation.program("initdb"))?;
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C.UTF-8", "-k", "-N", "-D"]);
        command::run(initdb.arg(&cluster), b"", DEADLINE)?.success()?;
        Self::open(installation, &cluster, folder, "postgres", settings)
    }

    /// Starts a server on an existing cluster, whose configuration files are not used; `folder` gets its socket and its
    /// own. `superuser` is a role of the cluster.
    pub fn open(
        installation: &Installation,
        cluster: &Path,
        folder: &Path,
        superuser: &str,
        settings: &[&str],
    ) -> Result<Self> {
        own_folder(folder)?;
        fs::write(folder.join("postgresql.conf"), "listen_addresses = ''\nfsync = off\n")?;
        fs::write(folder.join("pg_hba.conf"), "local all all trust\n")?;
        fs::write(folder.join("pg_ident.conf"), "")?;
        let mut server = as_server_user(&installation.program("postgres"))?;
        server.arg("-D").arg(cluster);
        for (setting, file) in
            [("config_file", "postgresql.conf"), ("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")]
        {
            server.arg("-c").arg(format!("{setting}={}", folder.join(file).display()));
        }
        server.arg("-c").arg(format!("unix_socket_directories={}", folder.display()));
        for setting in settings {
            server.args(["-c", setting]);
        }
        let log = fs::File::options().create(true).append(true).open(folder.join("server.log"))?;
        let server = server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut running = Self { server, folder: folder.to_owned(), superuser: superuser.to_owned() };
        let end = Instant::now() + DEADLINE;
        while psql::try_run(&running.connection("postgres"), "SELECT 1")?.status.code() != Some(0) {
            let log = || fs::read_to_string(folder.join("server.log")).unwrap_or_default();
            ensure!(running.server.try_wait()?.is_none(), "the server ended:\n{}", log());
            ensure!(Instant::now() < end, "the server is not ready after {DEADLINE:?}:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(running)
    }

    /// How psql and libpq reach one of its databases, as superuser.
    pub fn connection(&self, database: &str) -> String {
        format!("host={} user={} dbname={database}", self.folder.display(), self.superuser)
    }

    /// The folder of its socket.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// Shuts it down cleanly.
    pub fn stop(mut self) -> Result<()> {
        machine::signal(i32::try_from(self.server.id())?, Signal::INT)?;
        let status = command::wait(&mut self.server, DEADLINE)?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for PlainPostgres {
    fn drop(&mut self) {
        if let Ok(None) = self.server.try_wait() {
            // A server that ends in this moment is what is wanted.
            let _ = machine::signal(i32::try_from(self.server.id()).unwrap_or(0), Signal::INT);
            if command::wait(&mut self.server, Duration::from_secs(30)).is_err() {
                let _ = self.server.kill();
                let _ = self.server.wait();
            }
        }
    }
}

/// A command that runs as the user that Postgres' programs insist on: anyone but root.
pub fn as_server_user(program: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command.env_remove("PGDATA");
    if let Some((user, group)) = server_user()? {
        command.uid(user).gid(group).current_dir("/");
    }
    Ok(command)
}

/// The user and group to become, when this process is root: Debian's `postgres`.
pub fn server_user() -> Result<Option<(u32, u32)>> {
    if !machine::is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line =
        users.lines().find(|line| line.starts_with("postgres:")).context("there is no user `postgres`")?;
    let mut fields = line.split(':').skip(2);
    let mut number = || -> Result<u32> { Ok(fields.next().context("a short line in /etc/passwd")?.parse()?) };
    Ok(Some((number()?, number()?)))
}

/// Makes a folder that the server may use.
pub fn own_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    if let Some((user, group)) = server_user()? {
        std::os::unix::fs::chown(folder, Some(user), Some(group))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_server_starts_answers_and_stops() -> Result<()> {
        let folder = tempfile::Builder::new().prefix("rp-").tempdir_in("/tmp")?;
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let installation = machine::debian_postgres()?;
        let server = PlainPostgres::create(&installation, &folder.path().join("p"), &[])?;
        assert_eq!(psql::run(&server.connection("postgres"), "SELECT 6 * 7")?, "42");
        server.stop()
    }
}
