//! The management API as a client sees it.

use crate::node::TestNode;
use axum::http::StatusCode;
use roost_catalog::Moment;
use serde_json::{Value, json};

#[tokio::test]
async fn a_new_database_has_the_references_shape_and_shows_its_secret_once() {
    let node = TestNode::new();
    let database = node.create("shop").await;
    let id = database["id"].as_str().unwrap();
    assert_eq!(database["type"], "database");
    assert_eq!(database["url"], format!("/v1/databases/{id}"));
    assert_eq!(database["status"], "ready");
    assert_eq!(database["state"], "stopped");
    assert_eq!(database["version"], "17");
    assert_eq!(database["project"]["name"], "default");
    assert_eq!(database["source"], json!({"type": "empty"}));
    for null in ["region", "branchId", "logicalId", "sizeBytes", "lastUsedAt"] {
        assert_eq!(database.get(null), Some(&Value::Null), "{null}");
    }
    let connection = &database["connections"][0];
    assert_eq!(database["defaultConnectionId"], connection["id"]);
    let (user, secret) = (connection["user"].as_str().unwrap(), connection["pass"].as_str().unwrap());
    let url = format!("postgres://{user}:{secret}@localhost:7432/postgres");
    assert_eq!(connection["endpoints"]["direct"]["connectionString"], url);
    assert_eq!(connection["connectionString"], url);

    let (_, shown) = node.get("/v1/databases/shop").await;
    assert!(!shown.to_string().contains(secret));
    assert_eq!(
        shown["data"]["connections"][0]["endpoints"],
        json!({"direct": {"host": "localhost", "port": 7432}})
    );
    assert_eq!(shown["data"]["connections"][0]["directConnection"], Value::Null);
    assert_eq!(shown["data"]["wakes"], json!([]));
}

#[tokio::test]
async fn a_database_is_found_by_id_by_name_and_by_name_with_its_project() {
    let node = TestNode::new();
    node.send("POST", "/v1/projects", json!({"name": "team"})).await;
    let (status, made) =
        node.send("POST", "/v1/databases", json!({"name": "shop", "projectId": "team"})).await;
    assert_eq!(status, StatusCode::CREATED);
    let id = made["data"]["id"].as_str().unwrap();
    for reference in [id, "shop--team"] {
        let (status, shown) = node.get(&format!("/v1/databases/{reference}")).await;
        assert_eq!((status, shown["data"]["id"].as_str()), (StatusCode::OK, Some(id)));
    }
    let (status, error) = node.get("/v1/databases/shop").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(error["error"]["code"], "database-not-found");
    assert!(error["error"]["message"].as_str().unwrap().contains("`shop`"));
}

#[tokio::test]
async fn a_list_goes_page_by_page_through_everything_once() {
    let node = TestNode::new();
    for name in ["a", "b", "c", "d", "e"] {
        node.create(name).await;
    }
    let mut names = Vec::new();
    let mut cursor = String::new();
    loop {
        let (status, page) = node.get(&format!("/v1/databases?limit=2&cursor={cursor}")).await;
        assert_eq!(status, StatusCode::OK, "{page}");
        names.extend(
            page["data"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()),
        );
        match page["pagination"]["nextCursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break assert_eq!(page["pagination"]["hasMore"], false),
        }
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    assert_eq!(node.get("/v1/databases?limit=1001").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(node.get("/v1/databases?cursor=nonsense").await.1["error"]["code"], "invalid-cursor");
}

#[tokio::test]
async fn a_taken_name_is_a_conflict_and_says_so() {
    let node = TestNode::new();
    node.create("shop").await;
    let (status, error) = node.send("POST", "/v1/databases", json!({"name": "shop"})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(
        error,
        json!({"error": {"code": "name-taken", "message": "The name `shop` is taken.", "hint": "Choose another name."}})
    );
}

#[tokio::test]
async fn what_a_request_gets_wrong_is_told_in_the_envelope() {
    let node = TestNode::new();
    for (body, word) in [
        (json!({"name": "Shop"}), "a-z"),
        (json!({"name": "postgres"}), "reserved"),
        (json!({"nmae": "shop"}), "nmae"),
        (json!({"version": "9"}), "15, 17"),
        (json!({"version": "new"}), "new"),
        (json!({"settings": {"memoryBytes": 5}}), "64MiB"),
        (json!({"source": {"type": "backup"}}), "backup"),
    ] {
        let (status, error) = node.send("POST", "/v1/databases", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["error"]["code"], "invalid-request");
        assert!(error["error"]["message"].as_str().unwrap().contains(word), "{error}");
    }
    let (status, error) = node.raw("POST", "/v1/databases", "{").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8(error).unwrap().starts_with("{\"error\""));
    let (status, error) = node.raw("POST", "/v1/databases", " ".repeat(70_000)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(String::from_utf8(error).unwrap().contains("65536"));
    assert_eq!(node.get("/v1/nothing").await.1["error"]["code"], "no-such-path");
    assert_eq!(node.send("PUT", "/v1/databases", Value::Null).await.1["error"]["code"], "no-such-method");
}

#[tokio::test]
async fn settings_change_one_by_one_and_null_goes_back_to_the_default() {
    let node = TestNode::new();
    node.create("shop").await;
    let change =
        json!({"settings": {"idleStop": "never", "memoryBytes": 536870912, "postgres": {"work_mem": "8MB"}}});
    let (status, changed) = node.send("PATCH", "/v1/databases/shop", change).await;
    assert_eq!(status, StatusCode::OK, "{changed}");
    let change = json!({"settings": {"memoryBytes": null}});
    let (_, changed) = node.send("PATCH", "/v1/databases/shop", change).await;
    let settings = &changed["data"]["settings"];
    assert_eq!(settings["own"], json!({"idleStop": "never", "postgres": {"work_mem": "8MB"}}));
    assert_eq!(settings["effective"]["memoryBytes"], 268_435_456);
    assert_eq!(settings["effective"]["idleFreeze"], "10s");
    assert_eq!(*node.machine.log.lock().unwrap(), ["settings", "settings"]);
}

#[tokio::test]
async fn a_wrong_setting_changes_nothing_at_all() {
    let node = TestNode::new();
    node.create("shop").await;
    let change = json!({"name": "store", "settings": {"memoryBytes": 1}});
    assert_eq!(node.send("PATCH", "/v1/databases/shop", change).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(node.get("/v1/databases/shop").await.0, StatusCode::OK);
}

#[tokio::test]
async fn steps_by_hand_answer_with_the_state_they_led_to() {
    let node = TestNode::new();
    node.create("shop").await;
    let step = async |step: &str| node.send("POST", &format!("/v1/databases/shop/{step}"), Value::Null).await;
    let (status, error) = step("freeze").await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::CONFLICT, &json!("wrong-state")));
    assert_eq!(step("wake").await.1["data"]["state"], "running");
    assert_eq!(step("freeze").await.1["data"]["state"], "frozen");
    assert_eq!(step("stop").await.1["data"]["state"], "stopped");
    assert_eq!(*node.machine.log.lock().unwrap(), ["wake", "freeze", "stop Stopped"]);
}

#[tokio::test]
async fn a_deleted_database_can_be_had_back_until_it_is_purged() {
    let node = TestNode::new();
    let id = node.create("shop").await["id"].as_str().unwrap().to_owned();
    let (status, _) = node.send("DELETE", "/v1/databases/shop", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(node.get("/v1/databases/shop").await.0, StatusCode::NOT_FOUND);
    let (_, list) = node.get("/v1/databases?deleted=true").await;
    assert_eq!(list["data"][0]["id"], id);
    assert!(list["data"][0]["purgeAt"].as_str() > list["data"][0]["deletedAt"].as_str());

    let (status, back) = node.send("POST", "/v1/databases/shop/undelete", json!({"name": "store"})).await;
    assert_eq!((status, &back["data"]["id"]), (StatusCode::OK, &json!(id)));
    let (status, _) = node.send("DELETE", "/v1/databases/store?purge=true", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(node.get(&format!("/v1/databases/{id}")).await.0, StatusCode::NOT_FOUND);
    let log = node.machine.log.lock().unwrap();
    assert_eq!(log.last().unwrap(), "delete files");
}

#[tokio::test]
async fn of_two_deleted_databases_of_one_name_the_later_comes_back() {
    let node = TestNode::new();
    node.create("shop").await;
    node.send("DELETE", "/v1/databases/shop", Value::Null).await;
    let second = node.create("shop").await;
    node.send("DELETE", "/v1/databases/shop", Value::Null).await;
    let (_, back) = node.send("POST", "/v1/databases/shop/undelete", Value::Null).await;
    assert_eq!(back["data"]["id"], second["id"]);
    let (status, _) = node.send("POST", "/v1/databases/other/undelete", Value::Null).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn only_expired_deletions_are_purged() {
    let node = TestNode::new();
    node.create("shop").await;
    node.send("DELETE", "/v1/databases/shop", Value::Null).await;
    assert_eq!(node.api.purge_expired().await.unwrap(), 0);
    let id = node.get("/v1/databases?deleted=true").await.1["data"][0]["id"].as_str().unwrap().to_owned();
    let week = std::time::Duration::from_secs(7 * 86_400);
    let now = Moment::now();
    let in_a_week = Moment { wall: now.wall, steady: now.steady + week };
    node.catalog.expired_deletions(in_a_week, week).await.unwrap();
    assert_eq!(node.api.purge_expired().await.unwrap(), 1);
    assert_eq!(node.get(&format!("/v1/databases/{id}")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn many_databases_are_registered_at_once_or_not_at_all() {
    let node = TestNode::new();
    let names: Vec<String> = (0..1_500).map(|number| format!("db{number}")).collect();
    let (status, answer) = node.send("POST", "/v1/databases:bulk", json!({"names": names})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(answer["data"]["ids"].as_array().unwrap().len(), 1_500);
    let (status, _) = node.send("POST", "/v1/databases:bulk", json!({"names": ["new", "db7"]})).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(node.get("/v1/databases/new").await.0, StatusCode::NOT_FOUND);
    let (_, one) = node.get("/v1/databases/db7").await;
    assert_eq!(one["data"]["connections"], json!([]));
    assert_eq!(one["data"]["defaultConnectionId"], Value::Null);
}

#[tokio::test]
async fn a_connection_is_made_shown_rotated_and_deleted() {
    let node = TestNode::new();
    node.create("shop").await;
    let (status, made) = node.send("POST", "/v1/databases/shop/connections", json!({"name": "ci"})).await;
    assert_eq!(status, StatusCode::OK);
    let (id, secret) = (made["data"]["id"].as_str().unwrap(), made["data"]["pass"].as_str().unwrap());
    let (_, shown) = node.get(&format!("/v1/connections/{id}")).await;
    assert_eq!(shown["data"]["name"], "ci");
    assert_eq!(shown["data"]["kind"], "postgres");
    assert!(shown["data"].get("pass").is_none());
    let (_, rotated) = node.send("POST", &format!("/v1/connections/{id}/rotate"), Value::Null).await;
    assert_ne!(rotated["data"]["pass"], secret);
    assert!(rotated["data"]["rotatedAt"].is_string());
    let (_, list) = node.get("/v1/connections?databaseId=shop").await;
    assert_eq!(list["data"].as_array().unwrap().len(), 2);
    let (status, _) = node.send("DELETE", &format!("/v1/connections/{id}"), Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(node.get(&format!("/v1/connections/{id}")).await.1["error"]["code"], "connection-not-found");
    let login = node.catalog.login(&id.parse().unwrap()).await.unwrap();
    assert_eq!(login, None);
}

#[tokio::test]
async fn what_is_stored_is_a_verifier_and_never_a_secret() {
    let node = TestNode::new();
    let database = node.create("shop").await;
    let connection = &database["connections"][0];
    let secret = connection["pass"].as_str().unwrap();
    let login =
        node.catalog.login(&connection["id"].as_str().unwrap().parse().unwrap()).await.unwrap().unwrap();
    assert!(login.verifier.starts_with("SCRAM-SHA-256$4096:"));
    node.catalog.flush().await.unwrap();
    for file in std::fs::read_dir(node.folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn a_project_goes_only_when_it_is_empty() {
    let node = TestNode::new();
    let (status, made) =
        node.send("POST", "/v1/projects", json!({"name": "team", "createDatabase": true})).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(made["data"]["database"]["project"]["name"], "team");
    let (status, error) = node.send("DELETE", "/v1/projects/team", Value::Null).await;
    assert_eq!((status, &error["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("project-not-empty")));
    let (_, list) = node.get("/v1/projects/team/databases").await;
    let id = list["data"][0]["id"].as_str().unwrap();
    node.send("DELETE", &format!("/v1/databases/{id}?purge=true"), Value::Null).await;
    assert_eq!(node.send("DELETE", "/v1/projects/team", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(node.get("/v1/projects/team").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_cold_copy_goes_out_and_comes_in_as_a_stream() {
    let node = TestNode::new();
    let id = node.create("shop").await["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(node.get("/v1/databases/shop/export").await.1["error"]["code"], "no-files");
    let volume = roost_catalog::model::VolumeRecord { template: "17-x".into(), system_identifier: 1 };
    node.catalog.set_volume(&id, volume).await.unwrap();
    let (status, stream) = node.raw("GET", "/v1/databases/shop/export", "").await;
    assert_eq!((status, stream.as_slice()), (StatusCode::OK, b"a tar stream".as_slice()));
    let (status, _) = node.raw("POST", "/v1/databases/shop/import", "another stream").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(node.machine.log.lock().unwrap().last().unwrap(), "import another stream");
    node.send("POST", "/v1/databases/shop/wake", Value::Null).await;
    assert_eq!(node.get("/v1/databases/shop/export").await.1["error"]["code"], "not-stopped");
}

#[tokio::test]
async fn usage_history_node_and_doctor_tell_what_is_known() {
    let node = TestNode::new();
    node.create("shop").await;
    let (_, usage) = node.get("/v1/databases/shop/usage").await;
    assert_eq!(usage["metrics"]["storage"], json!({"used": 0.0, "unit": "GiB"}));
    assert!(usage["generatedAt"].is_string() && usage.get("data").is_none());
    assert_eq!(node.get("/v1/databases/shop/history").await.1, json!({"data": []}));
    let (_, about) = node.get("/v1/node").await;
    assert_eq!(
        about["data"]["counts"],
        json!({
            "projects": 1, "databases": 1, "deleted": 0, "connections": 1,
            "states": {"running": 2, "frozen": 3}, "sessions": 7,
        })
    );
    assert_eq!(about["data"]["defaultVersion"], "17");
    let (_, doctor) = node.get("/v1/doctor").await;
    let checks = doctor["data"]["checks"].as_array().unwrap();
    assert_eq!(checks.first().unwrap()["subject"], "postgres");
    assert!(checks.iter().any(|check| check["subject"] == "swap" && check["verdict"] == "weak"));
}

#[tokio::test]
async fn the_http_address_tells_health_readiness_and_metrics_and_nothing_else() {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    let node = TestNode::new();
    let get = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = node.api.public().oneshot(request).await.unwrap();
        let status = response.status();
        (
            status,
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    };
    assert_eq!(get("/health").await, (StatusCode::OK, "ok\n".to_owned()));
    assert_eq!(get("/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    node.api.set_ready(true);
    assert_eq!(get("/ready").await.0, StatusCode::OK);
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(metrics.contains("roost_tests_total 0") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(get("/v1/databases").await.0, StatusCode::NOT_FOUND);
    assert!(node.machine.log.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_list_can_be_had_without_connections() {
    let node = TestNode::new();
    node.create("shop").await;
    let (_, list) = node.get("/v1/databases?connections=false").await;
    assert_eq!(list["data"][0]["connections"], json!([]));
    let (_, list) = node.get("/v1/databases").await;
    assert_eq!(list["data"][0]["connections"].as_array().unwrap().len(), 1);
}
