//! Connections: list, make, show, rotate, delete.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_catalog::Subject;
use roost_catalog::id::ConnectionId;
use roost_catalog::model;
use serde::Deserialize;

use super::databases::{catalog_page, new_connection};
use crate::context::Context;
use crate::envelope::{Data, Page, Paging};
use crate::error::ApiError;
use crate::extract::{Body, Params};
use crate::resource::{Connection, CreateConnection};
use crate::secret;

/// Characters of a connection's name.
const MAX_NAME: usize = 100;

/// The query of a list of connections.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<u32>,
    database_id: Option<String>,
}

/// `GET /v1/connections?databaseId=`
pub(super) async fn list(
    State(context): State<Arc<Context>>,
    Params(query): Params<ListQuery>,
) -> Result<Json<Page<Connection>>, ApiError> {
    let Some(reference) = &query.database_id else {
        return Err(ApiError::Invalid(
            "databaseId is missing: connections are listed database by database".to_owned(),
        ));
    };
    list_page(&context, reference, &Paging { cursor: query.cursor, limit: query.limit }).await
}

/// `GET /v1/databases/{database}/connections`
pub(super) async fn list_of_database(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Params(paging): Params<Paging>,
) -> Result<Json<Page<Connection>>, ApiError> {
    list_page(&context, &reference, &paging).await
}

async fn list_page(
    context: &Context,
    reference: &str,
    paging: &Paging,
) -> Result<Json<Page<Connection>>, ApiError> {
    let database = context.any_database(reference).await?;
    let listing = context.catalog.connections(&database.id, catalog_page(paging)?).await?;
    let view = |connection| context.view_connection(connection, &database.name, None);
    Ok(Json(Page::new(listing.items.iter().map(view).collect(), listing.next_cursor)))
}

/// `POST /v1/connections`
pub(super) async fn create(
    State(context): State<Arc<Context>>,
    Body(request): Body<CreateConnection>,
) -> Result<(StatusCode, Json<Data<Connection>>), ApiError> {
    let Some(reference) = request.database_id else {
        return Err(ApiError::Invalid("databaseId is missing".to_owned()));
    };
    let data = make(&context, &reference, request.name).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// `POST /v1/databases/{database}/connections`; answers 200, as the reference does.
pub(super) async fn create_for_database(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Body(request): Body<CreateConnection>,
) -> Result<Json<Data<Connection>>, ApiError> {
    if request.database_id.is_some_and(|other| other != reference) {
        return Err(ApiError::Invalid("databaseId and the path name different databases".to_owned()));
    }
    Ok(Json(Data { data: make(&context, &reference, request.name).await? }))
}

async fn make(context: &Context, reference: &str, name: String) -> Result<Connection, ApiError> {
    let length = name.chars().count();
    if length == 0 || length > MAX_NAME || name.chars().any(char::is_control) {
        return Err(ApiError::Invalid(format!(
            "a connection's name has 1 to {MAX_NAME} printable characters"
        )));
    }
    let database = context.database(reference).await?;
    let (secret, verifier) = secret::generate().await?;
    let new = new_connection(&database.id, name, verifier, SystemTime::now());
    let connection = context.catalog.create_connection(new).await?;
    Ok(context.view_connection(&connection, &database.name, Some(&secret)))
}

/// `GET /v1/connections/{connection}`
pub(super) async fn show(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<Json<Data<Connection>>, ApiError> {
    let connection = find(&context, &reference).await?;
    let database = database_of(&context, &connection).await?;
    Ok(Json(Data { data: context.view_connection(&connection, &database.name, None) }))
}

/// `POST /v1/connections/{connection}/rotate`. The old secret fails from when this answers; sessions stay.
pub(super) async fn rotate(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<Json<Data<Connection>>, ApiError> {
    let connection = find(&context, &reference).await?;
    let database = database_of(&context, &connection).await?;
    let (secret, verifier) = secret::generate().await?;
    let connection = context.catalog.rotate_connection(&connection.id, verifier).await?;
    Ok(Json(Data { data: context.view_connection(&connection, &database.name, Some(&secret)) }))
}

/// `DELETE /v1/connections/{connection}`. Its secret fails from when this answers; sessions stay.
pub(super) async fn delete(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    let connection = find(&context, &reference).await?;
    context.catalog.delete_connection(&connection.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(context: &Context, reference: &str) -> Result<model::Connection, ApiError> {
    let missing = || ApiError::NotFound { subject: Subject::Connection, reference: reference.to_owned() };
    let id: ConnectionId = reference.parse().map_err(|_| missing())?;
    context.catalog.connection(&id).await?.ok_or_else(missing)
}

async fn database_of(context: &Context, connection: &model::Connection) -> Result<model::Database, ApiError> {
    context.any_database(&connection.database.to_string()).await
}
