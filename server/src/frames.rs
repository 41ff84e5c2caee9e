//! Blocks on their way to one reader, gathered into frames.

use convoy_proto::{limits, messages::ParameterBlock};
use tokio::sync::mpsc;
use tonic::Status;

/// Cuts a stream of blocks into frames of about [`limits::FRAME_BYTES`] and sends each as soon as it is full.
pub struct Frames<'a, M, W> {
    reader: &'a mpsc::Sender<Result<M, Status>>,
    wrap: W,
    blocks: Vec<ParameterBlock>,
    bytes: usize,
}

impl<'a, M, W: Fn(Vec<ParameterBlock>) -> M> Frames<'a, M, W> {
    /// No block yet; `wrap` makes a message of a frame.
    pub fn new(reader: &'a mpsc::Sender<Result<M, Status>>, wrap: W) -> Self {
        Frames { reader, wrap, blocks: Vec::new(), bytes: 0 }
    }

    /// Adds a block.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn add(&mut self, block: ParameterBlock) -> Result<(), Status> {
        if self.bytes + block.payload.len() > limits::FRAME_BYTES {
            self.flush().await?;
        }
        self.bytes += block.payload.len();
        self.blocks.push(block);
        Ok(())
    }

    /// Sends what has gathered, if anything has.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn flush(&mut self) -> Result<(), Status> {
        if self.blocks.is_empty() { Ok(()) } else { self.send().await }
    }

    /// Sends what has gathered, even if it is nothing.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn send(&mut self) -> Result<(), Status> {
        self.bytes = 0;
        let frame = (self.wrap)(std::mem::take(&mut self.blocks));
        self.reader.send(Ok(frame)).await.map_err(|_| Status::cancelled("the reader is gone"))
    }
}
