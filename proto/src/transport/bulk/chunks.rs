//! Messages cut into chunks: the same bytes as prost writes, but for the order of fields, which has no meaning.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

use super::PREFIX;
use crate::wire;

/// Payloads below this are copied into the chunk before them: a chunk of their own would cost more.
const OWN_CHUNK: usize = 1 << 14;

/// Chunks in the making.
#[derive(Debug, Default)]
pub struct Chunks {
    ready: VecDeque<Bytes>,
    open: BytesMut,
}

impl Chunks {
    /// Adds a message.
    pub fn message(&mut self, message: &impl Chunked) {
        let len = message.len();
        self.open.reserve(PREFIX);
        self.open.put_u8(0);
        // Longer ones are refused by whoever decodes them.
        self.open.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        message.write(self);
        self.close();
    }

    /// The next chunk.
    pub fn next(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.ready.push_back(self.open.split().freeze());
        }
    }

    fn payload(&mut self, payload: &Bytes) {
        if payload.len() < OWN_CHUNK {
            self.open.put_slice(payload);
            return;
        }
        self.close();
        self.ready.push_back(payload.clone());
    }
}

/// A message that is written in chunks.
#[allow(clippy::len_without_is_empty, reason = "the size of its encoding")]
pub trait Chunked {
    /// Its size in bytes.
    fn len(&self) -> usize;

    /// Writes it.
    fn write(&self, chunks: &mut Chunks);
}

/// Fields whose numbers in the .proto files matter here.
mod field {
    pub const PULLED_BLOCKS: u32 = 1;
    pub const PUSHED_FRAME: u32 = 2;
    pub const UPDATED_FRAME: u32 = 1;
    pub const FRAME_BLOCKS: u32 = 1;
    pub const GRADIENT_PAYLOAD: u32 = 5;
    pub const PARAMETER_PAYLOAD: u32 = 3;
}

/// The size of a field of so many bytes.
fn field_len(number: u32, len: usize) -> usize {
    key_len(number) + encoded_len_varint(len as u64) + len
}

fn head(number: u32, len: usize, chunks: &mut Chunks) {
    encode_key(number, WireType::LengthDelimited, &mut chunks.open);
    encode_varint(len as u64, &mut chunks.open);
}

/// A block with a payload.
trait Block: Message + Clone {
    const PAYLOAD: u32;

    /// The block without its payload, and that.
    fn parts(&self) -> (Self, &Bytes);
}

impl Block for wire::GradientBlock {
    const PAYLOAD: u32 = field::GRADIENT_PAYLOAD;

    fn parts(&self) -> (Self, &Bytes) {
        let &wire::GradientBlock { block, node_first, node_len, encoding, ref payload, place } = self;
        (wire::GradientBlock { block, node_first, node_len, encoding, payload: Bytes::new(), place }, payload)
    }
}

impl Block for wire::ParameterBlock {
    const PAYLOAD: u32 = field::PARAMETER_PAYLOAD;

    fn parts(&self) -> (Self, &Bytes) {
        let &wire::ParameterBlock { block, encoding, ref payload, place } = self;
        (wire::ParameterBlock { block, encoding, payload: Bytes::new(), place }, payload)
    }
}

fn block_len<B: Block>(block: &B) -> usize {
    let (bare, payload) = block.parts();
    let payload = if payload.is_empty() { 0 } else { field_len(B::PAYLOAD, payload.len()) };
    bare.encoded_len() + payload
}

fn blocks_len<B: Block>(number: u32, blocks: &[B]) -> usize {
    blocks.iter().map(|block| field_len(number, block_len(block))).sum()
}

fn write_blocks<B: Block>(number: u32, blocks: &[B], chunks: &mut Chunks) {
    for block in blocks {
        let (bare, payload) = block.parts();
        head(number, block_len(block), chunks);
        write_plain(&bare, chunks);
        if !payload.is_empty() {
            head(B::PAYLOAD, payload.len(), chunks);
            chunks.payload(payload);
        }
    }
}

fn write_plain(message: &impl Message, chunks: &mut Chunks) {
    chunks.open.reserve(message.encoded_len());
    // There is room for it.
    message.encode_raw(&mut chunks.open);
}

impl Chunked for wire::PullRequest {
    fn len(&self) -> usize {
        self.encoded_len()
    }

    fn write(&self, chunks: &mut Chunks) {
        write_plain(self, chunks);
    }
}

impl Chunked for wire::PullResponse {
    fn len(&self) -> usize {
        blocks_len(field::PULLED_BLOCKS, &self.blocks) + self.bare().encoded_len()
    }

    fn write(&self, chunks: &mut Chunks) {
        write_blocks(field::PULLED_BLOCKS, &self.blocks, chunks);
        write_plain(&self.bare(), chunks);
    }
}

impl wire::PullResponse {
    fn bare(&self) -> wire::PullResponse {
        wire::PullResponse { blocks: Vec::new(), step: self.step, last: self.last }
    }
}

impl Chunked for wire::PushPullRequest {
    fn len(&self) -> usize {
        match &self.part {
            Some(wire::push_pull_request::Part::Frame(frame)) => {
                let bare = wire::PushPullRequest { part: None, ..*self };
                field_len(field::PUSHED_FRAME, blocks_len(field::FRAME_BLOCKS, &frame.blocks)) + bare.encoded_len()
            }
            _ => self.encoded_len(),
        }
    }

    fn write(&self, chunks: &mut Chunks) {
        match &self.part {
            Some(wire::push_pull_request::Part::Frame(frame)) => {
                head(field::PUSHED_FRAME, blocks_len(field::FRAME_BLOCKS, &frame.blocks), chunks);
                write_blocks(field::FRAME_BLOCKS, &frame.blocks, chunks);
                write_plain(&wire::PushPullRequest { part: None, ..*self }, chunks);
            }
            _ => write_plain(self, chunks),
        }
    }
}

impl Chunked for wire::PushPullResponse {
    fn len(&self) -> usize {
        match &self.part {
            Some(wire::push_pull_response::Part::Frame(frame)) => {
                field_len(field::UPDATED_FRAME, blocks_len(field::FRAME_BLOCKS, &frame.blocks))
            }
            _ => self.encoded_len(),
        }
    }

    fn write(&self, chunks: &mut Chunks) {
        match &self.part {
            Some(wire::push_pull_response::Part::Frame(frame)) => {
                head(field::UPDATED_FRAME, blocks_len(field::FRAME_BLOCKS, &frame.blocks), chunks);
                write_blocks(field::FRAME_BLOCKS, &frame.blocks, chunks);
            }
            _ => write_plain(self, chunks),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(len: usize) -> Bytes {
        (0..len).map(|i| i as u8).collect::<Vec<u8>>().into()
    }

    /// The message that chunks decode to, with large payloads in chunks of their own.
    fn written<M: Chunked + Message + Default + PartialEq + std::fmt::Debug>(message: &M, payloads: &[&Bytes]) {
        let mut chunks = Chunks::default();
        chunks.message(message);
        let all: Vec<Bytes> = std::iter::from_fn(|| chunks.next()).collect();
        for payload in payloads.iter().filter(|payload| payload.len() >= OWN_CHUNK) {
            assert!(all.iter().any(|chunk| chunk.as_ptr() == payload.as_ptr()), "a payload was copied");
        }
        let bytes = all.concat();
        assert_eq!((bytes[0], &bytes[1..PREFIX]), (0, &(message.len() as u32).to_be_bytes()[..]));
        assert_eq!(bytes.len() - PREFIX, message.len());
        assert_eq!(&M::decode(&bytes[PREFIX..]).unwrap(), message);
    }

    #[test]
    fn chunks_are_the_message_and_payloads_are_not_copied() {
        let payloads = [payload(0), payload(9), payload(OWN_CHUNK), payload(300_000)];
        let place = Some(wire::Place { offset: 7, bytes: 300 });
        let gradient = |(block, payload): (u64, &Bytes)| wire::GradientBlock {
            block,
            node_first: 3,
            node_len: block as u32,
            encoding: 1,
            payload: payload.clone(),
            place: place.filter(|_| payload.is_empty()),
        };
        let parameter = |(block, payload): (u64, &Bytes)| {
            let place = place.filter(|_| payload.is_empty());
            wire::ParameterBlock { block, encoding: 1, payload: payload.clone(), place }
        };
        let given: Vec<&Bytes> = payloads.iter().collect();
        let gradients: Vec<_> = (0..).zip(&payloads).map(gradient).collect();
        let parameters: Vec<_> = (0..).zip(&payloads).map(parameter).collect();
        for last in [false, true] {
            written(&wire::PullResponse { blocks: parameters.clone(), step: 300, last }, &given);
            written(&wire::PullResponse { blocks: Vec::new(), step: 0, last }, &[]);
        }
        let frame = wire::push_pull_request::Part::Frame(wire::GradientFrame { blocks: gradients });
        let header = wire::push_pull_request::Part::Header(wire::PushHeader { step: 5, ..Default::default() });
        for part in [Some(frame), Some(header), None] {
            written(&wire::PushPullRequest { part, without_blocks: true, shared: true }, &[]);
        }
        let frame = wire::push_pull_response::Part::Frame(wire::ParameterFrame { blocks: parameters });
        for part in [Some(frame), Some(wire::push_pull_response::Part::Missed(9)), None] {
            written(&wire::PushPullResponse { part }, &[]);
        }
        let empty = wire::push_pull_request::Part::Frame(wire::GradientFrame { blocks: Vec::new() });
        written(&wire::PushPullRequest { part: Some(empty), without_blocks: false, shared: false }, &[]);
    }
}
