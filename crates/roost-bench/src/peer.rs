//! A database of Roost's and its bare peer: the same cluster, copied while it was stopped, and the same configuration.

use std::path::PathBuf;

use anyhow::Result;

use crate::bare::{BareCluster, Recipe};
use crate::client::Session;
use crate::node::{Node, Tenant};
use crate::scratch::Scratch;

/// What a bare peer is made from; any number can be.
#[derive(Debug)]
pub(crate) struct Original {
    files: PathBuf,
    /// How Roost starts it.
    pub(crate) recipe: Recipe,
}

impl Original {
    /// Starts the database once, and leaves it stopped and copied.
    pub(crate) fn of(node: &Node, tenant: &Tenant, scratch: &Scratch) -> Result<Self> {
        let (mut session, _) = Session::log_in(node.address(), &tenant.credentials)?;
        session.first_row()?;
        let recipe = node.recipe(&tenant.id)?;
        session.close();
        node.stop_database(&tenant.id)?;
        let files = node.export(&tenant.id, &scratch.data().join(format!("original-{}", tenant.id)))?;
        Ok(Self { files, recipe })
    }

    /// Makes a bare peer called `name`.
    pub(crate) fn peer(&self, scratch: &Scratch, name: &str) -> Result<BareCluster> {
        BareCluster::copy(scratch, name, &self.files, &self.recipe)
    }
}
