//! The system calls that an instance may make: an allow-list of what Postgres, 14 to 18, and ordinary extensions use.
//!
//! Everything else fails with EPERM rather than ending the process, so that a probe of the C library or of an extension
//! finds a kernel without that feature. Arguments are looked at where the call itself is needed but some of its forms
//! are not: sockets are local streams only, and nothing new is connected to, because an instance only ever answers.
//!
//! The filter is compiled once and applied by each instance as the last thing before it executes Postgres. When it is
//! applied, the kernel runs it for every number there is, to remember what is always allowed. So calls that need no look
//! at their arguments are found by a search tree (`tree`), and only the others by the library's list of rules behind it,
//! which would take longer than all mounts of an instance if it held everything.

mod tree;

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The compiled filter of one flavour of instance.
#[derive(Debug, Clone)]
pub(crate) struct Filter(BpfProgram);

impl Filter {
    /// Compiles the filter for a major version of Postgres. Version 14 is allowed a loopback datagram socket, which its
    /// statistics collector talks to itself through.
    pub(crate) fn compile(major: u16) -> io::Result<Self> {
        let mut rules = Rules::new();
        conditional(&mut rules, major < 15).map_err(io::Error::other)?;
        let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
        let conditional = SeccompFilter::new(rules, denied, SeccompAction::Allow, arch);
        let conditional: BpfProgram = conditional.and_then(TryInto::try_into).map_err(io::Error::other)?;
        // The C library falls back from clone3, whose arguments a filter cannot see, to clone only on this error.
        let missing = [(libc::SYS_clone3, libc::ENOSYS)];
        let allowed = ALLOWED.iter().chain(LEGACY_ALLOWED).copied();
        Ok(Self(tree::before(allowed, &missing, arch, conditional)?))
    }

    /// Confines the calling process, and all that it will start, for good. It must have no-new-privileges set.
    pub(crate) fn apply(&self) -> io::Result<()> {
        seccompiler::apply_filter(&self.0).map_err(io::Error::other)
    }
}

/// A condition on the low 32 bits of an argument.
fn word(
    argument: u8,
    operator: SeccompCmpOp,
    value: i32,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, u64::from(value.cast_unsigned()))
}

fn conditional(rules: &mut Rules, datagrams: bool) -> Result<(), seccompiler::BackendError> {
    let mut allow = |number: i64, conditions: Vec<SeccompCondition>| {
        rules.entry(number).or_default().push(SeccompRule::new(conditions)?);
        Ok::<_, seccompiler::BackendError>(())
    };
    let equal = |argument, value| word(argument, SeccompCmpOp::Eq, value);
    let masked = |argument, mask: i32, value| {
        word(argument, SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned())), value)
    };
    const SOCKET_TYPE: i32 = 0xf;

    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        allow(number, vec![equal(0, libc::AF_UNIX)?, masked(1, SOCKET_TYPE, libc::SOCK_STREAM)?])?;
    }
    // Without an address, as send(2) makes it.
    let no_address = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    allow(libc::SYS_sendto, vec![no_address])?;
    if datagrams {
        for domain in [libc::AF_INET, libc::AF_INET6] {
            allow(libc::SYS_socket, vec![equal(0, domain)?, masked(1, SOCKET_TYPE, libc::SOCK_DGRAM)?])?;
        }
        // An IPv4 or IPv6 address has another length than any local one but those of 14 or 26 bytes of path.
        for length in [size_of::<libc::sockaddr_in>(), size_of::<libc::sockaddr_in6>()] {
            allow(libc::SYS_connect, vec![equal(2, i32::try_from(length).unwrap_or(0))?])?;
        }
    }

    // Processes and threads, but no namespaces.
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    allow(libc::SYS_clone, vec![masked(0, namespaces, 0)?])?;

    for personality in [0, -1] {
        allow(libc::SYS_personality, vec![equal(0, personality)?])?;
    }
    for operation in [
        libc::PR_SET_PDEATHSIG,
        libc::PR_GET_PDEATHSIG,
        libc::PR_GET_DUMPABLE,
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_GET_NO_NEW_PRIVS,
        libc::PR_CAPBSET_READ,
        libc::PR_SET_VMA,
    ] {
        allow(libc::SYS_prctl, vec![equal(0, operation)?])?;
    }
    const CLONE_FILE: i32 = 0x4004_9409; // FICLONE
    const CLONE_RANGE: i32 = 0x4020_940d; // FICLONERANGE
    for request in [
        libc::FIONREAD as i32,
        libc::FIONBIO as i32,
        libc::FIOCLEX as i32,
        libc::FIONCLEX as i32,
        libc::TCGETS as i32,
        CLONE_FILE,
        CLONE_RANGE,
    ] {
        allow(libc::SYS_ioctl, vec![equal(1, request)?])?;
    }
    Ok(())
}

/// Calls that every architecture has, with any arguments.
const ALLOWED: &[i64] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchmodat2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_sync_file_range,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_copy_file_range,
    libc::SYS_getdents64,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_readahead,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_restart_syscall,
    // Sockets that answer.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    // Processes, threads and their signals.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    // The machine and its clocks.
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_gettimeofday,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
];

/// Older forms of calls above, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const LEGACY_ALLOWED: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_creat,
    libc::SYS_getdents,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_pause,
    libc::SYS_alarm,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_arch_prctl,
    libc::SYS_time,
];

/// Older forms of calls above, which only this architecture has.
#[cfg(not(target_arch = "x86_64"))]
const LEGACY_ALLOWED: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_for_every_major() {
        for major in 14..=18 {
            let filter = Filter::compile(major).unwrap();
            assert!(filter.0.len() < 4096, "the kernel's bound on a program");
        }
    }

    #[test]
    fn what_reaches_beyond_an_instance_is_not_allowed() {
        let denied = [
            libc::SYS_connect,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_open_by_handle_at,
            libc::SYS_mknodat,
            libc::SYS_quotactl,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_memfd_create,
            libc::SYS_execveat,
            libc::SYS_sync,
            libc::SYS_setuid,
        ];
        for number in denied {
            assert!(!ALLOWED.contains(&number) && !LEGACY_ALLOWED.contains(&number), "{number}");
        }
    }
}
