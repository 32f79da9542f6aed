//! Routing against a real catalog.

use std::time::SystemTime;

use roost_catalog::CatalogOptions;
use roost_catalog::model::{NewConnection, NewDatabase, Settings};

use super::*;

/// A catalog with the databases `shop` and `blog`, `shop` of the project `acme`, and a connection of the first.
struct World {
    catalog: Catalog,
    shop: DatabaseId,
    blog: DatabaseId,
    acme_shop: DatabaseId,
    connection: ConnectionId,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let catalog =
            Catalog::open(&directory.path().join("catalog.sqlite"), CatalogOptions::default()).unwrap();
        let acme: Name = "acme".parse().unwrap();
        catalog.create_project(&acme).await.unwrap();
        let default = Name::default_project();
        let shop = create(&catalog, &default, "shop").await;
        let blog = create(&catalog, &default, "blog").await;
        let acme_shop = create(&catalog, &acme, "shop").await;
        let connection = ConnectionId::generate();
        let new = NewConnection {
            id: connection,
            database: shop,
            name: "first".to_owned(),
            role: "postgres".to_owned(),
            verifier: roost_wire::scram::Verifier::from_password("secret", b"salt", 1).to_string(),
            created_at: SystemTime::now(),
        };
        catalog.create_connection(new).await.unwrap();
        Self { catalog, shop, blog, acme_shop, connection, _directory: directory }
    }

    async fn resolve(&self, keys: Keys<'_>) -> Option<Route> {
        resolve(&self.catalog, keys).await.unwrap()
    }

    /// The database and role that keys lead to.
    async fn role(&self, keys: Keys<'_>) -> Option<(DatabaseId, String)> {
        match self.resolve(keys).await? {
            Route { database, account: Account::Role(role), .. } => Some((database, role)),
            Route { account: Account::Connection(_), .. } => panic!("not a role"),
        }
    }
}

async fn create(catalog: &Catalog, project: &Name, name: &str) -> DatabaseId {
    let new = NewDatabase {
        id: DatabaseId::generate(),
        project: project.clone(),
        name: name.parse().unwrap(),
        major: 15,
        settings: Settings::default(),
        created_at: SystemTime::now(),
        connection: None,
    };
    catalog.create_database(new).await.unwrap().id
}

fn user(user: &str) -> Keys<'_> {
    Keys { user, ..Keys::default() }
}

#[tokio::test]
async fn a_connection_id_leads_to_its_database() {
    let world = World::new().await;
    let id = world.connection.to_string();
    let route = world.resolve(user(&id)).await.unwrap();
    assert_eq!(route.database, world.shop);
    assert_eq!(route.postgres_database, "postgres");
    assert!(matches!(route.account, Account::Connection(login) if login.role == "postgres"));
    assert_eq!(world.resolve(user(&ConnectionId::generate().to_string())).await, None);
}

#[tokio::test]
async fn the_part_of_the_user_name_after_the_last_dot_leads_to_a_database_of_that_name() {
    let world = World::new().await;
    assert_eq!(world.role(user("app.shop")).await, Some((world.shop, "app".to_owned())));
    assert_eq!(world.role(user("a.b.blog")).await, Some((world.blog, "a.b".to_owned())));
    assert_eq!(world.role(user("app.shop--acme")).await, Some((world.acme_shop, "app".to_owned())));
    let by_id = format!("app.{}", world.acme_shop);
    assert_eq!(world.role(user(&by_id)).await, Some((world.acme_shop, "app".to_owned())));
}

#[tokio::test]
async fn a_dot_without_a_database_after_it_belongs_to_the_role() {
    let world = World::new().await;
    let keys = Keys { endpoint: Some("blog"), ..user("first.last") };
    assert_eq!(world.role(keys).await, Some((world.blog, "first.last".to_owned())));
    let keys = Keys { endpoint: Some("blog"), ..user(".shop") };
    assert_eq!(world.role(keys).await, Some((world.blog, ".shop".to_owned())));
}

#[tokio::test]
async fn an_endpoint_and_a_server_name_lead_to_a_database() {
    let world = World::new().await;
    let keys = Keys { endpoint: Some("shop--acme"), ..user("app") };
    assert_eq!(world.role(keys).await, Some((world.acme_shop, "app".to_owned())));
    let keys = Keys { server_name: Some("blog.db.example.com"), ..user("app") };
    assert_eq!(world.role(keys).await, Some((world.blog, "app".to_owned())));
    for meaningless in ["blog", "other.example.com", "postgres.example.com", "-.example.com", ""] {
        let keys = Keys { server_name: Some(meaningless), ..user("app") };
        assert_eq!(world.role(keys).await, None, "{meaningless}");
    }
}

#[tokio::test]
async fn the_database_parameter_routes_only_when_nothing_else_does() {
    let world = World::new().await;
    let alone = world.resolve(Keys { database: Some("blog"), ..user("app") }).await.unwrap();
    assert_eq!((alone.database, alone.postgres_database.as_str()), (world.blog, "postgres"));
    let beside = world.resolve(Keys { database: Some("blog"), ..user("app.shop") }).await.unwrap();
    assert_eq!((beside.database, beside.postgres_database.as_str()), (world.shop, "blog"));
    assert_eq!(beside.disagreement, None);
    // What libpq sends when no database was named.
    let unnamed = world.resolve(Keys { database: Some("app.shop"), ..user("app.shop") }).await.unwrap();
    assert_eq!(unnamed.postgres_database, "postgres");
}

#[tokio::test]
async fn keys_that_agree_agree_and_others_are_reported() {
    let world = World::new().await;
    let id = world.connection.to_string();
    let by_id = world.shop.to_string();
    for endpoint in ["shop", "shop--default", &by_id] {
        let keys = Keys { endpoint: Some(endpoint), server_name: Some("shop.example.com"), ..user(&id) };
        assert_eq!(world.resolve(keys).await.unwrap().disagreement, None, "{endpoint}");
    }
    let keys = Keys { endpoint: Some("blog"), ..user(&id) };
    let route = world.resolve(keys).await.unwrap();
    assert_eq!((route.database, route.disagreement), (world.shop, Some((Key::Connection, Key::Endpoint))));
    let keys = Keys { endpoint: Some("no-such-database"), ..user("app.shop") };
    assert_eq!(world.resolve(keys).await.unwrap().disagreement, Some((Key::UserSuffix, Key::Endpoint)));
    let keys = Keys { server_name: Some("blog.example.com"), ..user("app.shop") };
    assert_eq!(world.resolve(keys).await.unwrap().disagreement, Some((Key::UserSuffix, Key::ServerName)));
    // A host that is no database says nothing.
    let keys = Keys { server_name: Some("db1.example.com"), ..user("app.shop") };
    assert_eq!(world.resolve(keys).await.unwrap().disagreement, None);
}

#[tokio::test]
async fn what_names_nothing_leads_nowhere() {
    let world = World::new().await;
    for keys in [
        user("app"),
        user(""),
        user("app.nothing"),
        user("app.postgres"),
        Keys { endpoint: Some(""), ..user("app") },
        Keys { endpoint: Some("SHOP"), ..user("app") },
        Keys { endpoint: Some("shop--"), ..user("app") },
        Keys { endpoint: Some("shop--acme--x"), ..user("app") },
        Keys { endpoint: Some("nothing"), database: Some("shop"), ..user("app") },
        Keys { database: Some("nothing"), ..user("app") },
    ] {
        assert_eq!(world.resolve(keys).await, None, "{keys:?}");
    }
}
