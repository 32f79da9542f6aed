//! Running a short-lived program with a bound on its time and on what it may say.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal};

/// How much of what a program says is kept, in bytes: the end of it.
const MAX_OUTPUT: u64 = 64 * 1024;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started, or its streams failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It ended with a failure.
    #[error("it {outcome}: {said}")]
    Failed {
        /// How it ended, in words.
        outcome: String,
        /// The end of what it said.
        said: String,
    },
    /// It took too long and was killed, with everything it had started.
    #[error("it took longer than {} s and was killed: {said}", .within.as_secs())]
    TooLong {
        /// How long it had.
        within: Duration,
        /// The end of what it said.
        said: String,
    },
}

/// Runs `command` with `input` as its standard input, and returns the end of what it wrote to both its outputs. It runs in
/// a process group of its own, which is killed when it takes longer than `within`.
pub(crate) fn run(command: &mut Command, input: Option<&str>, within: Duration) -> Result<String, RunError> {
    let stdin = match input {
        Some(text) => {
            let mut file = memory_file("input")?;
            file.write_all(text.as_bytes())?;
            file.rewind()?;
            Stdio::from(file)
        }
        None => Stdio::null(),
    };
    let mut output = memory_file("output")?;
    command.stdin(stdin).stdout(output.try_clone()?).stderr(output.try_clone()?).process_group(0);
    let mut child = command.spawn()?;
    let status = wait(&mut child, within);
    if !matches!(status, Ok(Some(_))) {
        end(&mut child);
    }
    let said = last(&mut output)?;
    match status? {
        Some(status) if status.success() => Ok(said),
        Some(status) => Err(RunError::Failed { outcome: outcome(status), said: said.trim_end().to_owned() }),
        None => Err(RunError::TooLong { within, said: said.trim_end().to_owned() }),
    }
}

/// A file without a name, so that a program which says much blocks on nothing.
fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn wait(child: &mut Child, within: Duration) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= within {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Kills the child's whole group. The child has not been waited for, so its number is still its own.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may have ended just now.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn last(output: &mut File) -> io::Result<String> {
    let length = output.metadata()?.len();
    output.seek(io::SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))?;
    let mut bytes = Vec::new();
    output.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_outputs_are_returned() {
        let said = run(&mut shell("cat; echo err >&2"), Some("in\n"), Duration::from_secs(10)).unwrap();
        assert_eq!(said, "in\nerr\n");
    }

    #[test]
    fn a_failure_tells_what_was_said() {
        let error = run(&mut shell("echo no room; exit 3"), None, Duration::from_secs(10)).unwrap_err();
        assert_eq!(error.to_string(), "it ended with code 3: no room");
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_its_children() {
        let begun = Instant::now();
        let error = run(&mut shell("sleep 60 & sleep 60"), None, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, RunError::TooLong { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_flood_of_output_is_cut_to_its_end() {
        let said = run(&mut shell("yes | head -c 300000; echo end"), None, Duration::from_secs(10)).unwrap();
        assert_eq!(said.len() as u64, MAX_OUTPUT);
        assert!(said.ends_with("end\n"));
    }
}
