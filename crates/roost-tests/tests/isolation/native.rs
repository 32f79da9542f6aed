//! A superuser inside a database who runs native code: a module in a copy of Postgres 17 that the node is told to use.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost_tests::command;
use roost_tests::machine::{self, Installation};
use roost_tests::node::{Node, Setup};
use roost_tests::session::Session;

use crate::superuser::{attacker_and_victim, forbidden_paths, open_as_superuser};

const SOON: Duration = Duration::from_secs(120);

/// A copy of Postgres 17 whose library folder has the probe.
fn installation_with_probe(folder: &std::path::Path) -> Result<Installation> {
    let original = machine::further_postgres().into_iter().find(|installation| installation.major == 17);
    let original = original.context("Postgres 17 is not installed: run scripts/install-test-dependencies")?;
    command::run(Command::new("cp").arg("-a").arg(&original.folder).arg(folder), b"", SOON)?.success()?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(folder.join("lib/postgresql/probe.so"));
    compiler.arg(machine::crate_folder().join("native/probe.c"));
    command::run(&mut compiler, b"", SOON)?.success().context("cc")?;
    Ok(Installation { major: 17, folder: folder.to_owned() })
}

/// What a probe said: the errno that stopped it, 0 if nothing did.
async fn probe(session: &Session, call: &str) -> Result<i32> {
    session.value(&format!("SELECT {call}"), &[]).await
}

async fn declare(session: &Session) -> Result<()> {
    let with_text =
        ["probe_read", "probe_write", "probe_unix", "probe_abstract"].map(|name| (name, "cstring"));
    let with_number = ["probe_tcp", "probe_signal", "probe_trace"].map(|name| (name, "int"));
    let without = WITHOUT_ARGUMENTS.map(|name| (name, ""));
    for (name, argument) in with_text.into_iter().chain(with_number).chain(without) {
        let statement =
            format!("CREATE FUNCTION {name}({argument}) RETURNS int LANGUAGE c STRICT AS 'probe', '{name}'");
        session.batch_execute(&statement).await.with_context(|| statement.clone())?;
    }
    Ok(())
}

/// Probes without arguments; each must be stopped.
const WITHOUT_ARGUMENTS: [&str; 13] = [
    "probe_raw_socket",
    "probe_netlink",
    "probe_user_namespace",
    "probe_mount",
    "probe_become_root",
    "probe_device",
    "probe_chroot",
    "probe_bpf",
    "probe_keys",
    "probe_io_uring",
    "probe_clock",
    "probe_reboot",
    "probe_execute",
];

#[tokio::test(flavor = "multi_thread")]
async fn native_code_finds_no_way_out() -> Result<()> {
    ensure!(machine::is_root(), "isolation needs root; without it `roost doctor` says what is missing");
    let build = tempfile::Builder::new().prefix("rp-").tempdir_in("/var/tmp")?;
    fs::set_permissions(build.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let installation = installation_with_probe(&build.path().join("pg17"))?;
    let mut node = Setup::default()
        .with_installations([installation])
        .with(["--postgres-default-major", "17"])
        .start()?;
    let (attacker, victim) = attacker_and_victim(&mut node).await?;
    let session = open_as_superuser(&node, &attacker).await?;
    declare(&session).await?;
    let mut escapes = Vec::new();
    let mut tried = 0;
    let mut must_fail = Vec::new();

    for path in forbidden_paths(&node, &victim) {
        must_fail.push(format!("probe_read('{path}')"));
        must_fail.push(format!("probe_write('{path}/roost-was-here')"));
    }
    for path in [
        "/etc/roost-was-here",
        "/usr/roost-was-here",
        "/roost-was-here",
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
    ] {
        must_fail.push(format!("probe_write('{path}')"));
    }
    for address in [node.listen(), node.http()] {
        must_fail.push(format!("probe_tcp({})", address.rsplit_once(':').context("no port")?.1));
    }
    for database in [&attacker, &victim] {
        let socket = node.run().join(&database.id).join("s/.s.PGSQL.5432");
        must_fail.push(format!("probe_unix('{}')", socket.display()));
    }
    must_fail.push(format!("probe_unix('{}')", node.run().join("api.sock").display()));
    must_fail.push("probe_unix('.s.PGSQL.5432')".to_owned());
    let name = format!("roost-test-{}", std::process::id());
    let listener = {
        use std::os::linux::net::SocketAddrExt;
        UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?)?
    };
    must_fail.push(format!("probe_abstract('{name}')"));
    let outside = [
        i32::try_from(std::process::id())?,
        node.warden_pid()?,
        node.node_pid()?,
        node.postmaster_pid(&victim)?,
    ];
    for pid in outside {
        must_fail.push(format!("probe_signal({pid})"));
        must_fail.push(format!("probe_trace({pid})"));
    }
    must_fail.extend(WITHOUT_ARGUMENTS.map(|name| format!("{name}()")));

    for call in must_fail {
        tried += 1;
        match probe(&session, &call).await {
            Ok(0) => escapes.push(call),
            Ok(_) => {}
            // A filter that kills instead of refusing takes the session with it.
            Err(error) => escapes.push(format!("{call}: {error:#}")),
        }
    }
    drop(listener);
    assert!(tried > 60, "only {tried} probes ran");
    assert!(escapes.is_empty(), "{escapes:#?}");
    // The probe itself works: what is allowed succeeds.
    assert_eq!(probe(&session, "probe_read('PG_VERSION')").await?, 0);
    session.close().await;
    shared_memory_is_bounded(&node, &attacker).await?;
    node.finish()
}

/// /dev/shm, which every tenant may write to, does not take the machine's memory.
async fn shared_memory_is_bounded(node: &Node, database: &roost_tests::node::Database) -> Result<()> {
    let session = open_as_superuser(node, database).await?;
    let fill = "SELECT lo_export(o, '/dev/shm/filled') FROM (SELECT lo_from_bytea(0, decode(repeat('ab', 1 << 20), 'hex')) o) l";
    session.batch_execute(fill).await.ok();
    let before = machine::free_bytes(std::path::Path::new("/dev/shm"))?;
    for number in 0..600 {
        if session.batch_execute(&fill.replace("filled", &format!("filled{number}"))).await.is_err() {
            break;
        }
    }
    let after = machine::free_bytes(std::path::Path::new("/dev/shm"))?;
    ensure!(before.saturating_sub(after) < 300 << 20, "the host's /dev/shm was filled");
    Ok(())
}
