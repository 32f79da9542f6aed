//! Real clusters for tests: a template made once per installation, copies of it, and Postgres running on them.
//!
//! As root, Postgres runs as the unprivileged user [`RUN_AS`]; as an ordinary user, as that user. Further installations
//! (prefixes, separated by colons) come from `ROOST_TEST_POSTGRES`.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use roost_postgres::installation::{self, DiscoverOptions, Installation};
use roost_postgres::log::ReadyWatch;
use roost_postgres::settings::{self, InstancePaths, InstanceSettings};
use roost_postgres::template;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;
use tokio_postgres::{Client, Config, NoTls};

/// User and group of clusters when the tests run as root: `nobody` on Debian.
const RUN_AS: (u32, u32) = (65534, 65534);

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn run_as() -> Option<(u32, u32)> {
    is_root().then_some(RUN_AS)
}

/// The installations to test with: at least one.
pub(crate) fn installations() -> Vec<Installation> {
    let extra = std::env::var_os("ROOST_TEST_POSTGRES")
        .map(|list| std::env::split_paths(&list).collect())
        .unwrap_or_default();
    let found = installation::discover(&DiscoverOptions { extra });
    assert!(!found.is_empty(), "these tests need a Postgres server: apt-get install postgresql");
    found
}

/// A directory that the user of clusters can pass through, removed at the end.
pub(crate) fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("roost-postgres-").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A template of that installation, made by the first test program that asks and kept for the others below the target
/// directory, where its name makes sure that it is made of the present recipe.
pub(crate) fn template(installation: &Installation) -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    let templates = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("templates-{user}"));
    fs::create_dir_all(&templates).unwrap();
    let path = templates.join(template::name(installation).as_str());
    if !path.exists() {
        match template::build(installation, &path, run_as()) {
            Ok(()) | Err(template::TemplateError::Exists(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    path
}

/// Copies a tree with owners and modes.
pub(crate) fn copy_tree(source: &Path, dest: &Path) {
    let status = Command::new("cp").arg("-a").arg(source).arg(dest).status().unwrap();
    assert!(status.success());
}

/// A copy of a template, with what an instance needs around it.
pub(crate) struct Cluster {
    directory: TempDir,
    pub(crate) installation: Installation,
    pub(crate) settings: InstanceSettings,
}

impl Cluster {
    pub(crate) fn new(installation: &Installation) -> Self {
        let directory = directory();
        copy_tree(&template(installation), &directory.path().join("data"));
        for name in ["socket", "config"] {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            if let Some((uid, gid)) = run_as() {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
        Self { directory, installation: installation.clone(), settings: InstanceSettings::default() }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// What Postgres has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("log")).unwrap()).into_owned()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn paths(&self) -> InstancePaths {
        InstancePaths {
            data: self.data(),
            config: self.directory.path().join("config"),
            socket: self.socket(),
        }
    }

    pub(crate) fn start(&self) -> Server<'_> {
        let mut command = Command::new(self.installation.postgres());
        command.args(settings::arguments(self.installation.major, &self.paths(), &self.settings));
        if let Some((uid, gid)) = run_as() {
            command.uid(uid).gid(gid);
        }
        self.launch(command)
    }

    /// Starts Postgres by a command of the caller's, which becomes the server. `data`, `config` and `socket` lie in
    /// [`directory`](Self::directory).
    pub(crate) fn launch(&self, mut command: Command) -> Server<'_> {
        let config = self.paths().config;
        let conf = settings::postgresql_conf(self.installation.major, &self.settings);
        fs::write(config.join(settings::CONF_FILE), conf).unwrap();
        fs::write(config.join(settings::HBA_FILE), settings::hba()).unwrap();
        fs::write(config.join(settings::IDENT_FILE), settings::ident()).unwrap();
        let log = self.directory.path().join("log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let from = file.metadata().unwrap().len();
        command
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0);
        let mut server = Server { cluster: self, child: command.spawn().unwrap() };
        server.wait_until_ready(&log, from);
        server
    }
}

/// A running Postgres. It is stopped at the end.
pub(crate) struct Server<'a> {
    cluster: &'a Cluster,
    child: Child,
}

impl Server<'_> {
    fn wait_until_ready(&mut self, log: &Path, from: u64) {
        let begun = Instant::now();
        let mut watch = ReadyWatch::new();
        let mut file = fs::File::open(log).unwrap();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(from)).unwrap();
        loop {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            if watch.feed(&bytes) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!(
                    "postgres ended with {status}: {}\n{}",
                    watch.summary(),
                    fs::read_to_string(log).unwrap()
                );
            }
            assert!(begun.elapsed() < PATIENCE, "postgres is not ready: {}", self.cluster.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) async fn connect(&self, role: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        config.host_path(self.cluster.socket()).port(5432).user(role).dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The tenant's session in the tenant's database.
    pub(crate) async fn owner(&self) -> Client {
        self.connect("postgres", "postgres").await.unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "postgres does not stop");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// A clean stop.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::INT);
        self.wait();
    }

    /// The end of a crash: no checkpoint, nothing tidied up.
    pub(crate) fn crash(mut self) {
        self.signal(Signal::QUIT);
        self.wait();
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::QUIT);
            let _ = self.child.wait();
        }
    }
}

/// The SQLSTATE of a failure.
pub(crate) fn code<T>(result: Result<T, tokio_postgres::Error>) -> String {
    match result {
        Ok(_) => "00000".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

/// The first column of the first row, as text.
pub(crate) async fn text(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    messages
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
            _ => None,
        })
        .unwrap_or_default()
}
