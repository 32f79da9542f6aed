//! Templates made by real Postgres, and what a tenant finds in a copy of one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its set-up too")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use roost_postgres::control_file::{ClusterState, ControlFile};
use roost_postgres::template::{self, TemplateError};
use support::{Cluster, code, text};

#[test]
fn a_template_is_whole_cleanly_shut_down_and_small() {
    for installation in support::installations() {
        let path = support::template(&installation);
        let control = ControlFile::read(&path).unwrap();
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!(control.wal_segment_bytes, 4 << 20);
        assert_eq!(control.data_checksum_version, 1);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);

        let segments: Vec<_> = fs::read_dir(path.join("pg_wal"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .collect();
        let [segment] = segments.as_slice() else { panic!("{segments:?}") };
        let metadata = segment.metadata().unwrap();
        assert_eq!(metadata.len(), 4 << 20);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} bytes of WAL", metadata.blocks() * 512);
    }
}

#[test]
fn a_template_is_never_made_over_something_else_and_leaves_nothing_behind() {
    let installation = support::installations().remove(0);
    let directory = support::directory();
    let dest = directory.path().join("dest");
    fs::create_dir(&dest).unwrap();
    let error = template::build(&installation, &dest, support::run_as()).unwrap_err();
    assert!(matches!(error, TemplateError::Exists(_)), "{error}");

    let mut broken = installation;
    broken.bin = "/nonexistent".into();
    let other = directory.path().join("other");
    let error = template::build(&broken, &other, support::run_as()).unwrap_err();
    assert!(matches!(error, TemplateError::Initdb(_)), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn two_that_build_the_same_template_at_once_both_succeed() {
    let installation = support::installations().remove(0);
    let directory = support::directory();
    let dest = directory.path().join("dest");
    std::thread::scope(|scope| {
        let build = || template::build(&installation, &dest, support::run_as());
        let other = scope.spawn(build);
        build().unwrap();
        match other.join().unwrap() {
            Ok(()) | Err(TemplateError::Exists(_)) => {}
            Err(error) => panic!("{error}"),
        }
    });
    ControlFile::read(&dest).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_user_that_is_unknown_and_cannot_reach_the_place_gets_its_template_there() {
    if !support::is_root() {
        eprintln!("skipped: only root can make a template for another user");
        return;
    }
    let installation = support::installations().remove(0);
    let directory = support::directory();
    let closed = directory.path().join("closed");
    fs::create_dir_all(closed.join("templates")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let dest = closed.join("templates/made");
    template::build(&installation, &dest, Some((3_999_999, 3_999_998))).unwrap();
    let metadata = fs::metadata(dest.join("global/pg_control")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (3_999_999, 3_999_998));
    assert_eq!(ControlFile::read(&dest).unwrap().state, ClusterState::ShutDown);
    assert_eq!(fs::read_dir(closed.join("templates")).unwrap().count(), 1);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(closed.to_str().unwrap()), "{mounts}");
}

#[tokio::test]
async fn the_tenant_owns_its_database_and_makes_databases_roles_and_tables() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        let attributes = "SELECT concat_ws(',', rolsuper, rolcreatedb, rolcreaterole, rolcanlogin, rolreplication, \
                          rolbypassrls, rolpassword IS NULL) FROM pg_roles WHERE rolname = current_user";
        assert_eq!(text(&owner, attributes).await, "f,t,t,t,f,f,f", "rolpassword is shown masked");
        let owned = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'postgres'";
        assert_eq!(text(&owner, owned).await, "postgres");
        // Before 16, who creates a role is not in it, but may put itself there.
        let join = if installation.major < 16 { "GRANT reader TO postgres" } else { "SELECT 1" };
        for sql in [
            "CREATE TABLE t (id int PRIMARY KEY)",
            "CREATE SCHEMA s",
            "CREATE DATABASE shop",
            "CREATE DATABASE shop2 TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'",
            "CREATE ROLE app LOGIN PASSWORD 'x'",
            "CREATE ROLE reader",
            "GRANT pg_read_all_data TO reader",
            "GRANT pg_monitor TO reader",
            join,
            "SET ROLE reader",
            "RESET ROLE",
            "CREATE EXTENSION pg_trgm",
            "SELECT * FROM pg_stat_activity",
        ] {
            assert_eq!(code(owner.batch_execute(sql).await), "00000", "{} {sql}", installation.version);
        }
        let inside = server.connect("postgres", "shop").await.unwrap();
        inside.batch_execute("CREATE TABLE t (id int); CREATE SCHEMA s").await.unwrap();
        let app = server.connect("app", "shop").await.unwrap();
        assert_eq!(code(app.batch_execute("CREATE TABLE mine (id int)").await), "42501");
        inside.batch_execute("GRANT CREATE ON SCHEMA public TO app").await.unwrap();
        assert_eq!(code(app.batch_execute("CREATE TABLE mine (id int)").await), "00000");
        drop((inside, app));
        // Give the sessions a moment to end: a database in use is not dropped.
        assert_eq!(code(owner.batch_execute("DROP DATABASE shop WITH (FORCE)").await), "00000");
        drop(owner);
        server.stop();
    }
}

#[tokio::test]
async fn the_tenant_cannot_enter_roosts_own_databases() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        for database in ["_roost", "template1"] {
            assert_eq!(code(server.connect("postgres", database).await), "42501", "{database}");
        }
        assert_eq!(code(server.connect("postgres", "template0").await), "55000");
        let owner = server.owner().await;
        for sql in [
            "ALTER DATABASE _roost OWNER TO postgres",
            "ALTER DATABASE _roost RENAME TO mine",
            "ALTER DATABASE _roost SET role = 'postgres'",
            "DROP DATABASE _roost",
            "CREATE DATABASE mine TEMPLATE _roost",
            "GRANT CONNECT ON DATABASE _roost TO postgres",
            "ALTER DATABASE template1 SET search_path = 'mine'",
            "GRANT CONNECT ON DATABASE template1 TO PUBLIC",
        ] {
            let code = code(owner.batch_execute(sql).await);
            // A GRANT without the right to it is a warning, and grants nothing.
            assert!(
                code == "42501" || (sql.starts_with("GRANT") && code == "01007" || code == "00000"),
                "{code} {sql}"
            );
        }
        for database in ["_roost", "template1"] {
            assert_eq!(code(server.connect("postgres", database).await), "42501", "{database}");
        }
        server.stop();
    }
}

#[tokio::test]
async fn the_tenant_cannot_become_superuser_through_roles() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        owner.batch_execute("CREATE ROLE helper LOGIN CREATEROLE").await.unwrap();
        let helper = server.connect("helper", "postgres").await.unwrap();
        let mut attempts = vec![
            "ALTER ROLE postgres SUPERUSER".to_owned(),
            "ALTER ROLE postgres REPLICATION".to_owned(),
            "ALTER ROLE postgres BYPASSRLS".to_owned(),
            "CREATE ROLE s SUPERUSER".to_owned(),
            "CREATE ROLE s REPLICATION".to_owned(),
            "ALTER ROLE _roost PASSWORD 'x'".to_owned(),
            "ALTER ROLE _roost RENAME TO mine".to_owned(),
            "ALTER ROLE _roost SET role = 'postgres'".to_owned(),
            "ALTER ROLE ALL SET search_path = 'mine'".to_owned(),
            "DROP ROLE _roost".to_owned(),
            "GRANT _roost TO postgres".to_owned(),
            "SET ROLE _roost".to_owned(),
            "SET SESSION AUTHORIZATION _roost".to_owned(),
            "UPDATE pg_catalog.pg_authid SET rolsuper = true".to_owned(),
            "ALTER SYSTEM SET log_statement = 'all'".to_owned(),
            "COPY (SELECT 1) TO PROGRAM 'id'".to_owned(),
            "COPY (SELECT 1) TO '/tmp/roost-escape'".to_owned(),
            "SELECT pg_catalog.pg_read_file('/etc/passwd')".to_owned(),
            "SELECT pg_catalog.lo_import('/etc/passwd')".to_owned(),
            "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc.so.6', 'getpid'".to_owned(),
            "LOAD '/tmp/x.so'".to_owned(),
            "CREATE LANGUAGE c2 HANDLER plpgsql_call_handler".to_owned(),
            "CREATE EXTENSION file_fdw".to_owned(),
            "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION pg_catalog.now()".to_owned(),
        ];
        for role in ["pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"] {
            for to in ["postgres", "helper", "CURRENT_USER"] {
                attempts.push(format!("GRANT {role} TO {to}"));
            }
            attempts.push(format!("SET ROLE {role}"));
            attempts.push(format!("CREATE ROLE m_{role} IN ROLE {role}"));
            attempts.push(format!("ALTER ROLE {role} NOSUPERUSER"));
            attempts.push(format!("ALTER ROLE {role} LOGIN"));
            attempts.push(format!("DROP ROLE {role}"));
        }
        for (who, client) in [("postgres", &owner), ("helper", &helper)] {
            for sql in &attempts {
                let code = code(client.batch_execute(sql).await);
                assert_ne!(code, "00000", "{} {who}: {sql}", installation.version);
                let _ = client.batch_execute("RESET ROLE").await;
            }
            let escaped = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_roles r \
                            WHERE pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER') \
                              AND (r.rolsuper OR r.rolname ~ '_server_')";
            assert_eq!(text(client, escaped).await, "0", "{who}");
        }
        server.stop();
    }
}

#[tokio::test]
async fn text_is_utf8_and_orders_by_code_point() {
    for installation in support::installations() {
        let cluster = Cluster::new(&installation);
        let server = cluster.start();
        let owner = server.owner().await;
        assert_eq!(text(&owner, "SHOW server_encoding").await, "UTF8");
        assert_eq!(text(&owner, "SHOW data_checksums").await, "on");
        assert_eq!(text(&owner, "SELECT lower('ÄÖ') || upper('é')").await, "äöÉ");
        let ordered = "SELECT string_agg(x, '' ORDER BY x) FROM (VALUES ('ä'), ('b'), ('B'), ('a')) v(x)";
        assert_eq!(text(&owner, ordered).await, "Babä");
        let provider = "SELECT datlocprovider FROM pg_database WHERE datname = current_database()";
        match installation.major {
            17.. => assert_eq!(text(&owner, provider).await, "b"),
            15..=16 => assert_eq!(text(&owner, provider).await, "c"),
            _ => {}
        }
        server.stop();
    }
}
