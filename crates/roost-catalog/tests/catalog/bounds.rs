//! Everything has a bound, and the error names it.

use std::time::Duration;

use roost_catalog::{CatalogError, CatalogOptions, MAX_BULK, MAX_CONNECTIONS_PER_DATABASE, SettingsPatch};

use crate::fixture::{Fixture, name, new_connection, new_database};

#[tokio::test]
async fn a_full_queue_of_changes_is_an_error_that_names_its_bound() {
    let options = CatalogOptions { waiting_changes: 2, ..CatalogOptions::default() };
    let fixture = Fixture::with(options);
    let blocker = rusqlite::Connection::open(fixture.path()).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let create = |text: String| {
        let catalog = fixture.catalog.clone();
        tokio::spawn(async move { catalog.create_project(&name(&text)).await })
    };
    // The writer takes this one and waits for the lock; then two more fit into the queue.
    let taken = create("taken".to_owned());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let changes: Vec<_> = (0..20).map(|number| create(format!("p{number}"))).collect();
    tokio::task::yield_now().await;
    blocker.execute_batch("ROLLBACK").unwrap();
    taken.await.unwrap().unwrap();
    let mut made = 1;
    for change in changes {
        match change.await.unwrap() {
            Ok(_) => made += 1,
            Err(error @ CatalogError::Overloaded { .. }) => {
                assert!(error.to_string().contains("2 changes"), "{error}");
                assert!(error.to_string().contains("waiting_changes"), "{error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(made, 3);
    let counted = fixture.catalog.counts().await.unwrap().projects;
    assert_eq!(counted, made, "exactly the acknowledged ones exist");
}

#[tokio::test]
async fn another_programs_lock_is_an_error_after_the_busy_timeout_and_then_all_works_again() {
    let options = CatalogOptions { busy_timeout: Duration::from_millis(50), ..CatalogOptions::default() };
    let fixture = Fixture::with(options);
    let blocker = rusqlite::Connection::open(fixture.path()).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = fixture.catalog.create_project(&name("p")).await.unwrap_err();
    assert!(matches!(error, CatalogError::Busy), "{error}");
    blocker.execute_batch("ROLLBACK").unwrap();
    fixture.catalog.create_project(&name("p")).await.unwrap();
}

#[tokio::test]
async fn a_bulk_call_that_is_too_large_is_refused_before_it_waits() {
    let fixture = Fixture::new();
    let new = vec![new_database("same"); MAX_BULK + 1];
    let error = fixture.catalog.create_databases(new).await.unwrap_err();
    assert!(matches!(error, CatalogError::TooMany { limit: 100_000, .. }), "{error}");
}

#[tokio::test]
async fn settings_and_credentials_are_bounded_in_size() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let patch = SettingsPatch {
        postgres: [("work_mem".to_owned(), Some("8".repeat(20_000)))].into(),
        ..SettingsPatch::default()
    };
    let mut large_verifier = new_connection(&id);
    large_verifier.verifier = "x".repeat(2_000);
    let mut long_role = new_connection(&id);
    long_role.role = "r".repeat(64);
    for error in [
        fixture.catalog.update_settings(&id, patch).await.unwrap_err(),
        fixture.catalog.create_connection(large_verifier).await.unwrap_err(),
        fixture.catalog.create_connection(long_role).await.unwrap_err(),
    ] {
        assert!(matches!(error, CatalogError::TooMany { .. }), "{error}");
    }
    assert_eq!(fixture.catalog.counts().await.unwrap().connections, 0);
}

#[tokio::test]
async fn a_database_has_a_bounded_number_of_connections() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let creations: Vec<_> = (0..MAX_CONNECTIONS_PER_DATABASE)
        .map(|_| {
            let catalog = fixture.catalog.clone();
            tokio::spawn(async move { catalog.create_connection(new_connection(&id)).await })
        })
        .collect();
    for creation in creations {
        creation.await.unwrap().unwrap();
    }
    let error = fixture.catalog.create_connection(new_connection(&id)).await.unwrap_err();
    assert!(matches!(error, CatalogError::TooMany { limit: 1_000, .. }), "{error}");
}

#[tokio::test]
async fn one_failing_change_of_a_group_takes_no_other_with_it() {
    let fixture = Fixture::new();
    fixture.create("taken").await;
    let blocker = rusqlite::Connection::open(fixture.path()).unwrap();
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let changes: Vec<_> = (0..40)
        .map(|number| {
            let catalog = fixture.catalog.clone();
            let text = if number % 2 == 0 { format!("db-{number}") } else { "taken".to_owned() };
            tokio::spawn(async move { catalog.create_database(new_database(&text)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    blocker.execute_batch("ROLLBACK").unwrap();
    for (number, change) in changes.into_iter().enumerate() {
        match change.await.unwrap() {
            Ok(_) => assert_eq!(number % 2, 0),
            Err(error) => {
                assert!(number % 2 == 1 && matches!(error, CatalogError::NameTaken { .. }), "{error}");
            }
        }
    }
    assert_eq!(fixture.catalog.counts().await.unwrap().databases, 21);
}
