//! The Postgres servers of this machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use roost_postgres::installation::{self, DiscoverOptions, Installation};
use roost_postgres::settings::{self, InstancePaths};
use support::{Cluster, code, text};

#[test]
fn what_is_found_is_complete_and_sorted() {
    let found = support::installations();
    assert!(found.windows(2).all(|pair| pair[0].major < pair[1].major));
    for installation in found {
        assert!(installation.version.starts_with(&installation.major.to_string()));
        assert_eq!(installation.bin, installation.bin.canonicalize().unwrap());
        assert!(installation.postgres().is_file() && installation.initdb().is_file());
        assert!(installation.share.join("extension/plpgsql.control").is_file());
        assert!(installation.lib.join("plpgsql.so").is_file());
        assert_eq!(installation.fingerprint.len(), 64);
        for path in &installation.visible_paths {
            assert!(path.exists(), "{}", path.display());
            let harmless = ["/etc/ld.so.cache", "/etc/localtime"].map(Path::new);
            assert!(!path.starts_with("/etc") || harmless.contains(&path.as_path()), "{}", path.display());
        }
    }
}

#[test]
fn a_listed_link_to_an_installation_is_the_same_installation() {
    let found = support::installations();
    let directory = support::directory();
    let link = directory.path().join("postgres-prefix");
    std::os::unix::fs::symlink(found[0].bin.parent().unwrap(), &link).unwrap();
    let again = installation::discover(&DiscoverOptions { extra: vec![link] });
    assert!(again.contains(&found[0]), "{again:?}");
}

#[test]
fn another_program_of_the_same_version_has_another_fingerprint() {
    let original = support::installations().remove(0);
    let directory = support::directory();
    let prefix = directory.path();
    for (name, target) in [("share", &original.share), ("lib", &original.lib)] {
        std::os::unix::fs::symlink(target, prefix.join(name)).unwrap();
    }
    let bin = prefix.join("bin");
    fs::create_dir(&bin).unwrap();
    fs::copy(original.initdb(), bin.join("initdb")).unwrap();
    let mut program = fs::read(original.postgres()).unwrap();
    program.push(0);
    fs::write(bin.join("postgres"), program).unwrap();
    fs::set_permissions(bin.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
    // A prefix's own libraries are found relative to it; this copy's stay where they are.
    match Installation::examine(&bin) {
        Ok(copy) => {
            assert_eq!(copy.version, original.version);
            assert_ne!(copy.fingerprint, original.fingerprint);
        }
        Err(error) => assert!(error.to_string().contains("loading shared libraries"), "{error}"),
    }
}

/// A root with nothing in it but what an installation asks for, the cluster, `/dev` and `/proc`.
#[tokio::test]
async fn postgres_runs_where_it_sees_nothing_but_its_visible_paths() {
    let Some((uid, gid)) = support::run_as() else {
        eprintln!("skipped: only root can build a root");
        return;
    };
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let root = support::directory();
        let mut script = format!("set -e\nmount -t tmpfs -o mode=0755 roost {}\n", root.path().display());
        let mut show = |source: &Path, dest: &str| {
            let (source, dest) = (source.display(), format!("{}{dest}", root.path().display()));
            script += &format!(
                "if [ -d {source} ]; then mkdir -p {dest}; else mkdir -p $(dirname {dest}); : > {dest}; fi\n"
            );
            script += &format!("mount --bind {source} {dest}\n");
        };
        for path in &installation.visible_paths {
            show(path, path.to_str().unwrap());
        }
        show(Path::new("/dev"), "/dev");
        show(Path::new("/proc"), "/proc");
        show(cluster.directory(), "/v");
        script += &format!("mount -t tmpfs -o mode=1777 roost {}/dev/shm\n", root.path().display());
        let paths =
            InstancePaths { data: "/v/data".into(), config: "/v/config".into(), socket: "/v/socket".into() };
        script += &format!(
            "exec chroot --userspec={uid}:{gid} --groups={gid} {} {} \"$@\"\n",
            root.path().display(),
            installation.postgres().display()
        );

        let mut command = Command::new("/usr/bin/unshare");
        command.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script, "postgres"]);
        command.args(settings::arguments(installation.major, &paths, &cluster.settings));
        let server = cluster.launch(command);
        let owner = server.owner().await;
        assert_eq!(text(&owner, "SELECT count(*) > 100 FROM pg_timezone_names").await, "t");
        assert_eq!(text(&owner, "SELECT 'a' COLLATE \"C.utf8\" < 'b'").await, "t");
        for sql in ["CREATE EXTENSION pg_trgm", "CREATE EXTENSION pgcrypto", "DO $$ BEGIN NULL; END $$"] {
            assert_eq!(code(owner.batch_execute(sql).await), "00000", "{} {sql}", installation.version);
        }
        let outside = server.connect("_roost", "_roost").await.unwrap();
        assert_eq!(
            code(outside.batch_execute("SELECT pg_catalog.pg_read_file('/etc/passwd')").await),
            "58P01"
        );
        server.stop();
    }
}
