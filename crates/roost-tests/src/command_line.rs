//! The command line of a node, as a user types it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{self, Finished};

/// How long a command of the command line may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// An ordinary user whom every machine has: `daemon`, by user and group id.
pub const ORDINARY_USER: u32 = 1;

/// The command line of one node. Clones talk to the same node, also while it is being killed.
#[derive(Debug, Clone)]
pub struct CommandLine {
    binary: PathBuf,
    run: PathBuf,
    /// Who types it; whoever runs the test, if nobody.
    user: Option<u32>,
}

impl CommandLine {
    /// The command line `binary` of the node in `run`.
    pub const fn new(binary: PathBuf, run: PathBuf) -> Self {
        Self { binary, run, user: None }
    }

    /// The same, typed by another user. For root.
    #[must_use]
    pub fn typed_by(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The node's RUN folder.
    pub fn run_folder(&self) -> &Path {
        &self.run
    }

    /// A `roost` command that finds the node.
    pub fn command(&self) -> Command {
        let mut command = match self.user {
            None => Command::new(&self.binary),
            Some(user) => {
                let mut command = as_user(user);
                command.arg(&self.binary);
                command
            }
        };
        command.env("ROOST_RUN", &self.run).env("NO_COLOR", "1");
        command
    }

    /// A `roost` command that starts the node. An ordinary user may make no user namespaces then: it runs in one whose
    /// limit of further ones is 0.
    pub fn starting_command(&self) -> Command {
        let Some(user) = self.user else { return self.command() };
        let script = "echo 0 > /proc/sys/user/max_user_namespaces \
                      && exec setpriv --inh-caps=-all --ambient-caps=-all -- \"$@\"";
        let mut command = as_user(user);
        command.args(["unshare", "--user", &format!("--map-user={user}"), &format!("--map-group={user}")]);
        command.args(["--keep-caps", "--", "sh", "-c", script, "sh"]).arg(&self.binary);
        command.env("ROOST_RUN", &self.run).env("NO_COLOR", "1");
        command
    }

    /// Runs `roost ARGUMENTS` to its end, whatever it says.
    pub fn try_run(&self, arguments: &[&str]) -> Result<Finished> {
        command::run(self.command().args(arguments), b"", COMMAND_DEADLINE)
    }

    /// Runs `roost ARGUMENTS`, which must succeed, and returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.try_run(arguments)?.success();
        Ok(finished.with_context(|| format!("roost {}", arguments.join(" ")))?.text())
    }

    /// Runs `roost ARGUMENTS --json`, which must succeed, and returns what it printed.
    pub fn run_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("roost {} --json: {text}", arguments.join(" ")))
    }
}

/// The beginning of a command that runs as another user. For root.
pub fn as_user(user: u32) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups", "--"]);
    command
}
