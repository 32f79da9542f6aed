//! The node's side: typed requests over the socket pair that the warden gave it.
//!
//! Any number of tasks share one [`Warden`]. A task's request is one datagram; one reader task hands each reply to the
//! request that it answers. When the warden is gone, every request that waits, and every later one, fails with
//! [`WardenError::Closed`], and [`Warden::closed`] resolves.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::AbortHandle;

use roost_postgres::settings::InstanceSettings;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::VolumeId;

use crate::channel;
use crate::protocol::{
    Answer, Capabilities, Command, ExitReport, InstanceRecord, InstanceUsage, MAX_OUTSTANDING, Reply,
    Request, ShutdownMode, StartPhases, StartSpec, VolumeReport, WardenError,
};
use crate::reactor::register;

/// A running instance, as its node holds it.
#[derive(Debug)]
pub struct Instance {
    /// Its volume.
    pub volume: VolumeId,
    /// The postmaster's process id, for people and logs; signals go through the warden.
    pub pid: i32,
    /// A pidfd of the postmaster: readable once it ended.
    pub exit: OwnedFd,
    /// The directory of its socket.
    pub socket_dir: PathBuf,
    /// Its log file.
    pub log: PathBuf,
    /// Postgres' major version.
    pub major: u16,
    /// Whether its processes are frozen.
    pub frozen: bool,
    /// The template that its volume was made from.
    pub template: String,
    /// Postgres' system identifier of its volume.
    pub system_identifier: u64,
    /// Whether it was already running when this warden began.
    pub adopted: bool,
    /// Where the time of its start went.
    pub phases: StartPhases,
}

impl Instance {
    fn new(record: InstanceRecord, exit: OwnedFd) -> Self {
        Self {
            volume: record.volume,
            pid: record.pid,
            exit,
            socket_dir: record.socket_dir,
            log: record.log,
            major: record.major,
            frozen: record.frozen,
            template: record.template,
            system_identifier: record.system_identifier,
            adopted: record.adopted,
            phases: record.phases,
        }
    }
}

/// A connection to the warden. Clones share it.
#[derive(Clone)]
pub struct Warden {
    connection: Arc<Connection>,
}

struct Connection {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    outstanding: Semaphore,
    waiting: Mutex<Waiting>,
    closed: watch::Sender<bool>,
}

/// `None` once the warden is gone: nothing may wait any more.
type Waiting = Option<HashMap<u64, oneshot::Sender<(Result<Answer, WardenError>, Vec<OwnedFd>)>>>;

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // The map is consistent between any two statements, so a panic elsewhere does not spoil it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        drop(self.waiting().take());
        self.closed.send_replace(true);
    }
}

/// Takes a request's place in the map back if its task stops waiting.
struct Waiter<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.shared.waiting().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

impl Warden {
    /// Takes over the node's end of the socket pair. Must be called inside a tokio runtime.
    pub fn connect(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let shared = Arc::new(Shared {
            socket: register(socket, Interest::READABLE | Interest::WRITABLE)?,
            next_id: AtomicU64::new(1),
            outstanding: Semaphore::new(MAX_OUTSTANDING),
            waiting: Mutex::new(Some(HashMap::new())),
            closed: watch::Sender::new(false),
        });
        let reader = tokio::spawn(read_replies(Arc::clone(&shared))).abort_handle();
        Ok(Self { connection: Arc::new(Connection { shared, reader }) })
    }

    /// Resolves when the warden is gone.
    pub async fn closed(&self) {
        let mut closed = self.connection.shared.closed.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// What this machine can enforce.
    pub async fn capabilities(&self) -> Result<Capabilities, WardenError> {
        match self.call(Command::Capabilities).await? {
            Answer::Capabilities(capabilities) => Ok(*capabilities),
            _ => Err(WardenError::Closed),
        }
    }

    /// Starts an instance; returns once Postgres accepts connections.
    ///
    /// A caller that stops waiting does not stop the start: the instance comes up and [`Warden::instances`] lists it.
    pub async fn start(&self, spec: StartSpec) -> Result<Instance, WardenError> {
        let (answer, descriptors) = self.exchange(Command::Start(Box::new(spec)), None).await?;
        match (answer, descriptors.into_iter().next()) {
            (Answer::Started(record), Some(exit)) => Ok(Instance::new(*record, exit)),
            _ => Err(WardenError::Closed),
        }
    }

    /// Every instance that runs, by volume; those of earlier nodes and wardens too.
    pub async fn instances(&self) -> Result<Vec<Instance>, WardenError> {
        let mut all: Vec<Instance> = Vec::new();
        loop {
            let after = all.last().map(|instance| instance.volume);
            let (answer, descriptors) = self.exchange(Command::Instances { after }, None).await?;
            let Answer::Instances { instances, more } = answer else { return Err(WardenError::Closed) };
            if instances.len() != descriptors.len() || (more && instances.is_empty()) {
                return Err(WardenError::Closed);
            }
            all.extend(
                instances.into_iter().zip(descriptors).map(|(record, exit)| Instance::new(record, exit)),
            );
            if !more {
                return Ok(all);
            }
        }
    }

    /// Stops all processes of an instance where they are; returns once none of them runs any more.
    pub async fn freeze(&self, volume: &VolumeId) -> Result<(), WardenError> {
        self.done(Command::Freeze { volume: *volume }).await
    }

    /// Lets a frozen instance run again.
    pub async fn thaw(&self, volume: &VolumeId) -> Result<(), WardenError> {
        self.done(Command::Thaw { volume: *volume }).await
    }

    /// Pushes an instance's memory out to swap, as far as it goes; returns by how many bytes its memory shrank.
    pub async fn reclaim(&self, volume: &VolumeId) -> Result<u64, WardenError> {
        match self.call(Command::Reclaim { volume: *volume }).await? {
            Answer::Reclaimed { bytes } => Ok(bytes),
            _ => Err(WardenError::Closed),
        }
    }

    /// Tells an instance to shut down; its exit shows on [`Instance::exit`]. A frozen instance is thawed first.
    pub async fn shutdown(&self, volume: &VolumeId, mode: ShutdownMode) -> Result<(), WardenError> {
        self.done(Command::Shutdown { volume: *volume, mode }).await
    }

    /// Rewrites an instance's configuration and makes Postgres read it.
    pub async fn reload(&self, volume: &VolumeId, settings: InstanceSettings) -> Result<(), WardenError> {
        self.done(Command::Reload { volume: *volume, settings: Box::new(settings) }).await
    }

    /// After an instance's exit: waits until all its processes are gone, and removes everything but the volume.
    /// May be repeated.
    pub async fn release(&self, volume: &VolumeId) -> Result<ExitReport, WardenError> {
        match self.call(Command::Release { volume: *volume }).await? {
            Answer::Released(report) => Ok(*report),
            _ => Err(WardenError::Closed),
        }
    }

    /// What an instance uses now.
    pub async fn usage(&self, volume: &VolumeId) -> Result<InstanceUsage, WardenError> {
        match self.call(Command::Usage { volume: *volume }).await? {
            Answer::Usage(usage) => Ok(usage),
            _ => Err(WardenError::Closed),
        }
    }

    /// Bytes that a volume takes on disk, without its template; 0 if it has no files.
    pub async fn volume_bytes(&self, volume: &VolumeId) -> Result<u64, WardenError> {
        self.bytes(Command::VolumeBytes { volume: *volume }, None).await
    }

    /// What a volume's files say about themselves.
    pub async fn inspect_volume(&self, volume: &VolumeId) -> Result<VolumeReport, WardenError> {
        match self.call(Command::InspectVolume { volume: *volume }).await? {
            Answer::Volume(report) => Ok(*report),
            _ => Err(WardenError::Closed),
        }
    }

    /// Builds the current template of a major version, unless it is there.
    pub async fn ensure_template(&self, major: u16) -> Result<TemplateName, WardenError> {
        match self.call(Command::EnsureTemplate { major }).await? {
            Answer::Template(name) => Ok(name),
            _ => Err(WardenError::Closed),
        }
    }

    /// Removes a stopped volume and its log for ever. May be repeated.
    pub async fn delete_volume(&self, volume: &VolumeId) -> Result<(), WardenError> {
        self.done(Command::DeleteVolume { volume: *volume }).await
    }

    /// Copies a stopped volume into a new, flattened one with a system identifier of its own.
    pub async fn copy_volume(
        &self,
        from: &VolumeId,
        to: &VolumeId,
        system_identifier: u64,
    ) -> Result<(), WardenError> {
        self.done(Command::CopyVolume { from: *from, to: *to, system_identifier }).await
    }

    /// Writes a stopped volume, flattened, as a tar stream into `to`; returns the bytes of its files.
    pub async fn export(&self, volume: &VolumeId, to: OwnedFd) -> Result<u64, WardenError> {
        self.bytes(Command::Export { volume: *volume }, Some(to)).await
    }

    /// Makes a volume of a tar stream that [`Warden::export`] wrote; returns the bytes of its files.
    pub async fn import(
        &self,
        volume: &VolumeId,
        major: u16,
        system_identifier: u64,
        from: OwnedFd,
    ) -> Result<u64, WardenError> {
        self.bytes(Command::Import { volume: *volume, major, system_identifier }, Some(from)).await
    }

    /// Makes the warden leave the instances running when this node exits, for a later `roost up` to adopt.
    pub async fn leave_instances(&self) -> Result<(), WardenError> {
        self.done(Command::LeaveInstances).await
    }

    async fn done(&self, command: Command) -> Result<(), WardenError> {
        self.call(command).await.map(drop)
    }

    async fn bytes(&self, command: Command, descriptor: Option<OwnedFd>) -> Result<u64, WardenError> {
        match self.exchange(command, descriptor).await? {
            (Answer::Bytes(bytes), _) => Ok(bytes),
            _ => Err(WardenError::Closed),
        }
    }

    async fn call(&self, command: Command) -> Result<Answer, WardenError> {
        self.exchange(command, None).await.map(|(answer, _)| answer)
    }

    async fn exchange(
        &self,
        command: Command,
        descriptor: Option<OwnedFd>,
    ) -> Result<(Answer, Vec<OwnedFd>), WardenError> {
        let shared = &*self.connection.shared;
        let _permit = shared.outstanding.acquire().await.map_err(|_| WardenError::Closed)?;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Request { id, command })
            .map_err(|error| WardenError::InvalidRequest { detail: error.to_string() })?;
        let (sender, receiver) = oneshot::channel();
        match shared.waiting().as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(WardenError::Closed),
        };
        let _waiter = Waiter { shared, id };
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
        let sent = shared
            .socket
            .async_io(Interest::WRITABLE, |socket| channel::send(socket, &bytes, &descriptors))
            .await;
        match sent {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(WardenError::InvalidRequest { detail: error.to_string() });
            }
            Err(_) => return Err(WardenError::Closed),
        }
        drop(descriptor);
        let (result, descriptors) = receiver.await.map_err(|_| WardenError::Closed)?;
        Ok((result?, descriptors))
    }
}

async fn read_replies(shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    loop {
        let received =
            shared.socket.async_io(Interest::READABLE, |socket| channel::receive(socket, &mut buffer)).await;
        let received = match received {
            Ok(received) if !received.bytes.is_empty() => received,
            Ok(_) => break,
            Err(error) => {
                tracing::error!(%error, "lost the warden");
                break;
            }
        };
        let reply: Reply = match serde_json::from_slice(&received.bytes) {
            Ok(reply) => reply,
            Err(error) => {
                tracing::error!(%error, "the warden sent what is no reply");
                break;
            }
        };
        let waiter = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&reply.id));
        if let Some(waiter) = waiter {
            // A caller that stopped waiting closes the reply's descriptors by this.
            let _ = waiter.send((reply.result, received.descriptors));
        }
    }
    shared.close();
}
