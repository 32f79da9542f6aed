//! How a test wants its node: where its data is, with which settings and installations, and as whom it runs.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Node;
use crate::command_line::{CommandLine, ORDINARY_USER};
use crate::machine::{self, Installation};
use crate::traces;

/// How a node is started.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    data: Option<PathBuf>,
    pub(super) arguments: Vec<String>,
    pub(super) installations: Vec<Installation>,
    system_ports: bool,
    unprivileged: bool,
}

impl Setup {
    /// Adds arguments of `roost up`.
    #[must_use]
    pub fn with<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// Adds Postgres installations that the node would not find by itself.
    #[must_use]
    pub fn with_installations(mut self, installations: impl IntoIterator<Item = Installation>) -> Self {
        self.installations.extend(installations);
        self
    }

    /// Keeps the node's data in `folder`, which is not removed, instead of in the node's own.
    #[must_use]
    pub fn with_data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// Asks for port 0 and reads the ports that the node got, instead of choosing free ones beforehand.
    #[must_use]
    pub const fn with_system_ports(mut self) -> Self {
        self.system_ports = true;
        self
    }

    /// Runs the node, and its command line, as an ordinary user who may make no user namespaces. For root.
    #[must_use]
    pub const fn without_privileges(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// Starts the node and waits until it is ready.
    pub fn start(self) -> Result<Node> {
        traces::sweep();
        let folder =
            tempfile::Builder::new().prefix(traces::FOLDER_PREFIX).tempdir_in(traces::FOLDERS)?.keep();
        fs::write(folder.join("owner"), std::process::id().to_string())?;
        // The node's process is not root, and passes through here.
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let data = self.data.clone().unwrap_or_else(|| folder.join("d"));
        let (listen, http) = if self.system_ports {
            ("127.0.0.1:0".to_owned(), "127.0.0.1:0".to_owned())
        } else {
            free_addresses()?
        };
        let mut binary = machine::roost_binary()?;
        if self.unprivileged {
            // The build's own directory may be closed to others.
            let copy = folder.join("roost");
            fs::copy(&binary, &copy)?;
            binary = copy;
            std::os::unix::fs::chown(&folder, Some(ORDINARY_USER), Some(ORDINARY_USER))?;
        }
        let mut command_line = CommandLine::new(binary, folder.join("r"));
        if self.unprivileged {
            command_line = command_line.typed_by(ORDINARY_USER);
        }
        let mut node = Node {
            command_line,
            log: folder.join("node.log"),
            folder,
            data,
            listen,
            http,
            setup: self,
            warden: None,
            names: Vec::new(),
        };
        node.start()?;
        Ok(node)
    }
}

/// Two addresses on loopback that are free now.
fn free_addresses() -> Result<(String, String)> {
    let (one, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?.to_string(), other.local_addr()?.to_string()))
}
