//! A node of Roost's for a measurement: `roost up` with directories of its own and ports that the system picks.

use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use roost_api::client::{Client, ClientError, Step};
use roost_api::resource::{CreateDatabase, Database};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::bare::Recipe;
use crate::client::Credentials;
use crate::machine;
use crate::scratch::Scratch;

/// How a node is started.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    binary: PathBuf,
    name: String,
    data: PathBuf,
    run: PathBuf,
    pid_file: PathBuf,
    arguments: Vec<String>,
}

impl Setup {
    /// A node called `name` among those of this run. It has the defaults, but nothing goes to sleep by itself: a
    /// measurement decides when.
    pub(crate) fn new(binary: &Path, scratch: &Scratch, name: &str) -> Self {
        let never = ["--defaults-idle-freeze", "never", "--defaults-idle-stop", "never"];
        Self {
            binary: binary.to_owned(),
            name: name.to_owned(),
            data: scratch.data().join(name),
            run: scratch.run().join(name),
            pid_file: scratch.data().join(format!("{name}.pid")),
            arguments: never.map(str::to_owned).to_vec(),
        }
    }

    /// Adds arguments of `roost up`.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Starts the node on its data, which outlives it. Returns when it has printed its ready line.
    pub(crate) fn start(&self) -> Result<Node> {
        let log = self.data.with_extension("log");
        let mut command = Command::new(&self.binary);
        command.arg("up").arg("--data").arg(&self.data).arg("--run").arg(&self.run);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::options().create(true).append(true).open(&log)?);
        let begun = Instant::now();
        let mut warden =
            command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        fs::write(&self.pid_file, format!("{}\n", warden.id()))?;
        let stdout = warden.stdout.take().context("no standard output")?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let ready_after = begun.elapsed();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let api = Client::new(self.run.join("api.sock"));
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut node =
            Node { setup: self.clone(), warden, process: 0, address: unknown, api, runtime, ready_after };
        if !matches!(read, Ok(length) if length > 0) {
            drop(node);
            let log = fs::read_to_string(log).unwrap_or_default();
            bail!("node {} did not get ready:\n{log}", self.name);
        }
        let file = self.run.join("node.json");
        let text = fs::read(&file).with_context(|| file.display().to_string())?;
        let about: Value = serde_json::from_slice(&text)?;
        node.process =
            about["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("node.json: no pid")?;
        node.address = listen_address(&about).with_context(|| format!("node.json: {about}"))?;
        Ok(node)
    }
}

/// `listen` is an address, or a list of them.
fn listen_address(about: &Value) -> Option<SocketAddr> {
    let listen = about.get("listen")?;
    listen.as_str().or_else(|| listen.get(0)?.as_str())?.parse().ok()
}

/// A running node. It is ended when this is dropped.
#[derive(Debug)]
pub(crate) struct Node {
    setup: Setup,
    warden: Child,
    process: u32,
    address: SocketAddr,
    api: Client,
    runtime: Runtime,
    /// From the start of `roost up` until its ready line.
    pub(crate) ready_after: Duration,
}

/// A database, and how to log in to it.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    /// Its id.
    pub(crate) id: String,
    /// The user name and secret of its first connection.
    pub(crate) credentials: Credentials,
}

impl Node {
    /// Where clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The process that serves clients.
    pub(crate) fn process(&self) -> u32 {
        self.process
    }

    /// Warden and node; the same process twice if they are one.
    pub(crate) fn processes(&self) -> [u32; 2] {
        [self.warden.id(), self.process]
    }

    /// Makes a request of the API.
    pub(crate) fn request<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        make: impl FnOnce(Client) -> F,
    ) -> Result<T> {
        Ok(self.runtime.block_on(make(self.api.clone()))?)
    }

    /// Makes a database with a connection.
    pub(crate) fn create(&self, name: &str) -> Result<Tenant> {
        let request = CreateDatabase { name: Some(name.parse()?), ..CreateDatabase::default() };
        let made = self.request(async |api| api.create_database(&request).await)?;
        let connection =
            made.connections.first().and_then(|connection| connection.direct_connection.as_ref());
        let connection =
            connection.with_context(|| format!("database {name} was made without a connection"))?;
        Ok(Tenant {
            id: made.id.to_string(),
            credentials: Credentials::new(&connection.user, connection.pass.expose()),
        })
    }

    /// Makes a further connection to a database that has none.
    pub(crate) fn connection(&self, database: &str) -> Result<Tenant> {
        let made = self.request(async |api| api.create_connection(database, "bench").await)?;
        let connection = made.direct_connection.context("a connection without a secret")?;
        Ok(Tenant {
            id: made.database.id.to_string(),
            credentials: Credentials::new(&connection.user, connection.pass.expose()),
        })
    }

    /// Makes a step on the ladder by hand.
    pub(crate) fn step(&self, database: &str, step: Step) -> Result<()> {
        self.request(async |api| api.step(database, step).await).map(drop)
    }

    /// Stops a database.
    pub(crate) fn stop_database(&self, database: &str) -> Result<()> {
        self.step(database, Step::Stop)
    }

    /// What `roost show` shows.
    pub(crate) fn show(&self, database: &str) -> Result<Database> {
        self.request(async |api| api.database(database).await)
    }

    /// Deletes a database for ever.
    pub(crate) fn purge(&self, database: &str) -> Result<()> {
        self.request(async |api| api.delete_database(database, true).await)
    }

    /// How the running instance of a database was started.
    pub(crate) fn recipe(&self, database: &str) -> Result<Recipe> {
        let config = self.setup.run.join(database).join("c");
        let processes = machine::Groups::of(database).processes();
        let postmaster = processes.iter().copied().find(|&process| is_postmaster(process, &processes));
        Recipe::of(postmaster.with_context(|| format!("database {database} has no postmaster"))?, &config)
    }

    /// The directory of a running database's socket.
    pub(crate) fn socket_directory(&self, database: &str) -> PathBuf {
        self.setup.run.join(database).join("s")
    }

    /// Writes the files of a stopped database into the new directory `to`. Returns the data directory among them.
    pub(crate) fn export(&self, database: &str, to: &Path) -> Result<PathBuf> {
        fs::create_dir(to)?;
        let mut tar = Command::new("tar")
            .args(["--extract", "--directory"])
            .arg(to)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start tar")?;
        let mut pipe = tar.stdin.take().context("no standard input")?;
        let mut body = self.request(async |api| api.export(database).await)?;
        self.runtime.block_on(async {
            while let Some(frame) = body.frame().await {
                if let Ok(bytes) = frame?.into_data() {
                    pipe.write_all(&bytes)?;
                }
            }
            anyhow::Ok(())
        })?;
        drop(pipe);
        ensure!(tar.wait()?.success(), "tar failed");
        let mut folders = fs::read_dir(to)?.flatten().map(|entry| entry.path()).chain([to.to_owned()]);
        folders.find(|folder| folder.join("PG_VERSION").is_file()).context("no data directory in the export")
    }

    /// Resident memory of warden and node, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let [warden, node] = self.processes();
        let node = if node == warden { 0 } else { machine::resident(node)? };
        Ok(machine::resident(warden)? + node)
    }

    /// Ends the node, with all its databases stopped, and returns how it can be started again.
    pub(crate) fn stop(mut self) -> Result<Setup> {
        self.end()?;
        Ok(self.setup.clone())
    }

    fn end(&mut self) -> Result<()> {
        if self.warden.try_wait()?.is_none() {
            if let Some(process) = Pid::from_raw(i32::try_from(self.warden.id())?) {
                kill_process(process, Signal::TERM)?;
            }
            self.warden.wait()?;
        }
        // Its process id may be another's from now on.
        fs::remove_file(&self.setup.pid_file).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error.into()),
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The scratch directory's keeper ends whatever is left.
        let _ = self.end();
    }
}

/// Whether a process runs `postgres` by its path and arguments, and its parent is none of `group` that does.
fn is_postmaster(process: u32, group: &[u32]) -> bool {
    let runs_postgres = |process: u32| {
        let program = fs::read_link(format!("/proc/{process}/exe")).unwrap_or_default();
        program.file_name().is_some_and(|name| name == "postgres")
    };
    let parent = fs::read_to_string(format!("/proc/{process}/stat")).ok().and_then(|stat| {
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.split(' ').nth(1)?.parse::<u32>().ok()
    });
    runs_postgres(process) && parent.is_some_and(|parent| !group.contains(&parent) || !runs_postgres(parent))
}
