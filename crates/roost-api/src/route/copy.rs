//! A cold copy: the files of a stopped database as a tar stream, and a database's files made of such a stream.
//!
//! The warden reads and writes the files; this side only carries bytes between its pipe and the client.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use roost_catalog::model;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::context::Context;
use crate::envelope::Data;
use crate::error::ApiError;
use crate::resource::Database;
use crate::secret;
use crate::stream::stream;

/// Bytes that are read at once.
const CHUNK: usize = 256 * 1024;
/// How long a client may send nothing in the middle of a stream.
const STALL: Duration = Duration::from_secs(60);

/// `GET /v1/databases/{database}/export`
pub(super) async fn export(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
) -> Result<Response, ApiError> {
    let database = context.database(&reference).await?;
    require_stopped(&context, &database)?;
    if database.volume.is_none() {
        return Err(ApiError::NoFiles);
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let mut reader = pipe::Receiver::from_owned_fd(reader)?;
    let (sender, body) = stream();
    tokio::spawn(async move {
        let writing = context.machine.export(&database.id, writer);
        let carrying = async {
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                match reader.read_buf(&mut chunk).await {
                    Ok(0) => return Ok(()),
                    Ok(_) => sender.send(Ok(Bytes::from(chunk))).await.map_err(io::Error::other)?,
                    Err(error) => return Err(error),
                }
            }
        };
        let (written, carried) = tokio::join!(writing, carrying);
        let failure = match (written, carried) {
            (Ok(_), Ok(())) => return,
            (Err(error), _) => io::Error::other(error),
            (Ok(_), Err(error)) => error,
        };
        tracing::warn!(database = %database.id, error = %failure, "an export failed");
        // The stream breaks off, so that nobody takes it for the whole.
        let _ = sender.send(Err(failure)).await;
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], Body::new(body)).into_response())
}

/// `POST /v1/databases/{database}/import`: for a database that was never woken.
pub(super) async fn import(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    request: Request,
) -> Result<Json<Data<Database>>, ApiError> {
    let database = context.database(&reference).await?;
    require_stopped(&context, &database)?;
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let reading = context.machine.import(&database.id, database.major, secret::random_u64()?, reader);
    let (read, sent) = tokio::join!(reading, send(request.into_body(), writer));
    // The warden knows best what is wrong with the stream; that its end of the pipe closed early is a consequence.
    read?;
    sent?;
    let database = context.database(&reference).await?;
    Ok(Json(Data { data: context.view_whole_database(&database).await? }))
}

/// Writes a body into a pipe.
async fn send(mut body: Body, writer: OwnedFd) -> Result<(), ApiError> {
    let mut writer = pipe::Sender::from_owned_fd(writer)?;
    loop {
        let frame = match tokio::time::timeout(STALL, body.frame()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(ApiError::Invalid(format!("the stream broke off: {error}"))),
            Err(_) => return Err(ApiError::Slow(STALL)),
        };
        if let Ok(bytes) = frame.into_data() {
            writer.write_all(&bytes).await?;
        }
    }
}

fn require_stopped(context: &Context, database: &model::Database) -> Result<(), ApiError> {
    match context.machine.snapshot(&database.id).state {
        model::State::Stopped | model::State::Failed => Ok(()),
        _ => Err(ApiError::NotStopped),
    }
}
