//! The system calls that no library wraps, each as a safe function.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// `CLONE_INTO_CGROUP`, which does not fit the type that the C library's flags have.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a fork a process is.
pub(crate) enum Forked {
    /// The new process.
    Child,
    /// The old process: the child's process id here, and its pidfd.
    Parent(i32, OwnedFd),
}

/// Forks with `clone3`: `flags` are the namespaces that the child gets anew, `cgroup` is the version 2 group that it
/// is born into. The child's exit is told by SIGCHLD and by the pidfd, which is close-on-exec.
///
/// Only for a process with one thread: the child goes on with ordinary code, which may allocate and take locks.
pub(crate) fn fork(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` consists of integers, for which zero is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    arguments.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: the arguments live across the call, and without CLONE_VM or a stack of its own the child runs on a copy
    // of this address space, as after fork(2). glibc's handlers for fork are skipped; with one thread there is no lock
    // that they would have to take.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent(i32::try_from(pid).unwrap_or(-1), pidfd))
        }
    }
}

/// Does `work` while a process, whose id it is given, lives in a new user namespace and waits for its end.
///
/// That process runs in this one's memory, because a copy of it at each start of an instance costs more than all of the
/// instance's mounts. It ends with this process, however that ends.
pub(crate) fn with_user_namespace<T>(work: impl FnOnce(i32) -> T) -> io::Result<T> {
    let (hold, release) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let stack = vec![0; WAITING_STACK_BYTES];
    let mut waiting = ManuallyDrop::new(Box::new(Waiting { hold, release: release.as_raw_fd(), stack }));
    let top = waiting.stack.as_mut_ptr_range().end.map_addr(|address| address & !15);
    let argument = std::ptr::from_mut(&mut **waiting).cast();
    // SAFETY: the stack and the argument are in `waiting`, which is leaked unless the process was seen to end. It has a
    // descriptor table of its own, allocates nothing, and touches neither errno nor anything else that is thread-local,
    // which it would share with this thread.
    let pid =
        unsafe { libc::clone(wait_for_release, top.cast(), libc::CLONE_VM | libc::CLONE_NEWUSER, argument) };
    if pid == -1 {
        let error = io::Error::last_os_error();
        drop(ManuallyDrop::into_inner(waiting));
        return Err(error);
    }
    let result = work(pid);
    drop(release);
    // It tells its end by no signal, so it has to be waited for as a clone.
    // SAFETY: no status is wanted.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == -1 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    drop(ManuallyDrop::into_inner(waiting));
    Ok(result)
}

/// Two system calls are made on it, and that takes a few hundred bytes, or more where nothing is inlined.
const WAITING_STACK_BYTES: usize = 32 << 10;

/// What a process that waits uses until it is gone.
struct Waiting {
    hold: OwnedFd,
    release: RawFd,
    stack: Vec<u8>,
}

extern "C" fn wait_for_release(waiting: *mut libc::c_void) -> libc::c_int {
    // SAFETY: what `with_user_namespace` passed, which outlives this process and is not changed meanwhile.
    let waiting = unsafe { &*waiting.cast::<Waiting>() };
    // SAFETY: this is the number of this process's own copy, which nothing else in it uses.
    unsafe { rustix::io::close(waiting.release) };
    while rustix::io::read(&waiting.hold, &mut [0_u8; 1]) == Err(rustix::io::Errno::INTR) {}
    0
}

/// Ends this process at once, without running anything that its parent registered for its own exit.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Shows the owners of the detached mount `tree` through the map of a user namespace.
pub(crate) fn map_owners(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().cast_unsigned()),
    };
    set_attributes(tree, &attributes, false)
}

/// Sets mount attributes (`MOUNT_ATTR_*`) of the mount at `tree`, and of those below it if `recursive`.
pub(crate) fn restrict_mount(tree: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(tree, &attributes, recursive)
}

fn set_attributes(tree: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the attributes live across the call with their size beside them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    check(result).map(drop)
}

/// Makes `path` the root of this mount namespace and lets go of the old one.
pub(crate) fn pivot_into(path: &CStr) -> io::Result<()> {
    // SAFETY: all paths are C strings that live across the calls.
    unsafe {
        check(libc::chdir(path.as_ptr()).into())?;
        // With the same directory twice, the old root comes to lie over the new one, and can be taken off it.
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        check(libc::chdir(c"/".as_ptr()).into())?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on, except `kept`. For a process that executes another program or exits next:
/// values that own what is closed here must not be dropped any more.
pub(crate) fn close_all_but(first: RawFd, kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd();
    // SAFETY: plain calls with integers. That owners of these descriptors are never dropped is the caller's promise,
    // which is kept where it matters: a second close would hit nothing, because the process opens nothing any more.
    unsafe {
        if kept > first {
            check(libc::syscall(libc::SYS_close_range, first, kept - 1, 0))?;
        }
        let after = first.max(kept.saturating_add(1));
        check(libc::syscall(libc::SYS_close_range, after, u32::MAX, 0)).map(drop)
    }
}

/// Makes `from` also the descriptor `to`, which stays open over an exec.
pub(crate) fn duplicate_onto(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    let from = from.as_raw_fd();
    // SAFETY: plain calls on descriptors; who owns what is at `to` is the caller's business, which is about to exec.
    unsafe {
        if from == to {
            check(libc::fcntl(from, libc::F_SETFD, 0).into()).map(drop)
        } else {
            check(libc::dup2(from, to).into()).map(drop)
        }
    }
}

/// Sets a resource limit, soft and hard.
pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the limit lives across the call.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }.into()).map(drop)
}

/// The soft and hard limit of a resource.
pub(crate) fn limits(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives across the call.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) }.into())?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Becomes another user and group with no further groups and no capabilities, for good: real, effective and saved.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain calls; the process has one thread, so the raw system calls change all of it.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    drop_capabilities()
}

/// Lets go of every capability that this process has.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    let none = rustix::thread::CapabilitySet::empty();
    let nothing = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, nothing)?;
    Ok(())
}

/// Lets every signal through, with every handler at its default.
pub(crate) fn reset_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is a valid disposition for every signal that may be set, and the set is initialised first.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            // SIGKILL, SIGSTOP and the ones that the C library keeps refuse, and need no change.
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut none).into())?;
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()).into())?;
    }
    Ok(())
}

/// A descriptor that tells of `signals`, which are blocked from now on.
pub(crate) fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the descriptor is new and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        check(libc::sigemptyset(&raw mut set).into())?;
        for &signal in signals {
            check(libc::sigaddset(&raw mut set, signal).into())?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let descriptor = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        check(descriptor.into())?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// The next signal of [`signal_descriptor`], if there is one.
pub(crate) fn next_signal(descriptor: BorrowedFd<'_>) -> Option<i32> {
    let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
    let count = rustix::io::read(descriptor, &mut information).ok()?;
    let number = information.get(..count)?.first_chunk::<4>()?;
    i32::try_from(u32::from_ne_bytes(*number)).ok()
}

/// Executes a program in place of this one; returns only if that fails.
pub(crate) fn execute(program: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both are arrays of C strings that end with a null pointer and live across the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Advises the kernel to push the memory of a process out; returns once it did what it could.
pub(crate) fn page_out(pidfd: BorrowedFd<'_>, ranges: &[(u64, u64)]) -> io::Result<()> {
    // The kernel takes at most IOV_MAX ranges at once, whose addresses are another process's and never followed here.
    for ranges in ranges.chunks(1024) {
        let vectors: Vec<libc::iovec> = ranges
            .iter()
            .map(|&(start, length)| libc::iovec {
                iov_base: std::ptr::without_provenance_mut(usize::try_from(start).unwrap_or(0)),
                iov_len: usize::try_from(length).unwrap_or(0),
            })
            .collect();
        // SAFETY: the vectors live across the call; the kernel changes no memory of this process.
        let result = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                libc::MADV_PAGEOUT,
                0,
            )
        };
        check(result)?;
    }
    Ok(())
}

/// Sets the name that a process sees as the machine's; for a process with a UTS namespace of its own.
pub(crate) fn set_host_name(name: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and length describe `name`.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// Takes this network namespace's loopback interface up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `ifreq` consists of integers and bytes, for which zero is a value; the name fits with its final zero.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(1);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request).into())?;
    }
    Ok(())
}

/// Closes every way back to capabilities: nothing is left in the bounding and ambient sets, and user 0 is nobody
/// special. What is permitted now stays until [`become_user`].
pub(crate) fn close_ways_back() -> io::Result<()> {
    // User 0 is nobody special, capabilities are neither kept over a change of user nor raised again, all for good.
    const LOCKED: libc::c_int = libc::SECBIT_NOROOT
        | libc::SECBIT_NOROOT_LOCKED
        | libc::SECBIT_NO_SETUID_FIXUP_LOCKED
        | libc::SECBIT_KEEP_CAPS_LOCKED
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE
        | libc::SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;
    // SAFETY: plain calls with integers.
    unsafe {
        for capability in 0..64 {
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == -1 {
                // The first number past the kernel's last capability is invalid; anything else is a failure.
                let error = io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                    break;
                }
                return Err(error);
            }
        }
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        check(libc::prctl(libc::PR_SET_SECUREBITS, LOCKED, 0, 0, 0).into())?;
    }
    Ok(())
}

fn check(result: i64) -> io::Result<i64> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A descriptor that names a namespace of this process, such as `mnt` or `net`.
pub(crate) fn own_namespace(kind: &str) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/self/ns/{kind}"))?.into())
}

/// Enters the namespace that a descriptor names.
pub(crate) fn enter_namespace(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: a plain call on a descriptor; any kind of namespace may be entered, which changes no memory.
    check(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), 0) }.into()).map(drop)
}

/// Leaves shared namespaces (`CLONE_NEW*`) for new ones of this process's own.
pub(crate) fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: a plain call; only namespace flags are passed, none of which changes how descriptors or memory work.
    check(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Forks a plain worker: nothing new but the process, whose exit is told by SIGCHLD. `None` in the child.
///
/// Only for a process with one thread, as [`fork`].
pub(crate) fn fork_worker() -> io::Result<Option<i32>> {
    // SAFETY: with one thread, the child may do whatever the parent may.
    match check(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => Ok(Some(i32::try_from(pid).unwrap_or(-1))),
    }
}
