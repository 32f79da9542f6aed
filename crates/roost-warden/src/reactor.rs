//! Descriptors in the node's reactor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the reactor of the current runtime.
pub(crate) fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, and the `AsyncFd` owns it until then.
    unsafe { AsyncFd::register_with_interest(descriptor, interest) }.map_err(Into::into)
}

/// Waits until the process behind a pidfd has ended.
///
/// # Errors
///
/// When the descriptor cannot be watched. Must be called inside a tokio runtime.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    let pidfd = register(pidfd, Interest::READABLE)?;
    // The guard only says that it is readable, which a pidfd stays for ever.
    let _ready = pidfd.readable().await?;
    Ok(())
}
