//! `roost dump`: a database as a file, by pg_dump or as a cold copy of its files.

use std::io;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use roost_api::client::Client;
use rustix::termios::isatty;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Stdout};

use super::counted::Counted;
use super::program::{Credential, IgnoredSignals, Program, find, version};
use crate::cli::{DumpArgs, DumpFormat};
use crate::exit::UsageError;
use crate::terminal::Terminal;

pub(super) async fn dump(client: &Client, terminal: &Terminal, arguments: &DumpArgs) -> Result<()> {
    let binary = arguments.cold || arguments.format != DumpFormat::Plain;
    if binary && arguments.file.is_none() && isatty(std::io::stdout()) {
        let problem = "the dump is not text, and standard output is a terminal: write it to a file (-f or >), or use \
                       -F plain";
        return Err(UsageError(problem.to_owned()).into());
    }
    if arguments.cold {
        return cold(client, terminal, arguments).await;
    }
    let database = client.database(&arguments.database).await?;
    let pg_dump = find(client, "pg_dump", version(&database)?).await?;
    let credential = Credential::make(client, &database, "roost dump").await?;
    let result = with_pg_dump(&pg_dump, &credential, terminal, arguments).await;
    credential.delete(terminal).await;
    result
}

async fn with_pg_dump(
    pg_dump: &Program,
    credential: &Credential,
    terminal: &Terminal,
    arguments: &DumpArgs,
) -> Result<()> {
    let mut command = pg_dump.command(credential, Some(&arguments.dbname));
    let format = match arguments.format {
        DumpFormat::Custom => "custom",
        DumpFormat::Plain => "plain",
        DumpFormat::Directory => "directory",
        DumpFormat::Tar => "tar",
    };
    command.arg(format!("--format={format}")).args(&arguments.arguments);
    let what = format!("dumping {}", arguments.database);
    if arguments.format == DumpFormat::Directory {
        let Some(path) = &arguments.file else {
            return Err(UsageError("a dump in the directory format needs -f DIR".to_owned()).into());
        };
        command.arg("--file").arg(path);
        let _progress = terminal.spinner(what);
        return pg_dump.run(command).await;
    }
    let _ignored = IgnoredSignals::new()?;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run pg_dump")?;
    let output = child.stdout.take().context("pg_dump has no output")?;
    let carried = {
        let mut output = Counted::new(output, terminal.bytes(what, None));
        carry(&mut output, Target::open(arguments.file.as_deref()).await?).await
    };
    // pg_dump says itself what went wrong with it; that its output could not be written, it only sees as a signal.
    let status = child.wait().await?;
    carried?;
    pg_dump.check(status)
}

/// Where a dump goes.
enum Target {
    Stdout(Stdout),
    File(File),
}

impl Target {
    async fn open(path: Option<&Path>) -> Result<Self> {
        match path {
            None => Ok(Self::Stdout(tokio::io::stdout())),
            Some(path) => {
                let file = File::create(path).await;
                Ok(Self::File(file.with_context(|| format!("cannot write {}", path.display()))?))
            }
        }
    }

    fn writer(&mut self) -> &mut (dyn AsyncWrite + Unpin + Send) {
        match self {
            Self::Stdout(stdout) => stdout,
            Self::File(file) => file,
        }
    }

    /// Ends the dump. What went to a file is on disk then, as pg_dump promises of its own files.
    async fn finish(mut self) -> io::Result<()> {
        self.writer().flush().await?;
        match self {
            // A pipe or a terminal has nothing to sync.
            Self::File(file) if file.metadata().await?.is_file() => file.sync_all().await,
            _ => Ok(()),
        }
    }
}

async fn carry(from: &mut (impl AsyncRead + Unpin), mut to: Target) -> Result<()> {
    tokio::io::copy(from, to.writer()).await.context("cannot write the dump")?;
    to.finish().await.context("cannot write the dump")
}

/// Writes the files of a stopped database.
async fn cold(client: &Client, terminal: &Terminal, arguments: &DumpArgs) -> Result<()> {
    let mut body = client.export(&arguments.database).await?;
    let progress = terminal.bytes(format!("copying {}", arguments.database), None);
    let mut target = Target::open(arguments.file.as_deref()).await?;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { bail!("the copy broke off; what was written is not complete") };
        if let Ok(bytes) = frame.into_data() {
            target.writer().write_all(&bytes).await.context("cannot write the copy")?;
            progress.advance(bytes.len());
        }
    }
    target.finish().await.context("cannot write the copy")
}
