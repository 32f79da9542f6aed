//! The files of a stopped database, looked at without Roost: Postgres' own tools check every page and every index.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::machine::{self, Installation};
use crate::node::{Database, Node};
use crate::plain::{self, PlainPostgres};
use crate::psql;

const DEADLINE: Duration = Duration::from_secs(1800);

/// A flattened copy of a database's cluster, made while it is stopped (`roost dump --cold`).
#[derive(Debug)]
pub struct ColdCopy {
    folder: PathBuf,
    cluster: PathBuf,
    installation: Installation,
}

impl ColdCopy {
    /// Copies a stopped database to a folder under `parent`, removed when this is dropped.
    pub fn take(
        node: &Node,
        database: &Database,
        installation: &Installation,
        parent: &Path,
    ) -> Result<Self> {
        let folder = parent.join(format!("cold-{}", database.name));
        plain::own_folder(&folder)?;
        let archive = folder.join("cold.tar");
        let finished = command::run(
            node.command().args(["dump", &database.name, "--cold", "--file"]).arg(&archive),
            b"",
            DEADLINE,
        )?;
        finished.success().context("roost dump --cold")?;
        let mut unpack = std::process::Command::new("tar");
        unpack.arg("-C").arg(&folder).arg("-xf").arg(&archive);
        command::run(&mut unpack, b"", DEADLINE)?.success()?;
        fs::remove_file(&archive)?;
        let cluster = cluster_in(&folder)?;
        give_to_server_user(&cluster)?;
        Ok(Self { folder, cluster, installation: installation.clone() })
    }

    /// Every data page's checksum (`pg_checksums --check`).
    pub fn check_page_checksums(&self) -> Result<()> {
        let mut check = plain::as_server_user(&self.installation.program("pg_checksums"))?;
        check.arg("--check").arg("-D").arg(&self.cluster);
        command::run(&mut check, b"", DEADLINE)?.success().context("pg_checksums")?;
        Ok(())
    }

    /// Every table and index of every database in the cluster (`pg_amcheck`, with the heap checked against its B-trees).
    pub fn check_structure(&self) -> Result<()> {
        let server = PlainPostgres::open(
            &self.installation,
            &self.cluster,
            &self.folder.join("server"),
            "_roost",
            &[],
        )?;
        let mut check = psql::client_program(&self.installation.program("pg_amcheck"));
        check.arg("-h").arg(server.socket_folder()).args(["-U", "_roost", "--all", "--install-missing"]);
        check.args(["--maintenance-db=postgres", "--heapallindexed", "--on-error-stop"]);
        command::run(&mut check, b"", DEADLINE)?.success().context("pg_amcheck")?;
        server.stop()
    }
}

impl ColdCopy {
    /// Makes the next transaction id `next`, as if all those before it had been used up since.
    pub fn burn_transactions(&self, next: u32) -> Result<()> {
        // Postgres looks the status of the next one up in its segment of the log (two bits each, 256 KiB a file).
        let segment = self.cluster.join(format!("pg_xact/{:04X}", next >> 20));
        fs::write(&segment, vec![0; 256 << 10])?;
        give_to_server_user(&self.cluster)?;
        let mut reset = plain::as_server_user(&self.installation.program("pg_resetwal"))?;
        reset.arg("-x").arg(next.to_string()).arg("-D").arg(&self.cluster);
        command::run(&mut reset, b"", DEADLINE)?.success().context("pg_resetwal")?;
        Ok(())
    }

    /// Makes a database of this copy (`roost restore --cold`).
    pub fn restore(&self, node: &mut Node, name: &str) -> Result<Database> {
        let archive = self.folder.join("changed.tar");
        let mut pack = std::process::Command::new("tar");
        // As Roost writes it: first what the volume is, then its files.
        pack.arg("-C").arg(&self.folder).arg("-cf").arg(&archive).args(["manifest.json", "pgdata"]);
        command::run(&mut pack, b"", DEADLINE)?.success()?;
        let archive = archive.to_str().context("a path that is no UTF-8")?;
        node.restore(name, &["--cold", "--file", archive])
    }
}

impl Drop for ColdCopy {
    fn drop(&mut self) {
        // What stays is removed with the node's folder.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Stops a database and checks its files: page checksums, then tables and indexes.
pub fn check_stopped_database(node: &Node, database: &Database) -> Result<()> {
    node.cli(&["stop", &database.name])?;
    let copy = ColdCopy::take(node, database, &machine::debian_postgres()?, node.scratch())?;
    copy.check_page_checksums()?;
    copy.check_structure()
}

/// The folder of a database's volume.
pub fn volume(node: &Node, database: &Database) -> PathBuf {
    node.data().join("databases").join(&database.id[3..5]).join(&database.id).join("volume")
}

/// Where a volume's own files of its cluster are: all of them, or those that differ from its template's.
pub fn cluster(volume: &Path) -> PathBuf {
    let layer = volume.join("upper");
    if layer.is_dir() { layer } else { volume.join("pgdata") }
}

/// The state of a stopped database's cluster, as `pg_controldata` calls it.
pub fn state(node: &Node, database: &Database, installation: &Installation) -> Result<String> {
    let mut show = std::process::Command::new(installation.program("pg_controldata"));
    show.env("LC_ALL", "C").arg("-D").arg(cluster(&volume(node, database)));
    let shown = command::run(&mut show, b"", DEADLINE)?.success()?.text();
    let line = shown.lines().find_map(|line| line.strip_prefix("Database cluster state:"));
    Ok(line.with_context(|| format!("pg_controldata tells no state: {shown}"))?.trim().to_owned())
}

/// The folder below `folder` (or itself) that is a cluster.
fn cluster_in(folder: &Path) -> Result<PathBuf> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(candidate) = waiting.pop() {
        if candidate.join("PG_VERSION").is_file() && candidate.join("global/pg_control").is_file() {
            return Ok(candidate);
        }
        for entry in fs::read_dir(&candidate)?.flatten() {
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    anyhow::bail!("no cluster in the cold copy at {}", folder.display())
}

fn give_to_server_user(cluster: &Path) -> Result<()> {
    if let Some((user, group)) = plain::server_user()? {
        let mut chown = std::process::Command::new("chown");
        chown.args(["-R", "-h", &format!("{user}:{group}")]).arg(cluster);
        command::run(&mut chown, b"", DEADLINE)?.success()?;
    }
    fs::set_permissions(cluster, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}
