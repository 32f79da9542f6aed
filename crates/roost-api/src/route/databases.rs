//! Databases: list, make, show, change, delete.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_catalog::id::{ConnectionId, DatabaseId};
use roost_catalog::model::{self, Name, NewConnection, NewDatabase};
use roost_catalog::{DatabaseFilter, MAX_HISTORY_PER_DATABASE, Moment, Page as CatalogPage, Subject};
use roost_lifecycle::ClosingReason;
use serde::Deserialize;
use tokio::time::Instant;

use crate::context::{Context, DatabaseReference};
use crate::envelope::{Data, Page, Paging};
use crate::error::ApiError;
use crate::extract::{Body, MAX_BULK_BODY, Params};
use crate::resource::{
    BulkCreated, CreateDatabase, CreateDatabases, Database, MAX_BULK, Measured, Period, SecretText,
    TransitionReport, UndeleteDatabase, UpdateDatabase, UsageMetrics, UsageReport,
};
use crate::{purge, secret, settings, timestamp};

type Answer<T> = Result<Json<Data<T>>, ApiError>;

/// The query of a list of databases.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
    /// Only those of one project, by id or name.
    project_id: Option<String>,
    /// The deleted ones in place of the live ones.
    #[serde(default)]
    deleted: bool,
    /// Whether each database comes with its connections; yes when absent. A long list is read faster without.
    connections: Option<bool>,
}

/// `GET /v1/databases`
pub(super) async fn list(
    State(context): State<Arc<Context>>,
    Params(query): Params<ListQuery>,
) -> Result<Json<Page<Database>>, ApiError> {
    let project = match &query.project_id {
        Some(reference) => Some(context.project(reference).await?.id),
        None => None,
    };
    let paging = Paging { cursor: query.cursor, limit: query.limit };
    let filter = DatabaseFilter { project, deleted: query.deleted };
    list_filtered(&context, filter, &paging, query.connections.unwrap_or(true)).await
}

/// One page of the databases that a filter lets through.
pub(super) async fn list_filtered(
    context: &Context,
    filter: DatabaseFilter,
    paging: &Paging,
    with_connections: bool,
) -> Result<Json<Page<Database>>, ApiError> {
    let listing = context.catalog.databases(filter, catalog_page(paging)?).await?;
    let mut views = Vec::with_capacity(listing.items.len());
    for database in &listing.items {
        views.push(if with_connections {
            context.view_database(database).await?
        } else {
            context.view_bare_database(database)
        });
    }
    Ok(Json(Page::new(views, listing.next_cursor)))
}

/// A page as the catalog takes it.
pub(super) fn catalog_page(paging: &Paging) -> Result<CatalogPage, ApiError> {
    let limit = paging.limit().map_err(ApiError::Invalid)?;
    Ok(CatalogPage { cursor: paging.cursor().map(str::to_owned), limit })
}

/// `POST /v1/databases`
pub(super) async fn create(
    State(context): State<Arc<Context>>,
    Body(request): Body<CreateDatabase>,
) -> Result<(StatusCode, Json<Data<Database>>), ApiError> {
    let project = context.project_name(request.project_id.as_deref()).await?;
    let data = make(&context, project, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// Makes a database in a project.
pub(super) async fn make(
    context: &Context,
    project: Name,
    request: CreateDatabase,
) -> Result<Database, ApiError> {
    let major = context.major(request.version.as_deref())?;
    let settings = settings::for_new(request.settings, major)?;
    let id = DatabaseId::generate();
    let name = match request.name {
        Some(name) => name,
        None => generated_name(&id)?,
    };
    let created_at = SystemTime::now();
    let (secret, connection) = if request.connection.unwrap_or(true) {
        let (secret, verifier) = secret::generate().await?;
        let connection = new_connection(&id, "default".to_owned(), verifier, created_at);
        (Some(secret), Some(connection))
    } else {
        (None, None)
    };
    let first = connection.as_ref().map(|connection| connection.id);
    let new = NewDatabase { id, project, name, major, settings, created_at, connection };
    let database = context.catalog.create_database(new).await?;
    let mut view = context.view_whole_database(&database).await?;
    if let (Some(secret), Some(first)) = (secret, first) {
        show_secret(context, &mut view, &first, &secret).await?;
    }
    Ok(view)
}

/// Puts the secret of a connection that was just made into the answer.
async fn show_secret(
    context: &Context,
    view: &mut Database,
    id: &ConnectionId,
    secret: &SecretText,
) -> Result<(), ApiError> {
    let missing = || ApiError::NotFound { subject: Subject::Connection, reference: id.to_string() };
    let connection = context.catalog.connection(id).await?.ok_or_else(missing)?;
    view.connections = vec![context.view_connection(&connection, &view.name, Some(secret))];
    Ok(())
}

/// A connection of the role that owns everything in a database.
pub(super) fn new_connection(
    database: &DatabaseId,
    name: String,
    verifier: String,
    created_at: SystemTime,
) -> NewConnection {
    NewConnection {
        id: ConnectionId::generate(),
        database: *database,
        name,
        role: roost_postgres::OWNER_ROLE.to_owned(),
        verifier,
        created_at,
    }
}

/// A name for a database that was given none.
fn generated_name(id: &DatabaseId) -> Result<Name, ApiError> {
    let random: String = id.suffix().chars().take(8).collect();
    format!("db-{random}").parse().map_err(|error: model::InvalidName| ApiError::Invalid(error.to_string()))
}

/// `POST /v1/databases:bulk`
pub(super) async fn create_many(
    State(context): State<Arc<Context>>,
    Body(request): Body<CreateDatabases, MAX_BULK_BODY>,
) -> Result<(StatusCode, Json<Data<BulkCreated>>), ApiError> {
    let count = request.names.len();
    if count > MAX_BULK {
        return Err(ApiError::Invalid(format!(
            "{count} names, but at most {MAX_BULK} are registered at once"
        )));
    }
    let project = context.project_name(request.project_id.as_deref()).await?;
    let major = context.major(request.version.as_deref())?;
    let settings = settings::for_new(request.settings, major)?;
    let created_at = SystemTime::now();
    let new = request.names.into_iter().map(|name| NewDatabase {
        id: DatabaseId::generate(),
        project: project.clone(),
        name,
        major,
        settings: settings.clone(),
        created_at,
        connection: None,
    });
    let ids = context.catalog.create_databases(new.collect()).await?;
    Ok((StatusCode::CREATED, Json(Data { data: BulkCreated { ids } })))
}

/// `GET /v1/databases/{database}`; a deleted one by its id.
pub(super) async fn show(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Answer<Database> {
    let database = context.any_database(&reference).await?;
    Ok(Json(Data { data: context.view_whole_database(&database).await? }))
}

/// `PATCH /v1/databases/{database}`
pub(super) async fn update(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Body(request): Body<UpdateDatabase>,
) -> Answer<Database> {
    let mut database = context.database(&reference).await?;
    // The settings are checked before anything changes.
    let patch = match request.settings {
        Some(change) => Some(settings::for_change(change, &database.settings, database.major)?),
        None => None,
    };
    if let Some(name) = request.name {
        database = context.catalog.rename_database(&database.id, &name).await?;
    }
    if let Some(patch) = patch {
        database = context.catalog.update_settings(&database.id, patch).await?;
        context.machine.settings_changed(&database.id).await?;
    }
    Ok(Json(Data { data: context.view_whole_database(&database).await? }))
}

/// The query of a deletion.
#[derive(Debug, Default, Deserialize)]
pub(super) struct DeleteQuery {
    /// Whether it is for ever.
    #[serde(default)]
    purge: bool,
}

/// `DELETE /v1/databases/{database}`
pub(super) async fn delete(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Params(query): Params<DeleteQuery>,
) -> Result<StatusCode, ApiError> {
    let database = if query.purge {
        context.any_database(&reference).await?
    } else {
        context.database(&reference).await?
    };
    if database.deleted_at.is_none() {
        context.catalog.delete_database(&database.id, Moment::now()).await?;
    }
    // Whoever asks to delete wants an answer at once: what the stop does not finish in time goes on without us.
    let deadline = Instant::now() + context.config.stop_timeout;
    context.machine.stop(&database.id, ClosingReason::Deleted, deadline).await?;
    if query.purge {
        purge::purge(&context, &database.id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/databases/{database}/undelete`: by id, or by the name that it had (then the one that was deleted last).
pub(super) async fn undelete(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Body(request): Body<UndeleteDatabase>,
) -> Answer<Database> {
    let id = match reference.parse::<DatabaseId>() {
        Ok(id) => id,
        Err(_) => last_deleted(&context, &reference).await?,
    };
    let database = context.catalog.undelete_database(&id, request.name).await?;
    Ok(Json(Data { data: context.view_whole_database(&database).await? }))
}

/// Of the deleted databases that had this name, the one that was deleted last.
async fn last_deleted(context: &Context, reference: &str) -> Result<DatabaseId, ApiError> {
    let missing = || ApiError::NotFound { subject: Subject::Database, reference: reference.to_owned() };
    let Some(DatabaseReference::Name { project, name }) = DatabaseReference::parse(reference) else {
        return Err(missing());
    };
    let project = context.catalog.project_by_name(&project).await?.ok_or_else(missing)?;
    let filter = DatabaseFilter { project: Some(project.id), deleted: true };
    let mut page = CatalogPage { cursor: None, limit: roost_catalog::MAX_PAGE };
    let mut found: Option<model::Database> = None;
    loop {
        let listing = context.catalog.databases(filter, page).await?;
        for database in listing.items.into_iter().filter(|database| database.name == name) {
            if found.as_ref().is_none_or(|found| found.deleted_at <= database.deleted_at) {
                found = Some(database);
            }
        }
        match listing.next_cursor {
            Some(cursor) => page = CatalogPage { cursor: Some(cursor), limit: roost_catalog::MAX_PAGE },
            None => return found.map(|database| database.id).ok_or_else(missing),
        }
    }
}

/// `GET /v1/databases/{database}/usage`
pub(super) async fn usage(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<Json<UsageReport>, ApiError> {
    const GIB: f64 = 1_073_741_824.0;
    let database = context.any_database(&reference).await?;
    let usage = context.catalog.usage(&database.id).await?;
    let now = timestamp::format(SystemTime::now());
    // Figures for people and bills: what a double cannot hold exactly, nobody misses.
    #[expect(clippy::cast_precision_loss)]
    let (sessions, bytes) = (usage.sessions as f64, database.size_bytes.unwrap_or(0) as f64);
    Ok(Json(UsageReport {
        period: Period { start: timestamp::format(database.created_at), end: now.clone() },
        metrics: UsageMetrics {
            operations: Measured { used: sessions, unit: "ops".to_owned() },
            storage: Measured { used: bytes / GIB, unit: "GiB".to_owned() },
            sessions: usage.sessions,
            bytes_in: usage.bytes_in,
            bytes_out: usage.bytes_out,
            cpu_seconds: usage.cpu.as_secs_f64(),
            running_seconds: usage.running.as_secs_f64(),
        },
        generated_at: now,
    }))
}

/// The query of a history.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HistoryQuery {
    limit: Option<u32>,
}

/// `GET /v1/databases/{database}/history`
pub(super) async fn history(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Params(query): Params<HistoryQuery>,
) -> Answer<Vec<TransitionReport>> {
    let database = context.any_database(&reference).await?;
    let limit = query.limit.unwrap_or(MAX_HISTORY_PER_DATABASE).min(MAX_HISTORY_PER_DATABASE);
    let steps = context.catalog.history(&database.id, limit).await?;
    let report = |step: model::Transition| TransitionReport {
        at: timestamp::format(step.at),
        from: step.from,
        to: step.to,
        took_ms: step.took.as_secs_f64() * 1_000.0,
        reason: step.reason,
    };
    Ok(Json(Data { data: steps.into_iter().map(report).collect() }))
}
