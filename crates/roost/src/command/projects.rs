//! `roost projects`: named groups of databases.

use anyhow::Result;
use roost_api::client::Client;
use roost_api::resource::CreateProject;
use serde_json::{Value, json};

use super::databases::ago;
use super::{name, shown};
use crate::cli::ProjectsCommand;
use crate::terminal::{Cell, Terminal};

pub(super) async fn run(client: &Client, terminal: &Terminal, command: ProjectsCommand) -> Result<()> {
    match command {
        ProjectsCommand::List => {
            let projects = client.projects().await?;
            if terminal.json {
                let list: Vec<Value> = projects.iter().map(shown).collect::<Result<_>>()?;
                return terminal.json(&list);
            }
            let rows: Vec<Vec<Cell>> = projects
                .iter()
                .map(|project| {
                    vec![
                        project.name.to_string().into(),
                        project.id.to_string().into(),
                        ago(Some(&project.created_at)).into(),
                    ]
                })
                .collect();
            terminal.table(
                &["NAME", "ID", "MADE"],
                &rows,
                "No projects. The default one comes with its first database.",
            )
        }
        ProjectsCommand::Create { name: text } => {
            let request = CreateProject { name: Some(name(&text)?), ..CreateProject::default() };
            let project = client.create_project(&request).await?;
            if terminal.json {
                return terminal.json(&shown(&project)?);
            }
            terminal.line(format!("{} is made", project.name))
        }
        ProjectsCommand::Delete { project } => {
            client.delete_project(&project).await?;
            if terminal.json {
                return terminal.json(&json!({ "project": project, "deleted": true }));
            }
            terminal.line(format!("{project} is deleted"))
        }
    }
}
