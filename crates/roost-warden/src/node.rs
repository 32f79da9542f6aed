//! The node's process: spawned without privileges, and again when it dies.
//!
//! A node that ends by itself with success was told to; the warden then ends too. One that fails is started again,
//! later and later while it keeps failing. One that fails before any node of this warden ever made a request has
//! nothing to come back for: its error is the operator's to see, and its exit code becomes the warden's.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::protocol::ExitStatus;
use crate::sys;

/// The shortest and longest pause before a node that died is started again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// A node that lived this long starts its successor with the shortest pause again.
const SETTLED: Duration = Duration::from_secs(60);

/// How to start a node, and when.
#[derive(Debug)]
pub(crate) struct Supervision {
    command: Vec<OsString>,
    /// Who it runs as; `None` if the warden is nobody else.
    user: Option<(u32, u32)>,
    /// The mount namespace of the host, which the warden left.
    host: Option<OwnedFd>,
    pause: Duration,
    began: Instant,
    served: bool,
}

/// What follows from a node's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another one, after a pause.
    Restart(Duration),
    /// The warden ends with this code.
    End(i32),
}

impl Supervision {
    pub(crate) fn new(command: Vec<OsString>, user: Option<(u32, u32)>, host: Option<OwnedFd>) -> Self {
        Self { command, user, host, pause: PAUSES.0, began: Instant::now(), served: false }
    }

    /// Starts a node. Its process id, and the warden's end of the socket pair.
    pub(crate) fn spawn(&mut self) -> io::Result<(i32, OwnedFd)> {
        let text = |text: &OsString| CString::new(text.as_bytes()).map_err(io::Error::other);
        let arguments = self.command.iter().map(text).collect::<io::Result<Vec<CString>>>()?;
        let program = arguments.first().ok_or_else(|| io::Error::other("the node has no command"))?;
        let environment = std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                text(&name)
            })
            .collect::<io::Result<Vec<CString>>>()?;
        let (own, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let Some(pid) = sys::fork_worker()? else {
            let error = self.become_node(&other, program, &arguments, &environment);
            tracing::error!(%error, program = ?program, "could not execute the node");
            sys::exit_now(127)
        };
        self.began = Instant::now();
        Ok((pid, own))
    }

    /// In the new process: gives up what the warden has and executes the node. Returns only what went wrong.
    fn become_node(
        &self,
        socket: &OwnedFd,
        program: &CString,
        arguments: &[CString],
        environment: &[CString],
    ) -> io::Error {
        let prepare = || -> io::Result<()> {
            sys::reset_signals()?;
            if let Some(host) = &self.host {
                sys::enter_namespace(host)?;
            }
            // As many descriptors as may be: each client has one.
            let (_, hard) = sys::limits(libc::RLIMIT_NOFILE)?;
            sys::limit(libc::RLIMIT_NOFILE, hard)?;
            sys::duplicate_onto(socket.as_fd(), 3)?;
            sys::close_all_but(4, rustix::stdio::stderr())?;
            if let Some((uid, gid)) = self.user {
                sys::close_ways_back()?;
                sys::become_user(uid, gid)?;
            }
            rustix::thread::set_no_new_privs(true)?;
            Ok(())
        };
        match prepare() {
            Ok(()) => sys::execute(program, arguments, environment),
            Err(error) => error,
        }
    }

    /// Notes that a node made a request, and so is able to work.
    pub(crate) fn served(&mut self) {
        self.served = true;
    }

    /// What follows from a node's end that nobody asked for.
    pub(crate) fn ended(&mut self, status: Option<ExitStatus>) -> Next {
        match status {
            Some(ExitStatus::Code(0)) => return Next::End(0),
            Some(ExitStatus::Code(code)) if !self.served => return Next::End(code),
            Some(ExitStatus::Signal(signal)) if !self.served => return Next::End(128 + signal),
            _ => {}
        }
        if self.began.elapsed() >= SETTLED {
            self.pause = PAUSES.0;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSES.1);
        Next::Restart(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supervision() -> Supervision {
        Supervision::new(vec!["/bin/true".into()], None, None)
    }

    #[test]
    fn a_node_that_ends_with_success_ends_the_warden() {
        let mut supervision = supervision();
        supervision.served();
        assert_eq!(supervision.ended(Some(ExitStatus::Code(0))), Next::End(0));
    }

    #[test]
    fn a_node_that_never_worked_passes_its_exit_code_on() {
        assert_eq!(supervision().ended(Some(ExitStatus::Code(78))), Next::End(78));
        assert_eq!(supervision().ended(Some(ExitStatus::Signal(9))), Next::End(137));
    }

    #[test]
    fn a_node_that_keeps_dying_is_started_later_and_later() {
        let mut supervision = supervision();
        supervision.served();
        let pauses: Vec<Next> = (0..10).map(|_| supervision.ended(Some(ExitStatus::Signal(9)))).collect();
        assert_eq!(pauses[0], Next::Restart(PAUSES.0));
        assert_eq!(pauses[1], Next::Restart(PAUSES.0 * 2));
        assert_eq!(pauses[9], Next::Restart(PAUSES.1));
    }
}
