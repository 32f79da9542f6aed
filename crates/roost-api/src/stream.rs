//! A body that is sent as it is made.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::mpsc;

/// Chunks that may wait for a slow client.
const WAITING_CHUNKS: usize = 8;

/// The receiving half: what a response has as its body. An error in it breaks the connection off, so that the client
/// does not take a part for the whole.
#[derive(Debug)]
pub(crate) struct StreamBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
}

/// A body and what feeds it. The feeder's sends fail once the client is gone.
pub(crate) fn stream() -> (mpsc::Sender<io::Result<Bytes>>, StreamBody) {
    let (sender, chunks) = mpsc::channel(WAITING_CHUNKS);
    (sender, StreamBody { chunks })
}

impl HttpBody for StreamBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.get_mut().chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
