//! What the server remembers of one instance.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use roost_postgres::log::ReadyWatch;

use super::ReplyTo;
use crate::isolation::Footprint;
use crate::premises::Note;
use crate::protocol::{ExitStatus, InstanceRecord, LOG_TAIL_LINES, WardenError};

/// The most that is read of a log for its last lines, in bytes.
const TAIL_BYTES: u64 = 16 * 1024;

/// One instance, from its launch until nothing of it is left.
pub(super) struct Entry {
    pub(super) record: InstanceRecord,
    pub(super) footprint: Footprint,
    pub(super) exit: OwnedFd,
    /// Tells this instance from an earlier one of the same volume, for timers.
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// How its first process ended, if the warden is its parent.
    pub(super) status: Option<ExitStatus>,
    /// Where in the log its own lines begin.
    pub(super) log_offset: u64,
    pub(super) freezing: Option<Freezing>,
    pub(super) ending: Option<Ending>,
}

/// How far an instance is.
pub(super) enum Phase {
    /// It was launched and does not accept connections yet.
    Starting(Box<Starting>),
    /// It accepts connections.
    Running,
    /// Its first process ended.
    Ended,
}

/// A start in progress.
pub(super) struct Starting {
    /// Who waits for it; nobody, if it was adopted like this.
    pub(super) to: Option<ReplyTo>,
    pub(super) arrived: Instant,
    pub(super) deadline: Duration,
    /// The set-up pipe, until Postgres was executed.
    pub(super) setup: Option<OwnedFd>,
    pub(super) watch: ReadyWatch,
    pub(super) log: File,
    pub(super) inotify: i32,
    /// Why it will end, once that is known.
    pub(super) failure: Option<WardenError>,
}

/// A freeze in progress.
pub(super) struct Freezing {
    pub(super) to: ReplyTo,
    pub(super) began: Instant,
    pub(super) pause: Duration,
}

/// An instance being taken apart.
pub(super) struct Ending {
    pub(super) conclusions: Vec<(ReplyTo, Conclusion)>,
    pub(super) began: Instant,
    pub(super) pause: Duration,
    pub(super) killed: bool,
}

/// What is answered when nothing of an instance is left.
#[derive(Debug, Clone)]
pub(super) enum Conclusion {
    /// A report of its end.
    Report,
    /// Why it did not start.
    Error(WardenError),
}

impl Entry {
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting(_))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// What the next warden must know.
    pub(super) fn note(&self) -> Note {
        Note {
            record: self.record.clone(),
            uid: self.footprint.uid,
            began: self.footprint.began,
            ready: self.is_running(),
            log_offset: self.log_offset,
        }
    }

    /// Its last lines in the log.
    pub(super) fn log_tail(&self) -> Vec<String> {
        log_tail(&self.record.log, self.log_offset)
    }
}

impl Starting {
    /// Reads what was logged since the last time; whether Postgres said that it is ready.
    pub(super) fn read_log(&mut self) -> bool {
        let mut bytes = [0_u8; 8192];
        loop {
            match self.log.read(&mut bytes) {
                Ok(0) | Err(_) => return self.watch.is_ready(),
                Ok(count) => {
                    if self.watch.feed(bytes.get(..count).unwrap_or_default()) {
                        return true;
                    }
                }
            }
        }
    }
}

/// The last lines of a log, as far as they lie behind `offset`. Bytes that are no UTF-8 are replaced.
pub(super) fn log_tail(path: &Path, offset: u64) -> Vec<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log =
            File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
        let length = log.metadata()?.len();
        let offset = if offset > length { 0 } else { offset };
        log.seek(SeekFrom::Start(offset.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        log.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let first = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines.iter().skip(first).map(|line| line.chars().take(1024).collect()).collect()
}
