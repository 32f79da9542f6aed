//! Extensions that Postgres does not trust: refused to an owner, unless the operator lists them.

use anyhow::{Context, Result, ensure};
use roost_tests::machine;
use roost_tests::node::{Node, Setup};
use roost_tests::session::{Session, sqlstate};

/// Who installed an extension, and whether that role is a superuser.
const INSTALLED_BY: &str = "SELECT r.rolname || ' ' || r.rolsuper FROM pg_extension e JOIN pg_roles r ON r.oid = e.extowner \
     WHERE e.extname = $1";

/// What `roost doctor` says of the operator's list: the verdict and the sentence.
fn finding(node: &Node) -> Result<Option<(String, String)>> {
    let report = node.cli_json(&["doctor"])?;
    let checks =
        report["checks"].as_array().with_context(|| format!("doctor --json has no `checks`: {report}"))?;
    let find = checks.iter().find(|check| check["subject"] == "extensions");
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    Ok(find.map(|check| (text(check, "verdict"), text(check, "detail"))))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_installs_an_untrusted_extension_only_if_the_operator_lists_it() -> Result<()> {
    if !machine::is_root() {
        eprintln!("skipped: without root, it depends on the machine whether there are mounts");
        return Ok(());
    }
    let data = tempfile::Builder::new().prefix("re-").tempdir_in("/tmp")?;
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let folder = data.path().join("data");

    let mut node = Setup::default().with_data(&folder).start()?;
    let database = node.create_major("shop", 15)?;
    let session = Session::open(&database.url).await?;
    session.batch_execute("CREATE EXTENSION hstore").await.context("one that Postgres trusts")?;
    for name in ["bloom", "earthdistance", "pageinspect"] {
        assert_eq!(
            session.sqlstate_of(&format!("CREATE EXTENSION {name} CASCADE")).await?,
            "42501",
            "{name}"
        );
    }
    assert_eq!(finding(&node)?, None);
    session.close().await;
    node.finish()?;

    // The list reaches a database that was there before.
    let list = ["--postgres-extensions", "bloom,earthdistance,absent"];
    let node = Setup::default().with_data(&folder).with(list).start()?;
    let session = Session::open(&node.new_url("shop")?).await?;
    session.batch_execute("CREATE EXTENSION bloom; CREATE EXTENSION earthdistance CASCADE").await?;
    session.batch_execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n").await?;
    session.batch_execute("CREATE INDEX ON t USING bloom (n)").await?;
    for name in ["bloom", "earthdistance", "cube"] {
        assert_eq!(session.value::<String>(INSTALLED_BY, &[&name]).await?, "postgres false", "{name}");
    }
    assert_eq!(session.value::<String>("SELECT current_setting('is_superuser')", &[]).await?, "off");
    assert_eq!(session.sqlstate_of("CREATE EXTENSION pageinspect").await?, "42501");
    assert_eq!(
        session.sqlstate_of("CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'bloom', 'f'").await?,
        "42501"
    );
    let (verdict, detail) = finding(&node)?.context("doctor says nothing")?;
    assert_eq!(verdict, "weak");
    assert!(detail.contains("absent") && !detail.contains("bloom"), "{detail}");
    session.close().await;
    node.finish()?;

    // What is installed works on when the list is gone, and nothing more can be installed.
    let node = Setup::default().with_data(&folder).start()?;
    let session = Session::open(&node.new_url("shop")?).await?;
    session.batch_execute("SET enable_seqscan = off").await?;
    assert_eq!(session.value::<i64>("SELECT count(*) FROM t WHERE n = 7", &[]).await?, 1);
    session.batch_execute("DROP EXTENSION bloom CASCADE").await?;
    assert_eq!(session.sqlstate_of("CREATE EXTENSION bloom").await?, "42501");
    session.close().await;
    node.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_that_the_operator_lists_is_loaded_where_it_is_installed() -> Result<()> {
    let list = ["--postgres-preload", "pg_stat_statements,absent"];
    // Trusted too where the instance has mounts of its own, which this test does not need.
    let setup = Setup::default().with(list).with(["--postgres-extensions", "pg_stat_statements"]);
    let mut node = setup.start()?;
    let database = node.create_major("shop", 15)?;
    let session = Session::open(&database.url).await?;
    let loaded = "SELECT current_setting('shared_preload_libraries')";
    assert_eq!(session.value::<String>(loaded, &[]).await?, "pg_stat_statements");
    if machine::is_root() {
        session.batch_execute("CREATE EXTENSION pg_stat_statements; SELECT 42 AS remembered").await?;
        session.close().await;
        node.cli(&["stop", "shop"])?;
        let session = Session::open(&database.url).await?;
        let remembered = "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%remembered%'";
        assert_eq!(session.value::<i64>(remembered, &[]).await?, 1);
    }
    let report = node.cli_json(&["doctor"])?.to_string();
    assert!(report.contains("Postgres 15 has no absent"), "{report}");
    node.finish()
}

/// What a superuser reaches with an extension of Postgres' own, and its owner must not.
const BEYOND_AN_OWNER: &[(&str, &str)] = &[
    ("adminpack", "SELECT pg_file_write('here', 'roost', false)"),
    ("dblink", "SELECT dblink_connect_u('host=/run/postgresql user=_roost dbname=_roost')"),
    ("dblink", "SELECT dblink_connect('host=/run/postgresql user=_roost dbname=_roost password=x')"),
    ("file_fdw", "CREATE SERVER s FOREIGN DATA WRAPPER file_fdw"),
    ("pageinspect", "SELECT get_raw_page('pg_authid', 0)"),
    ("pg_surgery", "SELECT heap_force_kill('pg_authid'::regclass, ARRAY['(0,1)'::tid])"),
    ("postgres_fdw", "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw"),
    (
        "xml2",
        "SELECT xslt_process('<a/>', '<xsl:stylesheet version=\"1.0\" \
         xmlns:xsl=\"http://www.w3.org/1999/XSL/Transform\"><xsl:template match=\"/\">\
         <xsl:copy-of select=\"document(''/etc/hosts'')\"/></xsl:template></xsl:stylesheet>')",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_extension_of_postgres_keeps_for_superusers_it_keeps_from_an_owner_who_installed_it()
-> Result<()> {
    if !machine::is_root() {
        eprintln!("skipped: without root, it depends on the machine whether there are mounts");
        return Ok(());
    }
    let mut setup = Setup::default();
    for (extension, _) in BEYOND_AN_OWNER {
        setup = setup.with(["--postgres-extensions", extension]);
    }
    let mut node = setup.start()?;
    let database = node.create_major("shop", 15)?;
    let session = Session::open(&database.url).await?;
    for (extension, statement) in BEYOND_AN_OWNER {
        session
            .batch_execute(&format!("CREATE EXTENSION IF NOT EXISTS {extension}"))
            .await
            .context(*extension)?;
        let error = session
            .batch_execute(statement)
            .await
            .err()
            .with_context(|| format!("it worked: {statement}"))?;
        let code = sqlstate(&error);
        // Refused by Postgres, by the filter of system calls, or by libxslt, and not for being misspelt.
        ensure!(["42501", "08001", "38000"].contains(&code), "{statement}: {error:?}");
    }
    assert_eq!(session.value::<String>("SELECT current_setting('is_superuser')", &[]).await?, "off");
    session.close().await;
    node.finish()
}
