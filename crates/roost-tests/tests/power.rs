//! A power cut on a real file system: everything that was acknowledged is there, whichever part of Roost wrote it.
//!
//! The simulated disks of the crates cut at any operation. This is one moment, the one after an answer, but nothing is
//! simulated: the node runs on an ext4 that writes only what it is told to sync, and another one on a copy of its device.

use std::fs;

use anyhow::{Context, Result, ensure};
use roost_tests::disk::Disk;
use roost_tests::node::{Database, Node, Setup};
use roost_tests::{machine, psql};
use rustix::process::Signal;

const DISK_BYTES: u64 = 1 << 30;

/// A node's disk as it would be found if the power went now, and proof that it did not go later.
fn cut(node: &Node, disk: &Disk, moment: &str) -> Result<Disk> {
    let unsynced = "never synced ".repeat(1_000);
    fs::write(disk.folder().join(moment), &unsynced)?;
    let processes = node.processes();
    for process in &processes {
        machine::signal(process.pid, Signal::STOP)?;
    }
    let found = disk.after_a_power_cut();
    for process in &processes {
        machine::signal(process.pid, Signal::CONT)?;
    }
    let found = found?;
    let kept = fs::read_to_string(found.folder().join(moment)).unwrap_or_default();
    ensure!(kept != unsynced, "a file that nobody synced is there");
    Ok(found)
}

fn start_on(disk: &Disk) -> Result<Node> {
    Setup::default().with_data(&disk.folder().join("data")).start()
}

/// Starts a node on what is left. Each database has its rows, and answers to the secret that was given out before.
fn check(disk: &Disk, before: &Node, certificate: &[u8], databases: &[&Database]) -> Result<()> {
    let node = start_on(disk)?;
    ensure!(node.list()?.len() == databases.len(), "{:?}", node.list()?);
    for database in databases {
        let url = database.url.replace(before.listen(), node.listen());
        let rows = psql::run(&url, "SELECT count(*) FROM kept")
            .with_context(|| format!("{} after the power cut", database.name))?;
        assert_eq!(rows.trim(), "1000", "{}", database.name);
    }
    assert!(fs::read(node.data().join("tls/server.crt"))? == certificate, "another certificate");
    node.finish()
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_of_a_real_file_system() -> Result<()> {
    let disk = Disk::create_forgetful(DISK_BYTES)?;
    let mut node = start_on(&disk)?;
    let certificate = fs::read(node.data().join("tls/server.crt"))?;

    // A new template, a new volume, a first commit; nothing was stopped or closed.
    let shop = node.create("shop")?;
    psql::run(&shop.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")?;
    let after_commit = cut(&node, &disk, "commit")?;

    // A volume that came as a whole, and a change that only the catalog knows.
    let archive = node.scratch().join("cold.tar").to_string_lossy().into_owned();
    node.cli(&["stop", "shop"])?;
    node.cli(&["dump", "shop", "--cold", "--file", &archive])?;
    node.cli(&["restore", "copy", "--cold", "--file", &archive])?;
    let copy = Database { name: "copy".to_owned(), url: node.new_url("copy")?, ..shop.clone() };
    node.cli(&["rename", "shop", "store"])?;
    let after_restore = cut(&node, &disk, "restore")?;
    node.kill_everything()?;

    check(&after_commit, &node, &certificate, &[&shop]).context("cut after a commit")?;
    check(&after_restore, &node, &certificate, &[&shop, &copy]).context("cut after a restore")
}
