//! The unix socket of the management API: who may open it, and who is on the other side.
//!
//! Invariants:
//! - the socket's file has mode 0600 and belongs to the node's user. When the node was started through sudo, a POSIX
//!   access control list lets that user in too (`stat` then shows the list's mask as 0660, and nobody else gets in);
//! - whatever the file says, a connection whose peer credentials (`SO_PEERCRED`) are not in the list of allowed users
//!   is closed before a byte of it is read;
//! - a socket that a live node listens on is never taken away from it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, setxattr};
use tokio::net::{UnixListener, UnixStream};

/// The extended attribute that holds a file's access control list.
const ACCESS_LIST: &str = "system.posix_acl_access";

/// Why the socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another node answers on this path.
    #[error("another node already listens on {}", .0.display())]
    InUse(PathBuf),
    /// The file system refused.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The users that may use the management API, by uid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedUsers(Vec<u32>);

impl AllowedUsers {
    /// Root, the user that this process runs as, and the user who started it through sudo.
    pub fn new(sudo_uid: Option<u32>) -> Self {
        let mut users = vec![0, rustix::process::geteuid().as_raw()];
        users.extend(sudo_uid);
        Self(users)
    }

    /// Whether this user may.
    pub fn contains(&self, uid: u32) -> bool {
        self.0.contains(&uid)
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    allowed: AllowedUsers,
}

impl ApiSocket {
    /// Listens on `path`, in place of a socket that a node which is gone has left there.
    ///
    /// `sudo_uid` is the user who started the node through sudo.
    pub async fn bind(path: &Path, sudo_uid: Option<u32>) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        if UnixStream::connect(path).await.is_ok() {
            return Err(SocketError::InUse(path.to_owned()));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Between these two calls the umask decides who gets in; the peer's credentials are checked all the same.
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        if let Some(uid) = sudo_uid.filter(|uid| *uid != 0) {
            setxattr(path, ACCESS_LIST, &access_list(uid), XattrFlags::empty())
                .map_err(|error| failed(error.into()))?;
        }
        Ok(Self { listener, allowed: AllowedUsers::new(sudo_uid) })
    }

    /// The next connection of an allowed user. Others are closed and logged.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if self.allowed.contains(peer.uid()) => return Ok(stream),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "refused a connection to the API from another user");
                }
                Err(error) => {
                    tracing::warn!(%error, "refused a connection to the API without peer credentials");
                }
            }
        }
    }
}

/// An access control list in the kernel's extended-attribute form (version 2, little-endian entries of tag, permissions
/// and id): read and write for the owner and for `uid`, nothing for anyone else.
fn access_list(uid: u32) -> Vec<u8> {
    const VERSION: u32 = 2;
    const READ_WRITE: u16 = 6;
    const NOTHING: u16 = 0;
    const NO_ID: u32 = u32::MAX;
    const OWNER: u16 = 0x01;
    const USER: u16 = 0x02;
    const OWNING_GROUP: u16 = 0x04;
    const MASK: u16 = 0x10;
    const OTHERS: u16 = 0x20;
    let entries = [
        (OWNER, READ_WRITE, NO_ID),
        (USER, READ_WRITE, uid),
        (OWNING_GROUP, NOTHING, NO_ID),
        (MASK, READ_WRITE, NO_ID),
        (OTHERS, NOTHING, NO_ID),
    ];
    let mut list = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let socket = ApiSocket::bind(&path, None).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let (client, server) = tokio::join!(UnixStream::connect(&path), socket.accept());
        assert!(client.is_ok() && server.is_ok());
    }

    #[tokio::test]
    async fn the_sudo_user_gets_in_by_an_access_list_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let _socket = ApiSocket::bind(&path, Some(4321)).await.unwrap();
        let mut list = [0; 64];
        let length = rustix::fs::getxattr(&path, ACCESS_LIST, &mut list[..]).unwrap();
        assert_eq!(&list[..length], access_list(4321));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o007, 0);
    }

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        drop(ApiSocket::bind(&path, None).await.unwrap());
        assert!(path.exists());
        let _live = ApiSocket::bind(&path, None).await.unwrap();
        assert!(matches!(ApiSocket::bind(&path, None).await, Err(SocketError::InUse(_))));
    }

    #[test]
    fn only_root_the_node_and_the_sudo_user_are_allowed() {
        let allowed = AllowedUsers::new(Some(1234));
        assert!(allowed.contains(0) && allowed.contains(1234));
        assert!(!allowed.contains(1235));
        assert!(!AllowedUsers::new(None).contains(1234));
    }
}
