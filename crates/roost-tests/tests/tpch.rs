//! The main job on real data: TPC-H in a small database that sleeps between the queries, against a Postgres of the same
//! version that does not sleep. `ROOST_TPCH_SCALE` sets the scale (0.01 unless told otherwise; `make soak` runs 1).

use std::time::Instant;

use anyhow::{Result, ensure};
use roost_tests::node::Node;
use roost_tests::plain::PlainPostgres;
use roost_tests::{machine, psql, tpch};

#[test]
fn tpch_answers_are_those_of_a_plain_postgres_with_sleep_between_the_queries() -> Result<()> {
    let scale = std::env::var("ROOST_TPCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(0.01);
    let mut node = Node::new()?;
    let installation = machine::debian_postgres()?;
    let data = node.scratch().join("tpch");
    tpch::generate(&data, scale)?;

    let plain = PlainPostgres::create(&installation, &node.scratch().join("plain"), &[])?;
    tpch::load(&plain.connection("postgres"), &data, || Ok(()))?;
    psql::run(&plain.connection("postgres"), "VACUUM ANALYZE")?;

    let roost = node.create_major("tpch", installation.major)?;
    node.cli(&["set", "tpch", "memory=256MiB", "idle-freeze=never", "idle-stop=never"])?;
    let mut naps = 0;
    tpch::load(&roost.url, &data, || {
        naps += 1;
        node.cli(&[if naps % 2 == 0 { "stop" } else { "freeze" }, "tpch"]).map(drop)
    })?;

    for number in 1..=tpch::QUERIES.len() {
        node.cli(&[if number % 2 == 0 { "freeze" } else { "stop" }, "tpch"])?;
        let begun = Instant::now();
        let answer = tpch::answer(&roost.url, number)?;
        let roost_took = begun.elapsed();
        let begun = Instant::now();
        let expected = tpch::answer(&plain.connection("postgres"), number)?;
        eprintln!("query {number}: {} rows, {roost_took:?}; plain {:?}", answer.len(), begun.elapsed());
        ensure!(answer == expected, "query {number}:\n{answer:#?}\nexpected:\n{expected:#?}");
    }
    plain.stop()?;
    node.finish()
}
