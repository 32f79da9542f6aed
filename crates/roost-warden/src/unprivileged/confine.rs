//! The life of an instance's first process without privileges: the same steps in the same order as with them, inside a
//! user namespace where there is one, and with fewer walls where there is none.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use roost_postgres::Installation;
use roost_postgres::module::Modules;
use roost_postgres::settings::InstancePaths;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::VolumeKind;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::confine::{arrange, command, inside, loopback, report, set_limits, territory};
use crate::failure::{Step, refused};
use crate::isolation::shared_memory_bytes;
use crate::landlock::{self, Territory};
use crate::mounts::{self, Scene, Stage};
use crate::protocol::{StartSpec, WardenError};
use crate::seccomp::Filter;
use crate::sys::{self, Forked};
use crate::volumes::Volumes;

/// What an instance has of its own, where an ordinary user may make it.
pub(super) const OWN_NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Why a volume that root made cannot be used.
pub(super) const LAYER: &str =
    "it is a layer over its template, which only a node that root started can mount";

/// Everything that the first process needs, prepared by the warden.
#[derive(Debug)]
pub(super) struct Confinement<'a> {
    pub(super) user: User,
    pub(super) spec: &'a StartSpec,
    pub(super) installation: &'a Installation,
    pub(super) modules: &'a Modules,
    pub(super) volumes: &'a Volumes,
    pub(super) template: &'a TemplateName,
    /// The directory to build a root over; `None` if the process was born into no namespaces.
    pub(super) stage: Option<&'a Path>,
    pub(super) socket: &'a Path,
    pub(super) configuration: &'a Path,
    pub(super) log: BorrowedFd<'a>,
    pub(super) landlock: i32,
    pub(super) filter: &'a Filter,
}

/// Runs in the new process.
pub(super) fn run(plan: &Confinement<'_>, setup: &OwnedFd) -> ! {
    report(setup, |setup| prepare_and_execute(plan, setup))
}

fn prepare_and_execute(plan: &Confinement<'_>, setup: BorrowedFd<'_>) -> Result<Infallible, WardenError> {
    let (volume, layout) = (plan.spec.volume, &plan.volumes.layout);
    sys::reset_signals().step("reset the signals")?;
    if plan.stage.is_some() {
        plan.user.map().step("map the user into its namespace")?;
        mounts::keep_to_itself().step("leave the host's mounts")?;
    }

    let lock = ManuallyDrop::new(plan.volumes.lock(volume)?);
    let manifest = plan.volumes.materialise(plan.spec, plan.template, VolumeKind::Copy)?;
    if manifest.kind == VolumeKind::Layer {
        return Err(WardenError::Unsupported { detail: format!("volume {volume}: {LAYER}") });
    }
    set_limits(plan.spec).step("set resource limits")?;
    rustix::process::setsid().map_err(io::Error::from).step("begin a session")?;

    let null = ManuallyDrop::new(File::open("/dev/null").step("open /dev/null")?);
    let (files, template) = (layout.pgdata(&volume), layout.template(&manifest.template));
    let mut paths = inside();
    if let Some(stage) = plan.stage {
        if plan.spec.major < 15 {
            loopback().step("take the loopback interface up")?;
        }
        sys::set_host_name(b"roost").step("set the host name")?;
        // Counted in the namespace alone, so it is the instance's own.
        sys::limit(libc::RLIMIT_NPROC, u64::from(plan.spec.limits.pids)).step("set resource limits")?;
        let scene = Scene {
            installation: plan.installation,
            extensions: &plan.modules.extensions,
            kind: manifest.kind,
            template: &template,
            volume: &layout.volume(&volume),
            owners: None,
            socket: plan.socket,
            configuration: plan.configuration,
            shared_memory_bytes: shared_memory_bytes(&plan.spec.settings, plan.spec.limits.memory_bytes),
        };
        Stage::build(stage, std::slice::from_ref(plan.installation))
            .and_then(|stage| stage.enter(&scene))
            .step("mount the instance's root")?;
    } else {
        // Whatever its processes leave behind stays below the first one, where it can be found.
        let own = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(own)).map_err(io::Error::from).step("take orphans over")?;
        paths = InstancePaths {
            data: files.clone(),
            config: plan.configuration.to_owned(),
            socket: plan.socket.to_owned(),
        };
        std::env::set_current_dir(&files).step("enter the volume")?;
    }
    let (program, mut arguments, environment) =
        command(plan.spec, plan.installation, plan.modules, &paths).step("prepare the command line")?;
    if plan.stage.is_none() {
        // The machine's /dev/shm belongs to everybody, other instances included.
        arguments.extend([c"-c", c"dynamic_shared_memory_type=mmap"].map(CString::from));
    }
    arrange([null.as_fd(), plan.log, plan.log, lock.as_fd()], setup).step("arrange the descriptors")?;

    // From here on no descriptor is open but the log, the lock and the set-up pipe.
    if plan.stage.is_some() {
        sys::close_ways_back().step("drop the capabilities")?;
    }
    sys::drop_capabilities().step("drop the capabilities")?;
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from).step("refuse new privileges")?;
    let territory =
        if plan.stage.is_some() { territory(plan.installation) } else { shared_territory(plan, &paths) };
    landlock::restrict(plan.landlock, &territory).step("restrict by Landlock")?;
    plan.filter.apply().step("filter system calls")?;
    let error = sys::execute(&program, &arguments, &environment);
    Err(refused(&format!("execute {}", plan.installation.bin.join("postgres").display()), &error))
}

/// Where an instance that sees the machine's own files may do what. `/proc` is not among it.
fn shared_territory<'a>(plan: &'a Confinement<'_>, paths: &'a InstancePaths) -> Territory<'a> {
    let mut readable: Vec<&Path> = plan.installation.visible_paths.iter().map(AsRef::as_ref).collect();
    readable.extend([paths.config.as_path(), Path::new("/etc/hosts")]);
    Territory {
        readable,
        writable: vec![&paths.data, &paths.socket],
        devices: mounts::DEVICES.iter().copied().map(Path::new).collect(),
    }
}

/// The user and group of a process, which it can no longer ask for inside a namespace that maps neither.
#[derive(Debug, Clone, Copy)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// Those of the calling process.
    pub(super) fn own() -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { uid: uid.as_raw(), gid: gid.as_raw() }
    }

    /// Shows both as themselves in the user namespace that the calling process was born into.
    fn map(self) -> io::Result<()> {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{0} {0} 1", self.uid))?;
        fs::write("/proc/self/gid_map", format!("{0} {0} 1", self.gid))
    }
}

/// Tries in a process of its own whether an ordinary user may have all that an instance is given here.
pub(super) fn rehearse(stage: &Path, installations: &[Installation]) -> io::Result<()> {
    let Some(installation) = installations.first() else {
        return Err(io::Error::other("there is no installation to try it with"));
    };
    let user = User::own();
    let (outcome, sender) = pipe_with(PipeFlags::CLOEXEC)?;
    let forked = sys::fork(OWN_NAMESPACES, None).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => io::Error::other("the limit user.max_user_namespaces is reached"),
        _ => error,
    })?;
    let (pid, _exit) = match forked {
        Forked::Child => {
            let result = user
                .map()
                .map_err(|error| ("map a user", error))
                .and_then(|()| mounts::keep_to_itself().map_err(|error| ("make mounts private", error)))
                .and_then(|()| {
                    Stage::build(stage, std::slice::from_ref(installation))
                        .and_then(|stage| stage.rehearse(installation.major))
                        .map_err(|error| ("mount a root", error))
                });
            let text = result.err().map(|(step, error)| format!("{step}: {error}")).unwrap_or_default();
            let written = File::from(sender).write_all(text.as_bytes());
            sys::exit_now(i32::from(written.is_err() || !text.is_empty()))
        }
        Forked::Parent(pid, exit) => (pid, exit),
    };
    drop(sender);
    let mut text = String::new();
    File::from(outcome).read_to_string(&mut text)?;
    let pid = rustix::process::Pid::from_raw(pid);
    let status = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty())?;
    match status.and_then(|(_, status)| status.exit_status()) {
        Some(0) => Ok(()),
        _ if text.is_empty() => Err(io::Error::other("the process that tried it ended early")),
        _ => Err(io::Error::other(text)),
    }
}
