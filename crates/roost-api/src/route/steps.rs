//! Steps on the ladder by hand.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use roost_lifecycle::ClosingReason;
use tokio::time::Instant;

use crate::context::Context;
use crate::envelope::Data;
use crate::error::ApiError;
use crate::resource::Database;

type Answer = Result<Json<Data<Database>>, ApiError>;

/// `POST /v1/databases/{database}/wake`
pub(super) async fn wake(State(context): State<Arc<Context>>, Path(reference): Path<String>) -> Answer {
    let database = context.database(&reference).await?;
    context.machine.wake(&database.id, Instant::now() + context.config.wake_timeout).await?;
    answer(&context, &reference).await
}

/// `POST /v1/databases/{database}/freeze`
pub(super) async fn freeze(State(context): State<Arc<Context>>, Path(reference): Path<String>) -> Answer {
    let database = context.database(&reference).await?;
    context.machine.freeze(&database.id).await?;
    answer(&context, &reference).await
}

/// `POST /v1/databases/{database}/stop`
pub(super) async fn stop(State(context): State<Arc<Context>>, Path(reference): Path<String>) -> Answer {
    let database = context.database(&reference).await?;
    let deadline = Instant::now() + context.config.stop_timeout;
    context.machine.stop(&database.id, ClosingReason::Stopped, deadline).await?;
    answer(&context, &reference).await
}

/// The database after the step.
async fn answer(context: &Context, reference: &str) -> Answer {
    // What just happened is in the history before it is told.
    context.catalog.flush().await?;
    let database = context.database(reference).await?;
    Ok(Json(Data { data: context.view_whole_database(&database).await? }))
}
