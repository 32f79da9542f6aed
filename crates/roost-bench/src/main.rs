//! Measures Roost against the bars of SPECIFICATION.md, beside bare Postgres and PgBouncer in the same run.
//!
//! Every figure that is compared is measured in alternation with its peer, so that a slow minute of the machine falls on
//! both, and printed as a ratio: absolute times mean little on a shared machine. Sampling is over one connection at a
//! time unless a measurement is about many.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`measure`] | the measurements |
//! | [`bench`] | what they share |
//! | [`node`] | the node that is measured |
//! | [`bare`], [`peer`], [`pgbouncer`] | what it is compared with |
//! | [`client`] | a client that costs little |
//! | [`machine`] | what the kernel says of processes and control groups |
//! | [`zram`] | compressed swap for the length of a measurement |
//! | [`scratch`], [`keeper`] | directories and clean-up, whatever happens |
//! | [`samples`], [`report`] | statistics and output |
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "its report is what this program is for")]

mod bare;
mod bench;
mod client;
mod keeper;
mod machine;
mod measure;
mod node;
mod peer;
mod pgbouncer;
mod report;
mod samples;
mod scratch;
mod zram;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::bench::Bench;

/// Measures Roost against the bars of SPECIFICATION.md. Ends with 1 if one was missed.
#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Takes fewer samples: a look, not a verdict.
    #[arg(long)]
    quick: bool,
    /// The `roost` to measure; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    roost: Option<PathBuf>,
    /// Where to put data: on the disk that is to be measured.
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    scratch: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Everything below.
    All,
    /// Stopped to first row.
    Wake,
    /// Frozen to first row, resident and in zram.
    Frozen,
    /// Create to first row.
    Create,
    /// A million registered databases.
    Million,
    /// 500 stopped databases at the same moment.
    Storm,
    /// What a stopped and a frozen database cost.
    Idle,
    /// Processor time of the relay.
    Relay,
}

impl What {
    fn measure(self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::All => {
                let parts = Self::value_variants().iter().filter(|&&part| part != Self::All);
                parts.copied().try_for_each(|part| part.measure(bench))
            }
            Self::Wake => measure::wake::measure(bench).context("wake"),
            Self::Frozen => measure::frozen::measure(bench).context("frozen"),
            Self::Create => measure::create::measure(bench).context("create"),
            Self::Million => measure::million::measure(bench).context("million"),
            Self::Storm => measure::storm::measure(bench).context("storm"),
            Self::Idle => measure::idle::measure(bench).context("idle"),
            Self::Relay => measure::relay::measure(bench).context("relay"),
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut bench = Bench::new(arguments.roost, arguments.scratch, arguments.quick)?;
    let outcome = arguments.what.measure(&mut bench);
    let met = bench.report.summary();
    outcome?;
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
