//! What `roost up` hands to the node: through the environment, which all processes of a warden inherit, so that a node
//! that is started again gets the same, and nothing has to be read from a file that may have changed meanwhile.
//!
//! There is no secret in it; certificates and keys are named by their paths.

use std::ffi::OsString;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// The environment variable.
pub(crate) const VARIABLE: &str = "ROOST_NODE_SPEC";

/// What a node is started with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeSpec {
    /// The process id of the warden that it was made for: a variable that was left over from elsewhere is not taken
    /// for one's own.
    pub(crate) warden: u32,
    /// The whole configuration, with absolute paths.
    pub(crate) config: Config,
    /// The user who started the node through sudo.
    pub(crate) sudo_uid: Option<u32>,
    /// Whether a database `demo` is made on the first start.
    pub(crate) demo: bool,
    /// Whether the line that says that the node is ready is JSON.
    pub(crate) json: bool,
}

impl NodeSpec {
    /// The variable's value.
    pub(crate) fn to_variable(&self) -> Result<OsString> {
        Ok(serde_json::to_string(self)?.into())
    }

    /// What the variable holds, if it is there.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        let Some(text) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let text = text.to_str().with_context(|| format!("{VARIABLE} is not UTF-8"))?;
        Ok(Some(
            serde_json::from_str(text).with_context(|| format!("{VARIABLE} is not one of this version"))?,
        ))
    }
}
