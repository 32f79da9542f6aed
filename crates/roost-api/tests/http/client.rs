//! The client and the server, over a real unix socket.

use crate::node::TestNode;
use roost_api::client::{Client, ClientError, Step};
use roost_api::resource::{CreateDatabase, UpdateDatabase};
use roost_api::socket::ApiSocket;
use roost_catalog::model::State;
use tokio::sync::watch;

async fn served() -> (TestNode, Client, watch::Sender<bool>, tokio::task::JoinHandle<()>) {
    let node = TestNode::new();
    let path = node.folder.path().join("api.sock");
    let socket = ApiSocket::bind(&path, None).await.unwrap();
    let (stop, stopping) = watch::channel(false);
    let api = node.api.clone();
    let server = tokio::spawn(async move { api.serve_management(socket, stopping).await });
    (node, Client::new(path), stop, server)
}

fn named(name: &str) -> CreateDatabase {
    CreateDatabase { name: Some(name.parse().unwrap()), ..Default::default() }
}

#[tokio::test]
async fn a_databases_life_through_the_client() {
    let (_node, client, stop, server) = served().await;
    let made = client.create_database(&named("shop")).await.unwrap();
    assert!(made.connections[0].connection_string.is_some());
    assert_eq!(client.database("shop").await.unwrap().id, made.id);
    assert_eq!(client.step("shop", Step::Wake).await.unwrap().state, State::Running);
    let change = UpdateDatabase { name: Some("store".parse().unwrap()), settings: None };
    client.update_database("shop", &change).await.unwrap();
    let connection = client.create_connection("store", "ci").await.unwrap();
    assert_eq!(client.connections("store").await.unwrap().len(), 2);
    client.rotate_connection(&connection.id).await.unwrap();
    client.delete_connection(&connection.id).await.unwrap();
    assert_eq!(client.usage("store").await.unwrap().metrics.sessions, 0);
    client.delete_database("store", false).await.unwrap();
    assert!(client.database("store").await.unwrap_err().is_not_found());
    client.undelete_database("store", &Default::default()).await.unwrap();
    client.delete_database("store", true).await.unwrap();
    assert_eq!(client.databases(None, true, None, 10).await.unwrap().data, []);
    assert_eq!(client.node().await.unwrap().version, "1.2.3");
    stop.send_replace(true);
    server.await.unwrap();
}

#[tokio::test]
async fn the_client_reads_a_list_page_by_page() {
    let (node, client, _stop, _server) = served().await;
    let names: Vec<String> = (0..2_050).map(|number| format!("db{number}")).collect();
    node.send("POST", "/v1/databases:bulk", serde_json::json!({"names": names})).await;
    let (mut listed, mut sizes, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let page = client.databases(Some("default"), false, cursor.as_deref(), 1_000).await.unwrap();
        sizes.push(page.data.len());
        listed.extend(page.data.iter().map(|one| one.name.to_string()));
        cursor = page.pagination.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [1_000, 1_000, 50]);
    assert_eq!(listed, names);
}

#[tokio::test]
async fn a_refusal_carries_its_code_and_hint() {
    let (_node, client, _stop, _server) = served().await;
    client.create_database(&named("shop")).await.unwrap();
    let ClientError::Refused { status, body } = client.create_database(&named("shop")).await.unwrap_err()
    else {
        unreachable!("the node answered");
    };
    assert_eq!((status, body.code.as_str()), (409, "name-taken"));
    assert!(body.hint.is_some());
}
