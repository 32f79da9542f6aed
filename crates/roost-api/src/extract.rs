//! Bodies and queries of requests, bounded in size and time, with errors in the API's envelope.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// Bytes that a request's JSON body may have.
pub(crate) const MAX_BODY: usize = 64 * 1024;
/// Bytes that a bulk registration's body may have.
pub(crate) const MAX_BULK_BODY: usize = 8 << 20;
/// How long a request's JSON body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A JSON body of at most `LIMIT` bytes. No body at all is `{}`.
pub(crate) struct Body<T, const LIMIT: usize = MAX_BODY>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync, const LIMIT: usize> FromRequest<S> for Body<T, LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let body = read(request, LIMIT).await?;
        let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
        serde_json::from_slice(body)
            .map(Self)
            .map_err(|error| ApiError::Invalid(format!("the body is wrong: {error}")))
    }
}

async fn read(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let body = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge { limit }),
        Ok(Err(error)) => Err(ApiError::Invalid(format!("the body could not be read: {error}"))),
        Err(_) => Err(ApiError::Slow(BODY_TIMEOUT)),
    }
}

/// The query after the path's question mark.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(params)| Self(params))
            .map_err(|error| ApiError::Invalid(format!("the query is wrong: {}", error.body_text())))
    }
}
