//! A stream of messages as the body of a call.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio_stream::Stream;
use tonic::Status;

use super::chunks::{Chunked, Chunks};

/// Messages on their way; from a server, a status follows them.
pub struct Messages<S> {
    stream: Pin<Box<S>>,
    chunks: Chunks,
    /// Whether a status is to follow.
    is_answer: bool,
    has_ended: bool,
}

impl<S> Messages<S> {
    /// Of a caller.
    pub fn asked(stream: S) -> Self {
        Messages { stream: Box::pin(stream), chunks: Chunks::default(), is_answer: false, has_ended: false }
    }

    /// Of a server.
    pub fn answered(stream: S) -> Self {
        Messages { is_answer: true, ..Messages::asked(stream) }
    }

    /// How the call ends, once all messages are sent.
    fn end(&mut self, status: Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.has_ended = true;
        if !self.is_answer {
            return None;
        }
        let mut trailers = HeaderMap::new();
        Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)))
    }
}

impl<M: Chunked, S: Stream<Item = Result<M, Status>>> http_body::Body for Messages<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(chunk) = self.chunks.next() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            match ready!(self.stream.as_mut().poll_next(context)) {
                Some(Ok(message)) => self.chunks.message(&message),
                Some(Err(status)) if self.is_answer => return Poll::Ready(self.end(status)),
                Some(Err(status)) => {
                    self.has_ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
                None => return Poll::Ready(self.end(Status::ok(""))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}
