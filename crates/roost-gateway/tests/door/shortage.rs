//! What clients read of a database that is read-only for want of storage.

use roost_lifecycle::Shortage;

use super::support::Door;
use super::support::client::fields;
use super::support::door::SECRET;

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_refused_for_want_of_storage_says_so_while_that_lasts() {
    let door = Door::open().await;
    let mut session = door.session().await;
    session.query("set default_transaction_read_only = on").await;
    session.read_until(b'Z').await;
    let reserve = Some(Shortage::Reserve { bytes: 2 << 30 });
    for (shortage, code, words) in [
        (None, "25006", "cannot execute CREATE TABLE in a read-only transaction"),
        (reserve, "53100", "below the reserve of 2048 MiB (limits.storage_reserve)"),
        (Some(Shortage::Limit { bytes: 10 << 30 }), "53100", "storage limit of 10240 MiB (storage)"),
        (None, "25006", "cannot execute CREATE TABLE in a read-only transaction"),
    ] {
        *door.stage.shortage.lock().unwrap() = shortage;
        session.query("create table t (n int)").await;
        let error = session.read_error().await;
        assert_eq!((error[&'C'].as_str(), error[&'S'].as_str()), (code, "ERROR"), "{shortage:?}");
        assert!(error[&'M'].contains(words), "{error:?}");
        assert_eq!(error.get(&'H').is_some_and(|hint| hint.contains("BEGIN READ WRITE")), shortage.is_some());
        session.read_until(b'Z').await;
        session.query("syntax error").await;
        assert_eq!(session.read_error().await[&'C'], "42601");
        session.read_until(b'Z').await;
        for allowed in ["begin read write; create table t (n int); rollback", "vacuum pg_class"] {
            session.query(allowed).await;
            session.read_until(b'Z').await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_during_a_shortage_is_warned() {
    let door = Door::open().await;
    for shortage in [None, Some(Shortage::Limit { bytes: 96 << 20 })] {
        *door.stage.shortage.lock().unwrap() = shortage;
        let mut session = door.converse().await;
        session.start(&[("user", &door.connection.to_string())]).await;
        session.prove(SECRET).await;
        let frames = session.read_until(b'Z').await;
        let notices: Vec<_> = frames.iter().filter(|(tag, _)| *tag == b'N').collect();
        assert_eq!(notices.len(), usize::from(shortage.is_some()));
        if let Some((_, body)) = notices.first() {
            let notice = fields(body);
            assert_eq!((notice[&'C'].as_str(), notice[&'S'].as_str()), ("53100", "WARNING"));
            assert!(notice[&'M'].contains("storage limit of 96 MiB (storage)"), "{notice:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_travel_whole_during_a_shortage() {
    let door = Door::open().await;
    *door.stage.shortage.lock().unwrap() = Some(Shortage::Limit { bytes: 96 << 20 });
    let client = door.connect().await;
    let rows = "select i, repeat('x', i % 1000) from generate_series(1, 50000) i";
    let rows = client.query(rows, &[]).await.unwrap();
    assert_eq!(rows.len(), 50_000);
    assert!(rows.iter().all(|row| row.get::<_, i32>(0) % 1000 == row.get::<_, &str>(1).len() as i32));
    let failing = "select 1 / (50000 - i) from generate_series(1, 60000) i";
    let error = client.query(failing, &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    assert_eq!(client.query_one("select 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}
