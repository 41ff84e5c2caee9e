//! Blocks on their way to one reader, gathered into frames.

use bytes::Bytes;
use convoy_proto::{limits, messages::ParameterBlock};
use tokio::sync::mpsc;
use tonic::Status;

/// Cuts a stream of blocks into frames of about [`limits::FRAME_BYTES`] and sends each as soon as it is full.
pub struct Frames<'a, M, W> {
    reader: &'a mpsc::Sender<Result<M, Status>>,
    wrap: W,
    /// Whether the reader sees this process's memory.
    is_shared: bool,
    blocks: Vec<ParameterBlock>,
    weight: usize,
    /// What the reader was shown.
    shown: Shown,
}

/// Values that a reader sees in this process's memory: they stay there until this is dropped.
#[derive(Debug, Default)]
pub struct Shown(Vec<Bytes>);

impl Shown {
    /// Whether the reader was shown nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a, M, W: Fn(Vec<ParameterBlock>) -> M> Frames<'a, M, W> {
    /// No block yet; `wrap` makes a message of a frame.
    pub fn new((reader, is_shared): (&'a mpsc::Sender<Result<M, Status>>, bool), wrap: W) -> Self {
        Frames { reader, wrap, is_shared, blocks: Vec::new(), weight: 0, shown: Shown::default() }
    }

    /// Adds a block.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn add(&mut self, block: ParameterBlock) -> Result<(), Status> {
        let block = ParameterBlock { place: block.place.filter(|_| self.is_shared), ..block };
        let weight = limits::weight(&block.payload, block.place);
        if self.weight + weight > limits::FRAME_BYTES {
            self.flush().await?;
        }
        self.weight += weight;
        self.shown.0.extend(block.place.map(|_| block.payload.clone()));
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
        self.weight = 0;
        let frame = (self.wrap)(std::mem::take(&mut self.blocks));
        self.reader.send(Ok(frame)).await.map_err(|_| Status::cancelled("the reader is gone"))
    }

    /// Sends what has gathered; gives what the reader was shown.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn finish(mut self) -> Result<Shown, Status> {
        self.flush().await?;
        Ok(self.shown)
    }
}
