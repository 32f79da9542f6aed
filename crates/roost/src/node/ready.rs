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

    /// Writes the file in one step. Says whether this is the first node of its warden.
    pub(super) fn write(&self, run: &Path) -> Result<bool> {
        let path = run.join(FILE);
        let before = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        let new = run.join(format!("{FILE}.new"));
        let text = serde_json::to_vec_pretty(self)?;
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(before.is_none_or(|before| before.warden != self.warden))
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
    fn only_the_first_node_of_a_warden_announces_itself() {
        let folder = tempfile::tempdir().unwrap();
        assert!(announcement(1).write(folder.path()).unwrap());
        assert!(!announcement(1).write(folder.path()).unwrap());
        assert!(announcement(2).write(folder.path()).unwrap());
        withdraw(folder.path());
        assert!(announcement(2).write(folder.path()).unwrap());
    }
}
