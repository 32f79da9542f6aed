//! The node, and what its machine can do.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use crate::context::Context;
use crate::envelope::Data;
use crate::error::ApiError;
use crate::resource::{Counts, DoctorReport, Installation, Node};
use crate::timestamp;

/// `GET /v1/node`
pub(super) async fn show(State(context): State<Arc<Context>>) -> Result<Json<Data<Node>>, ApiError> {
    let config = &context.config;
    let counts = context.catalog.counts().await?;
    let census = context.machine.census();
    let versions = &context.machine.capabilities().versions;
    let data = Node {
        version: config.version.to_owned(),
        pid: std::process::id(),
        started_at: timestamp::format(context.started_at.wall),
        uptime_seconds: context.started_at.steady.elapsed().as_secs(),
        listen: config.listen.iter().map(ToString::to_string).collect(),
        http: config.http.map(|address| address.to_string()),
        data: config.data.display().to_string(),
        default_version: context.default_major().map(|major| major.to_string()),
        installations: versions
            .iter()
            .map(|version| Installation {
                major: version.major,
                version: version.version.clone(),
                bin: version.bin.display().to_string(),
            })
            .collect(),
        counts: Counts {
            projects: counts.projects,
            databases: counts.databases,
            deleted: counts.deleted_databases,
            connections: counts.connections,
            states: census.states.into_iter().map(|(state, count)| (state.to_owned(), count)).collect(),
            sessions: census.sessions,
        },
    };
    Ok(Json(Data { data }))
}

/// `GET /v1/doctor`
pub(super) async fn doctor(State(context): State<Arc<Context>>) -> Json<Data<DoctorReport>> {
    Json(Data { data: DoctorReport { checks: context.checks() } })
}
