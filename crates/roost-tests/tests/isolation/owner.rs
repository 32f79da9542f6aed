//! The owner's attempts to become superuser, on every installed major.

use anyhow::{Context, Result, ensure};
use roost_tests::machine;
use roost_tests::node::{Database, Node, Setup};
use roost_tests::session::{Session, url_with};

/// Roles that have `rolsuper` by design: Roost's own, and three that the template marks so that nobody can be granted them.
const MARKED: &str = "'_roost', 'pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files'";

/// Statements that an owner must be refused.
const FORBIDDEN: &[&str] = &[
    "ALTER ROLE postgres SUPERUSER",
    "ALTER ROLE current_user SUPERUSER",
    "CREATE ROLE evil SUPERUSER",
    "ALTER ROLE postgres REPLICATION",
    "ALTER ROLE postgres BYPASSRLS",
    "CREATE ROLE evil IN ROLE _roost",
    "CREATE ROLE evil; GRANT _roost TO evil",
    "CREATE ROLE evil ROLE postgres IN ROLE pg_execute_server_program",
    "CREATE ROLE evil IN ROLE pg_read_server_files",
    "GRANT _roost TO postgres",
    "GRANT pg_execute_server_program TO postgres",
    "GRANT pg_read_server_files TO postgres",
    "GRANT pg_write_server_files TO postgres",
    "GRANT postgres TO _roost WITH ADMIN OPTION; SET ROLE _roost",
    "SET ROLE _roost",
    "SET ROLE pg_execute_server_program",
    "SET SESSION AUTHORIZATION _roost",
    "SELECT set_config('session_authorization', '_roost', false)",
    "SELECT set_config('role', '_roost', false)",
    "ALTER ROLE _roost PASSWORD 'mine'",
    "ALTER ROLE _roost NOLOGIN",
    "ALTER ROLE _roost NOSUPERUSER",
    "ALTER ROLE _roost RENAME TO gone",
    "ALTER ROLE _roost SET search_path = public",
    "ALTER ROLE _roost IN DATABASE postgres SET search_path = public",
    "ALTER ROLE ALL SET search_path = public, pg_catalog",
    "DROP ROLE _roost",
    "DROP OWNED BY _roost",
    "REASSIGN OWNED BY _roost TO postgres",
    "ALTER DEFAULT PRIVILEGES FOR ROLE _roost GRANT ALL ON TABLES TO postgres",
    "ALTER DATABASE _roost OWNER TO postgres",
    "ALTER DATABASE _roost SET role = 'postgres'",
    "ALTER DATABASE _roost RENAME TO gone",
    "DROP DATABASE _roost",
    "CREATE DATABASE copied TEMPLATE _roost",
    "ALTER DATABASE template1 OWNER TO postgres",
    "ALTER DATABASE template1 SET search_path = public",
    "ALTER SYSTEM SET archive_command = 'id'",
    "ALTER SYSTEM RESET ALL",
    "ALTER DATABASE postgres SET session_preload_libraries = 'evil'",
    "ALTER ROLE postgres SET session_preload_libraries = 'evil'",
    "ALTER DATABASE postgres SET dynamic_library_path = '/tmp'",
    "ALTER DATABASE postgres SET allow_system_table_mods = on",
    "SET log_statement = 'none'",
    "SET zero_damaged_pages = on",
    "LOAD '/tmp/evil.so'",
    "LOAD 'dblink'",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "CREATE TABLE taken (t text); COPY taken FROM PROGRAM 'id'",
    "CREATE TABLE taken (t text); COPY taken FROM '/etc/passwd'",
    "COPY (SELECT 1) TO '/tmp/roost-was-here'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_read_binary_file('global/pg_control')",
    "SELECT pg_ls_dir('/')",
    "SELECT pg_ls_logdir()",
    "SELECT pg_stat_file('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(lo_from_bytea(0, 'x'), '/tmp/roost-was-here')",
    "SELECT pg_reload_conf()",
    "SELECT pg_rotate_logfile()",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_physical_replication_slot('held')",
    "SELECT rolpassword FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT * FROM pg_hba_file_rules",
    "UPDATE pg_authid SET rolsuper = true",
    "UPDATE pg_database SET datdba = 10",
    "UPDATE pg_proc SET prosecdef = true",
    "CREATE EVENT TRIGGER caught ON ddl_command_end EXECUTE FUNCTION pg_catalog.now()",
    "CREATE FUNCTION evil() RETURNS int LANGUAGE c AS 'libc.so.6', 'getpid'",
    "CREATE FUNCTION evil() RETURNS int LANGUAGE internal AS 'pg_backend_pid'",
    "CREATE LANGUAGE plpython3u",
    "CREATE SUBSCRIPTION evil CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false)",
    "CREATE PUBLICATION evil FOR ALL TABLES",
    "CREATE FOREIGN DATA WRAPPER evil",
    "CREATE SERVER evil FOREIGN DATA WRAPPER postgres_fdw",
    "CREATE TABLESPACE evil LOCATION '/tmp'",
    "CREATE ACCESS METHOD evil TYPE TABLE HANDLER heap_tableam_handler",
    "CREATE TYPE evil; CREATE CAST (text AS bytea) WITHOUT FUNCTION",
    "ALTER FUNCTION pg_catalog.now() OWNER TO postgres",
    "CREATE FUNCTION pg_catalog.evil() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO postgres",
    "SECURITY LABEL ON ROLE postgres IS 'system'",
];

/// Things in the way of whoever looks into the database with more rights than its owner. They are allowed; running them
/// as somebody else is what must not happen. `caught` records who ran the trap.
const TRAPS: &[&str] = &[
    "CREATE TABLE caught (session_name text, name text, superuser bool); GRANT ALL ON caught TO PUBLIC",
    "CREATE FUNCTION trap() RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.caught
            SELECT session_user, current_user, rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user;
        BEGIN
            ALTER ROLE postgres SUPERUSER;
        EXCEPTION WHEN OTHERS THEN NULL;
        END;
        RETURN 1;
    END $$",
    "CREATE FUNCTION quiet_trap(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM public.trap();
        RETURN n;
    END $$",
    "CREATE TABLE bait (n int); CREATE INDEX ON bait (quiet_trap(n)); INSERT INTO bait SELECT generate_series(1, 5000)",
    "CREATE MATERIALIZED VIEW baited AS SELECT quiet_trap(n) FROM bait LIMIT 1",
    "CREATE VIEW public.pg_roles AS SELECT trap(), r.* FROM pg_catalog.pg_roles r",
    "CREATE VIEW public.pg_authid AS SELECT trap(), r.rolname, r.rolsuper FROM pg_catalog.pg_roles r",
    "CREATE VIEW public.pg_database AS SELECT trap(), d.* FROM pg_catalog.pg_database d",
    "CREATE VIEW public.pg_stat_activity AS SELECT trap(), a.* FROM pg_catalog.pg_stat_activity a",
    "CREATE VIEW public.pg_stat_user_tables AS SELECT trap(), a.* FROM pg_catalog.pg_stat_user_tables a",
    "CREATE VIEW public.pg_class AS SELECT trap(), c.oid, c.relname, c.relkind FROM pg_catalog.pg_class c",
    "CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT public.trap(); SELECT pg_catalog.now()'",
    "CREATE FUNCTION public.age(xid) RETURNS int LANGUAGE sql AS 'SELECT public.trap()'",
    "CREATE FUNCTION public.length(name) RETURNS int LANGUAGE sql AS 'SELECT public.trap()'",
    "CREATE FUNCTION public.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT public.trap()::text'",
    "CREATE FUNCTION public.pg_database_size(name) RETURNS bigint LANGUAGE sql AS 'SELECT public.trap()::bigint'",
    "CREATE FUNCTION public.equals(name, text) RETURNS bool LANGUAGE sql AS 'SELECT public.trap() = 1'",
    "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.equals)",
    "CREATE SCHEMA postgres",
    "CREATE SCHEMA \"$user\"",
    "ALTER DATABASE postgres SET role = 'postgres'",
    "ALTER DATABASE postgres SET statement_timeout = '1h'",
    "ALTER DATABASE postgres SET lock_timeout = '1h'",
    "CREATE DATABASE \"_roost2\"",
    "CREATE DATABASE \"x'; ALTER ROLE postgres SUPERUSER; --\"",
    "CREATE ROLE \"y'; ALTER ROLE postgres SUPERUSER; --\" LOGIN PASSWORD 'a'",
    "CREATE TABLE \"z'; ALTER ROLE postgres SUPERUSER; --\" AS SELECT generate_series(1, 5000) AS n",
    "CREATE TABLE \"z\"\"; ALTER ROLE postgres SUPERUSER; --\" AS SELECT generate_series(1, 5000) AS n",
    "ALTER DATABASE postgres SET search_path = public, pg_catalog",
    "ALTER ROLE postgres SET search_path = public, pg_catalog",
];

async fn ensure_no_superuser(session: &Session, after: &str) -> Result<()> {
    let query = format!(
        "SELECT string_agg(rolname, ', ') FROM pg_catalog.pg_roles WHERE rolsuper AND rolname NOT IN ({MARKED})"
    );
    let others: Option<String> = session.value(&query, &[]).await?;
    ensure!(others.is_none(), "superusers after {after}: {others:?}");
    let query = format!(
        "SELECT string_agg(rolname, ', ') FROM pg_catalog.pg_roles \
         WHERE rolname IN ({MARKED}) AND pg_catalog.pg_has_role('postgres', oid, 'MEMBER')"
    );
    let memberships: Option<String> = session.value(&query, &[]).await?;
    ensure!(memberships.is_none(), "the owner is a member of {memberships:?} after {after}");
    Ok(())
}

/// Each forbidden statement in a session of its own, which tells what it left behind.
async fn try_forbidden(database: &Database) -> Result<Vec<String>> {
    let mut allowed = Vec::new();
    for statement in FORBIDDEN {
        let session = Session::open(&database.url).await?;
        session.batch_execute("BEGIN").await?;
        if session.batch_execute(statement).await.is_ok() {
            allowed.push((*statement).to_owned());
        }
        // Nothing stays of what went before the refused part; what cannot run in a transaction is tried without.
        session.batch_execute("ROLLBACK").await?;
        let alone = statement.starts_with("ALTER SYSTEM")
            || statement.contains("TABLESPACE")
            || statement.contains("DATABASE") && !statement.contains(" SET ");
        if alone && session.batch_execute(statement).await.is_ok() {
            allowed.push((*statement).to_owned());
        }
        ensure_no_superuser(&session, statement).await?;
    }
    Ok(allowed)
}

async fn try_predefined_roles(session: &Session) -> Result<()> {
    let roles = session.query("SELECT rolname::text FROM pg_roles WHERE rolname ~ '^pg_'", &[]).await?;
    for row in roles {
        let role: String = row.try_get(0)?;
        // Some may be had (on 15, those that are no way to more); none of them may lead further.
        let _ = session.batch_execute(&format!("GRANT {role} TO postgres")).await;
        let _ = session.batch_execute(&format!("GRANT {role} TO postgres WITH ADMIN OPTION")).await;
        let _ = session
            .batch_execute(&format!("CREATE ROLE via_{role} IN ROLE {role}; GRANT via_{role} TO postgres"))
            .await;
        ensure_no_superuser(session, &role).await?;
        for statement in ["COPY (SELECT 1) TO PROGRAM 'id'", "SELECT pg_read_file('/etc/passwd')"] {
            session.sqlstate_of(statement).await.with_context(|| format!("with {role}"))?;
        }
    }
    Ok(())
}

async fn try_extensions(session: &Session) -> Result<Vec<String>> {
    let names = session
        .query(
            "SELECT DISTINCT name::text FROM pg_available_extension_versions WHERE superuser AND NOT trusted ORDER BY 1",
            &[],
        )
        .await?;
    ensure!(!names.is_empty(), "no untrusted extension is installed on this machine, so nothing was tried");
    let mut allowed = Vec::new();
    for row in names {
        let name: String = row.try_get(0)?;
        if session.batch_execute(&format!("CREATE EXTENSION \"{name}\" CASCADE")).await.is_ok() {
            allowed.push(name);
        }
    }
    Ok(allowed)
}

async fn check_trusted_extensions(session: &Session) -> Result<()> {
    session.batch_execute("CREATE SCHEMA extras; CREATE EXTENSION hstore SCHEMA extras").await?;
    session
        .batch_execute("CREATE EXTENSION pgcrypto SCHEMA extras; CREATE EXTENSION pg_trgm SCHEMA extras")
        .await?;
    ensure_no_superuser(session, "CREATE EXTENSION").await
}

/// The owner's ordinary rights, without which it would be no owner.
async fn check_rights(session: &Session) -> Result<()> {
    for statement in [
        "CREATE ROLE app LOGIN PASSWORD 'secret'",
        "GRANT app TO postgres",
        "CREATE SCHEMA app AUTHORIZATION app",
        "ALTER ROLE app SET statement_timeout = '5s'",
        "SET ROLE app",
        "RESET ROLE",
        "CREATE DATABASE second",
        "ALTER DATABASE second OWNER TO app",
        "DROP DATABASE second",
        "DROP SCHEMA app",
        "DROP ROLE app",
        "CREATE TABLE t (n int)",
        "ALTER DATABASE postgres SET timezone = 'UTC'",
        "VACUUM ANALYZE t",
    ] {
        session.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    Ok(())
}

async fn spring_traps(node: &Node, database: &Database) -> Result<()> {
    let session = Session::open(&database.url).await?;
    for statement in TRAPS {
        session.batch_execute(statement).await.with_context(|| (*statement).to_owned())?;
    }
    session.close().await;
    for _ in 0..2 {
        node.cli(&["freeze", &database.name])?;
        node.cli(&["stop", &database.name])?;
        let session = Session::open(&database.url).await?;
        session
            .batch_execute("INSERT INTO public.bait SELECT generate_series(1, 5000); ANALYZE public.bait")
            .await?;
        ensure_no_superuser(&session, "sleep and wake with traps").await?;
        session.close().await;
        node.show(&database.name)?;
    }
    let session = Session::open(&database.url).await?;
    let caught: i64 = session.value("SELECT pg_catalog.count(*) FROM public.caught", &[]).await?;
    ensure!(caught > 0, "the traps never sprang, so they prove nothing");
    let caught: Option<String> = session
        .value(
            "SELECT pg_catalog.string_agg(DISTINCT c::text, ' ') FROM public.caught c WHERE superuser",
            &[],
        )
        .await?;
    ensure!(caught.is_none(), "the owner's code ran as a superuser: {caught:?}");
    Ok(())
}

async fn check_major(node: &mut Node, major: u16) -> Result<()> {
    let database = node.create_major(&format!("owner{major}"), major)?;
    let session = Session::open(&database.url).await?;
    ensure!(!session.value::<bool>("SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[]).await?);
    ensure_no_superuser(&session, "the start").await?;
    check_rights(&session).await?;
    let allowed = try_forbidden(&database).await?;
    ensure!(allowed.is_empty(), "these were allowed: {allowed:#?}");
    check_trusted_extensions(&session).await?;
    let allowed = try_extensions(&session).await?;
    ensure!(allowed.is_empty(), "these extensions could be installed: {allowed:?}");
    try_predefined_roles(&session).await?;
    session.close().await;
    let control = url_with(&database.url, |url| url.database = "_roost".to_owned())?;
    ensure!(Session::open(&control).await.is_err(), "the control database can be connected to");
    let replication =
        url_with(&database.url, |url| url.parameters.push("options=-crole%3D_roost".to_owned()))?;
    ensure!(Session::open(&replication).await.is_err(), "a session began with `role` set to Roost's");
    spring_traps(node, &database).await
}

/// On one of [`machine::FURTHER_MAJORS`].
async fn check_further(major: u16) -> Result<()> {
    let installation = machine::further_postgres().into_iter().find(|one| one.major == major);
    let installation = installation.with_context(|| {
        format!("Postgres {major} is not installed: run scripts/install-test-dependencies")
    })?;
    let mut node = Setup::default().with_installations([installation]).start()?;
    check_major(&mut node, major).await?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_never_becomes_superuser_on_debians_major() -> Result<()> {
    let mut node = Node::new()?;
    check_major(&mut node, machine::debian_postgres()?.major).await?;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_never_becomes_superuser_on_14() -> Result<()> {
    check_further(14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_never_becomes_superuser_on_16() -> Result<()> {
    check_further(16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_never_becomes_superuser_on_17() -> Result<()> {
    check_further(17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_never_becomes_superuser_on_18() -> Result<()> {
    check_further(18).await
}
