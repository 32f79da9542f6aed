//! Who gets in, as whom, and what everyone else is told.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use roost_catalog::id::ConnectionId;
use roost_gateway::{LimitsConfig, Rate};
use roost_wire::scram::{Verifier, fresh_salt};

use super::support::door::{SECRET, connect, refusal};
use super::support::{Door, DoorOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_connections_secret_opens_a_session_as_its_role() {
    let door = Door::open().await;
    let client = door.connect().await;
    let row = client
        .query_one("select current_user::text, session_user::text, current_database()::text", &[])
        .await;
    let row = row.unwrap();
    let told: Vec<&str> = (0..3).map(|index| row.get(index)).collect();
    assert_eq!(told, ["postgres", "postgres", "postgres"]);
    assert!(door.metrics().contains("roost_gateway_sessions 1"), "{}", door.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_and_an_unknown_name_fail_alike_and_wake_nothing() {
    let door = Door::open().await;
    door.add_role("app", "right", |_| {});
    let stranger = ConnectionId::generate().to_string();
    let mut attempts = vec![(door.connection.to_string(), None), (stranger, None)];
    attempts.extend(
        ["app.shop", "nobody.shop", "app.nothing", "app", "_roost.shop"].map(|user| (user.to_owned(), None)),
    );
    attempts.push(("app".to_owned(), Some("endpoint=nothing")));
    for (user, options) in attempts {
        let mut config = door.config();
        config.user(&user).password("wrong");
        if let Some(options) = options {
            config.options(options);
        }
        let told = refusal(&config).await;
        assert_eq!(told, ("28P01".to_owned(), format!("password authentication failed for user \"{user}\"")));
    }
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_made_with_sql_logs_in_by_name_endpoint_or_database() {
    let door = Door::open().await;
    let owner = door.connect().await;
    owner.batch_execute("create role app login").await.unwrap();
    owner.batch_execute("create database inner_one owner app").await.unwrap();
    door.add_role("app", "right", |_| {});
    let mut config = door.config();
    config.password("right");
    let mut seen = Vec::new();
    for (user, options, database) in [
        ("app.shop", "", None),
        ("app.shop", "", Some("inner_one")),
        ("app", "endpoint=shop", None),
        ("app", "", Some("shop")),
    ] {
        let mut config = config.clone();
        config.user(user).options(options);
        if let Some(database) = database {
            config.dbname(database);
        }
        let client = connect(&config).await.unwrap();
        let row = client.query_one("select current_user::text, current_database()::text", &[]).await.unwrap();
        seen.push((row.get::<_, String>(0), row.get::<_, String>(1)));
    }
    let expected = ["postgres", "inner_one", "postgres", "postgres"];
    assert_eq!(seen, expected.map(|database| ("app".to_owned(), database.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_fail_as_in_postgres_when_they_may_not_log_in() {
    let door = Door::open().await;
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    door.add_role("expired", "right", |role| role.valid_until = Some(yesterday));
    door.add_role("valid", "right", |role| {
        role.valid_until = Some(SystemTime::now() + Duration::from_secs(600));
    });
    door.add_role("barred", "right", |role| role.can_login = false);
    door.add_role("without", "right", |role| role.verifier = None);
    door.add_role("old", "right", |role| role.verifier = Some(format!("md5{}", "0".repeat(32))));
    let mut codes = Vec::new();
    for role in ["expired", "barred", "without", "old"] {
        let mut config = door.config();
        config.user(format!("{role}.shop")).password("right");
        codes.push(refusal(&config).await);
    }
    let codes: Vec<(&str, &str)> = codes.iter().map(|(code, text)| (code.as_str(), text.as_str())).collect();
    assert_eq!(
        codes,
        [
            ("28P01", "password authentication failed for user \"expired.shop\""),
            ("28000", "role \"barred\" is not permitted to log in"),
            ("28P01", "password authentication failed for user \"without.shop\""),
            (
                "28P01",
                "the password of role \"old\" is stored as an md5 hash, which cannot be used to log in"
            ),
        ]
    );
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
    door.connect().await.batch_execute("create role valid login").await.unwrap();
    let mut config = door.config();
    config.user("valid.shop").password("right");
    connect(&config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_verifier_wakes_the_database_and_is_checked_again_before_anything_is_relayed() {
    let door = Door::open().await;
    door.connect().await.batch_execute("create role app login").await.unwrap();
    door.add_role("app", "old password", |_| {});
    let kept = door.stage.roles.lock().unwrap().clone();
    let mut config = door.config();
    config.user("app.shop").password("old password");

    *door.stage.kept_roles.lock().unwrap() = Some(kept.clone());
    connect(&config).await.unwrap();

    // Changed since the copy was taken, as a restored volume might.
    door.add_role("app", "new password", |_| {});
    *door.stage.kept_roles.lock().unwrap() = Some(kept.clone());
    assert_eq!(refusal(&config).await.0, "28P01");

    door.stage.roles.lock().unwrap().extend(kept.clone());
    door.stage.roles.lock().unwrap().get_mut("app").unwrap().can_login = false;
    *door.stage.kept_roles.lock().unwrap() = Some(kept.clone());
    assert_eq!(refusal(&config).await.0, "28000");

    door.stage.roles.lock().unwrap().clear();
    *door.stage.kept_roles.lock().unwrap() = Some(kept);
    assert_eq!(refusal(&config).await.0, "28P01");
    assert_eq!(door.stage.holds.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_settings_reach_its_session() {
    let door = Door::open().await;
    let mut config = door.config();
    config
        .application_name("till 7")
        .options("-c statement_timeout=4321ms endpoint=shop -c search_path=\"a\\ b\"");
    let client = connect(&config).await.unwrap();
    for (setting, value) in [
        ("application_name", "till 7"),
        ("statement_timeout", "4321ms"),
        ("search_path", "\"a b\""),
        ("client_encoding", "UTF8"),
    ] {
        let row = client.query_one(&format!("show {setting}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_disagree_are_an_error_only_for_who_may_log_in() {
    let door = Door::open().await;
    let mut config = door.config();
    config.options("endpoint=elsewhere");
    let (code, text) = refusal(&config).await;
    assert_eq!(code, "28000");
    assert!(text.contains("connection id") && text.contains("endpoint option"), "{text}");
    config.password("wrong");
    assert_eq!(refusal(&config).await.0, "28P01");
    assert_eq!(door.stage.acquired.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_refuses_is_told_in_its_own_words() {
    let door = Door::open().await;
    let mut config = door.config();
    config.dbname("nothing");
    assert_eq!(
        refusal(&config).await,
        ("3D000".to_owned(), "database \"nothing\" does not exist".to_owned())
    );
    let mut config = door.config();
    config.options("-c no_such_setting=1");
    assert_eq!(refusal(&config).await.0, "42704");
    assert_eq!(door.stage.holds.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_logins_are_bounded_and_shut_out_only_the_database_they_were_for() {
    let limits = LimitsConfig {
        failed_logins_per_address_and_database: Rate { burst: 3, every: Duration::from_secs(600) },
        ..LimitsConfig::default()
    };
    let door = Door::open_with(DoorOptions { limits, ..DoorOptions::default() }).await;
    let mut config = door.config();
    config.password("wrong");
    for _ in 0..3 {
        assert_eq!(refusal(&config).await.0, "28P01");
    }
    let (code, text) = refusal(&config).await;
    assert_eq!(code, "53300");
    assert!(
        text.contains("at most 3") && text.contains("limits.failed_logins_per_address_and_database"),
        "{text}"
    );
    // The right password is not looked at either, from this address.
    config.password(SECRET);
    assert_eq!(refusal(&config).await.0, "53300");
    // Another database is none of this one's business.
    config.user("app.nothing").password("wrong");
    assert_eq!(refusal(&config).await.0, "28P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_secret_stops_working() {
    let door = Door::open().await;
    door.connect().await;
    let verifier = Verifier::from_password("another", &fresh_salt(), 4096).to_string();
    door.catalog.rotate_connection(&door.connection, verifier).await.unwrap();
    assert_eq!(refusal(&door.config()).await.0, "28P01");
    let mut config = door.config();
    config.password("another");
    connect(&config).await.unwrap();
}
