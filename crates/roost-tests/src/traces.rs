//! What a node leaves on the machine outside its folders: processes, mounts, cgroups; and their removal.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::machine::{self, Process};

/// Where nodes' folders are made: short, for socket paths may have 108 bytes.
pub(crate) const FOLDERS: &str = "/tmp";
/// What their names begin with. Each holds `owner`, the process id of the test.
pub(crate) const FOLDER_PREFIX: &str = "rt-";

/// The ids of databases that have files under `data`.
pub(crate) fn database_folders(data: &Path) -> Vec<String> {
    let shelves = fs::read_dir(data.join("databases")).into_iter().flatten().flatten();
    shelves
        .flat_map(|shelf| fs::read_dir(shelf.path()).into_iter().flatten().flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Whether a process is in a cgroup of the database with this id, or names it in its arguments.
pub(crate) fn belongs(process: &Process, id: &str) -> bool {
    process.arguments.contains(id)
        || fs::read_to_string(format!("/proc/{}/cgroup", process.pid))
            .is_ok_and(|cgroups| cgroups.contains(id))
}

pub(crate) fn processes_of(folder: &Path, data: &Path, ids: &[String]) -> Vec<Process> {
    let folders = [folder, data].map(|path| path.to_string_lossy().into_owned());
    machine::processes(|process, cgroups| {
        ids.iter().any(|id| cgroups.contains(id.as_str()))
            || (process.name.starts_with("roost") || process.arguments.contains("postgres"))
                && (folders.iter().any(|folder| mentions(&process.arguments, folder))
                    || ids.iter().any(|id| process.arguments.contains(id.as_str())))
    })
}

/// Whether one of the arguments is `folder` or inside it.
fn mentions(arguments: &str, folder: &str) -> bool {
    arguments
        .match_indices(folder)
        .any(|(at, _)| matches!(arguments.as_bytes().get(at + folder.len()), None | Some(b'/' | b' ')))
}

pub(crate) fn mounts(folder: &Path, data: &Path) -> Vec<PathBuf> {
    // DATA may be a mount itself, which is not the node's.
    let mut found = machine::mounts_with(&format!("{}/", folder.display()));
    found.extend(machine::mounts_with(&format!("{}/", data.display())));
    found.retain(|path| path != data);
    found
}

/// Ends every process of a node, and removes its mounts, cgroups and folder, as far as that goes.
pub(crate) fn clean_up(folder: &Path, data: &Path, ids: &[String]) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let cgroups = machine::cgroups_of(ids);
        for cgroup in &cgroups {
            // Which of these files exists depends on the cgroup version; a frozen process cannot be killed in v1.
            let _ = fs::write(cgroup.join("freezer.state"), "THAWED");
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
        }
        let processes = processes_of(folder, data, ids);
        for process in &processes {
            let _ = machine::signal(process.pid, Signal::KILL);
        }
        let points = mounts(folder, data);
        for point in &points {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        for cgroup in &cgroups {
            let _ = fs::remove_dir(cgroup);
        }
        if (processes.is_empty() && cgroups.is_empty() && points.is_empty()) || Instant::now() > end {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    // What was killed in this moment may still have written a file.
    for _ in 0..50 {
        if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what tests left that were killed before they could.
pub(crate) fn sweep() {
    for entry in fs::read_dir(FOLDERS).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX) {
            continue;
        }
        let owner = fs::read_to_string(folder.join("owner")).ok().and_then(|text| text.parse().ok());
        if owner.is_some_and(|pid| machine::process(pid).is_none()) {
            let data = folder.join("d");
            clean_up(&folder, &data, &database_folders(&data));
        }
    }
}
