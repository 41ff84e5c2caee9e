//! Messages that arrive, decoded from the pieces that they arrived in: payloads stay where the connection has put them.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use prost::Message;
use tokio_stream::Stream;
use tonic::{Code, Status, body::Body};

use super::{PREFIX, rope::Rope};
use crate::limits;

/// The messages of a call, in order.
#[derive(Debug)]
pub struct Inbound<M> {
    body: Body,
    arrived: Rope,
    /// The size of the message that arrives.
    awaited: Option<usize>,
    /// Whether a status is to follow, and what it is.
    is_answer: bool,
    trailers: Option<HeaderMap>,
    has_ended: bool,
    messages: PhantomData<fn() -> M>,
}

impl<M> Inbound<M> {
    /// From a caller.
    pub fn asked(body: Body) -> Self {
        Inbound {
            body,
            arrived: Rope::default(),
            awaited: None,
            is_answer: false,
            trailers: None,
            has_ended: false,
            messages: PhantomData,
        }
    }

    /// From a server.
    pub fn answered(body: Body) -> Self {
        Inbound { is_answer: true, ..Inbound::asked(body) }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.arrived.push(data),
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    /// What is wrong, now that nothing more arrives.
    fn end(&self) -> Option<Status> {
        if self.arrived.has_remaining() || self.awaited.is_some() {
            return Some(Status::internal("the call ended in the middle of a message"));
        }
        if !self.is_answer {
            return None;
        }
        let status = self.trailers.as_ref().and_then(Status::from_header_map);
        Some(status.unwrap_or_else(|| Status::internal("the call ended without a status")))
            .filter(|status| status.code() != Code::Ok)
    }
}

impl<M: Message + Default> Inbound<M> {
    /// The next message, if all of it is here.
    fn decode(&mut self) -> Result<Option<M>, Status> {
        let len = match self.awaited {
            Some(len) => len,
            None if self.arrived.remaining() < PREFIX => return Ok(None),
            None => {
                if self.arrived.get_u8() != 0 {
                    return Err(Status::unimplemented("messages are not compressed here"));
                }
                let len = self.arrived.get_u32() as usize;
                if len > limits::MESSAGE_BYTES {
                    let most = limits::MESSAGE_BYTES;
                    return Err(Status::out_of_range(format!("a message of {len} bytes, where {most} are the most")));
                }
                *self.awaited.insert(len)
            }
        };
        if self.arrived.remaining() < len {
            return Ok(None);
        }
        self.awaited = None;
        M::decode(self.arrived.first(len)).map(Some).map_err(|problem| Status::internal(problem.to_string()))
    }
}

impl<M: Message + Default> Stream for Inbound<M> {
    type Item = Result<M, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.has_ended {
            match this.decode() {
                Ok(None) => {}
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Err(status) => {
                    this.has_ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
            }
            let problem = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    this.take(frame);
                    continue;
                }
                // A caller that leaves has nothing more to say, and nobody to tell it to.
                Some(Err(status)) if !this.is_answer && status.code() == Code::Cancelled => None,
                Some(Err(status)) => Some(status),
                None => this.end(),
            };
            this.has_ended = true;
            return Poll::Ready(problem.map(Err));
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio_stream::StreamExt;

    use super::{super::chunks::Chunks, *};
    use crate::wire;

    struct Arriving(VecDeque<Frame<Bytes>>);

    impl http_body::Body for Arriving {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop_front().map(Ok))
        }
    }

    fn pulled(payloads: &[usize]) -> wire::PullResponse {
        let block = |(block, len): (u64, &usize)| wire::ParameterBlock {
            block,
            payload: (0..*len).map(|at| (at * 7) as u8).collect::<Vec<_>>().into(),
            ..Default::default()
        };
        wire::PullResponse { blocks: (0..).zip(payloads).map(block).collect(), step: 3, last: false }
    }

    fn status(status: Status) -> Frame<Bytes> {
        let mut trailers = HeaderMap::new();
        status.add_header(&mut trailers).unwrap();
        Frame::trailers(trailers)
    }

    async fn read(frames: Vec<Frame<Bytes>>) -> (Vec<wire::PullResponse>, Option<Status>) {
        let mut inbound = Inbound::answered(Body::new(Arriving(frames.into())));
        let (mut messages, mut end) = (Vec::new(), None);
        while let Some(next) = inbound.next().await {
            match next {
                Ok(message) => messages.push(message),
                Err(status) => end = Some(status),
            }
        }
        (messages, end)
    }

    #[tokio::test]
    async fn messages_are_the_same_however_they_are_cut() {
        let sent = [pulled(&[]), pulled(&[5, 0, 20_000, 70_000]), pulled(&[300_000])];
        let mut chunks = Chunks::default();
        sent.iter().for_each(|message| chunks.message(message));
        let whole: Vec<u8> = std::iter::from_fn(|| chunks.next()).collect::<Vec<_>>().concat();
        for cut in [1, 7, 4096, 65_536, whole.len()] {
            let pieces = whole.chunks(cut).map(|piece| Frame::data(Bytes::copy_from_slice(piece)));
            let (messages, end) = read(pieces.chain([status(Status::ok(""))]).collect()).await;
            assert_eq!(messages, sent, "cut into pieces of {cut}");
            assert!(end.is_none(), "{end:?}");
        }
    }

    #[tokio::test]
    async fn payloads_stay_where_they_arrived() {
        let mut chunks = Chunks::default();
        chunks.message(&pulled(&[20_000, 30_000]));
        let frames: Vec<Bytes> = std::iter::from_fn(|| chunks.next()).collect();
        let (messages, _) = read(frames.iter().cloned().map(Frame::data).collect()).await;
        for block in &messages[0].blocks {
            assert!(frames.iter().any(|frame| frame.as_ptr() == block.payload.as_ptr()));
        }
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_once() {
        let data = |bytes: &'static [u8]| Frame::data(Bytes::from_static(bytes));
        let wrong: [(Vec<Frame<Bytes>>, Code, &str); 7] = [
            (vec![data(&[0, 0, 0, 0, 9, 1])], Code::Internal, "middle of a message"),
            (vec![data(&[0, 0])], Code::Internal, "middle of a message"),
            (vec![], Code::Internal, "without a status"),
            (vec![data(&[1, 0, 0, 0, 0])], Code::Unimplemented, "not compressed"),
            (vec![data(&[0, 255, 0, 0, 0])], Code::OutOfRange, "a message of"),
            (vec![data(&[0, 0, 0, 0, 2, 255, 255])], Code::Internal, "varint"),
            (vec![status(Status::aborted("no"))], Code::Aborted, "no"),
        ];
        for (frames, code, words) in wrong {
            let (messages, end) = read(frames).await;
            let end = end.unwrap();
            assert!(messages.is_empty() && end.code() == code && end.message().contains(words), "{end:?}");
        }
    }
}
