//! Running a program to its end, with a deadline and all of its output.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// What a program left behind.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error, as text.
    pub stderr: String,
}

impl Finished {
    /// Standard output as text, without white space at the ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// An error unless the program exited with 0.
    pub fn success(self) -> Result<Self> {
        ensure!(
            self.status.success(),
            "{}\nstandard output: {}\nstandard error: {}",
            self.status,
            self.text(),
            self.stderr
        );
        Ok(self)
    }
}

/// Runs `command` with `input` on its standard input. A program that is not done by `deadline` is killed: an error.
pub fn run(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Finished> {
    let shown = format!("{command:?}");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    finish(child, input, deadline).with_context(|| shown)
}

fn finish(mut child: Child, input: &[u8], deadline: Duration) -> Result<Finished> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program may end without reading all of its input.
            stdin.map(|mut pipe| pipe.write_all(input))
        });
        let out = scope.spawn(move || read_all(stdout));
        let err = scope.spawn(move || read_all(stderr));
        let status = wait(&mut child, deadline);
        if status.is_err() {
            // Both may fail only when it has ended in this moment.
            let _ = child.kill();
            let _ = child.wait();
        }
        let stdout = out.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&err.join().unwrap_or_default()).trim().to_owned();
        match status {
            Ok(status) => Ok(Finished { status, stdout, stderr }),
            Err(error) => bail!("{error}; standard error so far: {stderr}"),
        }
    })
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error is worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

/// Waits for `child` to end, at most for `deadline`.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "not done after {deadline:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_its_input_and_its_output_comes_back() -> Result<()> {
        let finished = run(&mut Command::new("cat"), b"hello", Duration::from_secs(10))?.success()?;
        assert_eq!(finished.text(), "hello");
        Ok(())
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_its_deadline() {
        let begun = Instant::now();
        assert!(run(Command::new("sleep").arg("60"), b"", Duration::from_millis(100)).is_err());
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
