//! Cancel keys: the client gets a random key of Roost's own, which this map translates into the key of the backend that
//! serves its session (protocol: "Canceling Requests in Progress").
//!
//! An entry lives exactly as long as its [`CancelRegistration`], so the map is bounded by the number of sessions. A key
//! is compared in constant time, and a wrong one is indistinguishable from one that never existed.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use papaya::HashMap;

use crate::session::socket_path;
use crate::socket::Socket;

/// How long the secret part of a client's key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyLength {
    /// Four bytes, all that protocol 3.0 has room for.
    Short,
    /// 32 bytes, from protocol 3.2 on.
    Long,
}

impl KeyLength {
    const fn bytes(self) -> usize {
        match self {
            Self::Short => 4,
            Self::Long => 32,
        }
    }
}

/// The secret part of a client's key.
#[derive(Clone, Copy)]
pub struct CancelKey {
    bytes: [u8; 32],
    length: KeyLength,
}

impl CancelKey {
    fn generate(length: KeyLength) -> Self {
        let mut bytes = [0; 32];
        fill_random(&mut bytes);
        Self { bytes, length }
    }

    /// The bytes that BackendKeyData carries.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.bytes()).unwrap_or_default()
    }
}

impl fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelKey(..)")
    }
}

/// Where a cancel request for a session goes: the instance's socket and the backend's own key.
#[derive(Clone)]
pub struct CancelTarget {
    socket: Arc<Path>,
    pid: i32,
    key: Arc<[u8]>,
    /// Whether the backend works on something now. An idle backend has nothing to cancel, and its instance may be
    /// frozen: a request would wait in the socket's queue and hit a later query.
    busy: Arc<AtomicBool>,
}

impl fmt::Debug for CancelTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelTarget")
            .field("socket", &self.socket)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Why a cancel request did not reach the backend.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// The instance's socket could not be used.
    #[error("the instance's socket: {0}")]
    Socket(#[from] io::Error),
    /// Postgres did not take the request in time.
    #[error("Postgres did not take the cancel request within {0:?}")]
    Deadline(Duration),
}

impl CancelTarget {
    /// The backend with this key on the instance whose socket lies in `socket_dir`.
    pub fn new(socket_dir: &Path, pid: i32, key: &[u8]) -> Self {
        Self {
            socket: socket_path(socket_dir).into(),
            pid,
            key: key.into(),
            busy: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The flag that the session sets while its backend works on something.
    pub fn busy_flag(&self) -> Arc<AtomicBool> {
        self.busy.clone()
    }

    /// Sends the cancel request, and returns when Postgres has handled it (it closes the connection then). Does nothing
    /// when the backend is idle.
    ///
    /// # Errors
    ///
    /// When the socket fails or Postgres does not answer within `limit`.
    pub async fn cancel(&self, limit: Duration) -> Result<(), CancelError> {
        if !self.busy.load(Ordering::Acquire) {
            return Ok(());
        }
        let exchange = async {
            let mut stream = Socket::connect(&self.socket).await?;
            let mut packet = Vec::with_capacity(16 + self.key.len());
            roost_wire::startup::write_cancel(&mut packet, self.pid, &self.key);
            stream.write_all(&packet).await?;
            // Postgres sends nothing; the end of the stream says that the signal was sent.
            let mut nothing = [0; 1];
            stream.read(&mut nothing).await.map(drop)
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(CancelError::Deadline(limit)),
        }
    }
}

#[derive(Debug)]
struct Entry {
    key: CancelKey,
    target: CancelTarget,
}

/// Every client key that is out, by its process id part. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct CancelMap {
    entries: Arc<HashMap<i32, Arc<Entry>>>,
}

impl CancelMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a key for a client whose session is served by `target`.
    pub fn register(&self, target: CancelTarget, length: KeyLength) -> CancelRegistration {
        let entry = Arc::new(Entry { key: CancelKey::generate(length), target });
        loop {
            let mut bytes = [0; 4];
            fill_random(&mut bytes);
            // Clients expect a process id: positive.
            let pid = i32::from_be_bytes(bytes) & i32::MAX;
            if pid != 0 && self.entries.pin().try_insert(pid, entry.clone()).is_ok() {
                return CancelRegistration { map: self.clone(), pid, key: entry.key };
            }
        }
    }

    /// The backend that serves the client with this key.
    pub fn find(&self, pid: i32, key: &[u8]) -> Option<CancelTarget> {
        let entries = self.entries.pin();
        let entry = entries.get(&pid)?;
        verify_slices_are_equal(entry.key.as_bytes(), key).ok()?;
        Some(entry.target.clone())
    }

    /// How many keys are out.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A client's key. Dropping it makes the key worthless.
#[derive(Debug)]
pub struct CancelRegistration {
    map: CancelMap,
    pid: i32,
    key: CancelKey,
}

impl CancelRegistration {
    /// The process id that the client is told.
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// The secret that the client is told.
    pub const fn key(&self) -> &CancelKey {
        &self.key
    }
}

impl Drop for CancelRegistration {
    fn drop(&mut self) {
        self.map.entries.pin().remove(&self.pid);
    }
}

fn fill_random(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the operating system's random generator works");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> CancelTarget {
        CancelTarget::new(Path::new("/nowhere"), 42, b"abcd")
    }

    #[test]
    fn a_key_finds_its_backend_until_its_session_ends() {
        let map = CancelMap::new();
        let registration = map.register(target(), KeyLength::Short);
        let (pid, key) = (registration.pid(), *registration.key());
        assert_eq!(key.as_bytes().len(), 4);
        assert_eq!(map.find(pid, key.as_bytes()).map(|found| found.pid), Some(42));
        drop(registration);
        assert!(map.find(pid, key.as_bytes()).is_none());
        assert!(map.is_empty());
    }

    #[test]
    fn a_wrong_or_shortened_or_lengthened_key_finds_nothing() {
        let map = CancelMap::new();
        let registration = map.register(target(), KeyLength::Long);
        let key = registration.key().as_bytes().to_vec();
        assert_eq!(key.len(), 32);
        let mut wrong = key.clone();
        wrong[31] ^= 1;
        let longer = [key.as_slice(), &[0]].concat();
        for guess in [wrong.as_slice(), &key[..4], &longer, &[]] {
            assert!(map.find(registration.pid(), guess).is_none());
        }
        assert!(map.find(registration.pid().wrapping_add(1), &key).is_none());
    }

    #[test]
    fn keys_differ_and_are_not_shown() {
        let map = CancelMap::new();
        let first = map.register(target(), KeyLength::Long);
        let second = map.register(target(), KeyLength::Long);
        assert_ne!(first.pid(), second.pid());
        assert_ne!(first.key().as_bytes(), second.key().as_bytes());
        assert_eq!(format!("{:?}", first.key()), "CancelKey(..)");
        assert!(first.pid() > 0);
    }

    #[tokio::test]
    async fn an_idle_backend_is_not_disturbed() {
        // The socket does not exist, so a connection attempt would be an error.
        assert!(target().cancel(Duration::from_secs(1)).await.is_ok());
        let busy = target();
        busy.busy_flag().store(true, Ordering::Release);
        assert!(matches!(busy.cancel(Duration::from_secs(1)).await, Err(CancelError::Socket(_))));
    }
}
