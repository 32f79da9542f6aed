//! Where the time of a start goes, beside a bare `postgres` on a copy of the same cluster.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

mod harness;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Place, spec, start, volume};
use roost_postgres::settings::{self, InstancePaths};
use roost_warden::ShutdownMode;
use roost_warden::config::VOLUME_UID;

const ROUNDS: usize = 20;

#[test]
#[ignore = "what a warden executes as its node"]
fn node() {
    harness::be_the_node();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Starts `postgres` without anything around it, until a connection is accepted; then stops it.
fn bare(bin: &Path, files: &Path, configuration: &Path, spec: &roost_warden::StartSpec) -> Duration {
    let paths =
        InstancePaths { data: files.into(), config: configuration.into(), socket: configuration.into() };
    let log = std::fs::File::create(configuration.join("log")).unwrap();
    let began = Instant::now();
    let mut postgres = Command::new(bin.join("postgres"))
        .args(settings::arguments(spec.major, &paths, &spec.settings))
        .uid(VOLUME_UID)
        .gid(VOLUME_UID)
        .env_clear()
        .env("LANG", "C.UTF-8")
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut watch = roost_postgres::log::ReadyWatch::new();
    let mut seen = 0;
    let took = loop {
        let text = std::fs::read(configuration.join("log")).unwrap();
        if watch.feed(&text[seen..]) {
            break began.elapsed();
        }
        seen = text.len();
        assert!(postgres.try_wait().unwrap().is_none(), "{}", String::from_utf8_lossy(&text));
        std::thread::sleep(Duration::from_micros(200));
    };
    let pid = rustix::process::Pid::from_child(&postgres);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(postgres.wait().unwrap().success());
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn the_phases_of_a_start_are_printed_beside_a_bare_one() {
    if !harness::can_run() {
        return;
    }
    let place = Place::new();
    let process = start(&place);
    let warden = &process.warden;
    let spec = spec(volume(20));
    let template = warden.ensure_template(spec.major).await.unwrap();
    let installation =
        place.config().installations.into_iter().find(|each| each.major == spec.major).unwrap();

    let configuration = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(configuration.path(), Some(VOLUME_UID), Some(VOLUME_UID)).unwrap();
    for (name, text) in [
        (settings::CONF_FILE, settings::postgresql_conf(spec.major, &spec.settings)),
        (settings::HBA_FILE, settings::hba()),
        (settings::IDENT_FILE, settings::ident()),
    ] {
        std::fs::write(configuration.path().join(name), text).unwrap();
    }
    let files = configuration.path().join("files");
    let source = place.data().join("templates").join(template.as_str());
    assert!(Command::new("cp").arg("-a").args([&source, &files]).status().unwrap().success());

    let (mut whole, mut phases, mut bares) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let began = Instant::now();
        let instance = warden.start(spec.clone()).await.unwrap();
        let took = began.elapsed();
        warden.shutdown(&instance.volume, ShutdownMode::Fast).await.unwrap();
        roost_warden::ended(instance.exit).await.unwrap();
        assert!(warden.release(&instance.volume).await.unwrap().clean);
        let other = bare(&installation.bin, &files, configuration.path(), &spec);
        // The first start makes the volume's files.
        if round == 0 {
            println!("first start, which makes the volume: {took:?} {:?}", instance.phases);
            continue;
        }
        whole.push(took);
        phases.push(instance.phases);
        bares.push(other);
    }
    let (whole, bare) = (median(whole), median(bares));
    println!("medians of {ROUNDS}, in alternation:");
    println!("  spawn   {:?}", median(phases.iter().map(|each| each.spawn).collect()));
    println!("  confine {:?}", median(phases.iter().map(|each| each.confine).collect()));
    println!("  ready   {:?}", median(phases.iter().map(|each| each.ready).collect()));
    println!("  whole   {whole:?}");
    println!("  bare    {bare:?}");
    println!("  ratio   {:.2}", whole.as_secs_f64() / bare.as_secs_f64());
    assert_eq!(process.end(), 0);
}
