//! What goes wrong during a soak, at random moments.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::Soak;
use crate::machine;
use crate::random::Random;

/// The node's resident memory may never be more than this.
const NODE_MEMORY_BYTES: u64 = 600 << 20;
/// The reserve of free space that the node keeps, by its documentation: 2 GiB or 5 % of the file system.
const RESERVE_BYTES: u64 = 2 << 30;

/// Makes faults until the soak is over. Fails when the node does not come back.
pub(super) async fn run(soak: Arc<Soak>, mut random: Random) -> Result<()> {
    while !soak.is_over() {
        soak.sleep(Duration::from_secs(5) + random.within(Duration::from_secs(25))).await;
        if soak.is_over() {
            break;
        }
        let kind = one(&soak, &mut random).await?;
        soak.tally.fault(kind);
        let node = soak.node.lock().await;
        if let Ok(pid) = node.node_pid() {
            let resident = machine::resident_bytes(pid).unwrap_or(0);
            ensure!(resident < NODE_MEMORY_BYTES, "the node has {} MiB resident", resident >> 20);
        }
    }
    let mut node = soak.node.lock().await;
    tokio::task::block_in_place(|| node.revive()).context("the last revival")
}

async fn one(soak: &Soak, random: &mut Random) -> Result<&'static str> {
    match random.below(9) {
        0 => {
            let mut node = soak.node.lock().await;
            tokio::task::block_in_place(|| node.replace_node()).context("replacing the node")?;
            Ok("node replaced")
        }
        1 => {
            let mut node = soak.node.lock().await;
            node.kill_node()?;
            tokio::time::sleep(random.within(Duration::from_secs(1))).await;
            tokio::task::block_in_place(|| node.revive()).context("after a kill of the node")?;
            Ok("node killed")
        }
        2 => {
            let mut node = soak.node.lock().await;
            node.kill_warden()?;
            tokio::time::sleep(random.within(Duration::from_secs(1))).await;
            tokio::task::block_in_place(|| node.revive()).context("after a kill of the warden")?;
            Ok("warden killed")
        }
        3..=5 => {
            let node = soak.node.lock().await;
            for _ in 0..=random.below(5) {
                node.kill_postmaster(&random.pick(&soak.tenants).database)?;
            }
            Ok("postmasters killed")
        }
        6 => {
            let node = soak.node.lock().await;
            let database = &random.pick(&soak.tenants).database;
            let processes = node.instance_processes(database);
            if !processes.is_empty() {
                machine::signal(random.pick(&processes).pid, Signal::KILL)?;
            }
            Ok("a server process killed")
        }
        7 => {
            let mut node = soak.node.lock().await;
            node.kill_everything()?;
            tokio::task::block_in_place(|| node.revive()).context("after a kill of everything")?;
            Ok("everything killed")
        }
        _ => {
            let left = RESERVE_BYTES.max(soak.scale.disk_bytes / 20) - random.below(1 << 30);
            let ballast = soak.disk.fill(left)?;
            soak.sleep(Duration::from_secs(10) + random.within(Duration::from_secs(20))).await;
            drop(ballast);
            Ok("disk filled")
        }
    }
}
