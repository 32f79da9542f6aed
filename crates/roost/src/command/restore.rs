//! `roost restore`: a database made of a dump, whose format is recognised by its first bytes.

use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use roost_api::client::Client;
use roost_api::resource::{CreateDatabase, Database};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::counted::Counted;
use super::program::{Credential, IgnoredSignals, Program, find, version};
use super::{name, print_url};
use crate::cli::RestoreArgs;
use crate::exit::UsageError;
use crate::terminal::Terminal;

/// Bytes that tell a format: a tar header's.
const HEAD: usize = 512;

/// What a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// SQL, for psql.
    Plain,
    /// pg_dump's archive, for pg_restore.
    Custom,
    /// pg_dump's tar archive, for pg_restore.
    Tar,
    /// pg_dump's directory, for pg_restore.
    Directory,
}

pub(super) async fn restore(client: &Client, terminal: &Terminal, arguments: &RestoreArgs) -> Result<()> {
    let source = Source::open(arguments.file.as_deref()).await?;
    if arguments.cold {
        return cold(client, terminal, arguments, source).await;
    }
    let (database, made) = if arguments.existing {
        (client.database(&arguments.name).await?, false)
    } else {
        (make(client, arguments).await?, true)
    };
    let result = fill(client, terminal, arguments, &database, source).await;
    if result.is_err() && made {
        let id = &database.id;
        terminal.note(&format!(
            "The new database has what was restored so far; `roost delete --purge {id}` removes it."
        ));
    }
    result?;
    finish(client, terminal, &database, made).await
}

/// Makes the database without a connection: its URL is made once it is worth having.
async fn make(client: &Client, arguments: &RestoreArgs) -> Result<Database> {
    let request = CreateDatabase {
        project_id: arguments.project.clone(),
        name: Some(name(&arguments.name)?),
        version: arguments.postgres.clone(),
        connection: Some(false),
        ..CreateDatabase::default()
    };
    Ok(client.create_database(&request).await?)
}

/// Prints the new database's URL.
async fn finish(client: &Client, terminal: &Terminal, database: &Database, made: bool) -> Result<()> {
    if !made {
        terminal.note(&format!("{} is restored.", database.name));
        return if terminal.json { terminal.json(&super::shown(database)?) } else { Ok(()) };
    }
    let connection = client.create_connection(&database.id.to_string(), "default").await?;
    let further = json!({ "id": database.id, "name": database.name, "version": database.version });
    print_url(terminal, &connection, further)
}

async fn fill(
    client: &Client,
    terminal: &Terminal,
    arguments: &RestoreArgs,
    database: &Database,
    source: Source<'_>,
) -> Result<()> {
    let program = match source.format {
        Format::Plain => "psql",
        _ => "pg_restore",
    };
    let program = find(client, program, version(database)?).await?;
    let credential = Credential::make(client, database, "roost restore").await?;
    let result = with_program(&program, &credential, terminal, arguments, source).await;
    credential.delete(terminal).await;
    result
}

async fn with_program(
    program: &Program,
    credential: &Credential,
    terminal: &Terminal,
    arguments: &RestoreArgs,
    source: Source<'_>,
) -> Result<()> {
    let mut command = program.command(credential, None);
    match source.format {
        Format::Plain => {
            command.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]);
        }
        // The owner of everything is the role that restores, whatever its name was elsewhere.
        _ => {
            command.args(["--no-owner", "--dbname", roost_postgres::OWNER_DATABASE]);
        }
    }
    command.args(&arguments.arguments);
    let what = format!("restoring {}", arguments.name);
    let Some(stream) = source.stream else {
        command.args(source.path);
        let _progress = terminal.spinner(what);
        return program.run(command).await;
    };
    let _ignored = IgnoredSignals::new()?;
    let mut child = command.stdin(Stdio::piped()).spawn().context("cannot start it")?;
    let input = child.stdin.take().context("it has no input")?;
    let carried = {
        let mut dump = Counted::new(stream, terminal.bytes(what, source.length));
        carry(&mut dump, input).await
    };
    // It says itself why it ended early; that its input broke off then is a consequence.
    let status = child.wait().await?;
    program.check(status)?;
    carried
}

async fn carry(from: &mut (impl AsyncRead + Unpin), mut to: tokio::process::ChildStdin) -> Result<()> {
    tokio::io::copy(from, &mut to).await.context("cannot read the dump")?;
    // Its end is what tells the reader that there is no more.
    drop(to);
    Ok(())
}

/// Makes a database of a cold copy.
async fn cold(
    client: &Client,
    terminal: &Terminal,
    arguments: &RestoreArgs,
    source: Source<'_>,
) -> Result<()> {
    let Some(stream) = source.stream else {
        return Err(UsageError("a cold copy is one file".to_owned()).into());
    };
    let database = make(client, arguments).await?;
    let imported = {
        let progress = terminal.bytes(format!("copying into {}", arguments.name), source.length);
        client.import(&database.id.to_string(), Counted::new(stream, progress)).await
    };
    if let Err(error) = imported {
        // Nothing of it is worth keeping, and a second failure would hide the first.
        let _ = client.delete_database(&database.id.to_string(), true).await;
        return Err(error.into());
    }
    finish(client, terminal, &database, true).await
}

/// A dump that was opened and recognised.
struct Source<'a> {
    format: Format,
    /// All of it; nothing for a directory.
    stream: Option<Box<dyn AsyncRead + Unpin + Send>>,
    length: Option<u64>,
    path: Option<&'a Path>,
}

impl<'a> Source<'a> {
    async fn open(path: Option<&'a Path>) -> Result<Self> {
        let mut length = None;
        let mut stream: Box<dyn AsyncRead + Unpin + Send> = match path {
            None => Box::new(tokio::io::stdin()),
            Some(path) => {
                let cannot = || format!("cannot read {}", path.display());
                let metadata = tokio::fs::metadata(path).await.with_context(cannot)?;
                if metadata.is_dir() {
                    return Ok(Self {
                        format: Format::Directory,
                        stream: None,
                        length: None,
                        path: Some(path),
                    });
                }
                length = Some(metadata.len());
                Box::new(tokio::fs::File::open(path).await.with_context(cannot)?)
            }
        };
        let mut head = Vec::with_capacity(HEAD);
        (&mut stream).take(HEAD as u64).read_to_end(&mut head).await.context("cannot read the dump")?;
        if head.is_empty() {
            return Err(UsageError("there is nothing to restore: the input is empty".to_owned()).into());
        }
        let format = recognise(&head);
        // What was read to recognise it goes first.
        let whole = Cursor::new(head).chain(stream);
        Ok(Self { format, stream: Some(Box::new(whole)), length, path: None })
    }
}

/// Tells the format of a dump by its first bytes.
fn recognise(head: &[u8]) -> Format {
    if head.starts_with(b"PGDMP") {
        Format::Custom
    } else if head.get(257..262) == Some(b"ustar") {
        Format::Tar
    } else {
        Format::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_is_recognised_by_its_first_bytes() {
        assert_eq!(recognise(b"PGDMP\x01\x0e"), Format::Custom);
        assert_eq!(recognise(b"--\n-- PostgreSQL database dump\n"), Format::Plain);
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(recognise(&tar), Format::Tar);
        assert_eq!(recognise(b""), Format::Plain);
    }

    #[tokio::test]
    async fn an_empty_dump_is_no_dump() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dump");
        std::fs::write(&path, "").unwrap();
        assert!(Source::open(Some(&path)).await.is_err_and(|error| error.is::<UsageError>()));
        std::fs::write(&path, "select 1;").unwrap();
        let source = Source::open(Some(&path)).await.unwrap();
        assert_eq!((source.format, source.length), (Format::Plain, Some(9)));
        let source = Source::open(Some(folder.path())).await.unwrap();
        assert_eq!(source.format, Format::Directory);
    }
}
