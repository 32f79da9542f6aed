//! A real warden in a process of its own, whose node is this test.
//!
//! The warden executes this test's own binary as its node, which only hands its end of the socket pair on to the test
//! and then waits to be told to end. So the test speaks with the warden exactly as a node does, and lives on when the
//! warden, or the node, is killed.
#![allow(unsafe_code, dead_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use roost_postgres::installation::{DiscoverOptions, discover};
use roost_postgres::module::Modules;
use roost_postgres::settings::InstanceSettings;
use roost_postgres::volume::VolumeId;
use roost_warden::config::NODE_UID;
use roost_warden::{Limits, StartSpec, Warden, WardenConfig};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Where the node finds the test.
const MEETING_POINT: &str = "ROOST_TEST_MEETING_POINT";

/// Directories of a node; the same ones may have one warden after the other.
pub(crate) struct Place {
    root: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("roost-warden-").tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.path().join("data")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.root.path().join("run")
    }

    pub(crate) fn config(&self) -> WardenConfig {
        let stub = ["--exact", "node", "--ignored", "--nocapture"];
        let mut node_command = vec![OsString::from(std::env::current_exe().unwrap())];
        node_command.extend(stub.map(OsString::from));
        let options = DiscoverOptions { extra: extra_installations() };
        WardenConfig {
            data: self.data(),
            run: self.run(),
            node_command,
            node_uid: NODE_UID,
            node_gid: NODE_UID,
            installations: discover(&options),
            modules: Modules::default(),
            stop_deadline: Duration::from_secs(60),
        }
    }
}

fn extra_installations() -> Vec<PathBuf> {
    let list = std::env::var_os("ROOST_TEST_POSTGRES").unwrap_or_default();
    std::env::split_paths(&list).collect()
}

/// A running warden.
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) warden: Warden,
    node: UnixStream,
    reaped: bool,
}

impl Drop for Process {
    /// A test that fails leaves no warden, and no instance, behind.
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.node.write_all(&[0]);
            wait(self.pid, true);
        }
    }
}

/// Whether these tests can run; says why not.
pub(crate) fn can_run() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: a warden needs root for namespaces, mounts and control groups");
        return false;
    }
    has_postgres()
}

/// Whether there is anything to start; says if not.
pub(crate) fn has_postgres() -> bool {
    if discover(&DiscoverOptions { extra: extra_installations() }).is_empty() {
        println!("skipped: no Postgres is installed");
        return false;
    }
    true
}

/// Starts a warden and takes its node's end of the socket pair. Must be called inside a runtime.
pub(crate) fn start(place: &Place) -> Process {
    try_start(place).expect("the warden ended at once")
}

/// `None` if the warden ended before its node came.
pub(crate) fn try_start(place: &Place) -> Option<Process> {
    try_start_with(place, place.config())
}

/// As [`try_start`], with another configuration than the place's own.
pub(crate) fn try_start_with(place: &Place, config: WardenConfig) -> Option<Process> {
    let meeting_point = place.root.path().join("meeting-point");
    let _ = std::fs::remove_file(&meeting_point);
    let listener = UnixListener::bind(&meeting_point).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::fs::set_permissions(&meeting_point, std::fs::Permissions::from_mode(0o777)).unwrap();
    // SAFETY: the child has one thread and only runs the warden, which is what a warden's process does.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(MEETING_POINT, &meeting_point) };
        let code = match roost_warden::run(config) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("warden: {error}");
                99
            }
        };
        // SAFETY: nothing of the test's may run in its fork.
        unsafe { libc::_exit(code) };
    }
    assert!(pid > 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut node = loop {
        match listener.accept() {
            Ok((node, _)) => break node,
            Err(_) if wait(pid, false).is_some() => return None,
            Err(error) if Instant::now() > deadline => panic!("no node came: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    node.set_nonblocking(false).unwrap();
    let socket = receive_descriptor(&mut node);
    Some(Process { pid, warden: Warden::connect(socket).unwrap(), node, reaped: false })
}

impl Process {
    /// Kills the warden, as a crash would.
    pub(crate) fn kill(mut self) {
        // SAFETY: a plain call on a child that was not reaped.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        wait(self.pid, true);
        self.reaped = true;
    }

    /// Lets the node end with success, and returns the warden's exit code.
    pub(crate) fn end(mut self) -> i32 {
        self.node.write_all(&[0]).unwrap();
        self.reaped = true;
        wait(self.pid, true).unwrap()
    }
}

/// The exit code of a child, or 256 for one that a signal ended.
fn wait(pid: i32, block: bool) -> Option<i32> {
    let mut status = 0;
    // SAFETY: a plain call on a child, with a place for its status.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, if block { 0 } else { libc::WNOHANG }) };
    (reaped == pid).then(|| if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 256 })
}

/// What the warden executes as its node.
pub(crate) fn be_the_node() {
    let Some(meeting_point) = std::env::var_os(MEETING_POINT) else { return };
    // SAFETY: the warden left the socket at descriptor 3, and nothing else here owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(3) };
    let mut test = UnixStream::connect(meeting_point).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let rights = [socket.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&rights)));
    sendmsg(&test, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
    drop(socket);
    let mut code = [1];
    let _ = test.read_exact(&mut code);
    std::process::exit(code[0].into());
}

fn receive_descriptor(node: &mut UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(&*node, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let rights = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    rights.unwrap()
}

/// A volume whose name ends with `number`.
pub(crate) fn volume(number: u32) -> VolumeId {
    let digits: String =
        format!("{number:06o}").bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    format!("db_testtesttestte{digits}").parse().unwrap()
}

pub(crate) fn spec(volume: VolumeId) -> StartSpec {
    let major = installed_major();
    StartSpec {
        volume,
        major,
        system_identifier: 0x1234_5678_9abc_0000 + u64::from(volume.as_str().as_bytes()[22]),
        create: true,
        settings: InstanceSettings::default(),
        limits: Limits { memory_bytes: 256 << 20, cpu_millicores: None, pids: 256 },
        deadline: Duration::from_secs(60),
    }
}

fn installed_major() -> u16 {
    let found = discover(&DiscoverOptions { extra: extra_installations() });
    let wanted = std::env::var("ROOST_TEST_MAJOR").ok().and_then(|major| major.parse().ok());
    wanted.unwrap_or_else(|| found.iter().map(|each| each.major).min().unwrap())
}

/// A session as Roost's own role.
pub(crate) async fn connect(socket_dir: &Path) -> tokio_postgres::Client {
    try_connect(socket_dir, "_roost", "_roost").await.unwrap()
}

pub(crate) async fn try_connect(
    socket_dir: &Path,
    user: &str,
    database: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(socket_dir).user(user).dbname(database);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row, as text.
pub(crate) async fn ask(client: &tokio_postgres::Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let row = messages.into_iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(row.unwrap_or_default())
}
