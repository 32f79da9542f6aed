//! Projects: list, make, show, delete.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use roost_catalog::DatabaseFilter;
use roost_catalog::id::ProjectId;
use roost_catalog::model::Name;

use super::databases::{catalog_page, list_filtered, make};
use crate::context::Context;
use crate::envelope::{Data, Page, Paging};
use crate::error::ApiError;
use crate::extract::{Body, Params};
use crate::resource::{CreateDatabase, CreateProject, Database, Project};
use crate::view;

/// `GET /v1/projects`
pub(super) async fn list(
    State(context): State<Arc<Context>>,
    Params(paging): Params<Paging>,
) -> Result<Json<Page<Project>>, ApiError> {
    let listing = context.catalog.projects(catalog_page(&paging)?).await?;
    Ok(Json(Page::new(listing.items.iter().map(view::project).collect(), listing.next_cursor)))
}

/// `POST /v1/projects`
pub(super) async fn create(
    State(context): State<Arc<Context>>,
    Body(request): Body<CreateProject>,
) -> Result<(StatusCode, Json<Data<Project>>), ApiError> {
    let name = match request.name {
        Some(name) => name,
        None => generated_name()?,
    };
    let project = context.catalog.create_project(&name).await?;
    let mut data = view::project(&project);
    if request.create_database.unwrap_or(false) {
        let database = make(&context, project.name, CreateDatabase::default()).await?;
        data.database = Some(Box::new(database));
    }
    Ok((StatusCode::CREATED, Json(Data { data })))
}

/// A name for a project that was given none.
fn generated_name() -> Result<Name, ApiError> {
    let id = ProjectId::generate();
    let random: String = id.suffix().chars().take(8).collect();
    format!("project-{random}").parse().map_err(|error| ApiError::Invalid(format!("{error}")))
}

/// `GET /v1/projects/{project}`
pub(super) async fn show(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<Json<Data<Project>>, ApiError> {
    Ok(Json(Data { data: view::project(&context.project(&reference).await?) }))
}

/// `DELETE /v1/projects/{project}`
pub(super) async fn delete(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<StatusCode, ApiError> {
    let project = context.project(&reference).await?;
    context.catalog.delete_project(&project.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/projects/{project}/databases`
pub(super) async fn list_databases(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Params(paging): Params<Paging>,
) -> Result<Json<Page<Database>>, ApiError> {
    let project = context.project(&reference).await?;
    list_filtered(&context, DatabaseFilter { project: Some(project.id), deleted: false }, &paging, true).await
}

/// `POST /v1/projects/{project}/databases`
pub(super) async fn create_database(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Body(request): Body<CreateDatabase>,
) -> Result<(StatusCode, Json<Data<Database>>), ApiError> {
    if request.project_id.as_ref().is_some_and(|other| *other != reference) {
        return Err(ApiError::Invalid("projectId and the path name different projects".to_owned()));
    }
    let project = context.project_name(Some(&reference)).await?;
    let data = make(&context, project, request).await?;
    Ok((StatusCode::CREATED, Json(Data { data })))
}
