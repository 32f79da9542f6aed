//! The bare peer: `postgres` on a plain copy of a database's cluster, started by as little as possible.
//!
//! It gets the program, command line, environment and configuration files of Roost's instance, word for word, but for
//! the paths and the pause of autovacuum. What it does not get is what Roost adds: namespaces, mounts, control groups,
//! a gateway.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::Session;
use crate::scratch::Scratch;

/// The user that servers run as when this process is root, which `postgres` refuses. Nobody's.
const UID: u32 = 64_321;

/// The directories of template1 and template0 (since Postgres 15). Clusters share these files, so that as many fit in the
/// page cache as layers of Roost's do.
const TEMPLATES: [&str; 2] = ["1", "4"];

/// Keeps autovacuum from writing to template1, which it would do after a minute.
const NO_VACUUM_YET: [&str; 2] = ["-c", "autovacuum_naptime=1d"];

/// What Postgres says when it accepts connections.
const READY: &str = "database system is ready to accept connections";

/// How an instance of Roost's was started, with everything that another one needs.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments, with the instance's own paths.
    pub(crate) arguments: Vec<String>,
    /// Its environment.
    pub(crate) environment: Vec<(String, String)>,
    /// The files beside `postgresql.conf`, by name.
    pub(crate) files: Vec<(String, Vec<u8>)>,
}

impl Recipe {
    /// Takes the recipe of a running postmaster, whose configuration files lie in `config`.
    pub(crate) fn of(postmaster: u32, config: &Path) -> Result<Self> {
        let words = |file: &str| -> Result<Vec<String>> {
            let text = fs::read(format!("/proc/{postmaster}/{file}"))?;
            let words = text.split(|&byte| byte == 0).filter(|word| !word.is_empty());
            Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
        };
        let arguments = words("cmdline")?.split_off(1);
        let pairs = words("environ")?.into_iter();
        let environment =
            pairs.filter_map(|pair| pair.split_once('=').map(|(a, b)| (a.to_owned(), b.to_owned())));
        let mut files = Vec::new();
        for entry in fs::read_dir(config).with_context(|| config.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                files.push((name, fs::read(entry.path())?));
            }
        }
        Ok(Self {
            program: fs::read_link(format!("/proc/{postmaster}/exe"))?,
            arguments,
            environment: environment.collect(),
            files,
        })
    }

    /// The arguments with the paths of another cluster in the places of the instance's own.
    fn arguments_for(&self, data: &Path, config: &Path, socket: &Path) -> Vec<String> {
        let mut follows_data = false;
        let replaced = self.arguments.iter().map(|argument| {
            if std::mem::replace(&mut follows_data, argument == "-D") {
                return data.display().to_string();
            }
            match argument.split_once('=') {
                Some((name @ ("config_file" | "hba_file" | "ident_file"), path)) => {
                    let file = Path::new(path).file_name().unwrap_or_default();
                    format!("{name}={}", config.join(file).display())
                }
                Some((name @ "unix_socket_directories", _)) => format!("{name}={}", socket.display()),
                _ => argument.clone(),
            }
        });
        replaced.chain(NO_VACUUM_YET.map(str::to_owned)).collect()
    }
}

/// A cluster that bare servers are started on, one at a time.
#[derive(Debug)]
pub(crate) struct BareCluster {
    recipe: Recipe,
    arguments: Vec<String>,
    socket: PathBuf,
}

impl BareCluster {
    /// Copies the cluster in `source` to a new place called `name`.
    pub(crate) fn copy(scratch: &Scratch, name: &str, source: &Path, recipe: &Recipe) -> Result<Self> {
        let folder = scratch.data().join("bare").join(name);
        let socket = scratch.run().join(format!("bare-{name}"));
        fs::create_dir(&folder)?;
        fs::create_dir(&socket)?;
        let (data, config) = (folder.join("data"), folder.join("config"));
        fs::create_dir(&data)?;
        fs::create_dir(data.join("base"))?;
        for template in TEMPLATES.map(|oid| Path::new("base").join(oid)) {
            if source.join(&template).exists() {
                run(Command::new("cp").arg("-al").arg(source.join(&template)).arg(data.join(&template)))?;
            }
        }
        run(Command::new("cp").args(["-an", "--reflink=auto"]).arg(source.join(".")).arg(&data))?;
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
        fs::create_dir(&config)?;
        for (name, content) in &recipe.files {
            fs::write(config.join(name), content)?;
        }
        if rustix::process::geteuid().is_root() {
            let owner = format!("{UID}:{UID}");
            run(Command::new("chown").args(["-R", &owner]).args([&data, &config]))?;
            chown(&socket, Some(UID), Some(UID))?;
        }
        let arguments = recipe.arguments_for(&data, &config, &socket);
        Ok(Self { recipe: recipe.clone(), arguments, socket })
    }

    /// The directory of the server's socket.
    pub(crate) fn socket_directory(&self) -> &Path {
        &self.socket
    }

    /// Starts a server. Returns as soon as it says that it accepts connections.
    pub(crate) fn start(&self) -> Result<BarePostgres> {
        let mut command = Command::new(&self.recipe.program);
        command.args(&self.arguments).env_clear().envs(self.recipe.environment.iter().cloned());
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if rustix::process::geteuid().is_root() {
            command.uid(UID).gid(UID);
        }
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().context("no standard error")?;
        let mut server =
            BarePostgres { child, log: BufReader::new(stderr), socket: self.socket.join(".s.PGSQL.5432") };
        server.wait_until_ready()?;
        Ok(server)
    }
}

/// A running bare server. It is shut down (fast, with a checkpoint) when this is dropped.
#[derive(Debug)]
pub(crate) struct BarePostgres {
    child: Child,
    log: BufReader<ChildStderr>,
    socket: PathBuf,
}

impl BarePostgres {
    fn wait_until_ready(&mut self) -> Result<()> {
        let (mut line, mut said) = (String::new(), String::new());
        loop {
            line.clear();
            ensure!(self.log.read_line(&mut line)? > 0, "the bare server ended:\n{said}");
            if line.contains(READY) {
                return Ok(());
            }
            said.push_str(&line);
        }
    }

    /// A session of the owner's.
    pub(crate) fn connect(&self) -> Result<Session<UnixStream>> {
        Session::open_trusted(&self.socket, "postgres", "postgres")
    }

    /// Shuts the server down, and waits for its end.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(process) = Pid::from_raw(i32::try_from(self.child.id())?) {
            kill_process(process, Signal::INT)?;
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for BarePostgres {
    fn drop(&mut self) {
        // The scratch directory's keeper ends whatever is left.
        let _ = self.end();
    }
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_differ_from_the_command_line_of_the_instance() {
        let words = [
            "-D",
            "/v/pgdata",
            "-c",
            "config_file=/c/postgresql.conf",
            "-c",
            "unix_socket_directories=\"/s\"",
        ];
        let arguments =
            words.iter().chain(&["-c", "listen_addresses="]).map(|&word| word.to_owned()).collect();
        let recipe =
            Recipe { program: PathBuf::new(), arguments, environment: Vec::new(), files: Vec::new() };
        assert_eq!(
            recipe.arguments_for(Path::new("/d"), Path::new("/k"), Path::new("/r")),
            [
                "-D",
                "/d",
                "-c",
                "config_file=/k/postgresql.conf",
                "-c",
                "unix_socket_directories=/r",
                "-c",
                "listen_addresses=",
                "-c",
                "autovacuum_naptime=1d"
            ]
        );
    }
}
