//! A database's log: its last lines, and what is added to it. Reading it wakes nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::error::ApiError;
use crate::extract::Params;
use crate::stream::{StreamBody, stream};

/// Lines that are shown when the request does not say.
const DEFAULT_TAIL: u32 = 100;
/// Lines that can be asked for.
const MAX_TAIL: u32 = 100_000;
/// Bytes from the end in which the lines are looked for.
const TAIL_WINDOW: u64 = 8 << 20;
/// Bytes that are read at once when following.
const CHUNK: u64 = 64 * 1024;
/// How often a followed log is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);

/// The query of a log.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LogQuery {
    /// How many of the last lines.
    tail: Option<u32>,
    /// Whether to go on with what is added.
    #[serde(default)]
    follow: bool,
}

/// `GET /v1/databases/{database}/logs`, as plain text.
pub(super) async fn read(
    State(context): State<Arc<Context>>,
    Path(reference): Path<String>,
    Params(query): Params<LogQuery>,
) -> Result<Response, ApiError> {
    let database = context.any_database(&reference).await?;
    let path = context.log_path(&database.id).ok_or(ApiError::NoLog)?;
    let lines = query.tail.unwrap_or(DEFAULT_TAIL);
    if lines > MAX_TAIL {
        return Err(ApiError::Invalid(format!("tail is {lines}, but at most {MAX_TAIL} lines are shown")));
    }
    let (text, position) = blocking({
        let path = path.clone();
        move || last_lines(&path, lines)
    })
    .await
    .or_else(|error| match error.kind() {
        // A log that does not exist yet can be waited for.
        io::ErrorKind::NotFound if query.follow => Ok((Vec::new(), 0)),
        io::ErrorKind::NotFound => Err(ApiError::NoLog),
        _ => Err(error.into()),
    })?;
    let body = if query.follow { Body::new(follow(path, text, position)) } else { Body::from(text) };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The text, then what is added to the file from `position` on, until the client goes.
fn follow(path: PathBuf, text: Vec<u8>, mut position: u64) -> StreamBody {
    let (sender, body) = stream();
    tokio::spawn(async move {
        if !text.is_empty() && sender.send(Ok(text.into())).await.is_err() {
            return;
        }
        while wait(&sender).await {
            let added = blocking({
                let path = path.clone();
                move || added_since(&path, position)
            });
            match added.await {
                Ok((text, _)) if text.is_empty() => {}
                Ok((text, end)) => {
                    position = end;
                    if sender.send(Ok(Bytes::from(text))).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => position = 0,
                Err(error) => {
                    // A client that is gone as well needs no error.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
        }
    });
    body
}

/// Waits for the next look at the file; false once the client is gone.
async fn wait(sender: &mpsc::Sender<io::Result<Bytes>>) -> bool {
    tokio::time::timeout(FOLLOW_INTERVAL, sender.closed()).await.is_err()
}

async fn blocking<T: Send + 'static>(read: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

fn open(path: &FilePath) -> io::Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(no_follow).open(path)
}

/// The last lines of a file, and where it ends.
fn last_lines(path: &FilePath, lines: u32) -> io::Result<(Vec<u8>, u64)> {
    let mut file = open(path)?;
    let end = file.metadata()?.len();
    let begin = end.saturating_sub(TAIL_WINDOW);
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.take(end - begin).read_to_end(&mut text)?;
    let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
    // A line break at the very end belongs to the last line.
    let breaks = text.iter().enumerate().rev().skip(1).filter(|(_, byte)| **byte == b'\n');
    let from = match wanted {
        0 => text.len(),
        _ => breaks.map(|(at, _)| at + 1).nth(wanted - 1).unwrap_or(0),
    };
    let position = begin + text.len() as u64;
    Ok((text.split_off(from), position))
}

/// What was added after `position`, at most a chunk, and where it ends. A file that is shorter than that was emptied,
/// and is read from its beginning.
fn added_since(path: &FilePath, position: u64) -> io::Result<(Vec<u8>, u64)> {
    let mut file = open(path)?;
    let begin = if file.metadata()?.len() < position { 0 } else { position };
    file.seek(SeekFrom::Start(begin))?;
    let mut text = Vec::new();
    file.take(CHUNK).read_to_end(&mut text)?;
    let end = begin + text.len() as u64;
    Ok((text, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[test]
    fn the_last_lines_are_cut_at_line_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let last = |lines| String::from_utf8(last_lines(&path, lines).unwrap().0).unwrap();
        assert_eq!(last(0), "");
        assert_eq!(last(1), "three\n");
        assert_eq!(last(2), "two\nthree\n");
        assert_eq!(last(9), "one\ntwo\nthree\n");
        std::fs::write(&path, "one\ntwo").unwrap();
        assert_eq!(last(1), "two");
        std::fs::write(&path, "").unwrap();
        assert_eq!(last(5), "");
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_after_it_was_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "a long first line\n").unwrap();
        let (text, position) = last_lines(&path, 10).unwrap();
        let mut body = follow(path.clone(), text, position);
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next().await, "a long first line\n");
        std::fs::write(&path, "short\n").unwrap();
        assert_eq!(next().await, "short\n");
    }

    #[test]
    fn a_log_that_is_a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(last_lines(&path, 1).is_err());
    }
}
