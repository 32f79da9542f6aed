//! Health and metrics: answered from memory, so that a check wakes nothing and costs nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;

use crate::context::Context;

/// The node's process is alive.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// Whether Postgres clients are accepted.
pub(super) async fn ready(State(context): State<Arc<Context>>) -> (StatusCode, &'static str) {
    if context.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

/// All metrics in the OpenMetrics text format.
pub(super) async fn metrics(State(context): State<Arc<Context>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &context.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        }
        // Writing to a string does not fail.
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], String::new()),
    }
}
