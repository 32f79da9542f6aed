//! Roost: many real Postgres databases on one machine, asleep until somebody connects.
//!
//! One binary, three roles: `roost up` is the warden ([`up`]), it starts the node ([`node`]) as an ordinary user, and
//! every other command ([`command`]) speaks to the node's API over its unix socket.

mod cli;
mod command;
mod config;
mod exit;
mod logging;
mod node;
mod spec;
mod terminal;
mod up;
mod user;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use terminal::Terminal;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::new(cli.json);
    match run(cli, &terminal) {
        Ok(code) => code,
        Err(error) => exit::fail(&error, &terminal),
    }
}

fn run(cli: Cli, terminal: &Terminal) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(arguments) => up::run(&arguments, cli.run.as_deref(), terminal),
        Command::Node => node::run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "roost", &mut script);
            terminal.line(String::from_utf8_lossy(&script).trim_end())?;
            Ok(ExitCode::SUCCESS)
        }
        other => command::run(other, cli.run, terminal).map(|()| ExitCode::SUCCESS),
    }
}
