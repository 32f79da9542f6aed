//! Listing databases, and changing one.

use anyhow::Result;
use roost_api::client::{Client, Step};
use roost_api::envelope::MAX_PAGE;
use roost_api::resource::{Database, UndeleteDatabase, UpdateDatabase};
use roost_api::timestamp;
use roost_api::units::{about_duration, about_size};
use serde_json::{Value, json};

use super::{name, settings, shown};
use crate::cli::{DeleteArgs, ListArgs, RenameArgs, SetArgs, UndeleteArgs};
use crate::terminal::{self, Cell, Pages, Terminal};

/// Writes each page as it comes: a node may have a million databases.
pub(super) async fn list(client: &Client, terminal: &Terminal, arguments: &ListArgs) -> Result<()> {
    let (headings, none): (&[&str], _) = if arguments.deleted {
        (&["NAME", "ID", "DELETED", "UNTIL"], "No deleted databases.")
    } else {
        let headings = &["NAME", "STATE", "VERSION", "SIZE", "LAST USED", "SESSIONS"];
        (headings, "No databases. `roost create NAME` makes one.")
    };
    let mut pages = Pages::begin(terminal, headings);
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut cursor = None;
    while left > 0 {
        let limit = u32::try_from(left).unwrap_or(MAX_PAGE).min(MAX_PAGE);
        let project = arguments.project.as_deref();
        let page = client.databases(project, arguments.deleted, cursor.as_deref(), limit).await?;
        left = left.saturating_sub(page.data.len() as u64);
        let reads_on = if terminal.json {
            pages.values(&page.data.iter().map(listed).collect::<Result<Vec<_>>>()?)?
        } else {
            let row = if arguments.deleted { deleted_row } else { live_row };
            pages.rows(&page.data.iter().map(row).collect::<Vec<_>>())?
        };
        cursor = page.pagination.next_cursor;
        if cursor.is_none() || !reads_on {
            break;
        }
    }
    pages.end(none)
}

fn live_row(database: &Database) -> Vec<Cell> {
    vec![
        full_name(database).into(),
        terminal::state(database.state),
        database.version.clone().into(),
        database.size_bytes.map_or("-".to_owned(), about_size).into(),
        ago(database.last_used_at.as_deref()).into(),
        database.sessions.to_string().into(),
    ]
}

fn deleted_row(database: &Database) -> Vec<Cell> {
    vec![
        full_name(database).into(),
        database.id.to_string().into(),
        ago(database.deleted_at.as_deref()).into(),
        database.purge_at.clone().unwrap_or_default().into(),
    ]
}

/// A database of a list: without its connections, which `roost show` and `roost connections` tell.
fn listed(database: &Database) -> Result<Value> {
    let mut value = shown(database)?;
    if let Value::Object(fields) = &mut value {
        fields.remove("connections");
        fields.remove("defaultConnectionId");
    }
    Ok(value)
}

/// The name by which a database is found from anywhere.
pub(super) fn full_name(database: &Database) -> String {
    match database.project.name.as_str() {
        "default" => database.name.to_string(),
        project => format!("{}--{project}", database.name),
    }
}

/// How long ago a moment was.
pub(super) fn ago(moment: Option<&str>) -> String {
    let Some(moment) = moment else { return "never".to_owned() };
    match timestamp::parse(moment).and_then(|time| time.elapsed().ok()) {
        Some(elapsed) => format!("{} ago", about_duration(elapsed)),
        // A clock that was set back.
        None => moment.to_owned(),
    }
}

pub(super) async fn step(client: &Client, terminal: &Terminal, database: &str, step: Step) -> Result<()> {
    let what = match step {
        Step::Wake => "waking",
        Step::Freeze => "freezing",
        Step::Stop => "stopping",
    };
    let database = {
        let _progress = terminal.spinner(format!("{what} {database}"));
        client.step(database, step).await?
    };
    answer(terminal, &database, &format!("{} is {}", full_name(&database), database.state))
}

pub(super) async fn set(client: &Client, terminal: &Terminal, arguments: &SetArgs) -> Result<()> {
    let change = UpdateDatabase { name: None, settings: Some(settings::change(&arguments.settings)?) };
    let database = client.update_database(&arguments.database, &change).await?;
    answer(terminal, &database, &format!("{} is set", full_name(&database)))
}

pub(super) async fn rename(client: &Client, terminal: &Terminal, arguments: &RenameArgs) -> Result<()> {
    let change = UpdateDatabase { name: Some(name(&arguments.name)?), settings: None };
    let database = client.update_database(&arguments.database, &change).await?;
    answer(terminal, &database, &format!("{} is now {}", arguments.database, full_name(&database)))
}

pub(super) async fn delete(client: &Client, terminal: &Terminal, arguments: &DeleteArgs) -> Result<()> {
    let database = client.database(&arguments.database).await?;
    {
        let _progress = terminal.spinner(format!("deleting {}", full_name(&database)));
        client.delete_database(&arguments.database, arguments.purge).await?;
    }
    if arguments.purge {
        return told(terminal, &database, json!({ "purged": true }), "is gone for ever");
    }
    let deleted = client.database(&database.id.to_string()).await?;
    let until = deleted.purge_at.unwrap_or_default();
    let text = format!("is deleted; until {until}, `roost undelete {}` brings it back", database.id);
    told(terminal, &database, json!({ "purged": false, "purgeAt": until }), &text)
}

pub(super) async fn undelete(client: &Client, terminal: &Terminal, arguments: &UndeleteArgs) -> Result<()> {
    let request = UndeleteDatabase { name: arguments.name.as_deref().map(name).transpose()? };
    let database = client.undelete_database(&arguments.database, &request).await?;
    answer(terminal, &database, &format!("{} is back", full_name(&database)))
}

/// The database as JSON, or a sentence.
fn answer(terminal: &Terminal, database: &Database, sentence: &str) -> Result<()> {
    if terminal.json { terminal.json(&shown(database)?) } else { terminal.line(sentence) }
}

/// What became of a database that is no more, as JSON or as a sentence.
fn told(terminal: &Terminal, database: &Database, mut fields: Value, sentence: &str) -> Result<()> {
    if !terminal.json {
        return terminal.line(format!("{} {sentence}", full_name(database)));
    }
    if let Value::Object(fields) = &mut fields {
        fields.insert("id".to_owned(), json!(database.id));
        fields.insert("name".to_owned(), json!(database.name));
    }
    terminal.json(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    #[test]
    fn moments_are_told_as_a_person_would() {
        let before = |seconds| timestamp::format(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!(ago(None), "never");
        assert_eq!(ago(Some(&before(125))), "2 min ago");
        let future = timestamp::format(SystemTime::now() + Duration::from_secs(100));
        assert_eq!(ago(Some(&future)), future);
    }
}
