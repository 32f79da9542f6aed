//! Projects and databases: made, found, listed, renamed, set.

use std::time::Duration;

use roost_catalog::id::{DatabaseId, ProjectId};
use roost_catalog::model::{IdleAfter, Name, NewDatabase, Settings, VolumeRecord, WalLevel};
use roost_catalog::{CatalogError, DatabaseFilter, Page, SettingsPatch, Subject};

use crate::fixture::{Fixture, at, moment, name, new_connection, new_database, page};

#[tokio::test]
async fn a_database_is_found_by_its_id_and_by_its_name_after_a_restart() {
    let fixture = Fixture::new();
    let settings = Settings {
        idle_stop: Some(IdleAfter::After(Duration::from_secs(300))),
        wal_level: Some(WalLevel::Logical),
        ..Settings::default()
    };
    let new = NewDatabase { settings: settings.clone(), ..new_database("shop") };
    let id = new.id;
    let made = fixture.catalog.create_database(new).await.unwrap();
    assert_eq!((made.id, made.name.as_str(), made.project_name.as_str()), (id, "shop", "default"));
    assert_eq!((made.settings.clone(), made.created_at, made.deleted_at), (settings, at(0), None));
    assert_eq!((made.volume.clone(), made.last_used_at, made.size_bytes), (None, None, None));

    let fixture = fixture.reopen();
    assert_eq!(fixture.catalog.database(&id).await.unwrap().as_ref(), Some(&made));
    let by_name = fixture.catalog.database_by_name(&Name::default_project(), &name("shop")).await.unwrap();
    assert_eq!(by_name, Some(made));
    assert_eq!(fixture.catalog.database(&DatabaseId::generate()).await.unwrap(), None);
}

#[tokio::test]
async fn a_name_is_unique_in_its_project_only() {
    let fixture = Fixture::new();
    fixture.create("shop").await;
    let error = fixture.catalog.create_database(new_database("shop")).await.unwrap_err();
    assert!(matches!(&error, CatalogError::NameTaken { name } if name.as_str() == "shop"), "{error}");
    fixture.catalog.create_project(&name("other")).await.unwrap();
    let elsewhere = NewDatabase { project: name("other"), ..new_database("shop") };
    fixture.catalog.create_database(elsewhere).await.unwrap();
    assert_eq!(fixture.catalog.counts().await.unwrap().databases, 2);
}

#[tokio::test]
async fn an_id_that_exists_is_refused() {
    let fixture = Fixture::new();
    let first = fixture.create("one").await;
    let again = NewDatabase { id: first.id, ..new_database("two") };
    let error = fixture.catalog.create_database(again).await.unwrap_err();
    assert!(matches!(error, CatalogError::IdTaken(Subject::Database)), "{error}");
}

#[tokio::test]
async fn only_the_default_project_makes_itself() {
    let fixture = Fixture::new();
    let new = NewDatabase { project: name("nowhere"), ..new_database("shop") };
    let error = fixture.catalog.create_database(new).await.unwrap_err();
    assert!(matches!(error, CatalogError::NotFound(Subject::Project)), "{error}");
    fixture.create("shop").await;
    let project = fixture.catalog.project_by_name(&Name::default_project()).await.unwrap().unwrap();
    assert_eq!(fixture.catalog.project(&project.id).await.unwrap(), Some(project));
}

#[tokio::test]
async fn a_first_connection_comes_with_its_database_or_not_at_all() {
    let fixture = Fixture::new();
    let new = new_database("shop");
    let connection = new_connection(&new.id);
    let id = connection.id;
    let new = NewDatabase { connection: Some(connection.clone()), ..new };
    assert_eq!(fixture.catalog.login(&id).await.unwrap(), None);
    fixture.catalog.create_database(new.clone()).await.unwrap();
    assert_eq!(fixture.catalog.login(&id).await.unwrap().unwrap().database, new.id);

    let second = NewDatabase { connection: Some(connection), ..new_database("store") };
    let error = fixture.catalog.create_database(second).await.unwrap_err();
    assert!(matches!(error, CatalogError::IdTaken(Subject::Connection)), "{error}");
    assert_eq!(fixture.catalog.database_by_name(&new.project, &name("store")).await.unwrap(), None);
    assert_eq!(fixture.catalog.counts().await.unwrap().databases, 1);
}

#[tokio::test]
async fn a_bulk_call_makes_all_or_none() {
    let fixture = Fixture::new();
    fixture.create("taken").await;
    let mut new: Vec<_> = (0..50).map(|number| new_database(&format!("db-{number}"))).collect();
    new.push(new_database("taken"));
    let error = fixture.catalog.create_databases(new.clone()).await.unwrap_err();
    assert!(matches!(&error, CatalogError::NameTaken { name } if name.as_str() == "taken"), "{error}");
    assert_eq!(fixture.catalog.counts().await.unwrap().databases, 1);
    new.pop();
    let ids = fixture.catalog.create_databases(new.clone()).await.unwrap();
    assert_eq!(ids, new.iter().map(|new| new.id).collect::<Vec<_>>());
    assert_eq!(fixture.catalog.counts().await.unwrap().databases, 51);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repetition_while_rows_come_and_go() {
    let fixture = Fixture::new();
    let new: Vec<_> = (0..25).map(|number| new_database(&format!("db-{number}"))).collect();
    let ids = fixture.catalog.create_databases(new).await.unwrap();
    let filter = DatabaseFilter::default();
    let first = fixture.catalog.databases(filter, page(None, 10)).await.unwrap();
    assert!(first.has_more());
    fixture.catalog.delete_database(&ids[3], moment(1)).await.unwrap();
    fixture.catalog.delete_database(&ids[12], moment(1)).await.unwrap();
    let late = fixture.create("late").await.id;
    let second = fixture.catalog.databases(filter, page(first.next_cursor.clone(), 10)).await.unwrap();
    let third = fixture.catalog.databases(filter, page(second.next_cursor.clone(), 10)).await.unwrap();
    assert_eq!(third.next_cursor, None);
    let listed: Vec<_> =
        [first, second, third].iter().flat_map(|page| &page.items).map(|database| database.id).collect();
    let mut expected = ids;
    expected.remove(12);
    expected.push(late);
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_listing_shows_one_project_or_all_and_live_or_deleted() {
    let fixture = Fixture::new();
    let other = fixture.catalog.create_project(&name("other")).await.unwrap();
    let a = fixture.create("a").await.id;
    let b = fixture.create("b").await.id;
    let new = NewDatabase { project: name("other"), ..new_database("c") };
    let c = fixture.catalog.create_database(new).await.unwrap().id;
    let d = fixture.create("d").await.id;
    fixture.catalog.delete_database(&b, moment(1)).await.unwrap();
    let default = fixture.catalog.project_by_name(&Name::default_project()).await.unwrap().unwrap().id;
    for (project, deleted, expected) in [
        (None, false, vec![a, c, d]),
        (None, true, vec![b]),
        (Some(default), false, vec![a, d]),
        (Some(default), true, vec![b]),
        (Some(other.id), false, vec![c]),
        (Some(other.id), true, vec![]),
        (Some(ProjectId::generate()), false, vec![]),
    ] {
        let filter = DatabaseFilter { project, deleted };
        let listing = fixture.catalog.databases(filter, Page::default()).await.unwrap();
        let ids: Vec<_> = listing.items.iter().map(|database| database.id).collect();
        assert_eq!(ids, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_made_up_cursor_is_an_error_and_not_an_empty_page() {
    let fixture = Fixture::new();
    let made_up = page(Some("abc".to_owned()), 10);
    let error = fixture.catalog.databases(DatabaseFilter::default(), made_up).await.unwrap_err();
    assert!(matches!(error, CatalogError::InvalidCursor));
}

#[tokio::test]
async fn renaming_moves_the_route_and_frees_the_old_name() {
    let fixture = Fixture::new();
    let project = Name::default_project();
    let id = fixture.create("shop").await.id;
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), Some(id));
    assert_eq!(fixture.catalog.route(&project, &name("store")).await.unwrap(), None);
    let renamed = fixture.catalog.rename_database(&id, &name("store")).await.unwrap();
    assert_eq!(renamed.name.as_str(), "store");
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), None);
    assert_eq!(fixture.catalog.route(&project, &name("store")).await.unwrap(), Some(id));
    let second = fixture.create("shop").await.id;
    assert_eq!(fixture.catalog.route(&project, &name("shop")).await.unwrap(), Some(second));
    let error = fixture.catalog.rename_database(&second, &name("store")).await.unwrap_err();
    assert!(matches!(error, CatalogError::NameTaken { .. }), "{error}");
    let same = fixture.catalog.rename_database(&second, &name("shop")).await.unwrap();
    assert_eq!(same.name.as_str(), "shop");
}

#[tokio::test]
async fn a_settings_patch_changes_what_it_names_and_survives_a_restart() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    let patch = SettingsPatch {
        memory_bytes: Some(Some(256 << 20)),
        idle_freeze: Some(Some(IdleAfter::Never)),
        postgres: [("work_mem".to_owned(), Some("8MB".to_owned()))].into(),
        ..SettingsPatch::default()
    };
    fixture.catalog.update_settings(&id, patch).await.unwrap();
    let patch = SettingsPatch { idle_freeze: Some(None), ..SettingsPatch::default() };
    let updated = fixture.catalog.update_settings(&id, patch).await.unwrap();
    assert_eq!(updated.settings.memory_bytes, Some(256 << 20));
    assert_eq!(updated.settings.idle_freeze, None);
    let fixture = fixture.reopen();
    assert_eq!(fixture.catalog.database(&id).await.unwrap().unwrap().settings, updated.settings);
}

#[tokio::test]
async fn a_volumes_origin_keeps_all_64_bits_of_its_system_identifier() {
    let fixture = Fixture::new();
    let id = fixture.create("shop").await.id;
    for system_identifier in [0, 7_400_000_000_000_000_000, u64::MAX] {
        let volume = VolumeRecord { template: "17-0123456789abcdef".to_owned(), system_identifier };
        fixture.catalog.set_volume(&id, volume.clone()).await.unwrap();
        assert_eq!(fixture.catalog.database(&id).await.unwrap().unwrap().volume, Some(volume));
    }
}

#[tokio::test]
async fn a_project_is_deleted_only_when_nothing_can_come_back_to_it() {
    let fixture = Fixture::new();
    let project = fixture.catalog.create_project(&name("team")).await.unwrap();
    assert!(matches!(
        fixture.catalog.create_project(&name("team")).await,
        Err(CatalogError::NameTaken { .. })
    ));
    let new = NewDatabase { project: name("team"), ..new_database("shop") };
    let id = fixture.catalog.create_database(new).await.unwrap().id;
    let error = fixture.catalog.delete_project(&project.id).await.unwrap_err();
    assert!(matches!(error, CatalogError::ProjectNotEmpty { live: 1, deleted: 0 }), "{error}");
    fixture.catalog.delete_database(&id, moment(1)).await.unwrap();
    let error = fixture.catalog.delete_project(&project.id).await.unwrap_err();
    assert!(matches!(error, CatalogError::ProjectNotEmpty { live: 0, deleted: 1 }), "{error}");
    fixture.catalog.purge_database(&id).await.unwrap();
    fixture.catalog.delete_project(&project.id).await.unwrap();
    let error = fixture.catalog.delete_project(&project.id).await.unwrap_err();
    assert!(matches!(error, CatalogError::NotFound(Subject::Project)));
    assert!(fixture.catalog.projects(Page::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_value_under_a_key_is_made_once_and_stays() {
    let fixture = Fixture::new();
    assert_eq!(fixture.catalog.meta("mock-secret").await.unwrap(), None);
    assert_eq!(fixture.catalog.ensure_meta("mock-secret", b"one").await.unwrap(), b"one");
    assert_eq!(fixture.catalog.ensure_meta("mock-secret", b"two").await.unwrap(), b"one");
    let fixture = fixture.reopen();
    assert_eq!(fixture.catalog.meta("mock-secret").await.unwrap().as_deref(), Some(&b"one"[..]));
    fixture.catalog.put_meta("mock-secret", b"three").await.unwrap();
    assert_eq!(fixture.catalog.meta("mock-secret").await.unwrap().as_deref(), Some(&b"three"[..]));
}
