//! Everything that reads a peer's bytes, driven with bytes that are nearly right: valid messages with some bytes changed,
//! cut off or repeated, so that the checks behind the first one are reached. Noise is left to the fuzz targets.

pub mod properties;

use proptest::prelude::*;
use roost_wire::backend;
use roost_wire::error::{ErrorFields, SqlState};
use roost_wire::frame::TransactionStatus;
use roost_wire::frontend;
use roost_wire::startup::{self, ProtocolVersion};

/// How valid bytes are spoilt.
#[derive(Debug, Clone)]
enum Damage {
    Set { at: prop::sample::Index, to: u8 },
    Insert { at: prop::sample::Index, byte: u8 },
    Remove { at: prop::sample::Index },
    Truncate { at: prop::sample::Index },
    Repeat { from: prop::sample::Index },
}

impl Damage {
    fn strategy() -> impl Strategy<Value = Self> {
        // Bytes that mean something to one of the grammars come up more often than others.
        let byte = prop_oneof![
            any::<u8>(),
            prop::sample::select(b"\0\x01\x04\x05\x06\xff,=nypmraZEGQS\\ -".to_vec())
        ];
        let at = any::<prop::sample::Index>;
        prop_oneof![
            4 => (at(), byte.clone()).prop_map(|(at, to)| Self::Set { at, to }),
            2 => (at(), byte).prop_map(|(at, byte)| Self::Insert { at, byte }),
            2 => at().prop_map(|at| Self::Remove { at }),
            1 => at().prop_map(|at| Self::Truncate { at }),
            1 => at().prop_map(|from| Self::Repeat { from }),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Self::Set { at, to } => *at.get_mut(bytes) = *to,
            Self::Insert { at, byte } => bytes.insert(at.index(len), *byte),
            Self::Remove { at } => drop(bytes.remove(at.index(len))),
            Self::Truncate { at } => bytes.truncate(at.index(len)),
            Self::Repeat { from } => bytes.extend_from_within(from.index(len)..),
        }
    }
}

/// Bytes from `valid` with up to four damages.
fn nearly(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (valid, prop::collection::vec(Damage::strategy(), 0..5)).prop_map(|(mut bytes, damages)| {
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        bytes
    })
}

fn first_packet() -> impl Strategy<Value = Vec<u8>> {
    let parameters = prop::collection::vec(("[a-z_.]{1,12}", "[ -~]{0,20}"), 0..8);
    let startup = (any::<bool>(), parameters).prop_map(|(new, parameters)| {
        let version = if new { ProtocolVersion::V3_2 } else { ProtocolVersion::V3_0 };
        let mut out = Vec::new();
        startup::write_startup(
            &mut out,
            version,
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())),
        );
        out
    });
    let cancel = (any::<i32>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(pid, key)| {
        let mut out = Vec::new();
        startup::write_cancel(&mut out, pid, &key);
        out
    });
    let ssl = Just({
        let mut out = Vec::new();
        startup::write_ssl_request(&mut out);
        out
    });
    prop_oneof![4 => startup, 2 => cancel, 1 => ssl]
}

/// A byte that says how the stream is cut, and up to twenty frames.
fn frames(frame: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), prop::collection::vec(frame, 0..20))
        .prop_map(|(cut, frames)| [vec![cut % 16], frames.concat()].concat())
}

/// A frame that `write` appends, of data that it is given.
fn frame(write: impl Fn(&mut Vec<u8>, &[u8])) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(move |data| {
        let mut out = Vec::new();
        write(&mut out, &data);
        out
    })
}

fn frontend_frames() -> impl Strategy<Value = Vec<u8>> {
    frames(prop_oneof![
        frame(|out, data| frontend::write_query(out, &String::from_utf8_lossy(data))),
        frame(|out, data| frontend::write_sasl_initial_response(out, "SCRAM-SHA-256", data)),
        frame(frontend::write_sasl_response),
        frame(|out, _| frontend::write_sync(out)),
        frame(|out, _| frontend::write_terminate(out)),
        prop::sample::select(b"PBDECHFdcf".to_vec()).prop_map(|tag| vec![tag, 0, 0, 0, 4]),
    ])
}

fn backend_frames() -> impl Strategy<Value = Vec<u8>> {
    let statuses = [TransactionStatus::Idle, TransactionStatus::InTransaction, TransactionStatus::Failed];
    frames(prop_oneof![
        prop::sample::select(statuses.to_vec()).prop_map(|status| {
            let mut out = Vec::new();
            backend::ready_for_query(&mut out, status);
            out
        }),
        frame(|out, _| backend::authentication_sasl(out, &["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])),
        frame(backend::sasl_continue),
        frame(backend::sasl_final),
        frame(|out, data| backend::parameter_status(out, "TimeZone", &String::from_utf8_lossy(data))),
        frame(|out, data| backend::backend_key_data(out, 7, data)),
        frame(|out, data| {
            let message = String::from_utf8_lossy(data).into_owned();
            backend::error_response(
                out,
                &ErrorFields::fatal(SqlState::INTERNAL_ERROR, message).with_detail("d"),
            );
        }),
        prop::sample::select(b"TDC12nGHWvI".to_vec()).prop_map(|tag| vec![tag, 0, 0, 0, 4]),
    ])
}

/// A peer's first SASL message, a NUL, and its second: of clients, and of servers.
fn sasl_messages() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(vec![
        "n,,n=,r=client\0c=biws,r=clientserver,p=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "y,,n=*,r=client,x=y\0c=eSws,r=clientserver,x=y,p=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "p=tls-server-end-point,,n=,r=client\0\
         c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsY2VydGlmaWNhdGU=,r=clientserver,p=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "r=clientserver,s=AQEBAQEBAQEBAQEBAQEBAQ==,i=4096\0v=AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "SCRAM-SHA-256$4096:AQEBAQEBAQEBAQEBAQEBAQ==\
         $AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
    ])
    .prop_map(|messages| messages.as_bytes().to_vec())
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "-c",
        "-csearch_path=a",
        "--work-mem=4MB",
        "endpoint=shop",
        "-E",
        "a=b",
        "\\",
        "\\ ",
        " ",
        "\t",
        "\x0b",
        "\x0c",
        "\\\x0b",
        "\\\\",
        "--",
        "-",
        "=",
        "x",
        "\u{a0}",
    ]);
    prop::collection::vec(prop_oneof![2 => word, 1 => Just(" ")], 0..12)
        .prop_map(|words| words.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn first_packets_are_read_whole_or_not_at_all(bytes in nearly(first_packet())) {
        properties::startup(&bytes);
    }

    #[test]
    fn a_clients_frames_are_seen_the_same_however_they_are_cut(bytes in nearly(frontend_frames())) {
        properties::frontend_stream(&bytes);
    }

    #[test]
    fn a_servers_frames_are_seen_the_same_however_they_are_cut(bytes in nearly(backend_frames())) {
        properties::backend_stream(&bytes);
    }

    #[test]
    fn nobody_is_verified_by_guessing(bytes in nearly(sasl_messages())) {
        properties::scram(&bytes);
    }

    #[test]
    fn options_mean_the_same_when_they_are_handed_on(bytes in nearly(options())) {
        properties::options(&bytes);
    }
}
