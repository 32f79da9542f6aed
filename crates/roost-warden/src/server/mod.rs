//! The warden's loop: one thread, one `epoll`, no request that waits for another.
//!
//! What may take long is in other processes: a start is the work of the instance's first process, everything on disk
//! is a [job](crate::job). What has to be waited for without an event to wait for (a group that becomes empty or
//! frozen) is looked at by timers, at growing intervals and up to a deadline.

mod adopt;
mod ending;
mod entry;
mod requests;
mod starting;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, WaitOptions};

use roost_postgres::Installation;
use roost_postgres::template::TemplateName;
use roost_postgres::volume::VolumeId;

use crate::channel;
use crate::isolation::Isolation;
use crate::job::{Jobs, Workshop};
use crate::node::{Next, Supervision};
use crate::premises::RunDirectory;
use crate::protocol::{Answer, ExitStatus, MAX_OUTSTANDING, Reply, Request, WardenError};
use crate::sys;
use crate::volumes::Volumes;
use entry::Entry;

/// How long a node that is to be replaced may take to let go.
const REPLACE_DEADLINE: Duration = Duration::from_secs(10);

/// What an event of `epoll` is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Node,
    Signals,
    Logs,
    /// The set-up pipe of an instance that starts.
    Setup(VolumeId),
    /// The exit of an adopted instance, which is nobody's child here.
    Exit(VolumeId),
    /// The result of a job.
    Job(u64),
}

/// What is due at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// A start's deadline, for the instance of that generation.
    Deadline(VolumeId, u64),
    /// A look at a group that is to freeze.
    Frozen(VolumeId, u64),
    /// A look at a group that is to become empty.
    Gone(VolumeId, u64),
    /// The start of another node.
    SpawnNode,
    /// The end of the patience with a node that is to end.
    KillNode(i32),
}

/// Where a reply goes: replies to a node that died are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ReplyTo {
    session: u64,
    id: u64,
}

/// What a job's result is for.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Reply(ReplyTo),
    Template(u16),
}

/// Who waits for a template.
enum TemplateWaiter {
    Reply(ReplyTo),
    Start(ReplyTo, Box<crate::protocol::StartSpec>, Instant),
}

/// How the warden ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// It does not.
    Serving,
    /// The node was told to end, and will not be started again.
    Stopping,
    /// The node was told to end, and another one takes its place.
    Replacing,
}

pub(crate) struct Server {
    isolation: Box<dyn Isolation>,
    volumes: Volumes,
    run: RunDirectory,
    installations: BTreeMap<u16, Installation>,
    templates: BTreeMap<u16, TemplateName>,
    stop_deadline: Duration,

    epoll: OwnedFd,
    signals: OwnedFd,
    logs: OwnedFd,
    sources: HashMap<u64, Source>,
    next_source: u64,
    timers: BTreeMap<(Instant, u64), Timer>,
    next_timer: u64,

    node: Supervision,
    node_pid: Option<i32>,
    socket: Option<OwnedFd>,
    session: u64,
    outstanding: usize,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    mode: Mode,
    leave_instances: bool,

    instances: BTreeMap<VolumeId, Entry>,
    generation: u64,
    watches: HashMap<i32, VolumeId>,
    jobs: Jobs<Purpose>,
    template_waiters: HashMap<u16, Vec<TemplateWaiter>>,
}

/// What a server is made of.
pub(crate) struct Parts {
    pub(crate) isolation: Box<dyn Isolation>,
    pub(crate) volumes: Volumes,
    pub(crate) run: RunDirectory,
    pub(crate) installations: Vec<Installation>,
    pub(crate) node: Supervision,
    pub(crate) stop_deadline: Duration,
}

impl Server {
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        let logs = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let templates = parts
            .installations
            .iter()
            .map(|each| (each.major, roost_postgres::template::name(each)))
            .collect();
        let installations = parts.installations.into_iter().map(|each| (each.major, each)).collect();
        let mut server = Self {
            isolation: parts.isolation,
            volumes: parts.volumes,
            run: parts.run,
            installations,
            templates,
            stop_deadline: parts.stop_deadline,
            epoll,
            signals,
            logs,
            sources: HashMap::new(),
            next_source: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            node: parts.node,
            node_pid: None,
            socket: None,
            session: 0,
            outstanding: 0,
            outgoing: VecDeque::new(),
            mode: Mode::Serving,
            leave_instances: false,
            instances: BTreeMap::new(),
            generation: 0,
            watches: HashMap::new(),
            jobs: Jobs::new(),
            template_waiters: HashMap::new(),
        };
        let signals = server.signals.try_clone()?;
        server.watch(&signals, Source::Signals)?;
        let logs = server.logs.try_clone()?;
        server.watch(&logs, Source::Logs)?;
        Ok(server)
    }

    /// Adopts what runs, starts a node, and serves it. Returns the exit code of the warden.
    pub(crate) fn run(&mut self) -> io::Result<i32> {
        self.adopt();
        self.spawn_node();
        let mut events = Vec::with_capacity(256);
        loop {
            events.clear();
            let timeout = self.timers.keys().next().map(|(due, _)| {
                let wait = due.saturating_duration_since(Instant::now());
                rustix::event::Timespec {
                    tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(wait.subsec_nanos()),
                }
            });
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let Some(source) = self.sources.get(&event.data.u64()).copied() else { continue };
                if let Some(code) = self.dispatch(source, event.flags) {
                    return Ok(self.finish(code));
                }
            }
            self.run_timers();
            self.begin_jobs();
        }
    }

    fn dispatch(&mut self, source: Source, flags: EventFlags) -> Option<i32> {
        match source {
            Source::Signals => return self.take_signals(),
            Source::Node => {
                if flags.contains(EventFlags::OUT) {
                    self.flush();
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.read_requests();
                }
            }
            Source::Logs => self.read_logs(),
            Source::Setup(volume) => self.setup_done(volume),
            Source::Exit(volume) => self.instance_ended(volume, None),
            Source::Job(number) => self.read_job(number),
        }
        None
    }

    fn watch(&mut self, descriptor: impl AsFd, source: Source) -> io::Result<()> {
        let token = self.next_source;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), EventFlags::IN)?;
        self.next_source += 1;
        self.sources.insert(token, source);
        Ok(())
    }

    fn unwatch(&mut self, descriptor: BorrowedFd<'_>, source: Source) {
        // One that is no longer watched is gone from the kernel's list already.
        let _ = epoll::delete(&self.epoll, descriptor);
        self.sources.retain(|_, other| *other != source);
    }

    fn after(&mut self, wait: Duration, timer: Timer) {
        self.timers.insert((Instant::now() + wait, self.next_timer), timer);
        self.next_timer += 1;
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.timers.first_entry() {
            if first.key().0 > now {
                break;
            }
            match first.remove() {
                Timer::Deadline(volume, generation) => self.start_deadline(volume, generation),
                Timer::Frozen(volume, generation) => self.look_if_frozen(volume, generation),
                Timer::Gone(volume, generation) => self.look_if_gone(volume, generation),
                Timer::SpawnNode => self.spawn_node(),
                Timer::KillNode(pid) => {
                    if self.node_pid == Some(pid) {
                        tracing::error!(pid, "the node did not end in time and is killed");
                        self.signal_node(Signal::KILL);
                    }
                }
            }
        }
    }

    // The node.

    fn spawn_node(&mut self) {
        match self.node.spawn() {
            Ok((pid, socket)) => {
                tracing::info!(pid, "started the node");
                self.node_pid = Some(pid);
                self.session += 1;
                self.outstanding = 0;
                self.outgoing.clear();
                self.leave_instances = false;
                if let Err(error) = self.watch(&socket, Source::Node) {
                    tracing::error!(%error, "could not listen to the node");
                }
                self.socket = Some(socket);
            }
            Err(error) => {
                tracing::error!(%error, "could not start the node");
                self.after(Duration::from_secs(1), Timer::SpawnNode);
            }
        }
    }

    fn signal_node(&self, signal: Signal) {
        if let Some(pid) = self.node_pid.and_then(Pid::from_raw) {
            // It is this process's child, so its id is its own until it is reaped.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    fn hang_up(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.unwatch(socket.as_fd(), Source::Node);
        }
    }

    fn node_ended(&mut self, status: ExitStatus) -> Option<i32> {
        tracing::info!(?status, "the node ended");
        self.node_pid = None;
        self.hang_up();
        match self.mode {
            Mode::Stopping => return Some(if status == ExitStatus::Code(0) { 0 } else { 1 }),
            Mode::Replacing => {
                self.mode = Mode::Serving;
                self.spawn_node();
            }
            Mode::Serving => match self.node.ended(Some(status)) {
                Next::End(code) => return Some(code),
                Next::Restart(pause) => self.after(pause, Timer::SpawnNode),
            },
        }
        None
    }

    // Signals.

    fn take_signals(&mut self) -> Option<i32> {
        while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
            match signal {
                libc::SIGCHLD => {
                    if let Some(code) = self.reap() {
                        return Some(code);
                    }
                }
                libc::SIGHUP => {
                    if self.mode == Mode::Serving && self.node_pid.is_some() {
                        self.mode = Mode::Replacing;
                        self.end_node(Signal::HUP, REPLACE_DEADLINE);
                    }
                }
                _ => {
                    self.mode = Mode::Stopping;
                    if self.node_pid.is_none() {
                        return Some(0);
                    }
                    self.end_node(Signal::TERM, self.stop_deadline);
                }
            }
        }
        None
    }

    fn end_node(&mut self, signal: Signal, patience: Duration) {
        self.signal_node(signal);
        if let Some(pid) = self.node_pid {
            self.after(patience, Timer::KillNode(pid));
        }
    }

    fn reap(&mut self) -> Option<i32> {
        let mut code = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(code),
                (None, Some(signal)) => ExitStatus::Signal(signal),
                (None, None) => continue,
            };
            if self.node_pid == Some(pid) {
                code = self.node_ended(status).or(code);
                continue;
            }
            let instance =
                self.instances.values().find(|entry| entry.footprint.pid == pid && !entry.record.adopted);
            if let Some(volume) = instance.map(|entry| entry.record.volume) {
                self.instance_ended(volume, Some(status));
            }
            // Anything else is a job, whose pipe says all there is to know.
        }
        code
    }

    // Messages.

    fn read_requests(&mut self) {
        let mut buffer = Vec::new();
        while self.outstanding < MAX_OUTSTANDING {
            let Some(socket) = &self.socket else { return };
            let received = match channel::receive(socket, &mut buffer) {
                Ok(received) if !received.bytes.is_empty() => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => return self.hang_up(),
                Err(error) => {
                    tracing::error!(%error, "the node sent what is no request");
                    self.hang_up();
                    return self.signal_node(Signal::KILL);
                }
            };
            match serde_json::from_slice::<Request>(&received.bytes) {
                Ok(request) => {
                    self.node.served();
                    self.outstanding += 1;
                    let to = ReplyTo { session: self.session, id: request.id };
                    self.handle(to, request.command, received.descriptors);
                }
                Err(error) => {
                    tracing::error!(%error, "the node sent what is no request");
                    self.hang_up();
                    return self.signal_node(Signal::KILL);
                }
            }
        }
        self.listen();
    }

    fn reply(&mut self, to: ReplyTo, result: Result<Answer, WardenError>) {
        self.reply_with(to, result, Vec::new());
    }

    fn reply_with(&mut self, to: ReplyTo, result: Result<Answer, WardenError>, descriptors: Vec<OwnedFd>) {
        if to.session != self.session || self.socket.is_none() {
            return;
        }
        let was_full = self.outstanding >= MAX_OUTSTANDING;
        self.outstanding = self.outstanding.saturating_sub(1);
        match serde_json::to_vec(&Reply { id: to.id, result }) {
            Ok(bytes) => self.outgoing.push_back((bytes, descriptors)),
            Err(error) => tracing::error!(%error, "a reply could not be written"),
        }
        self.flush();
        if was_full {
            self.listen();
        }
    }

    fn flush(&mut self) {
        while let Some((bytes, descriptors)) = self.outgoing.front() {
            let Some(socket) = &self.socket else { break };
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match channel::send(socket, bytes, &borrowed) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "a reply could not be sent");
                }
            }
            self.outgoing.pop_front();
        }
        self.listen();
    }

    /// Listens for what can be done now: requests while there is room for them, and room for replies that wait.
    fn listen(&mut self) {
        let token = self.sources.iter().find(|(_, source)| **source == Source::Node).map(|(token, _)| *token);
        let (Some(token), Some(socket)) = (token, &self.socket) else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.outstanding < MAX_OUTSTANDING);
        flags.set(EventFlags::OUT, !self.outgoing.is_empty());
        if let Err(error) = epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags) {
            tracing::error!(%error, "could not listen to the node");
        }
    }

    // Jobs.

    fn begin_jobs(&mut self) {
        loop {
            let workshop = Workshop { isolation: &*self.isolation, volumes: &self.volumes };
            let begun = match self.jobs.begin(workshop) {
                None => return,
                Some(Ok(begun)) => begun,
                Some(Err((purpose, error))) => {
                    let error = crate::failure::system("fork a job", &error);
                    self.job_done(purpose, Err(error));
                    continue;
                }
            };
            if let Err(error) = self.watch(&*begun.result, Source::Job(begun.number)) {
                tracing::error!(%error, "a job's result cannot be waited for");
            }
        }
    }

    fn read_job(&mut self, number: u64) {
        if let Some(done) = self.jobs.read(number) {
            self.unwatch(done.result.as_fd(), Source::Job(number));
            self.job_done(done.about, done.outcome);
        }
    }

    fn job_done(&mut self, purpose: Purpose, result: Result<Answer, WardenError>) {
        match purpose {
            Purpose::Reply(to) => self.reply(to, result),
            Purpose::Template(major) => {
                for waiter in self.template_waiters.remove(&major).unwrap_or_default() {
                    match (waiter, &result) {
                        (TemplateWaiter::Reply(to), result) => self.reply(to, result.clone()),
                        (TemplateWaiter::Start(to, spec, arrived), Ok(_)) => self.launch(to, &spec, arrived),
                        (TemplateWaiter::Start(to, ..), Err(error)) => self.reply(to, Err(error.clone())),
                    }
                }
            }
        }
    }
}
