//! A node without Postgres: a real catalog in a temporary directory, and a machine that only remembers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use roost_api::machine::{Answer, Machine};
use roost_api::{Api, ApiConfig};
use roost_catalog::id::DatabaseId;
use roost_catalog::model::State;
use roost_catalog::{Catalog, CatalogOptions};
use roost_lifecycle::{Census, ClosingReason, LifecycleConfig, Snapshot, StepError};
use roost_postgres::volume::VolumeKind;
use roost_warden::WardenError;
use roost_warden::protocol::{Capabilities, Finding, Freezer, InstalledVersion, Reclaim, Standing};
use serde_json::Value;
use tokio::time::Instant;
use tower::ServiceExt;

/// A ladder without instances.
#[derive(Debug)]
pub(crate) struct Paper {
    config: LifecycleConfig,
    capabilities: Capabilities,
    states: Mutex<HashMap<DatabaseId, State>>,
    /// What happened, in order.
    pub(crate) log: Mutex<Vec<String>>,
}

impl Paper {
    fn new() -> Self {
        let version = |major: u16| InstalledVersion {
            major,
            version: format!("{major}.1"),
            bin: format!("/usr/lib/postgresql/{major}/bin").into(),
        };
        let finding = Finding {
            name: "swap".to_owned(),
            standing: Standing::Missing,
            detail: "There is no swap: a frozen database keeps its memory.".to_owned(),
        };
        Self {
            config: LifecycleConfig::default(),
            capabilities: Capabilities {
                isolation: "process".to_owned(),
                privileged: true,
                volumes: VolumeKind::Layer,
                freezer: Freezer::Cgroup,
                reclaim: Reclaim::ForceEmpty,
                swap_bytes: 0,
                memory_bytes: 1 << 34,
                descriptors: 1_024,
                pid_max: 32_768,
                versions: vec![version(15), version(17)],
                findings: vec![finding],
            },
            states: Mutex::default(),
            log: Mutex::default(),
        }
    }

    fn to(&self, id: &DatabaseId, state: State, what: &str) {
        self.states.lock().unwrap().insert(*id, state);
        self.log.lock().unwrap().push(what.to_owned());
    }

    fn state(&self, id: &DatabaseId) -> State {
        self.states.lock().unwrap().get(id).copied().unwrap_or(State::Stopped)
    }
}

impl Machine for Paper {
    fn config(&self) -> &LifecycleConfig {
        &self.config
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn census(&self) -> Census {
        Census { states: [("running", 2), ("frozen", 3)].into(), sessions: 7 }
    }

    fn snapshot(&self, id: &DatabaseId) -> Snapshot {
        Snapshot {
            state: self.state(id),
            sessions: 0,
            active: 0,
            since: None,
            idle_for: None,
            memory_bytes: None,
            failure: None,
        }
    }

    fn wake<'a>(&'a self, id: &'a DatabaseId, _deadline: Instant) -> Answer<'a, Result<(), StepError>> {
        self.to(id, State::Running, "wake");
        Box::pin(std::future::ready(Ok(())))
    }

    fn freeze<'a>(&'a self, id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>> {
        let state = self.state(id);
        if state == State::Running {
            self.to(id, State::Frozen, "freeze");
            return Box::pin(std::future::ready(Ok(())));
        }
        Box::pin(std::future::ready(Err(StepError::WrongState { state })))
    }

    fn stop<'a>(
        &'a self,
        id: &'a DatabaseId,
        reason: ClosingReason,
        _deadline: Instant,
    ) -> Answer<'a, Result<(), StepError>> {
        self.to(id, State::Stopped, &format!("stop {reason:?}"));
        Box::pin(std::future::ready(Ok(())))
    }

    fn settings_changed<'a>(&'a self, _id: &'a DatabaseId) -> Answer<'a, Result<(), StepError>> {
        self.log.lock().unwrap().push("settings".to_owned());
        Box::pin(std::future::ready(Ok(())))
    }

    fn delete_files<'a>(&'a self, _id: &'a DatabaseId) -> Answer<'a, Result<(), WardenError>> {
        self.log.lock().unwrap().push("delete files".to_owned());
        Box::pin(std::future::ready(Ok(())))
    }

    fn export<'a>(&'a self, _id: &'a DatabaseId, to: OwnedFd) -> Answer<'a, Result<u64, WardenError>> {
        Box::pin(async move {
            let write = tokio::task::spawn_blocking(move || File::from(to).write_all(b"a tar stream"));
            write.await.unwrap().unwrap();
            Ok(12)
        })
    }

    fn import<'a>(
        &'a self,
        _id: &'a DatabaseId,
        _major: u16,
        _system_identifier: u64,
        from: OwnedFd,
    ) -> Answer<'a, Result<u64, WardenError>> {
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                File::from(from).read_to_end(&mut bytes).map(|_| bytes)
            });
            let bytes = read.await.unwrap().unwrap();
            self.log.lock().unwrap().push(format!("import {}", String::from_utf8_lossy(&bytes)));
            Ok(bytes.len() as u64)
        })
    }
}

/// A node, and how tests speak to it.
pub(crate) struct TestNode {
    /// Its API.
    pub(crate) api: Api,
    /// Its catalog.
    pub(crate) catalog: Catalog,
    /// Its machine.
    pub(crate) machine: Arc<Paper>,
    /// Its data.
    pub(crate) folder: tempfile::TempDir,
}

/// An answer: its status and its JSON (null if it has none).
pub(crate) type Answered = (StatusCode, Value);

impl TestNode {
    /// A node with nothing on it.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let catalog =
            Catalog::open(&folder.path().join("catalog.sqlite"), CatalogOptions::default()).unwrap();
        let machine = Arc::new(Paper::new());
        let mut registry = Registry::with_prefix("roost");
        registry.register("tests", "What a test counts", Counter::<u64>::default());
        let listen: SocketAddr = "127.0.0.1:7432".parse().unwrap();
        let config = ApiConfig {
            version: "1.2.3",
            host: "localhost".to_owned(),
            port: 7432,
            listen: vec![listen],
            http: None,
            data: folder.path().to_owned(),
            default_major: None,
            purge_after: Duration::from_secs(7 * 86_400),
            wake_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            checks: Vec::new(),
        };
        let api = Api::new(config, catalog.clone(), machine.clone(), Arc::new(registry));
        Self { api, catalog, machine, folder }
    }

    /// Sends a request; `body` may be empty.
    pub(crate) async fn raw(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.api.management().oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    /// Sends JSON and reads JSON.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Value) -> Answered {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let (status, bytes) = self.raw(method, path, body).await;
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (status, value)
    }

    /// Reads JSON.
    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.send("GET", path, Value::Null).await
    }

    /// Makes a database of this name and gives the object.
    pub(crate) async fn create(&self, name: &str) -> Value {
        let (status, answer) = self.send("POST", "/v1/databases", serde_json::json!({ "name": name })).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        answer["data"].clone()
    }
}
