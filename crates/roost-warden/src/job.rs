//! Work that may take long, each piece in a process of its own: the server goes on meanwhile.
//!
//! A job is forked with what it needs, writes its result into a pipe and ends. Jobs queue in [lanes](Lane) by how long
//! they may take: in each a bounded number runs at once, and the rest waits in the order of its arrival. So a start
//! never waits for somebody's export, and volumes are measured whatever else goes on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, kill_process, set_parent_process_death_signal, setsid};

use crate::isolation::Isolation;
use crate::processes;
use crate::protocol::{Answer, MAX_MESSAGE, WardenError};
use crate::sys;
use crate::volumes::Volumes;

/// Jobs of one lane that run at once: enough to keep a disk busy, few enough to leave it to the databases.
const MAX_RUNNING: usize = 4;

/// How long a server that ends waits for its jobs to be gone.
const END_WAIT: Duration = Duration::from_secs(2);

/// What a job works with.
#[derive(Clone, Copy)]
pub(crate) struct Workshop<'a> {
    /// The node's kind of isolation.
    pub(crate) isolation: &'a dyn Isolation,
    /// The node's volumes.
    pub(crate) volumes: &'a Volumes,
}

/// The work itself, which runs in the new process.
pub(crate) type Work = Box<dyn FnOnce(Workshop<'_>) -> Result<Answer, WardenError>>;

/// Which jobs a job waits behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// What somebody's wake or the machine's memory waits for: templates, and pushing memory out.
    Steps,
    /// Looking at volumes, which the watcher of storage must be able to do at any time.
    Looks,
    /// Moving whole volumes: exports, imports, copies, deletions. As long as disks and clients take.
    Moves,
}

/// The jobs of a server. `T` is what the server remembers about each.
pub(crate) struct Jobs<T> {
    waiting: BTreeMap<Lane, VecDeque<(T, Work)>>,
    running: HashMap<u64, Running<T>>,
    next: u64,
}

struct Running<T> {
    lane: Lane,
    about: T,
    pid: i32,
    result: Rc<OwnedFd>,
    received: Vec<u8>,
}

/// A job that has just been forked, whose pipe is to be watched.
pub(crate) struct Begun {
    /// Its number.
    pub(crate) number: u64,
    /// Readable when there is something of its result, closed when it ended.
    pub(crate) result: Rc<OwnedFd>,
}

/// A job that ended.
pub(crate) struct Done<T> {
    /// What it was about.
    pub(crate) about: T,
    /// What came of it.
    pub(crate) outcome: Result<Answer, WardenError>,
    /// Its pipe.
    pub(crate) result: Rc<OwnedFd>,
}

impl<T> Jobs<T> {
    pub(crate) fn new() -> Self {
        Self { waiting: BTreeMap::new(), running: HashMap::new(), next: 0 }
    }

    /// Puts work at the end of its lane.
    pub(crate) fn push(&mut self, lane: Lane, about: T, work: Work) {
        self.waiting.entry(lane).or_default().push_back((about, work));
    }

    /// Forks the next job, if one waits in a lane with room. What failed to start is given back with the reason.
    pub(crate) fn begin(&mut self, workshop: Workshop<'_>) -> Option<Result<Begun, (T, io::Error)>> {
        let (lane, about, work) = self.next_waiting()?;
        let (result, pid) = match fork(work, workshop) {
            Ok(forked) => forked,
            Err(error) => return Some(Err((about, error))),
        };
        let number = self.next;
        self.next += 1;
        let result = Rc::new(result);
        let running = Running { lane, about, pid, result: Rc::clone(&result), received: Vec::new() };
        self.running.insert(number, running);
        Some(Ok(Begun { number, result }))
    }

    /// Takes the first job of the first lane where one waits and fewer than [`MAX_RUNNING`] run.
    fn next_waiting(&mut self) -> Option<(Lane, T, Work)> {
        let running = |lane| self.running.values().filter(|job| job.lane == lane).count();
        let mut open = self.waiting.iter_mut().filter(|(lane, _)| running(**lane) < MAX_RUNNING);
        open.find_map(|(lane, waiting)| waiting.pop_front().map(|(about, work)| (*lane, about, work)))
    }

    /// Reads what a job wrote. When it is done: what it was about, its result, and the pipe, which is still watched.
    pub(crate) fn read(&mut self, number: u64) -> Option<Done<T>> {
        let job = self.running.get_mut(&number)?;
        let mut buffer = [0_u8; 4096];
        match rustix::io::read(&job.result, &mut buffer) {
            Ok(count) if count > 0 && job.received.len() + count <= MAX_MESSAGE => {
                job.received.extend_from_slice(buffer.get(..count).unwrap_or_default());
                return None;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return None,
            Ok(_) | Err(_) => {}
        }
        let job = self.running.remove(&number)?;
        let result = serde_json::from_slice(&job.received).unwrap_or_else(|_| {
            Err(WardenError::System {
                step: "run a job".to_owned(),
                detail: format!("process {} ended without a result", job.pid),
            })
        });
        Some(Done { about: job.about, outcome: result, result: job.result })
    }
}

impl<T> Drop for Jobs<T> {
    /// The server ends: so do its jobs, and the programs that they run. They are in groups of their own, but in the
    /// session of their job.
    fn drop(&mut self) {
        let deadline = Instant::now() + END_WAIT;
        for job in self.running.values() {
            loop {
                let mut left = processes::of_session(job.pid);
                // One that was just forked is still in the session of its server.
                left.extend(processes::child_of(process::id(), job.pid));
                for pid in &left {
                    // One that has ended meanwhile needs no end.
                    let _ = kill_process(*pid, Signal::KILL);
                }
                if left.is_empty() || Instant::now() >= deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn fork(work: Work, workshop: Workshop<'_>) -> io::Result<(OwnedFd, i32)> {
    let (result, sender) = pipe_with(PipeFlags::CLOEXEC)?;
    if let Some(pid) = sys::fork_worker()? {
        rustix::io::ioctl_fionbio(&result, true)?;
        return Ok((result, pid));
    }
    // A panic must not unwind into the server's loop, of which this process has a copy.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _ = sys::reset_signals();
        let _ = setsid();
        // A job holds the locks and sockets that its warden had. It ends with it; every job may be cut short.
        set_parent_process_death_signal(Some(Signal::KILL)).ok();
        // What a job does in the background of databases must not outbid them.
        let _ = rustix::process::nice(5);
        let answer = work(workshop);
        let bytes = serde_json::to_vec(&answer).unwrap_or_default();
        File::from(sender).write_all(&bytes).is_ok()
    }));
    sys::exit_now(i32::from(!matches!(outcome, Ok(true))))
}

/// Reads a pipe to its end, up to the longest message.
pub(crate) fn read_all(pipe: OwnedFd) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What could not be read is reported like a process that said nothing.
    let _ = File::from(pipe).take(MAX_MESSAGE as u64).read_to_end(&mut bytes);
    bytes
}
