//! Saying that the node is ready: a file for programs, a line for whoever started it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::spec::NodeSpec;

/// The file in the run directory.
const FILE: &str = "node.json";

/// What there is to know about a node that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Announcement {
    /// The node's process.
    pid: u32,
    /// The warden's process: `roost up` itself.
    warden: u32,
    /// The first address of Postgres clients.
    listen: String,
    /// All of them.
    listeners: Vec<String>,
    /// The address of health and metrics.
    http: Option<String>,
    /// Roost's version.
    version: String,
}

impl Announcement {
    pub(super) fn new(spec: &NodeSpec, listen: &[SocketAddr], http: Option<SocketAddr>) -> Self {
        let listeners: Vec<String> = listen.iter().map(ToString::to_string).collect();
        Self {
            pid: std::process::id(),
            warden: spec.warden,
            listen: listeners.first().cloned().unwrap_or_default(),
            listeners,
            http: http.map(|address| address.to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What the node before this one announced, if it had the same warden.
    pub(super) fn of_predecessor(run: &Path, warden: u32) -> Option<Self> {
        let text = std::fs::read(run.join(FILE)).ok()?;
        serde_json::from_slice::<Self>(&text).ok().filter(|before| before.warden == warden)
    }

    /// Where it listened for Postgres clients.
    pub(super) fn listeners(&self) -> Option<Vec<SocketAddr>> {
        self.listeners.iter().map(|address| address.parse().ok()).collect()
    }

    /// Where it answered HTTP.
    pub(super) fn http(&self) -> Option<SocketAddr> {
        self.http.as_ref()?.parse().ok()
    }

    /// Writes the file in one step. It is not synced: no node outlives a power cut, and what one leaves of the file is
    /// either whole, of a warden that is gone, or read by nobody.
    pub(super) fn write(&self, run: &Path) -> Result<()> {
        let path = run.join(FILE);
        let new = run.join(format!("{FILE}.new"));
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prints the one line of `roost up`.
    pub(super) fn tell(&self, json: bool) -> Result<()> {
        let line = if json { serde_json::to_string(self)? } else { self.line() };
        say(&line)
    }

    fn line(&self) -> String {
        let mut line = format!("roost: ready, postgres on {}", self.listeners.join(" and "));
        if let Some(http) = &self.http {
            line.push_str(&format!(", http on {http}"));
        }
        line
    }
}

/// A line to the standard output that `roost up` was started with. That nobody reads it is no reason to end.
pub(super) fn say(line: &str) -> Result<()> {
    let mut stdout = io::stdout();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// Removes the file, when the node has ended cleanly.
pub(super) fn withdraw(run: &Path) {
    // One that is gone already is as good.
    let _ = std::fs::remove_file(run.join(FILE));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(warden: u32) -> Announcement {
        Announcement {
            pid: 7,
            warden,
            listen: "127.0.0.1:7432".to_owned(),
            listeners: vec!["127.0.0.1:7432".to_owned()],
            http: Some("127.0.0.1:7480".to_owned()),
            version: "1.0.0".to_owned(),
        }
    }

    #[test]
    fn the_line_says_where_to_connect() {
        assert_eq!(
            announcement(1).line(),
            "roost: ready, postgres on 127.0.0.1:7432, http on 127.0.0.1:7480"
        );
        let without = Announcement { http: None, ..announcement(1) };
        assert_eq!(without.line(), "roost: ready, postgres on 127.0.0.1:7432");
    }

    #[test]
    fn a_node_knows_its_predecessor_under_the_same_warden_only() {
        let folder = tempfile::tempdir().unwrap();
        let before = |warden| Announcement::of_predecessor(folder.path(), warden);
        assert_eq!(before(1), None);
        announcement(1).write(folder.path()).unwrap();
        assert_eq!(before(1), Some(announcement(1)));
        assert_eq!(before(2), None);
        let whole = std::fs::read(folder.path().join(FILE)).unwrap();
        std::fs::write(folder.path().join(FILE), &whole[..whole.len() / 2]).unwrap();
        assert_eq!(before(1), None, "half a file");
        withdraw(folder.path());
        assert_eq!(before(1), None);
    }

    #[test]
    fn the_addresses_of_a_predecessor_can_be_had() {
        let announcement = announcement(1);
        assert_eq!(announcement.listeners(), Some(vec!["127.0.0.1:7432".parse().unwrap()]));
        assert_eq!(announcement.http(), Some("127.0.0.1:7480".parse().unwrap()));
    }
}
