//! An instance's log: recognising that Postgres is ready, remembering why it is not, and keeping the file small.
//!
//! The log is a file that the instance appends to (`O_APPEND`, never a pipe: an instance outlives whoever reads it).
//! Whoever starts the instance reads the file as it grows and feeds the bytes to a [`ReadyWatch`]. A tenant cannot
//! forge a line: Postgres puts a tab before every line of a message but its first.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// How many bytes of one line are looked at; the rest of a longer line is passed over.
const MAX_LINE: usize = 4096;
/// How many complaints are remembered, the latest ones.
const MAX_COMPLAINTS: usize = 8;

/// Reads a starting instance's log as it grows.
#[derive(Debug, Default)]
pub struct ReadyWatch {
    line: Vec<u8>,
    ready: bool,
    recovering: bool,
    complaints: VecDeque<String>,
}

impl ReadyWatch {
    /// A watch that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the log, cut anywhere, and says whether Postgres has declared itself ready to accept
    /// connections, now or earlier.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            self.append(head);
            self.end_line();
            rest = tail.get(1..).unwrap_or_default();
        }
        self.append(rest);
        self.ready
    }

    /// Whether Postgres has declared itself ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether Postgres has said that it recovers from a shutdown that was not clean.
    pub fn is_recovering(&self) -> bool {
        self.recovering
    }

    /// The latest errors that Postgres has logged, oldest first, without time and process: at most eight, each at most
    /// 4 KiB.
    pub fn complaints(&self) -> impl Iterator<Item = &str> {
        self.complaints.iter().map(String::as_str)
    }

    /// The complaints as one line, for an error message.
    pub fn summary(&self) -> String {
        self.complaints().collect::<Vec<_>>().join("; ")
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.line.len());
        self.line.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
    }

    fn end_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let complaint = match message(&line) {
            Some((severity @ ("ERROR" | "FATAL" | "PANIC"), text)) => Some(format!("{severity}: {text}")),
            // Before Postgres has its log set up, and when the loader fails, lines have no prefix.
            None if unprefixed_complaint(&line) => Some(line.trim().to_owned()),
            Some(("LOG", text)) => {
                self.ready |= text == "database system is ready to accept connections";
                self.recovering |= text.contains("automatic recovery in progress");
                None
            }
            _ => None,
        };
        self.line.clear();
        if let Some(complaint) = complaint {
            if self.complaints.len() == MAX_COMPLAINTS {
                self.complaints.pop_front();
            }
            self.complaints.push_back(complaint);
        }
    }
}

/// Severity and text of a line with the prefix that [`settings`](crate::settings) configures: `%m [%p] `.
fn message(line: &str) -> Option<(&str, &str)> {
    if !line.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (_, after) = line.split_once(" [")?;
    let (pid, rest) = after.split_once("] ")?;
    if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (severity, text) = rest.split_once(":  ")?;
    Some((severity, without_sqlstate(text)))
}

/// The text of a message without the SQLSTATE that `log_error_verbosity = verbose` puts before it.
fn without_sqlstate(text: &str) -> &str {
    match text.split_once(": ") {
        Some((code, rest))
            if code.len() == 5
                && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()) =>
        {
            rest
        }
        _ => text,
    }
}

fn unprefixed_complaint(line: &str) -> bool {
    line.starts_with("postgres: ") || line.contains("error while loading shared libraries")
}

/// Keeps a log that a live process appends to below about twice `max_bytes`: when the file has grown beyond
/// `max_bytes`, its last `max_bytes` are copied to `<path>.1` (replacing an older one) and the file is emptied in place.
/// The writer must have opened it with `O_APPEND`. Returns whether that was done.
///
/// What is written in the moment between the copy and the emptying is lost. A missing log is no error.
///
/// # Errors
/// What the disk says; the log is then unchanged, unless the emptying itself failed.
pub fn cap(path: &Path, max_bytes: u64) -> io::Result<bool> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut log = match OpenOptions::new().read(true).write(true).custom_flags(no_follow).open(path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let length = log.metadata()?.len();
    if length <= max_bytes {
        return Ok(false);
    }
    log.seek(SeekFrom::Start(length.saturating_sub(max_bytes)))?;

    let kept = with_suffix(path, ".1");
    let partial = with_suffix(path, ".1.new");
    let copy = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .custom_flags(no_follow)
        .open(&partial)
        .and_then(|mut copy: File| io::copy(&mut (&log).take(max_bytes), &mut copy));
    if let Err(error) = copy.and_then(|_| fs::rename(&partial, &kept)) {
        // Half a copy is of no use, and the failure to make it is the one to report.
        let _ = fs::remove_file(&partial);
        return Err(error);
    }
    log.set_len(0)?;
    Ok(true)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const READY: &str =
        "2026-11-22 18:19:33.164 UTC [15579] LOG:  database system is ready to accept connections\n";

    fn watch(log: &str) -> ReadyWatch {
        let mut watch = ReadyWatch::new();
        watch.feed(log.as_bytes());
        watch
    }

    #[test]
    fn postgres_is_ready_when_it_says_so() {
        assert!(!watch("").is_ready());
        assert!(!watch("2026-11-22 18:19:33.164 UTC [15579] LOG:  starting PostgreSQL 15.18\n").is_ready());
        assert!(watch(READY).is_ready());
        assert!(!watch(READY.trim_end()).is_ready());
        assert!(watch(&READY.replace("LOG:  ", "LOG:  00000: ")).is_ready());
    }

    #[test]
    fn a_message_that_quotes_the_ready_line_does_not_count() {
        let statement = format!(
            "2026-11-22 18:19:33.164 UTC [1] ERROR:  no\n2026-11-22 18:19:33.164 UTC [1] STATEMENT:  \n\t{READY}"
        );
        assert!(!watch(&statement).is_ready());
        assert!(!watch(&READY.replace("LOG", "ERROR")).is_ready());
        assert!(!watch(&READY.replace("LOG:  ", "LOG:  x ")).is_ready());
        assert!(!watch(&READY.replace("[15579]", "[x]")).is_ready());
    }

    #[test]
    fn the_latest_complaints_are_remembered() {
        let mut watch = ReadyWatch::new();
        for number in 0..20 {
            watch.feed(format!("2026-11-22 18:19:33.164 UTC [1] FATAL:  number {number}\n").as_bytes());
        }
        let complaints: Vec<_> = watch.complaints().collect();
        assert_eq!(complaints.len(), MAX_COMPLAINTS);
        assert_eq!(complaints.first(), Some(&"FATAL: number 12"));
        assert_eq!(complaints.last(), Some(&"FATAL: number 19"));
    }

    #[test]
    fn a_program_that_cannot_be_loaded_complains_too() {
        let watch = watch("postgres: error while loading shared libraries: libicui18n.so.60: cannot open\n");
        assert!(watch.summary().contains("libicui18n"));
    }

    #[test]
    fn recovery_is_noticed() {
        let log = "2026-11-22 18:19:33.164 UTC [7] LOG:  database system was not properly shut down; automatic recovery in progress\n";
        assert!(watch(log).is_recovering());
        assert!(!watch(READY).is_recovering());
    }

    #[test]
    fn an_endless_line_takes_bounded_memory() {
        let mut watch = ReadyWatch::new();
        for _ in 0..1000 {
            watch.feed(&[b'x'; 1000]);
        }
        assert!(watch.line.capacity() <= 2 * MAX_LINE);
        watch.feed(b"\n");
        assert!(watch.feed(READY.as_bytes()));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_bytes_are_cut(
            before in "[a-zA-Z0-9:\\[\\] \n\t]{0,200}",
            cuts in proptest::collection::vec(0usize..400, 0..10),
        ) {
            let log = format!("{before}\n{READY}2026-11-22 18:19:33.164 UTC [1] FATAL:  x\n");
            let whole = watch(&log);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(log.len())).collect();
            cuts.sort_unstable();
            let mut piecewise = ReadyWatch::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([log.len()]) {
                piecewise.feed(&log.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert!(whole.is_ready() && piecewise.is_ready());
            prop_assert_eq!(whole.summary(), piecewise.summary());
        }
    }

    #[test]
    fn a_log_that_a_process_appends_to_is_emptied_and_its_end_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postgres.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        writer.write_all(&[b'a'; 1000]).unwrap();
        assert!(!cap(&path, 1000).unwrap());
        writer.write_all(&[b'b'; 500]).unwrap();
        assert!(cap(&path, 1000).unwrap());
        writer.write_all(b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        let kept = fs::read(directory.path().join("postgres.log.1")).unwrap();
        assert_eq!(kept.len(), 1000);
        assert_eq!(kept.iter().filter(|&&byte| byte == b'b').count(), 500);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_missing_log_needs_no_capping_and_a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!cap(&directory.path().join("missing"), 10).unwrap());
        let target = directory.path().join("target");
        fs::write(&target, [0; 100]).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(cap(&link, 10).is_err());
        assert_eq!(fs::metadata(&target).unwrap().len(), 100);
    }
}
