//! Messages with descriptors over a `SOCK_SEQPACKET` socket: one message is one datagram.
//!
//! Both ends use these functions, on sockets that never block. A datagram that is too long, or that carries more
//! descriptors than are expected, is an error and never a part of a message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::protocol::{INSTANCES_PAGE, MAX_MESSAGE};

/// A message as it came.
pub(crate) struct Received {
    /// Its bytes; none at all means that the other end is gone.
    pub(crate) bytes: Vec<u8>,
    /// Its descriptors, close-on-exec.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Sends one message. `WouldBlock` if the socket's buffer is full.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE || descriptors.len() > INSTANCES_PAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes is longer than {MAX_MESSAGE} bytes", bytes.len()),
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(INSTANCES_PAGE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message into `buffer`, which is reused between calls. `WouldBlock` if there is none.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut Vec<u8>) -> io::Result<Received> {
    buffer.resize(MAX_MESSAGE, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(INSTANCES_PAGE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let descriptors = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was longer than its bound"));
    }
    let bytes = buffer.get(..message.bytes).unwrap_or_default().to_vec();
    Ok(Received { bytes, descriptors })
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (left, right) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&left, b"one", &[file.as_fd(), file.as_fd()]).unwrap();
        send(&left, b"two", &[]).unwrap();
        let mut buffer = Vec::new();
        let first = receive(&right, &mut buffer).unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (b"one".as_slice(), 2));
        let second = receive(&right, &mut buffer).unwrap();
        assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (b"two".as_slice(), 0));
    }

    #[test]
    fn an_empty_socket_says_would_block_and_a_closed_one_gives_no_bytes() {
        let (left, right) = pair();
        let mut buffer = Vec::new();
        assert_eq!(receive(&right, &mut buffer).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert!(receive(&right, &mut buffer).unwrap().bytes.is_empty());
    }

    #[test]
    fn a_message_longer_than_the_bound_is_not_sent() {
        let (left, _right) = pair();
        let error = send(&left, &vec![0; MAX_MESSAGE + 1], &[]).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
