//! The closed set of typed requests that the node may make of the warden, and their replies.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` socket pair: JSON, at most [`MAX_MESSAGE`] bytes, with file
//! descriptors beside it where a variant says so. Requests carry an id; replies may come in any order. Nothing in a
//! request is a path: the warden derives every path from a typed id and its own configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use roost_postgres::settings::InstanceSettings;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::{VolumeId, VolumeKind};

/// The largest message, in bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Requests that may be unanswered at once: the client waits before it sends more, the warden stops reading.
pub const MAX_OUTSTANDING: usize = 4096;

/// Instances in one page of [`Answer::Instances`]; each brings a descriptor, and a message carries at most 253.
pub const INSTANCES_PAGE: usize = 64;

/// What a node asks to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// The volume, made from the current template of `major` when it has no files yet.
    pub volume: VolumeId,
    /// Postgres' major version.
    pub major: u16,
    /// The system identifier that a volume without files gets.
    pub system_identifier: u64,
    /// Whether a volume without files is made. False when the catalog knows that it had files once: then their absence
    /// is an error (`VolumeMissing`), never a new empty database.
    pub create: bool,
    /// What Postgres is configured with.
    pub settings: InstanceSettings,
    /// What the kernel enforces.
    pub limits: Limits,
    /// How long the start may take until Postgres says that it is ready.
    pub deadline: Duration,
}

/// What the kernel enforces for one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory of the whole instance, in bytes.
    pub memory_bytes: u64,
    /// Processor time in thousandths of a core; `None` is unlimited.
    pub cpu_millicores: Option<u32>,
    /// Processes and threads.
    pub pids: u32,
}

/// Where the time of a start went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartPhases {
    /// From the request's arrival until the instance's first process existed.
    pub spawn: Duration,
    /// Until its mounts stood and `postgres` was executed.
    pub confine: Duration,
    /// Until Postgres said that it accepts connections.
    pub ready: Duration,
}

/// How an instance is told to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShutdownMode {
    /// Sessions are ended, a checkpoint is written: a clean stop (SIGINT to the postmaster).
    Fast,
    /// No checkpoint; recovery follows (SIGQUIT).
    Immediate,
    /// The whole process tree is killed (SIGKILL).
    Kill,
}

/// What an instance uses now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InstanceUsage {
    /// Memory charged to it, kernel memory included, in bytes.
    pub memory_bytes: u64,
    /// Its pages in swap, before compression, in bytes.
    pub swap_bytes: u64,
    /// Processor time since it started.
    pub cpu: Duration,
    /// Processes and threads.
    pub pids: u32,
}

/// An instance that runs, as the node sees it without its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Its volume.
    pub volume: VolumeId,
    /// The postmaster's process id in the warden's namespace.
    pub pid: i32,
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

/// A request, as the node sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the node; the reply repeats it.
    pub id: u64,
    /// What is asked.
    pub command: Command,
}

/// What a node may ask of the warden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// What this machine can enforce: [`Answer::Capabilities`].
    Capabilities,
    /// Starts an instance: [`Answer::Started`] with its pidfd, once Postgres accepts connections.
    Start(Box<StartSpec>),
    /// The running instances whose volume sorts after `after`: [`Answer::Instances`] with one pidfd for each.
    Instances {
        /// The last volume of the page before.
        after: Option<VolumeId>,
    },
    /// Stops all processes of an instance where they are.
    Freeze {
        /// Which instance.
        volume: VolumeId,
    },
    /// Lets a frozen instance run again.
    Thaw {
        /// Which instance.
        volume: VolumeId,
    },
    /// Pushes an instance's memory out: [`Answer::Reclaimed`].
    Reclaim {
        /// Which instance.
        volume: VolumeId,
    },
    /// Sends the postmaster a shutdown signal; does not wait. A frozen instance is thawed first.
    Shutdown {
        /// Which instance.
        volume: VolumeId,
        /// How.
        mode: ShutdownMode,
    },
    /// Rewrites the configuration and tells Postgres to read it.
    Reload {
        /// Which instance.
        volume: VolumeId,
        /// The new settings; those that need a restart wait for one.
        settings: Box<InstanceSettings>,
    },
    /// After the postmaster's exit: ends stragglers, removes everything but the volume: [`Answer::Released`].
    Release {
        /// Which instance; one that is not known is answered like one that left nothing.
        volume: VolumeId,
    },
    /// What an instance uses: [`Answer::Usage`].
    Usage {
        /// Which instance.
        volume: VolumeId,
    },
    /// Bytes that a volume takes on disk: [`Answer::Bytes`].
    VolumeBytes {
        /// Which volume.
        volume: VolumeId,
    },
    /// What a volume's files say about themselves: [`Answer::Volume`].
    InspectVolume {
        /// Which volume.
        volume: VolumeId,
    },
    /// Builds the template of a major version unless it is there: [`Answer::Template`].
    EnsureTemplate {
        /// Postgres' major version.
        major: u16,
    },
    /// Removes a stopped volume and its log for ever.
    DeleteVolume {
        /// Which volume; one without files is deleted already.
        volume: VolumeId,
    },
    /// Copies a stopped volume to a new one that needs no template.
    CopyVolume {
        /// The source.
        from: VolumeId,
        /// The destination; it must have no files.
        to: VolumeId,
        /// The system identifier of the copy.
        system_identifier: u64,
    },
    /// Writes a stopped volume, flattened, as a tar stream into the descriptor that comes with this request:
    /// [`Answer::Bytes`].
    Export {
        /// Which volume.
        volume: VolumeId,
    },
    /// Makes a volume of the tar stream in the descriptor that comes with this request: [`Answer::Bytes`].
    Import {
        /// The new volume; it must have no files.
        volume: VolumeId,
        /// Postgres' major version, which the stream must agree with.
        major: u16,
        /// The system identifier that the volume gets.
        system_identifier: u64,
    },
    /// When this node exits, leaves its instances running for the next one to adopt.
    LeaveInstances,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id.
    pub id: u64,
    /// What came of it.
    pub result: Result<Answer, WardenError>,
}

/// What a request that succeeded is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done; there is nothing to tell.
    Done,
    /// What this machine can enforce.
    Capabilities(Box<Capabilities>),
    /// The instance accepts connections. Its pidfd comes with the message.
    Started(Box<InstanceRecord>),
    /// One page of instances. Their pidfds come with the message, in the same order.
    Instances {
        /// The instances, by volume.
        instances: Vec<InstanceRecord>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// Memory was pushed out.
    Reclaimed {
        /// What the instance's memory shrank by, in bytes.
        bytes: u64,
    },
    /// The instance is gone.
    Released(Box<ExitReport>),
    /// What an instance uses.
    Usage(InstanceUsage),
    /// A number of bytes.
    Bytes(u64),
    /// What a volume's files say.
    Volume(Box<VolumeReport>),
    /// The name of a template.
    Template(TemplateName),
}

/// How a postmaster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// What is known of an instance that ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExitReport {
    /// Whether the volume's control file says that Postgres shut down cleanly.
    pub clean: bool,
    /// The cluster state of the control file, in `pg_controldata`'s words; `None` if it cannot be read.
    pub state: Option<String>,
    /// How the postmaster ended; `None` if it was adopted, because only a parent is told.
    pub status: Option<ExitStatus>,
    /// Whether the kernel killed a process of it for want of memory.
    pub out_of_memory: bool,
    /// The last lines of its log, at most [`LOG_TAIL_LINES`].
    pub log_tail: Vec<String>,
}

/// Lines of a log that a report or an error carries at most.
pub const LOG_TAIL_LINES: usize = 20;

/// What a volume's files say about themselves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VolumeReport {
    /// Whether it has files; one that was never woken has none.
    pub exists: bool,
    /// Whether an instance holds its lock.
    pub in_use: bool,
    /// The template that it lies over; `None` for a copy.
    pub template: Option<TemplateName>,
    /// Postgres' major version.
    pub major: Option<u16>,
    /// Its system identifier, by the control file.
    pub system_identifier: Option<u64>,
    /// Whether the control file says that Postgres shut down cleanly.
    pub clean: bool,
    /// The cluster state of the control file, in `pg_controldata`'s words; `None` if it cannot be read.
    pub state: Option<String>,
    /// What is wrong with it, if anything is.
    pub damage: Option<String>,
}

/// How well a machine enforces something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The kernel enforces it.
    Enforced,
    /// It is there in part; the sentence says which.
    Partial,
    /// It is not there.
    Missing,
}

/// One line of `roost doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about, a stable word.
    pub name: String,
    /// How well it is enforced.
    pub standing: Standing,
    /// One sentence for an operator.
    pub detail: String,
}

/// How instances are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freezer {
    /// `cgroup.freeze` of a unified hierarchy.
    Cgroup,
    /// SIGSTOP to every process.
    Signal,
}

/// How memory is pushed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reclaim {
    /// `memory.reclaim` of a unified hierarchy.
    MemoryReclaim,
    /// `memory.force_empty` of a version 1 hierarchy.
    ForceEmpty,
    /// `process_madvise` on every process.
    Madvise,
}

/// A Postgres installation that instances can be started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledVersion {
    /// The major version.
    pub major: u16,
    /// The full version.
    pub version: String,
    /// The directory of its programs.
    pub bin: PathBuf,
}

/// What this machine can enforce, and what it cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The isolation kind.
    pub isolation: String,
    /// Whether the warden has the machine's privileges.
    pub privileged: bool,
    /// How volumes are kept.
    pub volumes: VolumeKind,
    /// How instances are frozen.
    pub freezer: Freezer,
    /// How memory is pushed out.
    pub reclaim: Reclaim,
    /// Swap space of the machine, in bytes: without any, a frozen instance stays in memory.
    pub swap_bytes: u64,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// Descriptors that one process may open.
    pub descriptors: u64,
    /// The kernel's bound on process ids.
    pub pid_max: u64,
    /// The installations.
    pub versions: Vec<InstalledVersion>,
    /// Everything, each with a sentence.
    pub findings: Vec<Finding>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WardenError {
    /// Another instance holds the volume, or its processes are not gone yet.
    #[error("volume {volume} is in use by another instance")]
    VolumeInUse {
        /// Which volume.
        volume: VolumeId,
    },
    /// The volume's files are not what they must be.
    #[error("volume {volume} is damaged: {detail}")]
    VolumeDamaged {
        /// Which volume.
        volume: VolumeId,
        /// What is wrong.
        detail: String,
    },
    /// The volume has no files, and the request needs some.
    #[error("volume {volume} has no files")]
    VolumeMissing {
        /// Which volume.
        volume: VolumeId,
    },
    /// The volume has files already, and the request would make some.
    #[error("volume {volume} has files already")]
    VolumeExists {
        /// Which volume.
        volume: VolumeId,
    },
    /// The instance runs already.
    #[error("volume {volume} has a running instance")]
    AlreadyRunning {
        /// Which volume.
        volume: VolumeId,
    },
    /// There is no such instance.
    #[error("volume {volume} has no running instance")]
    NotRunning {
        /// Which volume.
        volume: VolumeId,
    },
    /// No installation of that major version was found.
    #[error("Postgres {major} is not installed here (found: {})", list(.available))]
    NoSuchVersion {
        /// The version asked for.
        major: u16,
        /// The versions there are.
        available: Vec<u16>,
    },
    /// Building a template failed.
    #[error("the template of Postgres {major} could not be built: {detail}")]
    TemplateFailed {
        /// The version asked for.
        major: u16,
        /// What went wrong.
        detail: String,
    },
    /// The instance could not be prepared or confined; Postgres was never executed.
    #[error("the instance could not be set up: {step}: {detail}")]
    SetUpFailed {
        /// The step that failed.
        step: String,
        /// What the kernel said.
        detail: String,
    },
    /// Postgres ended before it was ready.
    #[error("Postgres ended before it was ready: {}", .log.last().map_or("it logged nothing", String::as_str))]
    StartFailed {
        /// How it ended.
        status: Option<ExitStatus>,
        /// The last lines of its log, and after them the last error among all that it logged.
        log: Vec<String>,
    },
    /// The start took longer than its deadline, and was ended.
    #[error("Postgres was not ready within {} ms", .waited.as_millis())]
    StartDeadline {
        /// The deadline.
        waited: Duration,
        /// The last lines of its log.
        log: Vec<String>,
    },
    /// Something else took longer than the warden waits for it.
    #[error("{what} took longer than {} ms", .waited.as_millis())]
    Deadline {
        /// What took so long.
        what: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The file system has no room.
    #[error("the file system is full: {step}")]
    StorageFull {
        /// The step that failed.
        step: String,
    },
    /// The request itself is not acceptable.
    #[error("request refused: {detail}")]
    InvalidRequest {
        /// What is wrong with it.
        detail: String,
    },
    /// This machine or this isolation kind cannot do it.
    #[error("not supported here: {detail}")]
    Unsupported {
        /// What is missing.
        detail: String,
    },
    /// A system call failed.
    #[error("{step}: {detail}")]
    System {
        /// The step that failed.
        step: String,
        /// What the kernel said.
        detail: String,
    },
    /// The warden is going away, or is gone.
    #[error("the warden is gone")]
    Closed,
}

fn list(majors: &[u16]) -> String {
    if majors.is_empty() {
        return "none".to_owned();
    }
    majors.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}
