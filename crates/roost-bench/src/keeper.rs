//! Clean-up that happens even if this process is killed: a shell that waits at the other end of a pipe.
//!
//! The end of a measurement, a panic, Ctrl-C and `kill -9` close the pipe, and the shell then does what it was started for. A benchmark must
//! leave no swap device, no server and no directory behind on the machine that it was run on.

use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// A shell that runs a script when this is dropped, or this process ends.
#[derive(Debug)]
pub(crate) struct Keeper {
    shell: Child,
}

impl Keeper {
    /// Starts the shell. `script` finds `arguments` in `$1`, `$2`, and so on.
    pub(crate) fn start(script: &str, arguments: &[&str]) -> Result<Self> {
        // Ctrl-C reaches the whole process group: the keeper outlives it.
        let script = format!("trap '' INT TERM HUP\nread -r _\n{script}");
        let shell = Command::new("/bin/sh")
            .args(["-c", &script, "keeper"])
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start /bin/sh")?;
        Ok(Self { shell })
    }
}

/// Has the script run, and waits until it is done.
impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // Nothing more can be done about a shell that cannot be waited for.
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_runs_when_the_keeper_is_dropped_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ran");
        let keeper = Keeper::start("touch \"$1\"", &[file.to_str().unwrap()]).unwrap();
        assert!(!file.exists());
        drop(keeper);
        assert!(file.exists());
    }
}
