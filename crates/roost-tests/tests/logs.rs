//! A tenant who logs without end does not fill the disk, and the log that stays is the latest.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use roost_tests::node::Node;
use roost_tests::psql;

/// What a log and its predecessor may take together: each the limit, and what is written between two looks.
const BOUND: u64 = 4 * (4 << 20);

#[test]
fn a_database_that_logs_without_end_keeps_a_bounded_log() -> Result<()> {
    let mut node = Node::new()?;
    let chatty = node.create("chatty")?;
    let shout = "DO $$ BEGIN FOR i IN 1..4000 LOOP RAISE WARNING '%', repeat('x', 1000); END LOOP; END $$";
    let logs = node.data().join("databases").join(&chatty.id[3..5]).join(&chatty.id).join("log");
    let mut written = 0;
    while written < BOUND + (8 << 20) {
        psql::run(&chatty.url, shout)?;
        written += 4000 * 1000;
        std::thread::sleep(Duration::from_millis(300));
    }
    psql::run(&chatty.url, "DO $$ BEGIN RAISE WARNING 'the very last word'; END $$")?;
    let size = || -> Result<u64> {
        std::fs::read_dir(&logs)?.try_fold(0, |total, entry| Ok(total + entry?.metadata()?.len()))
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while size()? > BOUND && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(size()? <= BOUND, "{} bytes of log after {written} were written", size()?);
    let tail = node.cli(&["logs", "chatty", "-n", "20"])?;
    ensure!(tail.contains("the very last word"), "the latest lines are not there: {tail}");
    node.finish()
}
