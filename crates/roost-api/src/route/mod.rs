//! Paths and what answers them.

mod connections;
mod copy;
mod databases;
mod logs;
mod node;
mod projects;
mod public;
mod steps;

use std::sync::Arc;

use axum::Router;
use axum::http::Uri;
use axum::routing::{get, post};

use crate::context::Context;
use crate::error::ApiError;

/// What the unix socket answers: everything.
pub(crate) fn management(context: Arc<Context>) -> Router {
    let management = Router::new()
        .route("/v1/databases", get(databases::list).post(databases::create))
        .route("/v1/databases:bulk", post(databases::create_many))
        .route(
            "/v1/databases/{database}",
            get(databases::show).patch(databases::update).delete(databases::delete),
        )
        .route("/v1/databases/{database}/undelete", post(databases::undelete))
        .route("/v1/databases/{database}/wake", post(steps::wake))
        .route("/v1/databases/{database}/freeze", post(steps::freeze))
        .route("/v1/databases/{database}/stop", post(steps::stop))
        .route("/v1/databases/{database}/usage", get(databases::usage))
        .route("/v1/databases/{database}/history", get(databases::history))
        .route("/v1/databases/{database}/logs", get(logs::read))
        .route("/v1/databases/{database}/export", get(copy::export))
        .route("/v1/databases/{database}/import", post(copy::import))
        .route(
            "/v1/databases/{database}/connections",
            get(connections::list_of_database).post(connections::create_for_database),
        )
        .route("/v1/connections", post(connections::create).get(connections::list))
        .route("/v1/connections/{connection}", get(connections::show).delete(connections::delete))
        .route("/v1/connections/{connection}/rotate", post(connections::rotate))
        .route("/v1/projects", get(projects::list).post(projects::create))
        .route("/v1/projects/{project}", get(projects::show).delete(projects::delete))
        .route(
            "/v1/projects/{project}/databases",
            get(projects::list_databases).post(projects::create_database),
        )
        .route("/v1/node", get(node::show))
        .route("/v1/doctor", get(node::doctor));
    finish(management.merge(public_paths()), context)
}

/// What the TCP address answers: nothing that tells or changes anything about a database.
pub(crate) fn public(context: Arc<Context>) -> Router {
    finish(public_paths(), context)
}

fn public_paths() -> Router<Arc<Context>> {
    Router::new()
        .route("/health", get(public::health))
        .route("/ready", get(public::ready))
        .route("/metrics", get(public::metrics))
}

fn finish(router: Router<Arc<Context>>, context: Arc<Context>) -> Router {
    router
        .fallback(async |uri: Uri| ApiError::NoSuchPath(uri.path().to_owned()))
        .method_not_allowed_fallback(async || ApiError::NoSuchMethod)
        .with_state(context)
}
