//! The life of an instance's first process from its birth to the execution of Postgres: it prepares the volume, mounts
//! what it may see, and gives up, one after the other, everything that it does not need.
//!
//! The order matters. First what needs the host's file system and privileges: groups, the volume's lock, its files,
//! the mounts. Then the root changes, and only the instance's own things have names. Then identity: user, capabilities,
//! no way back. Then Landlock and the system call filter, and at once after it the execution. A failure at any step
//! travels to the warden by the set-up pipe, and the process ends without having run a byte of the tenant's.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use roost_postgres::Installation;
use roost_postgres::module::Modules;
use roost_postgres::settings::{self, InstancePaths};
use roost_postgres::template::TemplateName;
use roost_postgres::volume::VolumeKind;
use rustix::io::fcntl_dupfd_cloexec;

use crate::cgroup::Group;
use crate::failure::{Step, refused};
use crate::isolation::{data_segment_bytes, shared_memory_bytes};
use crate::landlock::{self, Territory};
use crate::mounts::{self, Scene, Stage};
use crate::protocol::{StartSpec, WardenError};
use crate::seccomp::Filter;
use crate::sys;
use crate::volumes::Volumes;

/// The descriptor that holds the volume's lock in every process of an instance.
pub(crate) const LOCK_DESCRIPTOR: i32 = 3;

/// Everything that the first process needs, prepared by the warden.
#[derive(Debug)]
pub(crate) struct Confinement<'a> {
    pub(crate) spec: &'a StartSpec,
    pub(crate) installation: &'a Installation,
    pub(crate) modules: &'a Modules,
    pub(crate) volumes: &'a Volumes,
    pub(crate) template: &'a TemplateName,
    pub(crate) stage: &'a Stage,
    pub(crate) group: &'a Group,
    pub(crate) uid: u32,
    pub(crate) owners: BorrowedFd<'a>,
    pub(crate) socket: &'a Path,
    pub(crate) configuration: &'a Path,
    pub(crate) log: BorrowedFd<'a>,
    /// The network namespace to enter; `None` if the process was born into one of its own.
    pub(crate) network: Option<BorrowedFd<'a>>,
    pub(crate) landlock: i32,
    pub(crate) filter: &'a Filter,
}

/// Runs in the new process.
pub(crate) fn run(plan: &Confinement<'_>, setup: &OwnedFd) -> ! {
    report(setup, |setup| prepare_and_execute(plan, setup))
}

/// Does what ends in the execution of Postgres, and tells the warden what went wrong if it does not.
pub(crate) fn report(
    setup: &OwnedFd,
    prepare_and_execute: impl FnOnce(BorrowedFd<'_>) -> Result<Infallible, WardenError>,
) -> ! {
    // Above the descriptors that the instance keeps, where it stays until the execution closes it.
    let setup = match fcntl_dupfd_cloexec(setup, LOCK_DESCRIPTOR + 1) {
        Ok(high) => high,
        Err(_) => sys::exit_now(70),
    };
    let error = match prepare_and_execute(setup.as_fd()) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    let message = serde_json::to_vec(&error).unwrap_or_default();
    let _ = rustix::io::write(&setup, &message);
    sys::exit_now(71)
}

fn prepare_and_execute(plan: &Confinement<'_>, setup: BorrowedFd<'_>) -> Result<Infallible, WardenError> {
    let volume = plan.spec.volume;
    sys::reset_signals().step("reset the signals")?;
    plan.group.join().step("join the control groups")?;
    sys::unshare(libc::CLONE_NEWCGROUP).step("leave the control group namespace")?;

    let lock = ManuallyDrop::new(plan.volumes.lock(volume)?);
    let manifest = plan.volumes.materialise(plan.spec, plan.template, VolumeKind::Layer)?;
    let template = plan.volumes.layout.template(&manifest.template);
    if manifest.kind == VolumeKind::Layer && !template.is_dir() {
        let detail = format!("its template {} is not there", manifest.template.as_str());
        return Err(WardenError::VolumeDamaged { volume, detail });
    }

    match plan.network {
        Some(network) => sys::enter_namespace(network).step("enter the empty network")?,
        None if plan.spec.major < 15 => loopback().step("take the loopback interface up")?,
        None => {}
    }
    sys::set_host_name(b"roost").step("set the host name")?;
    set_limits(plan.spec).step("set resource limits")?;
    // Its user is its own, so this holds where no controller counts processes.
    sys::limit(libc::RLIMIT_NPROC, u64::from(plan.spec.limits.pids)).step("set resource limits")?;

    let null = ManuallyDrop::new(File::open("/dev/null").step("open /dev/null")?);
    let scene = Scene {
        installation: plan.installation,
        extensions: &plan.modules.extensions,
        kind: manifest.kind,
        template: &template,
        volume: &plan.volumes.layout.volume(&volume),
        owners: Some(plan.owners),
        socket: plan.socket,
        configuration: plan.configuration,
        shared_memory_bytes: shared_memory_bytes(&plan.spec.settings, plan.spec.limits.memory_bytes),
    };
    plan.stage.enter(&scene).map_err(|error| {
        if mounts::is_in_use(&error) {
            WardenError::VolumeInUse { volume }
        } else {
            refused("mount the instance's root", &error)
        }
    })?;

    rustix::process::setsid().map_err(io::Error::from).step("begin a session")?;
    let (program, arguments, environment) =
        command(plan.spec, plan.installation, plan.modules, &inside()).step("prepare the command line")?;
    arrange([null.as_fd(), plan.log, plan.log, lock.as_fd()], setup).step("arrange the descriptors")?;

    // From here on no descriptor is open but the log, the lock and the set-up pipe.
    sys::close_ways_back().step("drop the capabilities")?;
    sys::become_user(plan.uid, plan.uid).step("become the instance's user")?;
    rustix::thread::set_no_new_privs(true).map_err(io::Error::from).step("refuse new privileges")?;
    landlock::restrict(plan.landlock, &territory(plan.installation)).step("restrict by Landlock")?;
    plan.filter.apply().step("filter system calls")?;
    let error = sys::execute(&program, &arguments, &environment);
    Err(refused(&format!("execute {}", plan.installation.bin.join("postgres").display()), &error))
}

pub(crate) fn loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(socket.as_fd())
}

/// Sets the limits that each process of an instance has for itself.
pub(crate) fn set_limits(spec: &StartSpec) -> io::Result<()> {
    for (resource, value) in [
        (libc::RLIMIT_NOFILE, 8192),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_DATA, data_segment_bytes(spec.limits.memory_bytes)),
        (libc::RLIMIT_STACK, 8 << 20),
        (libc::RLIMIT_MEMLOCK, 64 << 10),
        (libc::RLIMIT_MSGQUEUE, 0),
    ] {
        match sys::limit(resource, value) {
            // Without privileges a limit cannot be raised; the one that holds already is lower.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    Ok(())
}

/// Where an instance with a root of its own finds what is its own.
pub(crate) fn inside() -> InstancePaths {
    InstancePaths {
        data: mounts::PGDATA.into(),
        config: mounts::CONFIGURATION.into(),
        socket: mounts::SOCKET.into(),
    }
}

/// The program, its arguments and its environment, as the instance sees them.
pub(crate) fn command(
    spec: &StartSpec,
    installation: &Installation,
    modules: &Modules,
    paths: &InstancePaths,
) -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
    let program = mounts::c_path(&installation.bin.join("postgres"))?;
    let mut arguments = vec![program.clone()];
    for argument in settings::arguments(spec.major, paths, &spec.settings) {
        arguments.push(CString::new(argument.into_vec()).map_err(io::Error::other)?);
    }
    let preload = installation.preloading(&modules.preload);
    if !preload.is_empty() {
        // Of two that say the same, Postgres believes the later one.
        arguments.push(c"-c".into());
        let argument = format!("shared_preload_libraries={preload}");
        arguments.push(CString::new(argument).map_err(io::Error::other)?);
    }
    // Postgres raises the score of every process but the postmaster, so that want of memory costs a backend before it
    // costs them all.
    let environment = [
        c"LANG=C.UTF-8",
        c"HOME=/tmp",
        c"PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj",
        c"PG_OOM_ADJUST_VALUE=300",
    ];
    Ok((program, arguments, environment.map(CString::from).into()))
}

/// Where an instance with a root of its own may do what.
pub(crate) fn territory(installation: &Installation) -> Territory<'_> {
    let mut readable: Vec<&Path> = installation.visible_paths.iter().map(PathBuf::as_path).collect();
    readable.extend(["/etc", "/proc"].map(Path::new));
    Territory {
        readable,
        writable: [mounts::PGDATA, mounts::SOCKET, mounts::SHARED_MEMORY, mounts::SCRATCH]
            .map(Path::new)
            .into(),
        devices: mounts::DEVICES.iter().copied().chain(["/proc"]).map(Path::new).collect(),
    }
}

/// Puts standard input, output and error, and the lock, at 0 to 3, and closes everything else but the set-up pipe.
pub(crate) fn arrange(descriptors: [BorrowedFd<'_>; 4], setup: BorrowedFd<'_>) -> io::Result<()> {
    // First above the places that they go to, so that none is overwritten before it is moved.
    let mut high = Vec::new();
    for descriptor in descriptors {
        high.push(ManuallyDrop::new(fcntl_dupfd_cloexec(descriptor, LOCK_DESCRIPTOR + 1)?));
    }
    for (descriptor, to) in high.iter().zip(0..) {
        sys::duplicate_onto(descriptor.as_fd(), to)?;
    }
    // Whoever owns what is closed here never comes to close it: this process executes Postgres, or exits.
    sys::close_all_but(LOCK_DESCRIPTOR + 1, setup)
}
