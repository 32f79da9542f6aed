//! The command line: what can be typed, and what `--help` says.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::config::ConfigFlags;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage, or a request that the node calls wrong
  3  what was named does not exist
  4  no node answers
  5  a conflict: the name is taken, or the state does not allow it
  6  not now: overloaded, out of time or memory; try again
`roost psql`, `roost dump` and `roost restore` end with the code of the program that they run.";

const NAMES: &str = "\
A database is named by its id (db_...), by its name, or by NAME--PROJECT outside the default project.";

/// Many real Postgres databases on one machine, asleep until somebody connects.
#[derive(Debug, Parser)]
#[command(name = "roost", version, after_help = EXIT_CODES, after_long_help = format!("{NAMES}\n\n{EXIT_CODES}"))]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Directory of the node's sockets, by which a node is found [default: /run/roost as root, else
    /// $XDG_RUNTIME_DIR/roost].
    #[arg(long, global = true, value_name = "DIR", env = "ROOST_RUN", hide_env = true)]
    pub(crate) run: Option<PathBuf>,

    /// Answer in JSON, errors included.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a node on this machine, and serve until it is told to end.
    Up(Box<UpArgs>),
    /// Make a database and print its connection URL, with a secret that is shown only now.
    Create(CreateArgs),
    /// Print a new connection URL of a database.
    Url(UrlArgs),
    /// List databases.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one database: state, wake times, connections, settings, usage.
    Show(DatabaseArgs),
    /// Wake a database.
    Wake(DatabaseArgs),
    /// Freeze a database: its sessions stay, its processes stand still and its memory goes to swap.
    Freeze(DatabaseArgs),
    /// Stop a database cleanly, whatever its sessions do.
    Stop(DatabaseArgs),
    /// Change a database's settings.
    #[command(after_help = SETTINGS)]
    Set(SetArgs),
    /// Run psql on a database, with a credential that is deleted afterwards.
    Psql(PsqlArgs),
    /// Show a database's Postgres log.
    Logs(LogsArgs),
    /// Give a database another name. Connection URLs stay valid.
    Rename(RenameArgs),
    /// Write a database to standard output or a file, with pg_dump.
    Dump(DumpArgs),
    /// Make a database of what `roost dump` or pg_dump wrote.
    Restore(RestoreArgs),
    /// Delete a database; it can be undeleted for a while.
    Delete(DeleteArgs),
    /// Take a deletion back.
    Undelete(UndeleteArgs),
    /// The credentials of a database.
    #[command(subcommand)]
    Connections(ConnectionsCommand),
    /// Named groups of databases.
    #[command(subcommand)]
    Projects(ProjectsCommand),
    /// What this machine can do: Postgres versions, isolation, volumes, limits, swap.
    Doctor,
    /// The node: version, addresses, how many databases.
    Status,
    /// Print a completion script for a shell, to be put where that shell looks for it.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// The node's own process, started by `roost up`.
    #[command(hide = true)]
    Node,
}

/// `roost up`
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Configuration file; every setting has a default.
    #[arg(long, value_name = "FILE", env = "ROOST_CONFIG", hide_env = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print a configuration file with every setting, its documentation and its default, and end.
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Make a database `demo` on the first start and print its connection URL.
    #[arg(long)]
    pub(crate) demo: bool,
    #[command(flatten)]
    pub(crate) settings: ConfigFlags,
}

/// A command about one database.
#[derive(Debug, Args)]
pub(crate) struct DatabaseArgs {
    /// The database.
    pub(crate) database: String,
}

/// `roost create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name: a-z, 0-9 and single hyphens inside; made up when absent.
    pub(crate) name: Option<String>,
    /// Major version of Postgres [default: the node's].
    #[arg(long, short = 'V', value_name = "MAJOR")]
    pub(crate) postgres: Option<String>,
    /// Project that it belongs to.
    #[arg(long, short = 'p', value_name = "PROJECT")]
    pub(crate) project: Option<String>,
    /// A setting, as for `roost set`; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Register many databases without connections, one name a line of this file (- is standard input).
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub(crate) names_from: Option<PathBuf>,
}

/// `roost url`
#[derive(Debug, Args)]
pub(crate) struct UrlArgs {
    /// The database.
    pub(crate) database: String,
    /// Make a new connection. Without it, nothing can be printed: a secret is shown only when it is made.
    #[arg(long)]
    pub(crate) new: bool,
    /// Name of the new connection, for people.
    #[arg(long, default_value = "roost url")]
    pub(crate) name: String,
}

/// `roost list`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only databases of this project.
    #[arg(long, short = 'p', value_name = "PROJECT")]
    pub(crate) project: Option<String>,
    /// Deleted databases in place of live ones.
    #[arg(long)]
    pub(crate) deleted: bool,
    /// At most so many, the oldest first.
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) limit: Option<u64>,
}

const SETTINGS: &str = "\
Settings (KEY=default goes back to the node's default):
  idle-freeze=10s            idle time before it freezes, or never
  idle-stop=5m               idle time before it stops, or never
  memory=256MiB              limit of all its processes together
  storage=10GiB              limit of its files
  cpu=0.5                    limit in cores, or unlimited
  max-connections=100        of Postgres
  wal-level=replica          or logical
  stop-under-sessions=false  whether it may be stopped for memory while sessions hold it
  postgres.work_mem=8MB      further settings of Postgres, by name
What Postgres reads only when it starts is in force from the next start on.";

/// `roost set`
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The database.
    pub(crate) database: String,
    /// What changes.
    #[arg(required = true, value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
}

/// `roost psql`
#[derive(Debug, Args)]
pub(crate) struct PsqlArgs {
    /// The database.
    pub(crate) database: String,
    /// Arguments of psql.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PSQL ARGUMENTS")]
    pub(crate) arguments: Vec<String>,
}

/// `roost logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The database.
    pub(crate) database: String,
    /// Go on with what is added.
    #[arg(long, short = 'f')]
    pub(crate) follow: bool,
    /// How many of the last lines.
    #[arg(long, short = 'n', value_name = "LINES", default_value_t = 100)]
    pub(crate) lines: u32,
}

/// `roost rename`
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// The database.
    pub(crate) database: String,
    /// Its new name.
    pub(crate) name: String,
}

/// What `roost dump` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DumpFormat {
    /// pg_dump's compressed archive.
    #[value(alias = "c")]
    Custom,
    /// SQL.
    #[value(alias = "p")]
    Plain,
    /// One file a table, in a directory.
    #[value(alias = "d")]
    Directory,
    /// pg_dump's tar archive.
    #[value(alias = "t")]
    Tar,
}

/// `roost dump`
#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// The database.
    pub(crate) database: String,
    /// What is written.
    #[arg(long, short = 'F', value_enum, default_value_t = DumpFormat::Custom)]
    pub(crate) format: DumpFormat,
    /// Where to [default: standard output].
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Which database of the instance.
    #[arg(long, short = 'd', value_name = "DBNAME", default_value = "postgres")]
    pub(crate) dbname: String,
    /// Copy the files of the stopped database as a tar stream, without Postgres. It can be restored on any machine
    /// with the same major version, C library and ICU.
    #[arg(long, conflicts_with_all = ["format", "dbname", "arguments"])]
    pub(crate) cold: bool,
    /// Further arguments of pg_dump.
    #[arg(last = true, value_name = "PG_DUMP ARGUMENTS")]
    pub(crate) arguments: Vec<String>,
}

/// `roost restore`
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Name of the database that is made.
    pub(crate) name: String,
    /// What to read: a file or a directory [default: standard input]. Its format is recognised.
    #[arg(long, short = 'f', value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Restore into a database that exists already.
    #[arg(long)]
    pub(crate) existing: bool,
    /// Read what `roost dump --cold` wrote.
    #[arg(long, conflicts_with_all = ["existing", "arguments"])]
    pub(crate) cold: bool,
    /// Major version of Postgres [default: the node's].
    #[arg(long, short = 'V', value_name = "MAJOR", conflicts_with = "existing")]
    pub(crate) postgres: Option<String>,
    /// Project that it belongs to.
    #[arg(long, short = 'p', value_name = "PROJECT", conflicts_with = "existing")]
    pub(crate) project: Option<String>,
    /// Further arguments of pg_restore or psql.
    #[arg(last = true, value_name = "PG_RESTORE ARGUMENTS")]
    pub(crate) arguments: Vec<String>,
}

/// `roost delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The database; a deleted one by its id.
    pub(crate) database: String,
    /// Delete it for ever, now.
    #[arg(long)]
    pub(crate) purge: bool,
}

/// `roost undelete`
#[derive(Debug, Args)]
pub(crate) struct UndeleteArgs {
    /// The database, by its id or the name that it had.
    pub(crate) database: String,
    /// Another name for it.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// `roost connections`
#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionsCommand {
    /// List the connections of a database.
    #[command(visible_alias = "ls")]
    List(DatabaseArgs),
    /// Make a connection and print its URL, with a secret that is shown only now.
    Create {
        /// The database.
        database: String,
        /// Its name, for people.
        #[arg(long, default_value = "roost connections")]
        name: String,
    },
    /// Give a connection a new secret and print its URL. The old secret fails at once; open sessions stay.
    Rotate(ConnectionArgs),
    /// Delete a connection. Its secret fails at once; open sessions stay.
    Delete(ConnectionArgs),
}

/// A command about one connection.
#[derive(Debug, Args)]
pub(crate) struct ConnectionArgs {
    /// The connection's id (con_...).
    pub(crate) connection: String,
}

/// `roost projects`
#[derive(Debug, Subcommand)]
pub(crate) enum ProjectsCommand {
    /// List the projects.
    #[command(visible_alias = "ls")]
    List,
    /// Make a project.
    Create {
        /// Its name.
        name: String,
    },
    /// Delete a project that has no databases.
    Delete {
        /// The project, by id or name.
        project: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_and_run_are_understood_after_the_command_too() {
        let cli = Cli::try_parse_from(["roost", "list", "--json", "--run", "/tmp/r"]).unwrap();
        assert!(cli.json);
        assert_eq!(cli.run, Some("/tmp/r".into()));
        let cli =
            Cli::try_parse_from(["roost", "up", "--run", "/tmp/r", "--data", "/tmp/d", "--demo"]).unwrap();
        assert_eq!(cli.run, Some("/tmp/r".into()));
    }

    #[test]
    fn what_follows_the_database_belongs_to_psql() {
        let cli = Cli::try_parse_from(["roost", "psql", "shop", "-c", "select 1", "--json"]).unwrap();
        let Command::Psql(psql) = cli.command else { unreachable!("psql was typed") };
        assert_eq!(psql.arguments, ["-c", "select 1", "--json"]);
    }

    #[test]
    fn every_shell_gets_a_completion_script() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "roost", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("undelete"), "{shell}");
        }
    }
}
