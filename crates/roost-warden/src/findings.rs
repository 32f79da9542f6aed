//! What this machine enforces, each with a sentence for an operator.

use std::fs;

use crate::cgroup::Groups;
use crate::protocol::{Finding, Freezer, Reclaim, Standing};

fn finding(name: &str, standing: Standing, detail: impl Into<String>) -> Finding {
    Finding { name: name.to_owned(), standing, detail: detail.into() }
}

/// What the kind `process` enforces with the machine's privileges. That it was prepared at all proves namespaces,
/// overlays, mapped mounts and the filter.
pub(crate) fn privileged(groups: &Groups, landlock: i32) -> Vec<Finding> {
    let mut findings = vec![
        finding(
            "namespaces",
            Standing::Enforced,
            "every instance has its own mount, process, IPC, host name and control group namespaces",
        ),
        finding(
            "network",
            Standing::Enforced,
            if landlock >= 6 {
                "instances share one empty network, in which Landlock keeps their abstract sockets apart"
            } else {
                "every instance has an empty network of its own"
            },
        ),
        finding(
            "users",
            Standing::Enforced,
            "every instance runs as a user of its own, and its volume is mapped to it",
        ),
        finding(
            "volumes",
            Standing::Enforced,
            "a volume is an overlay over its template, mounted with an owner map, noexec, nosuid and nodev",
        ),
        finding(
            "seccomp",
            Standing::Enforced,
            "system calls are filtered by an allow-list, and nothing is ever connected to",
        ),
        landlock_finding(landlock),
    ];
    for controller in ["memory", "cpu", "pids"] {
        findings.push(match groups.enforced_by(controller) {
            Some(by) => finding(controller, Standing::Enforced, format!("limited by control groups, {by}")),
            None if controller == "pids" => finding(
                controller,
                Standing::Partial,
                "no controller; a resource limit on the instance's user takes its place",
            ),
            None => finding(
                controller,
                Standing::Missing,
                format!("no control group hierarchy here has the controller `{controller}`"),
            ),
        });
    }
    findings.push(match groups.freezer() {
        Freezer::Cgroup => finding("freezer", Standing::Enforced, "instances are frozen by cgroup.freeze"),
        Freezer::Signal => finding(
            "freezer",
            Standing::Partial,
            "no unified control group hierarchy is mounted, so instances are frozen by SIGSTOP, process by process",
        ),
    });
    findings.push(if groups.is_unified() {
        finding("kill", Standing::Enforced, "instances are killed as one, frozen or not, by cgroup.kill")
    } else {
        finding(
            "kill",
            Standing::Partial,
            "instances are killed by their first process, which ends all others",
        )
    });
    findings.push(match groups.reclaim() {
        Reclaim::MemoryReclaim => finding(
            "reclaim",
            Standing::Enforced,
            "memory of frozen instances is pushed out by memory.reclaim",
        ),
        Reclaim::ForceEmpty => finding(
            "reclaim",
            Standing::Enforced,
            "memory of frozen instances is pushed out by memory.force_empty",
        ),
        Reclaim::Madvise => finding(
            "reclaim",
            Standing::Partial,
            "no memory controller, so memory of frozen instances is pushed out process by process",
        ),
    });
    findings.extend(machine());
    findings
}

fn landlock_finding(version: i32) -> Finding {
    match version {
        6.. => {
            finding("landlock", Standing::Enforced, "files, TCP, abstract sockets and signals are restricted")
        }
        4.. => {
            finding("landlock", Standing::Partial, "files and TCP are restricted; this kernel has no scopes")
        }
        2.. => {
            finding("landlock", Standing::Partial, "files are restricted; this kernel restricts nothing else")
        }
        _ => finding("landlock", Standing::Missing, "this kernel has no Landlock, or too old a one"),
    }
}

/// What does not depend on the kind of isolation.
pub(crate) fn machine() -> Vec<Finding> {
    let swap = memory_information("SwapTotal");
    vec![
        finding(
            "storage",
            Standing::Partial,
            "no project quota; the node measures volumes and makes those over their limit read-only",
        ),
        if swap > 0 {
            finding("swap", Standing::Enforced, format!("{} MiB to push frozen memory out to", swap >> 20))
        } else {
            finding(
                "swap",
                Standing::Missing,
                "there is no swap, so a frozen database stays in memory; zram helps",
            )
        },
    ]
}

/// A line of `/proc/meminfo`, in bytes; 0 if it is not there.
pub(crate) fn memory_information(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text.lines().find_map(|line| {
        line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    kibibytes.unwrap_or(0) * 1024
}

/// A number from below `/proc/sys`; 0 if it is not there.
pub(crate) fn kernel_setting(path: &str) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
