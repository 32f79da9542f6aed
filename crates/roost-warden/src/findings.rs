//! What this machine enforces, each with a sentence for an operator.

use std::collections::BTreeMap;
use std::fs;

use roost_postgres::Installation;
use roost_postgres::module::{ModuleName, Modules};

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
    findings.extend(limits(groups));
    findings.extend(control(groups));
    findings.extend(machine());
    findings
}

/// What the kind `process` enforces for an ordinary user. `barred` says why there are no user namespaces.
pub(crate) fn unprivileged(groups: &Groups, landlock: i32, barred: Option<&str>) -> Vec<Finding> {
    let mut findings = vec![finding(
        "privileges",
        Standing::Missing,
        "the node was not started by root, so instances have what an ordinary user can give them",
    )];
    findings.extend(match barred {
        None => [
            finding(
                "namespaces",
                Standing::Enforced,
                "every instance has its own user, mount, process, IPC, host name and control group namespaces",
            ),
            finding("network", Standing::Enforced, "every instance has an empty network of its own"),
        ],
        Some(reason) => [
            finding(
                "namespaces",
                Standing::Missing,
                format!(
                    "this user may not make user namespaces ({reason}), so instances see the machine's files and \
                     processes, as far as Landlock does not hide them"
                ),
            ),
            finding(
                "network",
                Standing::Partial,
                "instances are in the machine's network; the filter lets them have local sockets only",
            ),
        ],
    });
    findings.extend([
        finding(
            "users",
            Standing::Missing,
            "every instance runs as the node's own user; only the filter, which denies `connect`, keeps an instance \
             from the sockets of others",
        ),
        finding(
            "volumes",
            Standing::Partial,
            "a volume is a whole copy of its template, sharing blocks where the file system can; only root can mount \
             a layer over one",
        ),
        finding(
            "seccomp",
            Standing::Enforced,
            "system calls are filtered by an allow-list, and nothing is ever connected to",
        ),
        landlock_finding(landlock),
    ]);
    if groups.is_unified() {
        findings.extend(limits(groups));
    } else {
        findings.push(finding(
            "memory",
            Standing::Partial,
            "no control group was delegated to the node (a systemd service with Delegate=yes has one), so each process \
             has a limit on its data, and an instance as a whole has none",
        ));
        findings.push(finding(
            "cpu",
            Standing::Missing,
            "no control group was delegated to the node, so processor time is not limited",
        ));
        findings.push(match barred {
            None => finding(
                "pids",
                Standing::Partial,
                "no control group was delegated to the node; a resource limit in the instance's user namespace takes \
                 its place",
            ),
            Some(_) => finding(
                "pids",
                Standing::Missing,
                "without a delegated control group or a user namespace, the number of processes is not limited",
            ),
        });
    }
    findings.extend(control(groups));
    if barred.is_some() && !groups.is_unified() {
        findings.push(finding(
            "stragglers",
            Standing::Partial,
            "without a process namespace, a process that outlives its Postgres is known by the volume's lock, which it \
             could let go of",
        ));
    }
    findings.extend(machine());
    findings
}

/// The limits that control groups enforce.
fn limits(groups: &Groups) -> Vec<Finding> {
    let mut findings = Vec::new();
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
    findings
}

/// How an instance's processes are stopped, ended, and pushed out of memory.
fn control(groups: &Groups) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match groups.freezer() {
        Freezer::Cgroup => finding("freezer", Standing::Enforced, "instances are frozen by cgroup.freeze"),
        Freezer::Signal => finding(
            "freezer",
            Standing::Partial,
            "there is no unified control group for it, so instances are frozen by SIGSTOP, process by process",
        ),
    });
    findings.push(if groups.is_unified() {
        finding("kill", Standing::Enforced, "instances are killed as one, frozen or not, by cgroup.kill")
    } else {
        finding(
            "kill",
            Standing::Partial,
            "instances are killed by their first process, which ends all others where it is the first of its own process \
             namespace",
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
            "no memory controller, so memory of frozen instances is pushed out process by process, where the kernel \
             lets the node",
        ),
    });
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

/// Why listed extensions are not trusted where an instance has no root of its own.
pub(crate) const NO_EXTENSIONS: &str = "without mounts of its own, an instance sees the machine's control files, which do not trust these extensions";

/// What became of what the operator adds.
pub(crate) fn modules(
    modules: &Modules,
    installations: &BTreeMap<u16, Installation>,
    has_mounts: bool,
) -> impl Iterator<Item = Finding> {
    let extensions = extensions(&modules.extensions, installations, has_mounts);
    extensions.into_iter().chain(preload(&modules.preload, installations))
}

/// What became of the libraries to preload; nothing if there are none.
fn preload(listed: &[ModuleName], installations: &BTreeMap<u16, Installation>) -> Option<Finding> {
    if listed.is_empty() {
        return None;
    }
    let mut lacks = Vec::new();
    for (major, installation) in installations {
        let absent = listed.iter().filter(|name| !installation.has_library(name));
        lacks.extend(absent.map(|name| format!("Postgres {major} has no {name}")));
    }
    let all = listed.iter().map(ModuleName::as_str).collect::<Vec<_>>().join(", ");
    Some(if lacks.is_empty() {
        finding("preload", Standing::Enforced, format!("every database is started with {all}"))
    } else {
        let lacks = lacks.join(", ");
        finding("preload", Standing::Partial, format!("{lacks}: its databases are started without"))
    })
}

/// What became of the operator's list of extensions; nothing if there is none.
fn extensions(
    listed: &[ModuleName],
    installations: &BTreeMap<u16, Installation>,
    has_mounts: bool,
) -> Option<Finding> {
    let is_installed =
        |name: &&ModuleName| installations.values().any(|installation| installation.has_extension(name));
    let (there, absent): (Vec<_>, Vec<_>) = listed.iter().partition(is_installed);
    let join = |names: &[&ModuleName]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let (standing, detail) = match (has_mounts, absent.is_empty()) {
        _ if listed.is_empty() => return None,
        (false, _) => (Standing::Missing, NO_EXTENSIONS.to_owned()),
        (true, true) => {
            (Standing::Enforced, format!("owners may install {}, beside what Postgres trusts", join(&there)))
        }
        (true, false) => (
            Standing::Partial,
            format!("postgres.extensions names {}, which no Postgres of this machine has", join(&absent)),
        ),
    };
    Some(finding("extensions", standing, detail))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_extensions_without_effect_is_no_secret() {
        let listed: Vec<ModuleName> = vec!["nowhere".parse().unwrap()];
        let none = BTreeMap::new();
        assert_eq!(extensions(&[], &none, false), None);
        let standing = |has_mounts| extensions(&listed, &none, has_mounts).map(|finding| finding.standing);
        assert_eq!(standing(false), Some(Standing::Missing));
        assert_eq!(standing(true), Some(Standing::Partial));
        assert_eq!(preload(&[], &none), None);
        assert_eq!(preload(&listed, &none).map(|finding| finding.standing), Some(Standing::Enforced));
    }
}
