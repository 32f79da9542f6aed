//! The command line of a node, as a user types it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{self, Finished};

/// How long a command of the command line may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// The command line of one node. Clones talk to the same node, also while it is being killed.
#[derive(Debug, Clone)]
pub struct CommandLine {
    binary: PathBuf,
    run: PathBuf,
}

impl CommandLine {
    /// The command line `binary` of the node in `run`.
    pub const fn new(binary: PathBuf, run: PathBuf) -> Self {
        Self { binary, run }
    }

    /// The node's RUN folder.
    pub fn run_folder(&self) -> &Path {
        &self.run
    }

    /// A `roost` command that finds the node.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
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
