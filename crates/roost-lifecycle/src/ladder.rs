//! The ladder as a pure state machine: no clock, no process, no lock of its own.
//!
//! The driver feeds it [`Event`]s and carries out the [`Command`] that comes back. At most one command is outstanding at
//! any moment, which is what makes waking single-flight: a thousand arrivals at a stopped database are a thousand
//! `Demand`s, of which exactly one answers [`Command::Start`].
//!
//! Invariants, held by the property tests below:
//! - an instance is started only from `Stopped` or an elapsed back-off, never beside another one;
//! - a demand is never forgotten: while somebody waits, some command is outstanding, the database runs, or the demand
//!   was refused;
//! - a stop ends in `Stopped`, whatever happens meanwhile, and a demand during it starts the database again.

use std::time::Duration;

use tokio::time::Instant;

/// Where a database is, as its driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No process.
    Stopped,
    /// A start is under way.
    Starting,
    /// Postgres serves.
    Running,
    /// The freezer is being told to close.
    Freezing {
        /// Somebody asked for the database meanwhile.
        wanted: bool,
    },
    /// Every process is frozen.
    Frozen,
    /// The freezer is being told to open.
    Thawing,
    /// A clean shutdown is under way.
    Stopping {
        /// Somebody asked for the database meanwhile.
        wanted: bool,
    },
    /// The instance died by itself and is cleaned up; it is started again at `at`.
    Recovering {
        /// When the next start is due.
        at: Instant,
    },
    /// The last start failed; the next is allowed at `until`.
    BackingOff {
        /// When the next start is allowed.
        until: Instant,
    },
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A session needs the database to run.
    Demand,
    /// The outstanding start succeeded.
    Started,
    /// The outstanding start failed.
    StartFailed,
    /// Nobody needs the database now, and its gate is closed: it shall be frozen.
    Freeze,
    /// The outstanding freeze succeeded.
    Frozen,
    /// The outstanding freeze failed; the processes run.
    FreezeFailed,
    /// The outstanding thaw succeeded.
    Thawed,
    /// It shall be stopped.
    Stop,
    /// The stopped instance is gone and cleaned up.
    Stopped,
    /// The instance's postmaster exited although nobody asked for it.
    Exited,
    /// The time of a restart has come.
    RestartDue,
    /// An instance of an earlier node was found running.
    AdoptedRunning,
    /// An instance of an earlier node was found frozen.
    AdoptedFrozen,
}

/// What the driver has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Nothing: the event changed nothing, or another command is outstanding already.
    Nothing,
    /// Start an instance; answer `Started` or `StartFailed`.
    Start,
    /// Open the gate: sessions may use the database.
    Open,
    /// Freeze the processes; answer `Frozen` or `FreezeFailed`.
    Freeze,
    /// Thaw the processes; answer `Thawed`, or `Stop` them if that is impossible.
    Thaw,
    /// Shut the instance down cleanly, thawing it first when `frozen`; answer `Stopped`.
    Shutdown {
        /// Whether its processes are frozen.
        frozen: bool,
    },
    /// Clean up what the dead instance left, and answer `RestartDue` at the time given, or at once when a stop comes
    /// between (or `Stopped` if it turned out that it had stopped cleanly).
    Recover {
        /// When the restart is due.
        at: Instant,
    },
    /// Tell whoever asked that the last start failed, and when the next is allowed.
    Refuse {
        /// Time until the next start is allowed.
        retry_in: Duration,
    },
}

/// The shortest and the longest pause between failed starts.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// An instance that ran this long wipes earlier failures.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// One database's place on the ladder.
#[derive(Debug)]
pub struct Ladder {
    phase: Phase,
    /// Starts that failed, and instances that died, since one last ran steadily.
    failures: u32,
    running_since: Option<Instant>,
}

impl Default for Ladder {
    fn default() -> Self {
        Self::new()
    }
}

impl Ladder {
    /// A database without a process.
    pub const fn new() -> Self {
        Self { phase: Phase::Stopped, failures: 0, running_since: None }
    }

    /// Where it is.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Starts that failed, and instances that died, since one last ran steadily.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes one event, and says what to do.
    pub fn on(&mut self, event: Event, now: Instant) -> Command {
        use Phase::{
            BackingOff, Freezing, Frozen, Recovering, Running, Starting, Stopped, Stopping, Thawing,
        };
        let (phase, command) = match (self.phase, event) {
            (Stopped, Event::Demand) => (Starting, Command::Start),
            (BackingOff { until }, Event::Demand) if until <= now => (Starting, Command::Start),
            (BackingOff { until }, Event::Demand) => {
                (self.phase, Command::Refuse { retry_in: until.saturating_duration_since(now) })
            }
            (Frozen, Event::Demand) => (Thawing, Command::Thaw),
            (Freezing { .. }, Event::Demand) => (Freezing { wanted: true }, Command::Nothing),
            (Stopping { .. }, Event::Demand) => (Stopping { wanted: true }, Command::Nothing),

            (Starting, Event::Started) => (Running, Command::Open),
            (Starting, Event::StartFailed) => {
                self.failures = self.failures.saturating_add(1);
                (BackingOff { until: now + pause(self.failures) }, Command::Nothing)
            }
            (Stopped, Event::AdoptedRunning) => (Running, Command::Open),
            (Stopped, Event::AdoptedFrozen) => (Frozen, Command::Nothing),

            (Running, Event::Freeze) => (Freezing { wanted: false }, Command::Freeze),
            (Freezing { wanted: true }, Event::Frozen) => (Thawing, Command::Thaw),
            (Freezing { wanted: false }, Event::Frozen) => (Frozen, Command::Nothing),
            (Freezing { .. }, Event::FreezeFailed) | (Thawing, Event::Thawed) => (Running, Command::Open),

            (Running, Event::Stop) => (Stopping { wanted: false }, Command::Shutdown { frozen: false }),
            (Frozen | Thawing, Event::Stop) => {
                (Stopping { wanted: false }, Command::Shutdown { frozen: true })
            }
            (Stopping { wanted: true }, Event::Stopped | Event::RestartDue) => (Starting, Command::Start),
            (Stopping { wanted: false }, Event::Stopped | Event::RestartDue)
            | (Recovering { .. } | BackingOff { .. }, Event::Stopped) => (Stopped, Command::Nothing),
            (BackingOff { .. }, Event::Stop) => (Stopped, Command::Nothing),
            // What the dead instance left is still being cleaned up: nothing may start beside that.
            (Recovering { .. }, Event::Stop) => (Stopping { wanted: false }, Command::Nothing),

            (Running | Freezing { .. } | Frozen | Thawing, Event::Exited) => {
                if self.running_since.is_some_and(|since| now.duration_since(since) >= STEADY_AFTER) {
                    self.failures = 0;
                }
                // The first restart is immediate: recovery should not wait for the next client.
                let at = if self.failures == 0 { now } else { now + pause(self.failures) };
                self.failures = self.failures.saturating_add(1);
                (Recovering { at }, Command::Recover { at })
            }
            (Recovering { .. }, Event::RestartDue) => (Starting, Command::Start),
            (phase, _) => (phase, Command::Nothing),
        };
        if phase == Running && self.phase != Running && self.running_since.is_none() {
            self.running_since = Some(now);
        }
        if matches!(phase, Stopped | Starting | Recovering { .. }) {
            self.running_since = None;
        }
        if phase == Stopped {
            self.failures = 0;
        }
        self.phase = phase;
        command
    }
}

/// The pause after so many failures: it doubles from the shortest to the longest.
fn pause(failures: u32) -> Duration {
    BACK_OFF.0.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACK_OFF.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn many_demands_are_one_start() {
        let mut ladder = Ladder::new();
        let starts = (0..200).filter(|_| ladder.on(Event::Demand, now()) == Command::Start).count();
        assert_eq!(starts, 1);
    }

    #[test]
    fn a_demand_while_freezing_thaws_at_once() {
        let mut ladder = Ladder::new();
        ladder.on(Event::Demand, now());
        ladder.on(Event::Started, now());
        assert_eq!(ladder.on(Event::Freeze, now()), Command::Freeze);
        assert_eq!(ladder.on(Event::Demand, now()), Command::Nothing);
        assert_eq!(ladder.on(Event::Frozen, now()), Command::Thaw);
        assert_eq!(ladder.on(Event::Thawed, now()), Command::Open);
    }

    #[test]
    fn a_demand_while_stopping_starts_again_after_the_stop() {
        let mut ladder = Ladder::new();
        ladder.on(Event::Demand, now());
        ladder.on(Event::Started, now());
        assert_eq!(ladder.on(Event::Stop, now()), Command::Shutdown { frozen: false });
        assert_eq!(ladder.on(Event::Demand, now()), Command::Nothing);
        assert_eq!(ladder.on(Event::Stopped, now()), Command::Start);
    }

    #[test]
    fn a_failed_start_is_refused_until_its_back_off_is_over_and_the_pause_grows() {
        let mut ladder = Ladder::new();
        let mut time = now();
        let mut last = Duration::ZERO;
        for _ in 0..8 {
            assert_eq!(ladder.on(Event::Demand, time), Command::Start);
            ladder.on(Event::StartFailed, time);
            let Command::Refuse { retry_in } = ladder.on(Event::Demand, time) else { panic!("not refused") };
            assert!(retry_in >= last && retry_in <= BACK_OFF.1);
            last = retry_in;
            time += retry_in;
        }
        assert_eq!(last, BACK_OFF.1);
    }

    #[test]
    fn a_crash_restarts_at_once_and_a_second_one_waits() {
        let mut ladder = Ladder::new();
        let time = now();
        ladder.on(Event::Demand, time);
        ladder.on(Event::Started, time);
        assert_eq!(ladder.on(Event::Exited, time), Command::Recover { at: time });
        assert_eq!(ladder.on(Event::RestartDue, time), Command::Start);
        ladder.on(Event::Started, time);
        let Command::Recover { at } = ladder.on(Event::Exited, time) else { panic!("not recovered") };
        assert!(at > time);
    }

    #[test]
    fn a_stop_during_recovery_waits_until_the_dead_instance_is_cleaned_up() {
        let mut ladder = Ladder::new();
        let time = now();
        ladder.on(Event::Demand, time);
        ladder.on(Event::Started, time);
        assert_eq!(ladder.on(Event::Exited, time), Command::Recover { at: time });
        assert_eq!(ladder.on(Event::Stop, time), Command::Nothing);
        assert_eq!(ladder.on(Event::Demand, time), Command::Nothing);
        assert_eq!(ladder.on(Event::RestartDue, time), Command::Start);
    }

    /// What the world outside does with a command: a model of a driver with at most one process.
    #[derive(Default)]
    struct World {
        process: bool,
        frozen: bool,
        open: bool,
        outstanding: Option<Command>,
    }

    impl World {
        fn take(&mut self, command: Command) {
            match command {
                Command::Nothing | Command::Refuse { .. } => return,
                Command::Open => {
                    assert!(self.process && !self.frozen, "the gate opens only before a running process");
                    self.open = true;
                    self.outstanding = None;
                    return;
                }
                Command::Start => assert!(!self.process, "a second process on one volume"),
                Command::Freeze => assert!(self.process && !self.frozen && !self.open),
                Command::Thaw => assert!(self.process && self.frozen),
                Command::Shutdown { .. } => self.open = false,
                Command::Recover { .. } => assert!(!self.process),
            }
            self.outstanding = Some(command);
        }
    }

    proptest! {
        #[test]
        fn no_order_of_events_breaks_the_ladder(choices in proptest::collection::vec(0_u8..8, 1..400)) {
            let mut ladder = Ladder::new();
            let mut world = World::default();
            let mut time = now();
            for choice in choices {
                time += Duration::from_millis(700);
                let event = match choice {
                    0 | 1 => Event::Demand,
                    2 => {
                        if ladder.phase() != Phase::Running { continue }
                        world.open = false;
                        Event::Freeze
                    }
                    3 => Event::Stop,
                    4 if world.process => {
                        // A crash: whatever command was outstanding is void, except a shutdown, which it completes.
                        world.process = false;
                        world.frozen = false;
                        world.open = false;
                        match world.outstanding {
                            Some(Command::Shutdown { .. }) => { world.outstanding = None; Event::Stopped }
                            _ => { world.outstanding = None; Event::Exited }
                        }
                    }
                    _ => match world.outstanding.take() {
                        Some(Command::Start) if choice == 5 => Event::StartFailed,
                        Some(Command::Start) => { world.process = true; Event::Started }
                        Some(Command::Freeze) if choice == 5 => Event::FreezeFailed,
                        Some(Command::Freeze) => { world.frozen = true; Event::Frozen }
                        Some(Command::Thaw) => { world.frozen = false; Event::Thawed }
                        Some(Command::Shutdown { .. }) => { world.process = false; world.frozen = false; Event::Stopped }
                        Some(Command::Recover { .. }) => Event::RestartDue,
                        _ => continue,
                    },
                };
                let command = ladder.on(event, time);
                world.take(command);
                match ladder.phase() {
                    Phase::Stopped | Phase::BackingOff { .. } => {
                        prop_assert!(!world.process && world.outstanding.is_none());
                    }
                    Phase::Running => prop_assert!(world.process && !world.frozen && world.open),
                    Phase::Frozen => prop_assert!(world.frozen && !world.open),
                    _ => prop_assert!(world.outstanding.is_some(), "nothing under way in {:?}", ladder.phase()),
                }
            }
        }
    }
}
