//! A database whose transaction ids have grown old is woken and vacuumed by itself, before Postgres takes no more writes.

use std::time::Duration;

use anyhow::{Result, ensure};
use roost_tests::cold::ColdCopy;
use roost_tests::node::Setup;
use roost_tests::{machine, psql};

/// The oldest transaction id of the whole cluster, databases that nobody connects to included.
const AGE: &str = "SELECT max(age(datfrozenxid)) FROM pg_database";

#[test]
fn a_sleeping_database_with_old_transaction_ids_is_woken_vacuumed_and_left_to_sleep() -> Result<()> {
    let mut node = Setup::default().with(["--limits-xid-age", "400000000"]).start()?;
    let young = node.create("young")?;
    psql::run(&young.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")?;
    node.cli(&["stop", "young"])?;
    let copy = ColdCopy::take(&node, &young, &machine::debian_postgres()?, node.scratch())?;
    copy.burn_transactions(500_000_000)?;
    let old = copy.restore(&mut node, "old")?;
    // Its age is read when it goes to sleep.
    node.cli(&["set", "old", "idle-freeze=never", "idle-stop=200ms"])?;
    let before: u64 = psql::run(&old.url, AGE)?.parse()?;
    ensure!(before > 400_000_000, "{before}");
    node.wait_for_state("old", "stopped", Duration::from_secs(30))?;
    let woken = node.wakes("old")?;

    // It looks soon after it began, and every ten minutes.
    node.replace_node()?;
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while node.wakes("old")? == woken || node.state("old")? != "stopped" {
        ensure!(std::time::Instant::now() < end, "it was not woken, or did not sleep again:\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(node.state("young")?, "stopped", "one that is young is left alone");
    assert_eq!(node.wakes("young")?, 1);
    let after: u64 = psql::run(&old.url, AGE)?.parse()?;
    ensure!(after < 300_000_000, "{before} before, {after} after");
    assert_eq!(psql::run(&old.url, "SELECT count(*) FROM kept")?, "1000");
    node.finish()
}
