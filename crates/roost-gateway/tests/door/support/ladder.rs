//! The ladder as the tests play it: one Postgres that always runs. "Frozen" is a flag here that only the gateway's
//! behaviour is checked against.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roost_catalog::id::DatabaseId;
use roost_catalog::model::RoleLogin;
use roost_gateway::Ladder;
use roost_lifecycle::{ClosingReason, RoleSource, RoleUnavailable, Shortage, WakeError};
use roost_pool::Hold;
use tokio::sync::watch;
use tokio::time::Instant;

use super::postgres::Postgres;

/// What is asked of the ladder, and what it answers.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) postgres: Postgres,
    /// How often a database was asked for.
    pub(crate) acquired: AtomicUsize,
    /// How many sessions wait for it now.
    pub(crate) waiting: AtomicUsize,
    /// Holds that are out.
    pub(crate) holds: AtomicI64,
    /// Activity leases that are out.
    pub(crate) leases: AtomicI64,
    pub(crate) frozen: AtomicBool,
    pub(crate) thaws: AtomicUsize,
    pub(crate) closing: watch::Sender<Option<ClosingReason>>,
    /// Whether sessions hear of that.
    pub(crate) is_heard: watch::Sender<bool>,
    pub(crate) shortage: Mutex<Option<Shortage>>,
    pub(crate) roles: Mutex<HashMap<String, RoleLogin>>,
    /// What a sleeping database's roles are answered from; `None` means that the database runs.
    pub(crate) kept_roles: Mutex<Option<HashMap<String, RoleLogin>>>,
    pub(crate) wake_takes: Mutex<Duration>,
}

/// The ladder of one test.
#[derive(Debug, Clone)]
pub(crate) struct TestLadder(pub(crate) Arc<Stage>);

impl TestLadder {
    pub(crate) fn new(postgres: Postgres) -> Self {
        Self(Arc::new(Stage {
            postgres,
            acquired: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            holds: AtomicI64::new(0),
            leases: AtomicI64::new(0),
            frozen: AtomicBool::new(false),
            thaws: AtomicUsize::new(0),
            closing: watch::Sender::new(None),
            is_heard: watch::Sender::new(true),
            shortage: Mutex::default(),
            roles: Mutex::default(),
            kept_roles: Mutex::default(),
            wake_takes: Mutex::new(Duration::ZERO),
        }))
    }
}

/// Counts while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ladder for TestLadder {
    type Hold = TestHold;

    async fn acquire(&self, _database: &DatabaseId, deadline: Instant) -> Result<TestHold, WakeError> {
        let stage = &self.0;
        stage.acquired.fetch_add(1, Ordering::SeqCst);
        stage.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(&stage.waiting);
        let takes = *stage.wake_takes.lock().unwrap();
        let began = Instant::now();
        if tokio::time::timeout_at(deadline, tokio::time::sleep(takes)).await.is_err() {
            let state = roost_catalog::model::State::Starting;
            return Err(WakeError::Deadline { waited: began.elapsed(), state });
        }
        stage.frozen.store(false, Ordering::SeqCst);
        // From here on it runs, and its roles are told live.
        *stage.kept_roles.lock().unwrap() = None;
        stage.holds.fetch_add(1, Ordering::SeqCst);
        stage.leases.fetch_add(1, Ordering::SeqCst);
        Ok(TestHold { stage: stage.clone(), active: true })
    }

    async fn role_login(
        &self,
        _database: &DatabaseId,
        role: &str,
    ) -> Result<(Option<RoleLogin>, RoleSource), RoleUnavailable> {
        if let Some(kept) = &*self.0.kept_roles.lock().unwrap() {
            return Ok((kept.get(role).cloned(), RoleSource::Kept));
        }
        Ok((self.0.roles.lock().unwrap().get(role).cloned(), RoleSource::Live))
    }
}

/// A session's hold.
#[derive(Debug)]
pub(crate) struct TestHold {
    stage: Arc<Stage>,
    active: bool,
}

impl Hold for TestHold {
    fn socket_dir(&self) -> &Path {
        self.stage.postgres.socket_dir()
    }

    fn try_begin(&mut self) -> bool {
        if !self.active && !self.stage.frozen.load(Ordering::SeqCst) {
            self.stage.leases.fetch_add(1, Ordering::SeqCst);
            self.active = true;
        }
        self.active
    }

    async fn begin(&mut self, _deadline: Instant) -> Result<(), WakeError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.stage.frozen.store(false, Ordering::SeqCst);
        self.stage.thaws.fetch_add(1, Ordering::SeqCst);
        assert!(self.try_begin());
        Ok(())
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.active) {
            self.stage.leases.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn is_active(&self) -> bool {
        self.active
    }

    fn shortage(&self) -> Option<Shortage> {
        *self.stage.shortage.lock().unwrap()
    }

    fn is_closing(&self) -> bool {
        self.stage.closing.borrow().is_some()
    }

    fn closing(&self) -> impl Future<Output = ClosingReason> + Send + 'static {
        let (mut closing, mut is_heard) = (self.stage.closing.subscribe(), self.stage.is_heard.subscribe());
        async move {
            let reason = closing.wait_for(Option::is_some).await.map(|reason| *reason);
            let _ = is_heard.wait_for(|is_heard| *is_heard).await;
            match reason {
                Ok(Some(reason)) => reason,
                _ => std::future::pending().await,
            }
        }
    }
}

impl Drop for TestHold {
    fn drop(&mut self) {
        self.end();
        self.stage.holds.fetch_sub(1, Ordering::SeqCst);
    }
}
