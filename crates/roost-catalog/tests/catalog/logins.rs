//! Connections and roles, and the memory that logins are answered from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use roost_catalog::id::ConnectionId;
use roost_catalog::model::{Name, RoleLogin};
use roost_catalog::{CatalogError, Page, Subject};

use crate::fixture::{Fixture, at, moment, name, new_connection, page};

#[tokio::test]
async fn a_connection_logs_in_with_what_it_was_made_with() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let new = new_connection(&id);
    let made = fixture.catalog.create_connection(new.clone()).await.unwrap();
    assert_eq!((made.id, made.database, made.rotated_at), (new.id, id, None));
    let login = fixture.catalog.login(&new.id).await.unwrap().unwrap();
    assert_eq!(
        (login.connection, login.database, login.role.as_str(), &login.verifier),
        (new.id, id, "postgres", &new.verifier)
    );
    let again = fixture.catalog.login(&new.id).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&login, &again), "answered from memory");
    assert_eq!(fixture.catalog.connection(&new.id).await.unwrap(), Some(made));
}

#[tokio::test]
async fn an_unknown_connection_is_remembered_as_unknown_until_it_is_made() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let new = new_connection(&id);
    for _ in 0..2 {
        assert_eq!(fixture.catalog.login(&new.id).await.unwrap(), None);
    }
    fixture.catalog.create_connection(new.clone()).await.unwrap();
    assert!(fixture.catalog.login(&new.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_rotated_or_deleted_connection_is_forgotten_at_once() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    assert!(fixture.catalog.login(&connection).await.unwrap().is_some());
    let rotated = fixture.catalog.rotate_connection(&connection, "new".to_owned()).await.unwrap();
    assert!(rotated.rotated_at.unwrap() <= SystemTime::now());
    assert_eq!(fixture.catalog.login(&connection).await.unwrap().unwrap().verifier, "new");
    fixture.catalog.delete_connection(&connection).await.unwrap();
    assert_eq!(fixture.catalog.login(&connection).await.unwrap(), None);
    for error in [
        fixture.catalog.delete_connection(&connection).await.unwrap_err(),
        fixture.catalog.rotate_connection(&connection, "x".to_owned()).await.unwrap_err(),
        fixture.catalog.rotate_connection(&ConnectionId::generate(), "x".to_owned()).await.unwrap_err(),
    ] {
        assert!(matches!(error, CatalogError::NotFound(Subject::Connection)), "{error}");
    }
}

#[tokio::test]
async fn a_databases_connections_are_listed_in_pages_without_those_of_others() {
    let fixture = Fixture::new();
    let shop = fixture.create("shop").await.id;
    let other = fixture.create("other").await.id;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(fixture.connect(&shop).await);
        fixture.connect(&other).await;
    }
    let first = fixture.catalog.connections(&shop, page(None, 3)).await.unwrap();
    let second = fixture.catalog.connections(&shop, page(first.next_cursor.clone(), 3)).await.unwrap();
    assert!(first.has_more() && !second.has_more());
    let listed: Vec<_> = first.items.iter().chain(&second.items).map(|connection| connection.id).collect();
    assert_eq!(listed, expected);
    assert_eq!(fixture.catalog.counts().await.unwrap().connections, 10);
}

/// Readers keep asking while a writer rotates the secret. Whoever asks after a rotation has returned must see it or a
/// later one, however slow the read that raced it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_login_is_older_than_an_acknowledged_rotation() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    fixture.catalog.rotate_connection(&connection, "0".to_owned()).await.unwrap();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (catalog, acknowledged, done) =
                (fixture.catalog.clone(), Arc::clone(&acknowledged), Arc::clone(&done));
            tokio::spawn(async move {
                let mut reads = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    let at_least = acknowledged.load(Ordering::SeqCst);
                    let login = catalog.login(&connection).await.unwrap().unwrap();
                    let seen: u64 = login.verifier.parse().unwrap();
                    assert!(seen >= at_least, "saw {seen} after {at_least} was acknowledged");
                    reads += 1;
                    if reads.is_multiple_of(64) {
                        tokio::task::yield_now().await;
                    }
                }
                reads
            })
        })
        .collect();
    for number in 1..=300_u64 {
        fixture.catalog.rotate_connection(&connection, number.to_string()).await.unwrap();
        acknowledged.store(number, Ordering::SeqCst);
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
}

/// The same for a route: names move between two databases.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_route_is_older_than_an_acknowledged_deletion() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let deleted = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (catalog, deleted, done) = (fixture.catalog.clone(), Arc::clone(&deleted), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    let before = deleted.load(Ordering::SeqCst);
                    let route = catalog.route(&Name::default_project(), &name("shop")).await.unwrap();
                    // The flag is down again before the undelete begins, so one that was up throughout is the truth.
                    if before && deleted.load(Ordering::SeqCst) {
                        assert_eq!(route, None);
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..100 {
        fixture.catalog.delete_database(&id, moment(1)).await.unwrap();
        deleted.store(true, Ordering::SeqCst);
        tokio::task::yield_now().await;
        deleted.store(false, Ordering::SeqCst);
        fixture.catalog.undelete_database(&id, None).await.unwrap();
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
}

fn role(text: &str) -> RoleLogin {
    RoleLogin {
        role: text.to_owned(),
        verifier: Some("SCRAM".to_owned()),
        can_login: true,
        valid_until: None,
    }
}

#[tokio::test]
async fn the_roles_of_the_last_stop_replace_those_before() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let until = RoleLogin { valid_until: Some(at(5)), can_login: false, verifier: None, ..role("old") };
    fixture.catalog.put_roles(&id, vec![until.clone(), role("app")]).await.unwrap();
    assert_eq!(fixture.catalog.role(&id, "old").await.unwrap(), Some(until));
    fixture.catalog.put_roles(&id, vec![role("app")]).await.unwrap();
    assert_eq!(fixture.catalog.role(&id, "old").await.unwrap(), None);
    assert_eq!(fixture.catalog.role(&id, "app").await.unwrap(), Some(role("app")));
}

#[tokio::test]
async fn roles_that_a_tenant_made_too_many_or_too_large_of_are_left_out() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let mut roles = vec![
        RoleLogin { verifier: Some("x".repeat(100_000)), ..role("large") },
        role(&"n".repeat(64)),
        role("twice"),
        role("twice"),
    ];
    roles.extend((0..2_000).map(|number| role(&format!("r{number}"))));
    let kept = fixture.catalog.put_roles(&id, roles).await.unwrap();
    assert_eq!(kept, roost_catalog::MAX_ROLES_PER_DATABASE - 1);
    assert_eq!(fixture.catalog.role(&id, "large").await.unwrap(), None);
    assert!(fixture.catalog.role(&id, "twice").await.unwrap().is_some());
}

#[tokio::test]
async fn a_read_does_not_wait_for_a_bulk_call() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    let new = (0..20_000).map(|number| crate::fixture::new_database(&format!("db-{number}"))).collect();
    let catalog = fixture.catalog.clone();
    let bulk = tokio::spawn(async move { catalog.create_databases(new).await });
    // On this test's one thread the bulk call is queued before this goes on.
    tokio::task::yield_now().await;
    let mut answers_meanwhile = 0;
    while !bulk.is_finished() {
        // A listing is never answered from memory.
        assert_eq!(fixture.catalog.connections(&id, Page::default()).await.unwrap().items.len(), 1);
        assert!(fixture.catalog.login(&connection).await.unwrap().is_some());
        if !bulk.is_finished() {
            answers_meanwhile += 1;
        }
        tokio::task::yield_now().await;
    }
    assert!(answers_meanwhile > 0);
    bulk.await.unwrap().unwrap();
}
