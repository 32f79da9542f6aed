//! What all measurements share: how many samples, where, of which binary, and the report.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::node::Setup;
use crate::report::Report;
use crate::scratch::Scratch;

/// A run.
#[derive(Debug)]
pub(crate) struct Bench {
    binary: PathBuf,
    below: PathBuf,
    quick: bool,
    /// What was measured so far.
    pub(crate) report: Report,
}

impl Bench {
    /// A run that measures `binary` (the `roost` beside this program unless told) on the disk of `below`.
    pub(crate) fn new(binary: Option<PathBuf>, below: PathBuf, quick: bool) -> Result<Self> {
        let binary = match binary {
            Some(binary) => binary,
            None => std::env::current_exe()?.with_file_name("roost"),
        };
        ensure!(binary.is_file(), "{} is not there: build it first, in the same profile", binary.display());
        let report = Report::default();
        report.note(&format!("{} on {}", binary.display(), below.display()));
        if cfg!(debug_assertions) {
            report.note("this is no release build: its figures mean nothing");
        }
        Ok(Self { binary: binary.canonicalize().context("no such binary")?, below, quick, report })
    }

    /// `full`, or `quick` in a quick run.
    pub(crate) fn count(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Whether fewer samples were asked for than the bars are meant for.
    pub(crate) fn is_quick(&self) -> bool {
        self.quick
    }

    /// New directories, removed when dropped, with everything that runs in them.
    pub(crate) fn scratch(&self) -> Result<Scratch> {
        Scratch::new(&self.below)
    }

    /// A node of this run's binary.
    pub(crate) fn node(&self, scratch: &Scratch, name: &str) -> Setup {
        Setup::new(Path::new(&self.binary), scratch, name)
    }
}
