//! Deleting, bringing back, purging.

use roost_catalog::model::{Name, RoleLogin, State, Transition};
use roost_catalog::{CatalogError, Counts, DatabaseFilter, Moment, Page, SettingsPatch, Subject};
use std::time::{Duration, UNIX_EPOCH};

use crate::fixture::{Fixture, at, moment, name, new_connection};

const DAY: u64 = 86_400;
const WEEK: Duration = Duration::from_secs(7 * DAY);

#[tokio::test]
async fn a_deleted_database_frees_its_name_and_its_logins_and_roles_fail_at_once() {
    let fixture = Fixture::new();
    let project = Name::default_project();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    let role = RoleLogin { role: "app".to_owned(), verifier: None, can_login: true, valid_until: None };
    fixture.catalog.put_roles(&id, vec![role]).await.unwrap();
    assert!(fixture.catalog.login(&connection).await.unwrap().is_some());
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), Some(id));

    let deleted = fixture.catalog.delete_database(&id, moment(9)).await.unwrap();
    assert_eq!(deleted.deleted_at, Some(at(9)));
    assert_eq!(fixture.catalog.login(&connection).await.unwrap(), None);
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), None);
    assert_eq!(fixture.catalog.role(&id, "app").await.unwrap(), None);
    assert_eq!(fixture.catalog.database_by_name(&project, &name("shop")).await.unwrap(), None);
    assert_eq!(fixture.catalog.database(&id).await.unwrap(), Some(deleted));
    fixture.create("shop").await;
}

#[tokio::test]
async fn what_needs_a_live_database_says_that_it_is_deleted() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    fixture.catalog.delete_database(&id, moment(1)).await.unwrap();
    let catalog = &fixture.catalog;
    let errors = [
        catalog.delete_database(&id, moment(2)).await.unwrap_err(),
        catalog.rename_database(&id, &name("store")).await.unwrap_err(),
        catalog.update_settings(&id, SettingsPatch::default()).await.unwrap_err(),
        catalog.create_connection(new_connection(&id)).await.unwrap_err(),
        catalog.rotate_connection(&connection, "x".to_owned()).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, CatalogError::Deleted), "{error}");
    }
}

#[tokio::test]
async fn an_undeleted_database_is_whole_again() {
    let fixture = Fixture::new();
    let before = fixture.create("shop").await;
    let connection = fixture.connect(&before.id).await;
    fixture.catalog.delete_database(&before.id, moment(1)).await.unwrap();
    assert_eq!(fixture.catalog.login(&connection).await.unwrap(), None);
    let after = fixture.catalog.undelete_database(&before.id, None).await.unwrap();
    assert_eq!(after, before);
    assert!(fixture.catalog.login(&connection).await.unwrap().is_some());
    let route = fixture.catalog.route(&Name::default_project(), &name("shop")).await.unwrap();
    assert_eq!(route, Some(before.id));
    let error = fixture.catalog.undelete_database(&before.id, None).await.unwrap_err();
    assert!(matches!(error, CatalogError::NotDeleted), "{error}");
}

#[tokio::test]
async fn an_undelete_whose_name_was_taken_meanwhile_names_it_and_can_choose_another() {
    let fixture = Fixture::new();
    let first = fixture.create("shop").await.id;
    fixture.catalog.delete_database(&first, moment(1)).await.unwrap();
    let second = fixture.create("shop").await.id;
    let error = fixture.catalog.undelete_database(&first, None).await.unwrap_err();
    assert!(matches!(&error, CatalogError::NameTaken { name } if name.as_str() == "shop"), "{error}");
    let back = fixture.catalog.undelete_database(&first, Some(name("old-shop"))).await.unwrap();
    assert_eq!((back.id, back.name.as_str()), (first, "old-shop"));
    let project = Name::default_project();
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), Some(second));
    assert_eq!(fixture.catalog.route(&project, &name("old-shop")).await.unwrap(), Some(first));
}

#[tokio::test]
async fn a_purge_that_has_begun_cannot_be_undone_and_is_found_again_until_it_is_finished() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    assert!(matches!(fixture.catalog.begin_purge(&id).await, Err(CatalogError::NotDeleted)));
    fixture.catalog.delete_database(&id, moment(100)).await.unwrap();
    assert!(
        fixture.catalog.expired_deletions(moment(199), Duration::from_secs(100)).await.unwrap().is_empty()
    );
    assert_eq!(fixture.catalog.expired_deletions(moment(200), Duration::from_secs(100)).await.unwrap(), [id]);

    fixture.catalog.begin_purge(&id).await.unwrap();
    fixture.catalog.begin_purge(&id).await.unwrap();
    let fixture = fixture.reopen();
    assert_eq!(fixture.catalog.expired_deletions(moment(200), WEEK).await.unwrap(), [id]);
    assert!(matches!(fixture.catalog.undelete_database(&id, None).await, Err(CatalogError::Purging)));
    let filter = DatabaseFilter { project: None, deleted: true };
    assert!(fixture.catalog.databases(filter, Page::default()).await.unwrap().items.is_empty());
    fixture.catalog.purge_database(&id).await.unwrap();
    assert!(fixture.catalog.expired_deletions(moment(200), Duration::ZERO).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_clock_that_jumps_while_the_node_runs_hurries_and_delays_no_purge() {
    const YEARS: u64 = 10 * 365 * DAY;
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    fixture.catalog.delete_database(&id, moment(0)).await.unwrap();
    for (wall, steady) in [(YEARS, 10), (0, 20), (YEARS, 7 * DAY - 1)] {
        let jumped = Moment { wall: at(wall), ..moment(steady) };
        assert!(fixture.catalog.expired_deletions(jumped, WEEK).await.unwrap().is_empty(), "{jumped:?}");
    }
    let long_before = Moment { wall: UNIX_EPOCH, ..moment(7 * DAY) };
    assert_eq!(fixture.catalog.expired_deletions(long_before, WEEK).await.unwrap(), [id]);
}

#[tokio::test]
async fn a_time_without_a_node_counts_a_day_at_most_and_never_backwards() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    fixture.catalog.delete_database(&id, moment(0)).await.unwrap();
    // Hours, then a jump of years, then one back.
    let (mut fixture, mut counted) = (fixture, 0);
    for (wall, counts) in [(3_600, 3_600), (1_000 * DAY, DAY), (2 * DAY, 0)] {
        fixture = fixture.reopen();
        let now = Moment { wall: at(wall), ..moment(0) };
        counted += counts;
        let too_long = Duration::from_secs(counted + 1);
        assert!(fixture.catalog.expired_deletions(now, too_long).await.unwrap().is_empty(), "{wall}");
        let long = Duration::from_secs(counted);
        assert_eq!(fixture.catalog.expired_deletions(now, long).await.unwrap(), [id], "{wall}");
    }
}

#[tokio::test]
async fn a_purge_removes_every_row_and_never_a_live_databases() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let connection = fixture.connect(&id).await;
    let role = RoleLogin { role: "app".to_owned(), verifier: None, can_login: true, valid_until: None };
    fixture.catalog.put_roles(&id, vec![role]).await.unwrap();
    let step = Transition {
        database: id,
        at: at(1),
        from: State::Stopped,
        to: State::Running,
        took: Duration::from_millis(40),
        reason: "a connection".to_owned(),
    };
    fixture.catalog.record_transition(step.clone());
    fixture.catalog.flush().await.unwrap();
    assert!(matches!(fixture.catalog.purge_database(&id).await, Err(CatalogError::NotDeleted)));

    fixture.catalog.delete_database(&id, moment(1)).await.unwrap();
    fixture.catalog.purge_database(&id).await.unwrap();
    assert_eq!(fixture.catalog.database(&id).await.unwrap(), None);
    assert_eq!(fixture.catalog.connection(&connection).await.unwrap(), None);
    assert_eq!(fixture.catalog.history(&id, 10).await.unwrap(), []);
    assert!(matches!(fixture.catalog.usage(&id).await, Err(CatalogError::NotFound(Subject::Database))));
    // What is still on its way for a database that is gone goes nowhere.
    fixture.catalog.record_transition(step);
    fixture.catalog.flush().await.unwrap();
    assert_eq!(fixture.catalog.dropped_records(), 0);
    let expected = Counts { projects: 1, ..Counts::default() };
    assert_eq!(fixture.catalog.counts().await.unwrap(), expected);

    let path = fixture.path();
    let rows: i64 = rusqlite::Connection::open(path)
        .unwrap()
        .query_row(
            "SELECT (SELECT count(*) FROM databases) + (SELECT count(*) FROM connections)
                  + (SELECT count(*) FROM roles) + (SELECT count(*) FROM history) + (SELECT count(*) FROM usage)",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(rows, 0);
}
