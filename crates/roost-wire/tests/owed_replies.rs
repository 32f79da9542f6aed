//! The accounting of owed replies beside a model of a Postgres server: frames of both directions are on their way for any
//! time, and a session must never count as idle while the server has something to do for it.

use std::collections::VecDeque;

use proptest::prelude::*;
use roost_wire::frame::{Seen, TransactionStatus};
use roost_wire::owed::OwedReplies;

/// What a client does before it goes quiet.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Query.
    Simple,
    /// Query that fails.
    SimpleFails,
    /// Parse, Bind, Execute, Sync.
    Extended,
    /// The same, with an error at Parse.
    ExtendedFails,
    /// COPY FROM STDIN by Query: so many rows, and whether the server refuses the first.
    Copy { rows: u8, fails: bool },
    /// COPY FROM STDIN by Execute, whose Sync is sent ahead of the data or not.
    ExtendedCopy { rows: u8, fails: bool, sync_ahead: bool },
}

/// A client's frame, and what it makes the server do.
#[derive(Debug, Clone, Copy)]
struct Request {
    tag: u8,
    effect: Effect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Fail,
    Copy { fails: bool },
}

impl Work {
    /// What is sent at once, and what is sent when the server has asked for copy data.
    fn requests(self) -> (Vec<Request>, Vec<Request>) {
        let plain = |tags: &[u8]| {
            tags.iter().map(|tag| Request { tag: *tag, effect: Effect::None }).collect::<Vec<_>>()
        };
        let one = |tag, effect| vec![Request { tag, effect }];
        let rows = |rows: u8| plain(&vec![b'd'; usize::from(rows)]);
        match self {
            Self::Simple => (plain(b"Q"), vec![]),
            Self::SimpleFails => (one(b'Q', Effect::Fail), vec![]),
            Self::Extended => (plain(b"PBES"), vec![]),
            Self::ExtendedFails => ([one(b'P', Effect::Fail), plain(b"BES")].concat(), vec![]),
            Self::Copy { rows: count, fails } => {
                (one(b'Q', Effect::Copy { fails }), [rows(count), plain(b"c")].concat())
            }
            Self::ExtendedCopy { rows: count, fails, sync_ahead } => {
                let execute = one(b'E', Effect::Copy { fails });
                let ahead = if sync_ahead { plain(b"S") } else { vec![] };
                ([plain(b"PB"), execute, ahead].concat(), [rows(count), plain(b"cS")].concat())
            }
        }
    }
}

/// A server as far as replies go (`PostgresMain` and `CopyGetData`).
#[derive(Debug, Default)]
struct Server {
    /// A copy goes on: whether by the extended protocol, and whether it fails at its first row or end.
    copy: Option<(bool, bool)>,
    /// An error in the extended protocol: everything is skipped up to Sync.
    skipping: bool,
    /// Extended-protocol messages were read since the last Sync.
    unsynced: bool,
}

impl Server {
    /// Reads a frame and answers.
    fn read(&mut self, Request { tag, effect }: Request) -> Vec<Seen> {
        if let Some((extended, fails)) = self.copy {
            return match tag {
                b'd' if !fails => vec![],
                b'd' | b'c' => {
                    self.copy = None;
                    self.skipping = extended && fails;
                    let end = frame(if fails { b'E' } else { b'C' });
                    if extended { vec![end] } else { vec![end, READY] }
                }
                // Sync and Flush.
                _ => vec![],
            };
        }
        match tag {
            b'S' => {
                self.skipping = false;
                self.unsynced = false;
                vec![READY]
            }
            // What is left of a copy that was given up.
            b'd' | b'c' => vec![],
            _ if self.skipping => vec![],
            tag => {
                let extended = tag != b'Q';
                self.unsynced |= extended;
                match effect {
                    Effect::Copy { fails } => {
                        self.copy = Some((extended, fails));
                        vec![frame(b'G')]
                    }
                    Effect::Fail if extended => {
                        self.skipping = true;
                        vec![frame(b'E')]
                    }
                    Effect::Fail => vec![frame(b'E'), READY],
                    Effect::None if extended => vec![frame(b'2')],
                    Effect::None => vec![frame(b'C'), READY],
                }
            }
        }
    }

    /// Whether there is nothing that it has begun.
    fn is_idle(&self) -> bool {
        self.copy.is_none() && !self.skipping && !self.unsynced
    }
}

const READY: Seen = Seen::Ready(TransactionStatus::Idle);

fn frame(tag: u8) -> Seen {
    Seen::Frame { tag, len: 5 }
}

/// A relay between a client and a server, with frames on their way on either side of it.
#[derive(Default)]
struct Relay {
    owed: OwedReplies,
    server: Server,
    to_server: VecDeque<Request>,
    to_relay: VecDeque<Seen>,
    /// How many CopyInResponses the client has seen.
    copies_begun: usize,
}

impl Relay {
    fn send(&mut self, request: Request) {
        self.owed.frontend(request.tag);
        self.to_server.push_back(request);
        self.check();
    }

    fn server_reads(&mut self) {
        if let Some(request) = self.to_server.pop_front() {
            self.to_relay.extend(self.server.read(request));
        }
        self.check();
    }

    fn relay_reads(&mut self) {
        if let Some(seen) = self.to_relay.pop_front() {
            self.owed.backend(seen);
            self.copies_begun += usize::from(seen == frame(b'G'));
        }
        self.check();
    }

    /// Copy data for a copy that was given up asks nothing of the server, wherever it is.
    fn check(&self) {
        let asked = self.to_server.iter().any(|request| !matches!(request.tag, b'd' | b'c'));
        if self.owed.is_idle() {
            assert!(!asked, "idle with {:?} on the way to the server", self.to_server);
            assert!(self.to_relay.is_empty(), "idle with {:?} on the way back", self.to_relay);
            assert!(self.server.is_idle(), "idle with {:?}", self.server);
        }
    }

    /// Lets `steps` pick who reads next.
    fn pass_time(&mut self, steps: &mut impl Iterator<Item = bool>, count: usize) {
        for at_server in steps.take(count) {
            if at_server { self.server_reads() } else { self.relay_reads() }
        }
    }

    fn settle(&mut self) {
        while !self.to_server.is_empty() || !self.to_relay.is_empty() {
            self.server_reads();
            self.relay_reads();
        }
    }
}

fn work() -> impl Strategy<Value = Work> {
    prop_oneof![
        Just(Work::Simple),
        Just(Work::SimpleFails),
        Just(Work::Extended),
        Just(Work::ExtendedFails),
        (0_u8..4, any::<bool>()).prop_map(|(rows, fails)| Work::Copy { rows, fails }),
        (0_u8..4, any::<bool>(), any::<bool>()).prop_map(|(rows, fails, sync_ahead)| Work::ExtendedCopy {
            rows,
            fails,
            sync_ahead
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_session_is_idle_when_and_only_when_its_server_is(
        works in prop::collection::vec((work(), 0_usize..4), 1..8), steps in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut relay = Relay::default();
        let mut steps = steps.into_iter().cycle();
        for (work, pace) in works {
            let (at_once, when_asked) = work.requests();
            let begun = relay.copies_begun;
            for request in at_once {
                relay.send(request);
                relay.pass_time(&mut steps, pace);
            }
            if !when_asked.is_empty() {
                // A client sends data when the server asks, which is after everything before.
                while relay.copies_begun == begun && !(relay.to_server.is_empty() && relay.to_relay.is_empty()) {
                    relay.server_reads();
                    relay.relay_reads();
                }
                for request in when_asked {
                    relay.send(request);
                    relay.pass_time(&mut steps, pace);
                }
            }
        }
        relay.settle();
        prop_assert!(relay.owed.is_idle(), "busy with nothing to do: {:?}", relay.owed);
    }
}
