//! Opening: who may, what is refused, and what a clean close leaves.

use std::path::Path;

use roost_catalog::{Catalog, CatalogError, CatalogOptions};

use crate::fixture::{Fixture, name};

fn open(path: &Path) -> Result<Catalog, CatalogError> {
    Catalog::open(path, CatalogOptions::default())
}

#[tokio::test]
async fn a_file_has_one_owner_at_a_time() {
    let fixture = Fixture::new();
    let error = open(&fixture.path()).unwrap_err();
    assert!(matches!(error, CatalogError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("one node per data directory"));
    let fixture = fixture.reopen();
    fixture.create("shop").await;
}

#[test]
fn a_file_that_is_no_catalog_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog.sqlite");
    std::fs::write(&path, "this is no database, whatever its name says. ".repeat(100)).unwrap();
    let error = open(&path).unwrap_err();
    assert!(matches!(error, CatalogError::Corrupt { .. }), "{error}");
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(kept.starts_with("this is no database"), "what is there is left alone");
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = open(Path::new("/nonexistent/roost/catalog.sqlite")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/roost/catalog.sqlite"), "{error}");
}

#[tokio::test]
async fn a_newer_file_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    let path = fixture.path();
    fixture.create("shop").await;
    let copy = path.with_file_name("newer.sqlite");
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    let newer = rusqlite::Connection::open(&copy).unwrap();
    newer.pragma_update(None, "user_version", 1_000).unwrap();
    drop(newer);
    let error = open(&copy).unwrap_err();
    assert!(matches!(error, CatalogError::TooNew { found: 1_000, supported: 5 }), "{error}");
}

#[tokio::test]
async fn damage_inside_the_file_is_reported_as_damage() {
    let fixture = Fixture::new();
    for number in 0..200 {
        fixture.create(&format!("db-{number}")).await;
    }
    let original = fixture.path();
    let copy = original.with_file_name("damaged.sqlite");
    rusqlite::Connection::open(&original)
        .unwrap()
        .execute("VACUUM INTO ?1", [copy.to_str().unwrap()])
        .unwrap();
    let mut bytes = std::fs::read(&copy).unwrap();
    bytes[8_192..].fill(0x5a);
    std::fs::write(&copy, bytes).unwrap();
    let catalog = match open(&copy) {
        Err(error) => {
            assert!(matches!(error, CatalogError::Corrupt { .. }), "{error}");
            return;
        }
        Ok(catalog) => catalog,
    };
    let error = catalog.create_project(&name("p")).await.unwrap_err();
    assert!(matches!(error, CatalogError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_clean_close_leaves_one_file_and_nothing_to_replay() {
    let fixture = Fixture::new();
    let path = fixture.path();
    fixture.create("shop").await;
    let clone = fixture.catalog.clone();
    drop(clone);
    fixture.create("still-open").await;
    let directory = path.parent().unwrap().to_owned();
    let fixture = fixture.reopen();
    let names = || {
        let mut names: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert!(names().contains(&"catalog.sqlite-wal".to_owned()));
    let kept = fixture.close();
    assert_eq!(names(), ["catalog.sqlite", "catalog.sqlite.lock"]);
    drop(kept);
}
