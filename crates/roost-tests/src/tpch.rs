//! TPC-H: its tables from the `tpchgen` crate, its keys, and its 22 queries with the parameters of the validation run.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tpchgen::csv::{
    CustomerCsv, LineItemCsv, NationCsv, OrderCsv, PartCsv, PartSuppCsv, RegionCsv, SupplierCsv,
};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

use crate::psql;

/// The tables, in an order in which they can be loaded.
pub const TABLES: [&str; 8] =
    ["region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem"];

/// The 22 queries, in order.
pub const QUERIES: [&str; 22] = [
    include_str!("../tpch/q01.sql"),
    include_str!("../tpch/q02.sql"),
    include_str!("../tpch/q03.sql"),
    include_str!("../tpch/q04.sql"),
    include_str!("../tpch/q05.sql"),
    include_str!("../tpch/q06.sql"),
    include_str!("../tpch/q07.sql"),
    include_str!("../tpch/q08.sql"),
    include_str!("../tpch/q09.sql"),
    include_str!("../tpch/q10.sql"),
    include_str!("../tpch/q11.sql"),
    include_str!("../tpch/q12.sql"),
    include_str!("../tpch/q13.sql"),
    include_str!("../tpch/q14.sql"),
    include_str!("../tpch/q15.sql"),
    include_str!("../tpch/q16.sql"),
    include_str!("../tpch/q17.sql"),
    include_str!("../tpch/q18.sql"),
    include_str!("../tpch/q19.sql"),
    include_str!("../tpch/q20.sql"),
    include_str!("../tpch/q21.sql"),
    include_str!("../tpch/q22.sql"),
];

/// Writes the eight tables as `folder/TABLE.csv`. Scale 1 is about 1 GB.
pub fn generate(folder: &Path, scale: f64) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    write(folder, "region", RegionGenerator::new(scale, 1, 1).iter().map(RegionCsv::new))?;
    write(folder, "nation", NationGenerator::new(scale, 1, 1).iter().map(NationCsv::new))?;
    write(folder, "supplier", SupplierGenerator::new(scale, 1, 1).iter().map(SupplierCsv::new))?;
    write(folder, "customer", CustomerGenerator::new(scale, 1, 1).iter().map(CustomerCsv::new))?;
    write(folder, "part", PartGenerator::new(scale, 1, 1).iter().map(PartCsv::new))?;
    write(folder, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter().map(PartSuppCsv::new))?;
    write(folder, "orders", OrderGenerator::new(scale, 1, 1).iter().map(OrderCsv::new))?;
    write(folder, "lineitem", LineItemGenerator::new(scale, 1, 1).iter().map(LineItemCsv::new))
}

fn write(folder: &Path, table: &str, rows: impl Iterator<Item = impl Display>) -> Result<()> {
    let mut file = BufWriter::new(File::create(folder.join(format!("{table}.csv")))?);
    for row in rows {
        writeln!(file, "{row}")?;
    }
    Ok(file.flush()?)
}

/// Loads the tables from `folder` by psql's `\copy`, adds the keys, and lets `between` happen after each step.
pub fn load(connection: &str, folder: &Path, mut between: impl FnMut() -> Result<()>) -> Result<()> {
    let statements = crate::machine::crate_folder().join("tpch");
    psql::run_file(connection, &statements.join("schema.sql"))?;
    for table in TABLES {
        let file = folder.join(format!("{table}.csv"));
        psql::run(connection, &format!("\\copy {table} FROM '{}' (FORMAT csv)\n", file.display()))?;
        between()?;
    }
    psql::run_file(connection, &statements.join("keys.sql"))?;
    between()
}

/// The answer of query `number` (1 to 22): its rows, sorted, for rows that are equal in the query's order may come in any.
pub fn answer(connection: &str, number: usize) -> Result<Vec<String>> {
    let query = QUERIES.get(number.wrapping_sub(1)).context("TPC-H has queries 1 to 22")?;
    let mut rows: Vec<String> = psql::run(connection, query)?.lines().map(str::to_owned).collect();
    rows.sort();
    Ok(rows)
}
