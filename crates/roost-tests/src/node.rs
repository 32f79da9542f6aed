//! One node of a test: `roost up` in a folder of its own, with ports that the system picked, ended without a trace.
//!
//! The harness plays the part of systemd and of the administrator: [`Node::revive`] starts `roost up` again when it is
//! gone, [`Node::stop`] ends it with SIGTERM. A test ends with [`Node::finish`], which fails if a process, a mount or a cgroup
//! of the node is left. What a test left that was killed is swept by the next one.

mod setup;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::command::{self, Finished};
use crate::command_line::CommandLine;
use crate::machine::{self, Process};
use crate::traces;

pub use setup::Setup;

/// How long a node may take until it is ready: the first start makes a template (initdb), two at a time on two cores.
const READY_DEADLINE: Duration = Duration::from_secs(90);
/// How long SIGTERM may take: `shutdown.drain`, `shutdown.deadline`, and what comes after them.
const STOP_DEADLINE: Duration = Duration::from_secs(105);

/// A database that a test made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// A URL to connect with, as the owner; empty where it was made without one.
    pub url: String,
}

/// A running (or killed) node.
#[derive(Debug)]
pub struct Node {
    command_line: CommandLine,
    folder: PathBuf,
    data: PathBuf,
    log: PathBuf,
    listen: String,
    http: String,
    setup: Setup,
    warden: Option<Child>,
    /// Ids of all databases that were made, by which their processes and cgroups are found.
    names: Vec<String>,
}

impl Node {
    /// A node with the defaults.
    pub fn new() -> Result<Self> {
        Setup::default().start()
    }

    /// Its DATA folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its RUN folder.
    pub fn run(&self) -> &Path {
        self.command_line.run_folder()
    }

    /// A folder for the test's own files, removed with the node.
    pub fn scratch(&self) -> &Path {
        &self.folder
    }

    /// The Postgres address, `127.0.0.1:PORT`.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// The HTTP address, `127.0.0.1:PORT`.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// The text of the node's log so far (its standard error).
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its command line, to be used beside it.
    pub fn command_line(&self) -> CommandLine {
        self.command_line.clone()
    }

    /// A `roost` command that finds this node.
    pub fn command(&self) -> Command {
        self.command_line.command()
    }

    /// Runs `roost ARGUMENTS` to its end, whatever it says.
    pub fn try_cli(&self, arguments: &[&str]) -> Result<Finished> {
        self.command_line.try_run(arguments)
    }

    /// Runs `roost ARGUMENTS`, which must succeed, and returns its standard output.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        self.command_line.run(arguments)
    }

    /// Runs `roost ARGUMENTS --json`, which must succeed, and returns what it printed.
    pub fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        self.command_line.run_json(arguments)
    }

    /// Makes a database.
    pub fn create(&mut self, name: &str) -> Result<Database> {
        self.create_with(name, &[])
    }

    /// Makes a database, with further arguments of `roost create`.
    pub fn create_with(&mut self, name: &str, arguments: &[&str]) -> Result<Database> {
        self.made(&[&["create", name], arguments].concat())
    }

    /// Makes a database of a copy, with further arguments of `roost restore`.
    pub fn restore(&mut self, name: &str, arguments: &[&str]) -> Result<Database> {
        self.made(&[&["restore", name], arguments].concat())
    }

    /// Makes many databases in one step, without URLs.
    pub fn create_many(&mut self, names: &[String]) -> Result<Vec<Database>> {
        let file = self.folder.join("names");
        fs::write(&file, names.join("\n"))?;
        self.cli(&["create", "--names-from", file.to_str().context("a path that is no UTF-8")?])?;
        let listed = self.list()?;
        let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let all = listed.iter().map(|one| (text(one, "name"), text(one, "id")));
        let made = all.filter(|(name, _)| names.contains(name));
        let made: Vec<Database> = made.map(|(name, id)| Database { id, name, url: String::new() }).collect();
        ensure!(made.len() == names.len(), "{} of {} are listed", made.len(), names.len());
        self.names.extend(made.iter().map(|database| database.id.clone()));
        Ok(made)
    }

    /// Runs a command that makes a database.
    fn made(&mut self, command: &[&str]) -> Result<Database> {
        let made = self.cli_json(command)?;
        let field = |key: &str| -> Result<String> {
            let text = made[key].as_str();
            Ok(text.with_context(|| format!("{} --json has no `{key}`: {made}", command[0]))?.to_owned())
        };
        let database = Database { id: field("id")?, name: field("name")?, url: field("url")? };
        self.names.push(database.id.clone());
        Ok(database)
    }

    /// Makes a database of one Postgres major.
    pub fn create_major(&mut self, name: &str, major: u16) -> Result<Database> {
        self.create_with(name, &["--postgres", &major.to_string()])
    }

    /// A new connection's URL.
    pub fn new_url(&self, name: &str) -> Result<String> {
        self.cli(&["url", name, "--new"])
    }

    /// `show --json`.
    pub fn show(&self, name: &str) -> Result<Value> {
        self.cli_json(&["show", name])
    }

    /// `list --json`.
    pub fn list(&self) -> Result<Vec<Value>> {
        self.cli_json(&["list"])?.as_array().cloned().context("list --json is no array")
    }

    /// The state that `show --json` tells.
    pub fn state(&self, name: &str) -> Result<String> {
        let shown = self.show(name)?;
        Ok(shown["state"]
            .as_str()
            .with_context(|| format!("show --json has no `state`: {shown}"))?
            .to_owned())
    }

    /// Waits until a database is in `state`.
    pub fn wait_for_state(&self, name: &str, state: &str, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let seen = self.state(name)?;
            if seen == state {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{name} is {seen}, not {state}, after {deadline:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often a database was woken from `state`, by `show --json`.
    pub fn wakes_from(&self, name: &str, state: &str) -> Result<u64> {
        let shown = self.show(name)?;
        let wakes =
            shown["wakes"].as_array().with_context(|| format!("show --json has no `wakes`: {shown}"))?;
        let of_state = wakes.iter().find(|wakes| wakes["from"] == state);
        of_state.map_or(Ok(0), |wakes| wakes["count"].as_u64().context("`wakes` has no `count`"))
    }

    /// How often a database was woken in all.
    pub fn wakes(&self, name: &str) -> Result<u64> {
        Ok(self.wakes_from(name, "stopped")? + self.wakes_from(name, "frozen")?)
    }

    /// Ensures that a database was woken exactly `stopped` times from stopped and `frozen` times from frozen. A session may
    /// be answered a moment before its wake is noted.
    pub fn ensure_wakes(&self, name: &str, stopped: u64, frozen: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            let seen = (self.wakes_from(name, "stopped")?, self.wakes_from(name, "frozen")?);
            if seen == (stopped, frozen) {
                return Ok(());
            }
            let pending = seen.0 <= stopped && seen.1 <= frozen && Instant::now() < end;
            ensure!(
                pending,
                "{name} woke {seen:?} times from stopped and frozen, not {:?}",
                (stopped, frozen)
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process id of `roost up`.
    pub fn warden_pid(&self) -> Result<i32> {
        let warden = self.warden.as_ref().context("the warden does not run")?;
        Ok(i32::try_from(warden.id())?)
    }

    /// The process id of the node, the warden's child.
    pub fn node_pid(&self) -> Result<i32> {
        let warden = self.warden_pid()?;
        let children =
            machine::processes(|process, _| process.parent == warden && process.name.starts_with("roost"));
        children.first().map(|process| process.pid).context("the warden has no child that is the node")
    }

    /// The processes of one database's instance.
    pub fn instance_processes(&self, database: &Database) -> Vec<Process> {
        self.processes().into_iter().filter(|process| traces::belongs(process, &database.id)).collect()
    }

    /// The process id of a database's postmaster.
    pub fn postmaster_pid(&self, database: &Database) -> Result<i32> {
        let processes = self.instance_processes(database);
        let postgres: Vec<&Process> =
            processes.iter().filter(|process| process.arguments.contains("postgres")).collect();
        postgres
            .iter()
            .find(|process| {
                process.arguments.split(' ').next().is_some_and(|program| program.ends_with("/postgres"))
                    && !postgres.iter().any(|other| {
                        other.pid == process.parent
                            && other
                                .arguments
                                .split(' ')
                                .next()
                                .is_some_and(|name| name.ends_with("/postgres"))
                    })
            })
            .map(|process| process.pid)
            .with_context(|| format!("no postmaster of {}: {processes:?}", database.name))
    }

    /// Every process of this node: warden, node and instances.
    pub fn processes(&self) -> Vec<Process> {
        traces::processes_of(&self.folder, &self.data, &self.ids())
    }

    /// Kills the node's process with SIGKILL; the warden starts it again.
    pub fn kill_node(&self) -> Result<()> {
        machine::signal(self.node_pid()?, Signal::KILL)
    }

    /// Kills the warden with SIGKILL; the node ends by itself, instances live on.
    pub fn kill_warden(&mut self) -> Result<()> {
        if let Some(mut warden) = self.warden.take() {
            warden.kill()?;
            warden.wait()?;
        }
        Ok(())
    }

    /// Kills a database's postmaster with SIGKILL, if it has one.
    pub fn kill_postmaster(&self, database: &Database) -> Result<()> {
        match self.postmaster_pid(database) {
            Ok(pid) => machine::signal(pid, Signal::KILL),
            Err(_) => Ok(()),
        }
    }

    /// Kills every process of this node with SIGKILL.
    pub fn kill_everything(&mut self) -> Result<()> {
        let instances = self.processes();
        self.kill_warden()?;
        for process in instances {
            machine::signal(process.pid, Signal::KILL)?;
        }
        Ok(())
    }

    /// Replaces the node's process (SIGHUP to `roost up`) and waits for the new one. Instances run on.
    pub fn replace_node(&mut self) -> Result<()> {
        let old = self.node_pid()?;
        machine::signal(self.warden_pid()?, Signal::HUP)?;
        let end = Instant::now() + READY_DEADLINE;
        while !self.node_pid().is_ok_and(|pid| pid != old) {
            ensure!(Instant::now() < end, "the node was not replaced after {READY_DEADLINE:?}");
            thread::sleep(Duration::from_millis(10));
        }
        self.wait_until_ready()
    }

    /// What systemd would do: starts `roost up` again if it is gone, and waits until the node is ready.
    pub fn revive(&mut self) -> Result<()> {
        let gone = match self.warden.as_mut() {
            None => true,
            Some(warden) => warden.try_wait()?.is_some(),
        };
        if gone { self.start() } else { self.wait_until_ready() }
    }

    /// Ends `roost up` with SIGTERM, and says how long that took. Nothing of the node may be left.
    pub fn stop(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let mut warden = self.warden.take().context("the warden does not run")?;
        machine::signal(i32::try_from(warden.id())?, Signal::TERM)?;
        let status = match command::wait(&mut warden, STOP_DEADLINE) {
            Ok(status) => status,
            Err(error) => {
                // It stays ours, to be killed when this is dropped.
                self.warden = Some(warden);
                return Err(error.context("roost up did not end after SIGTERM"));
            }
        };
        let took = begun.elapsed();
        ensure!(status.success(), "roost up ended with {status} after SIGTERM");
        let left = self.leftovers();
        ensure!(left.is_empty(), "left behind after SIGTERM:\n{}", left.join("\n"));
        Ok(took)
    }

    /// Ends a test: stops the node as [`Self::stop`] does, and removes its folder.
    pub fn finish(mut self) -> Result<()> {
        self.stop().map(drop)
    }

    /// What there is of this node on the machine outside its folders: processes, mounts, cgroups.
    pub fn leftovers(&self) -> Vec<String> {
        let ids = self.ids();
        let mut left: Vec<String> = self.processes().iter().map(|process| format!("{process:?}")).collect();
        left.extend(
            traces::mounts(&self.folder, &self.data).iter().map(|path| format!("mount {}", path.display())),
        );
        left.extend(machine::cgroups_of(&ids).iter().map(|path| format!("cgroup {}", path.display())));
        left
    }

    /// Starts `roost up` and waits for its ready line. Ports that the system picked are asked for again next time.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command_line.starting_command();
        command.arg("up").arg("--data").arg(&self.data).arg("--run").arg(self.run());
        command.args(["--listen", &self.listen, "--http", &self.http]);
        for installation in &self.setup.installations {
            command.arg("--postgres-installations").arg(&installation.folder);
        }
        command.args(&self.setup.arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let output = child.stdout.take().context("no standard output")?;
        self.warden = Some(child);
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            // Read on after the ready line, so that the node never writes to a full pipe.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        loop {
            match lines.recv_timeout(READY_DEADLINE) {
                Ok(line) if line.starts_with("roost: ready") => break,
                Ok(_) => {}
                Err(_) => {
                    bail!("roost up is not ready after {READY_DEADLINE:?}, or ended:\n{}", self.log_end())
                }
            }
        }
        let addresses = self.node_json()?;
        let address = |key: &str| -> Result<String> {
            Ok(addresses[key].as_str().with_context(|| format!("node.json has no `{key}`"))?.to_owned())
        };
        (self.listen, self.http) = (address("listen")?, address("http")?);
        Ok(())
    }

    fn node_json(&self) -> Result<Value> {
        let path = self.run().join("node.json");
        Ok(serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)?)
    }

    /// Waits until both doors are open and the command line is answered.
    pub fn wait_until_ready(&self) -> Result<()> {
        let end = Instant::now() + READY_DEADLINE;
        loop {
            let open = TcpStream::connect(&self.listen).is_ok()
                && crate::http::get(&self.http, "/ready").is_ok_and(|(status, _)| status == 200)
                && self.try_cli(&["list", "--json"]).is_ok_and(|finished| finished.status.success());
            if open {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "the node is not ready after {READY_DEADLINE:?}:\n{}",
                self.log_end()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ids of all databases that this node has had.
    fn ids(&self) -> Vec<String> {
        let mut ids = traces::database_folders(&self.data);
        ids.extend(self.names.iter().cloned());
        ids.sort();
        ids.dedup();
        ids
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
    }
}

impl Drop for Node {
    /// A node that was not [finished](Node::finish) belongs to a test that failed: it is ended in whatever way works.
    #[allow(clippy::print_stderr, reason = "the test runner shows it when the test failed")]
    fn drop(&mut self) {
        eprintln!("--- end of the log of {} ---\n{}", self.folder.display(), self.log_end());
        if self.warden.is_some()
            && let Err(error) = self.stop()
        {
            eprintln!("--- at the end: {error:#}");
        }
        if std::env::var_os("ROOST_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.folder.display());
            return;
        }
        if let Some(mut warden) = self.warden.take() {
            // Both fail only when it has ended by itself.
            let _ = warden.kill();
            let _ = warden.wait();
        }
        traces::clean_up(&self.folder, &self.data, &self.ids());
    }
}
