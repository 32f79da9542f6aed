//! What every kind of isolation gives: an instance that is launched, frozen, killed and found again, whatever it is
//! made of.
//!
//! The server knows instances by this trait only. A kind prepares the volume in the form that it needs, starts
//! something that ends in a socket which speaks Postgres, and says truthfully when nothing of it is left. Readiness is
//! not its word but that of the Postgres inside, which appends to the log that the server watches.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use roost_postgres::settings::InstanceSettings;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::{VolumeId, VolumeKind};

use crate::cgroup::Group;
use crate::protocol::{Finding, Freezer, InstanceUsage, Reclaim, StartSpec, WardenError};

/// What an instance holds of the machine, apart from its volume: enough to control it and to take it apart.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    /// Its volume.
    pub(crate) volume: VolumeId,
    /// Its first process, in the warden's process namespace: the postmaster, or what a guest runs in.
    pub(crate) pid: i32,
    /// When that process began, in clock ticks since boot, because its id may be another's later; 0 if unknown.
    pub(crate) began: u64,
    /// Its user id, where it has one of its own.
    pub(crate) uid: Option<u32>,
    /// Its control groups.
    pub(crate) group: Group,
}

/// An instance that was just launched.
#[derive(Debug)]
pub(crate) struct Launched {
    /// What it holds.
    pub(crate) footprint: Footprint,
    /// Readable once its first process ended.
    pub(crate) exit: OwnedFd,
    /// Closes without a byte when Postgres is being executed; a [`WardenError`] as JSON when it never will be.
    pub(crate) setup: OwnedFd,
}

/// Where an instance's files and descriptors are.
#[derive(Debug)]
pub(crate) struct Premises<'a> {
    /// Postgres' template that a new volume is made from.
    pub(crate) template: &'a TemplateName,
    /// The directory that its socket is to appear in.
    pub(crate) socket: PathBuf,
    /// The directory of its configuration, rendered.
    pub(crate) configuration: PathBuf,
    /// Its log, open for appending.
    pub(crate) log: OwnedFd,
}

/// What an earlier warden's directory says of an instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace {
    /// Its volume.
    pub(crate) volume: VolumeId,
    /// Its first process and when that began; `None` if nothing was written down that can be read.
    pub(crate) process: Option<(i32, u64)>,
    /// Its user id, where it has one of its own.
    pub(crate) uid: Option<u32>,
}

/// An instance that an earlier warden left.
#[derive(Debug)]
pub(crate) struct Survivor {
    /// Its volume.
    pub(crate) volume: VolumeId,
    /// What it holds.
    pub(crate) footprint: Footprint,
}

/// One kind of isolation.
pub(crate) trait Isolation {
    /// Its name, as `roost doctor` shows it.
    fn name(&self) -> &'static str;

    /// How volumes are kept.
    fn volumes(&self) -> VolumeKind;

    /// How instances are frozen.
    fn freezer(&self) -> Freezer;

    /// How memory is pushed out.
    fn reclaim_kind(&self) -> Reclaim;

    /// What it enforces on this machine, and what is missing.
    fn findings(&self) -> Vec<Finding>;

    /// Reserves what an instance needs, before its premises are made: its user id, where it has one.
    fn reserve(&mut self) -> Result<Option<u32>, WardenError>;

    /// Starts the processes of an instance. Quick: whatever may take long happens in the new process.
    fn launch(
        &mut self,
        spec: &StartSpec,
        premises: &Premises<'_>,
        uid: Option<u32>,
    ) -> Result<Launched, WardenError>;

    /// Asks for every process to stand still, or to go on.
    fn set_frozen(&self, instance: &Footprint, frozen: bool) -> io::Result<()>;

    /// Whether every process stands still.
    fn is_frozen(&self, instance: &Footprint) -> io::Result<bool>;

    /// Ends every process at once.
    fn kill(&self, instance: &Footprint) -> io::Result<()>;

    /// Whether no process is left.
    fn is_gone(&self, instance: &Footprint) -> io::Result<bool>;

    /// Pushes memory out; may take seconds, and runs in a process of its own.
    fn reclaim(&self, instance: &Footprint) -> io::Result<()>;

    /// What it uses.
    fn usage(&self, instance: &Footprint) -> InstanceUsage;

    /// Whether the kernel ended a process of it for want of memory.
    fn ran_out_of_memory(&self, instance: &Footprint) -> bool;

    /// Gives back what an instance held, after [`Isolation::is_gone`].
    fn discard(&mut self, volume: VolumeId, instance: &Footprint) -> io::Result<()>;

    /// Gives back what [`Isolation::reserve`] gave, if nothing was launched.
    fn cancel(&mut self, volume: VolumeId, uid: Option<u32>);

    /// What an earlier warden left, running or not. `traces` is every instance that has a directory.
    fn survivors(&mut self, traces: &[Trace]) -> Vec<Survivor>;

    /// The processes that a fast shutdown of an instance begins with: its postmaster, as far as that can be told.
    fn postmasters(&self, instance: &Footprint) -> Vec<i32>;

    /// Whether `pid` is a process of the instance.
    fn has_process(&self, instance: &Footprint, pid: i32) -> bool;

    /// Shows a stopped volume's files merged into one directory, and returns which. Runs in a process of its own,
    /// which holds the volume's lock.
    fn merged(&self, volume: VolumeId, template: &TemplateName, kind: VolumeKind) -> io::Result<PathBuf>;

    /// The owner of new volumes and templates, where the warden may choose one.
    fn volume_owner(&self) -> Option<(u32, u32)>;
}

/// The largest data segment of one process, in bytes: what is left of an instance's memory beside its shared buffers
/// (a quarter) and an eighth for page cache and the kernel.
///
/// A backend that grows beyond it gets "out of memory" (53200) from Postgres for the statement that it runs, while the
/// instance's own limit would end the backend, and with it every session. Several backends that grow together can
/// still reach the instance's limit.
pub(crate) fn data_segment_bytes(memory_bytes: u64) -> u64 {
    const LEAST: u64 = 48 << 20;
    (memory_bytes / 8 * 5).max(LEAST)
}

/// The size of `/dev/shm`, in bytes: parallel queries share memory there, and a half leaves room for the buffers.
pub(crate) fn shared_memory_bytes(settings: &InstanceSettings, memory_bytes: u64) -> u64 {
    settings.memory_bytes.min(memory_bytes) / 2
}

/// How long a freeze may take: processes in an uninterruptible wait on a slow disk are waited for.
pub(crate) const FREEZE_DEADLINE: Duration = Duration::from_secs(5);

/// How long the processes of an instance whose first one ended may take to be gone before they are killed.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// How long killed processes may take to be gone.
pub(crate) const KILL_DEADLINE: Duration = Duration::from_secs(30);
