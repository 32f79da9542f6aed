//! End-to-end tests of Roost, and the harness they share: a real node in a folder of its own, real unmodified clients,
//! real kills.
//!
//! Nothing here uses Roost's crates. A test sees what a user sees (the command line, the documented `--json` shapes, the
//! Postgres protocol, HTTP) and what the machine's administrator sees (processes, mounts, cgroups, files), so that a
//! mistake inside cannot agree with itself in a test.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`node`] | starts `roost up`, runs commands against it, kills and revives it, and ends it without a trace |
//! | [`machine`] | what this machine has: programs, Postgres installations, processes, mounts and cgroups |
//! | `traces` | what a node leaves outside its folders, and its removal |
//! | [`command_line`] | `roost ...`, as a user types it |
//! | [`command`] | runs a program with a deadline |
//! | [`session`] | client sessions in this process (tokio-postgres) |
//! | [`ledger`] | the independent record of acknowledged writes, and the writers that fill it |
//! | [`cold`] | a stopped database's files, checked without Roost: page checksums and amcheck |
//! | [`plain`] | a Postgres that Roost has nothing to do with, to compare with |
//! | [`tpch`] | TPC-H: data, keys, the 22 queries |
//! | [`psql`] | psql and the other client programs of Debian's package |
//! | [`disk`] | a file system of a test's own, that can be filled |
//! | [`http`] | a request on the node's HTTP port |
//! | [`random`] | repeatable randomness from a printed seed |
//! | [`soak`] | hours of load and faults |

pub mod cold;
pub mod command;
pub mod command_line;
pub mod disk;
pub mod http;
pub mod ledger;
pub mod machine;
pub mod node;
pub mod plain;
pub mod psql;
pub mod random;
pub mod session;
pub mod soak;
pub mod tpch;
mod traces;
