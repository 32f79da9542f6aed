//! The independent record of acknowledged writes.
//!
//! A writer notes what it is about to write, writes it, and after Postgres' acknowledgement of the commit notes that too.
//! The notes go to a file and stay in memory; neither knows anything of Roost. Later every row is looked for:
//!
//! * *lost*: acknowledged, and not there;
//! * *stale*: there, but older than what was acknowledged last, or with other content;
//! * *foreign*: there, but never written to this database.
//!
//! A write whose acknowledgement never came may or may not be there; it is what a user too does not know.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::random::Random;
use crate::session::Session;

/// The table that writers fill, in every database that has one.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS ledger (\
    row bigint PRIMARY KEY, database text NOT NULL, version bigint NOT NULL, nonce bigint NOT NULL, \
    payload text NOT NULL)";

/// How long one statement may take before the writer gives its session up.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(60);

/// One version of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    number: i64,
    nonce: i64,
    checksum: u32,
}

/// What is known of one row.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    acknowledged: Option<Version>,
    /// Written without an acknowledgement (yet).
    attempted: Option<Version>,
}

#[derive(Debug)]
struct Notes {
    file: File,
    databases: HashMap<String, BTreeMap<i64, Known>>,
    acknowledged: u64,
}

/// The record. Clones share it.
#[derive(Debug, Clone)]
pub struct Ledger {
    notes: Arc<Mutex<Notes>>,
}

/// What a look at one database found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Rows that were as they should be.
    pub sound: u64,
    /// Rows that were acknowledged and are not there.
    pub lost: Vec<String>,
    /// Rows with older or other content than was acknowledged.
    pub stale: Vec<String>,
    /// Rows that nobody wrote to this database.
    pub foreign: Vec<String>,
}

impl Findings {
    /// Whether nothing was lost, stale or foreign.
    pub const fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.stale.is_empty() && self.foreign.is_empty()
    }

    /// Adds another look's findings.
    pub fn add(&mut self, other: Self) {
        self.sound += other.sound;
        self.lost.extend(other.lost);
        self.stale.extend(other.stale);
        self.foreign.extend(other.foreign);
    }
}

impl Ledger {
    /// A new record that is appended to `file`.
    pub fn create(file: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(file)?;
        Ok(Self { notes: Arc::new(Mutex::new(Notes { file, databases: HashMap::new(), acknowledged: 0 })) })
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // A panic of another test thread leaves whole notes behind: each change is one insertion.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.notes().acknowledged
    }

    /// Makes the file durable.
    pub fn sync(&self) -> Result<()> {
        let file = self.notes().file.try_clone()?;
        Ok(file.sync_data()?)
    }

    /// Notes a write that is about to be sent.
    pub fn attempt_row(
        &self,
        database: &str,
        row: i64,
        number: i64,
        nonce: i64,
        payload: &str,
    ) -> Result<()> {
        let checksum = crc32c::crc32c(payload.as_bytes());
        let version = Version { number, nonce, checksum };
        let mut notes = self.notes();
        writeln!(notes.file, "attempt {database} {row} {number} {nonce} {checksum:08x}")?;
        notes.databases.entry(database.to_owned()).or_default().entry(row).or_default().attempted =
            Some(version);
        Ok(())
    }

    /// Notes that the last attempt of this row was committed.
    pub fn acknowledge_row(&self, database: &str, row: i64) -> Result<()> {
        let mut notes = self.notes();
        writeln!(notes.file, "acknowledged {database} {row}")?;
        let known =
            notes.databases.get_mut(database).and_then(|rows| rows.get_mut(&row)).context("no attempt")?;
        known.acknowledged = known.attempted.take();
        notes.acknowledged += 1;
        Ok(())
    }

    /// Looks for every row of `database` through an open session. Its writers must be at rest.
    pub async fn compare(&self, database: &str, session: &Session) -> Result<Findings> {
        let rows = session
            .query("SELECT row, database, version, nonce, payload FROM ledger ORDER BY row", &[])
            .await
            .with_context(|| format!("reading the rows of {database}"))?;
        let mut expected = self.notes().databases.get(database).cloned().unwrap_or_default();
        let mut findings = Findings::default();
        for row in rows {
            let number: i64 = row.try_get(0)?;
            let written_to: &str = row.try_get(1)?;
            let found = Version {
                number: row.try_get(2)?,
                nonce: row.try_get(3)?,
                checksum: crc32c::crc32c(row.try_get::<_, &str>(4)?.as_bytes()),
            };
            let shown = format!("{database} row {number}: {found:?}");
            match expected.remove(&number) {
                _ if written_to != database => {
                    findings.foreign.push(format!("{shown}, written to {written_to}"));
                }
                None => findings.foreign.push(shown),
                Some(known) if known.acknowledged == Some(found) || known.attempted == Some(found) => {
                    findings.sound += 1;
                }
                Some(known) => findings.stale.push(format!("{shown}, expected {known:?}")),
            }
        }
        for (number, known) in expected {
            if known.acknowledged.is_some() {
                findings.lost.push(format!("{database} row {number}: {known:?}"));
            }
        }
        Ok(findings)
    }
}

/// One client that writes to one database, one transaction after the other.
#[derive(Debug)]
pub struct Writer {
    ledger: Ledger,
    database: String,
    random: Random,
    next_row: i64,
    /// Rows with a known version, for updates.
    settled: Vec<(i64, i64)>,
    /// Longest payload, in bytes.
    payload: u64,
}

impl Writer {
    /// A writer whose rows begin at `first_row`; writers of one database have ranges of their own.
    pub const fn new(ledger: Ledger, database: String, first_row: i64, random: Random) -> Self {
        Self { ledger, database, random, next_row: first_row, settled: Vec::new(), payload: 2000 }
    }

    /// Makes the table.
    pub async fn prepare(session: &Session) -> Result<()> {
        Ok(session.batch_execute(TABLE).await?)
    }

    /// One transaction of one to four rows, or an update of an earlier row. An error says that the session is of no use
    /// any more, or that the database refused.
    pub async fn write(&mut self, session: &Session) -> Result<()> {
        tokio::time::timeout(STATEMENT_DEADLINE, self.write_unbounded(session)).await.context("no answer")?
    }

    async fn write_unbounded(&mut self, session: &Session) -> Result<()> {
        if !self.settled.is_empty() && self.random.once_in(4) {
            let at = self.random.below(self.settled.len() as u64) as usize;
            // Until its update is acknowledged, the row's version is not known, and it is not updated again.
            let (row, number) = self.settled.swap_remove(at);
            let payload = self.note(row, number + 1)?;
            let changed = session
                .execute(
                    "UPDATE ledger SET version = $1, nonce = $2, payload = $3 WHERE row = $4",
                    &[&(number + 1), &payload.0, &payload.1, &row],
                )
                .await?;
            ensure!(changed == 1, "LOST: an update of the acknowledged row {row} found no row");
            return self.settle(row, number + 1);
        }
        let count = if self.random.once_in(3) { 1 + self.random.below(4) } else { 1 };
        let rows: Vec<i64> = (self.next_row..).take(count as usize).collect();
        self.next_row += rows.len() as i64;
        if rows.len() > 1 {
            session.batch_execute("BEGIN").await?;
        }
        for row in &rows {
            let (nonce, payload) = self.note(*row, 1)?;
            session
                .execute(
                    "INSERT INTO ledger VALUES ($1, $2, 1, $3, $4)",
                    &[row, &self.database, &nonce, &payload],
                )
                .await?;
        }
        if rows.len() > 1 {
            session.batch_execute("COMMIT").await?;
        }
        rows.into_iter().try_for_each(|row| self.settle(row, 1))
    }

    fn note(&mut self, row: i64, number: i64) -> Result<(i64, String)> {
        let nonce = self.random.number().cast_signed();
        let length = 10 + self.random.below(self.payload);
        let payload = self.random.text(length as usize);
        self.ledger.attempt_row(&self.database, row, number, nonce, &payload)?;
        Ok((nonce, payload))
    }

    fn settle(&mut self, row: i64, number: i64) -> Result<()> {
        self.ledger.acknowledge_row(&self.database, row)?;
        if self.settled.len() < 10_000 {
            self.settled.push((row, number));
        }
        Ok(())
    }

    /// Writes until `stop`, opening a new session whenever one breaks, like an application with a connection pool.
    /// Waits at most `pause` between writes. Fails only when the database contradicts the ledger.
    pub async fn write_until(&mut self, url: &str, stop: &AtomicBool, pause: Duration) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let Ok(session) = Session::open_within(url, Duration::from_secs(5)).await else { continue };
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = self.write(&session).await {
                    ensure!(!error.to_string().starts_with("LOST"), error);
                    break;
                }
                tokio::time::sleep(self.random.within(pause)).await;
            }
        }
        Ok(())
    }
}
