//! A million registered databases: how long they take to register, what they weigh on disk and in memory, and what
//! opening, paging and finding cost when they are there. Prints one line for each; `ROOST_CATALOG_ROWS` changes how
//! many.
//!
//!     cargo bench -p roost-catalog --bench million

#![allow(clippy::print_stdout, reason = "a benchmark's output")]

use std::error::Error;
use std::path::Path;
use std::time::{Instant, SystemTime};

use roost_catalog::id::DatabaseId;
use roost_catalog::model::{Name, NewDatabase, Settings};
use roost_catalog::{Catalog, CatalogOptions, DatabaseFilter, Page};

/// Databases in one call: small enough that other changes do not wait long.
const BATCH: usize = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let rows = std::env::var("ROOST_CATALOG_ROWS").map_or(Ok(1_000_000), |text| text.parse::<usize>())?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("catalog.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;

    let started = Instant::now();
    let catalog = Catalog::open(&path, CatalogOptions::default())?;
    println!("open, empty:          {:>10.1} ms", milliseconds(started));

    let started = Instant::now();
    let sample = runtime.block_on(register(&catalog, rows))?;
    println!("register {rows} rows: {:>10.1} s", started.elapsed().as_secs_f64());
    println!("resident after that:  {:>10.1} MB", resident_megabytes()?);

    let started = Instant::now();
    drop(catalog);
    println!("close:                {:>10.1} ms", milliseconds(started));
    println!("file:                 {:>10.1} MB", megabytes(&path)?);

    let started = Instant::now();
    let catalog = Catalog::open(&path, CatalogOptions::default())?;
    println!("open, full:           {:>10.1} ms", milliseconds(started));

    let started = Instant::now();
    let counts = runtime.block_on(catalog.counts())?;
    println!("count:                {:>10.3} ms ({} databases)", milliseconds(started), counts.databases);

    let started = Instant::now();
    for id in &sample {
        runtime.block_on(catalog.database(id))?.ok_or("a registered database is gone")?;
    }
    println!("find one by id:       {:>10.3} ms", milliseconds(started) / sample.len() as f64);

    let started = Instant::now();
    let pages = runtime.block_on(page_through(&catalog))?;
    println!("one page of 1,000:    {:>10.3} ms ({pages} pages)", milliseconds(started) / pages as f64);

    let started = Instant::now();
    let new = new_database("one-more")?;
    runtime.block_on(catalog.create_database(new))?;
    println!("create one more:      {:>10.3} ms", milliseconds(started));
    println!("resident at the end:  {:>10.1} MB", resident_megabytes()?);
    Ok(())
}

/// Registers `rows` databases and gives every thousandth identifier.
async fn register(catalog: &Catalog, rows: usize) -> Result<Vec<DatabaseId>, Box<dyn Error>> {
    let mut sample = Vec::new();
    for first in (0..rows).step_by(BATCH) {
        let new: Result<Vec<_>, _> = (first..rows.min(first + BATCH))
            .map(|number| new_database(&format!("database-{number:07}")))
            .collect();
        let ids = catalog.create_databases(new?).await?;
        sample.extend(ids.into_iter().step_by(1_000));
    }
    Ok(sample)
}

fn new_database(name: &str) -> Result<NewDatabase, Box<dyn Error>> {
    Ok(NewDatabase {
        id: DatabaseId::generate(),
        project: Name::default_project(),
        name: name.parse()?,
        major: 17,
        settings: Settings::default(),
        created_at: SystemTime::now(),
        connection: None,
    })
}

async fn page_through(catalog: &Catalog) -> Result<u32, Box<dyn Error>> {
    let (mut pages, mut cursor) = (0, None);
    loop {
        let page = Page { cursor, limit: 1_000 };
        let listing = catalog.databases(DatabaseFilter::default(), page).await?;
        pages += 1;
        match listing.next_cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(pages),
        }
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

fn megabytes(path: &Path) -> std::io::Result<f64> {
    Ok(std::fs::metadata(path)?.len() as f64 / 1e6)
}

/// This process' resident memory (`VmRSS`).
fn resident_megabytes() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1_024.0 / 1e6)
}
