//! A listener's connections: how many there may be at once, and what becomes of those that say nothing.
//!
//! Each takes a place, so that a flood finds an end before the process has no file handles left. Who connects and does not
//! even begin to speak is hung up on; who has begun is looked after by HTTP/2's pings.

use std::{
    future::Future,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tracing::warn;

use super::pace::Pace;
use crate::{limits, process};

/// What HTTP/2 begins with, in bytes; TLS begins with more.
const PREFACE: usize = 24;
/// How long a caller may take for that.
const SILENCE: Duration = Duration::from_secs(10);
/// How long to wait with the next connection after one could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// The connections of a listener.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    places: Arc<Semaphore>,
    /// Of those, places for who has not begun to speak: so that they keep nobody out who has.
    strangers: Arc<Semaphore>,
    silence: Duration,
    is_full: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

/// The connections of a listener, each without Nagle's delay: small messages would wait 40 ms for an acknowledgement.
pub fn incoming(listener: TcpListener) -> Incoming {
    // The other half is for files, and for connections to others.
    Incoming::new(listener, (process::raise_file_limit() / 2).clamp(2, limits::CONNECTIONS), SILENCE)
}

/// The same, of so many at once at most: for callers who are not what the process is there for.
pub fn incoming_at_most(listener: TcpListener, places: usize) -> Incoming {
    Incoming::new(listener, places.min(process::raise_file_limit() / 4).max(2), SILENCE)
}

impl Incoming {
    fn new(listener: TcpListener, places: usize, silence: Duration) -> Incoming {
        let (places, strangers) = (Arc::new(Semaphore::new(places)), Arc::new(Semaphore::new(places.div_ceil(2))));
        Incoming { listener, places, strangers, silence, is_full: false, pause: None }
    }

    /// A place for a connection; where there is none, says so once.
    fn place(&mut self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let take = |places: &Arc<Semaphore>| places.clone().try_acquire_owned().ok();
        let place = take(&self.places).zip(take(&self.strangers));
        if place.is_none() && !self.is_full {
            warn!("there are as many connections as there may be: others are hung up on");
        }
        self.is_full = place.is_none();
        place
    }
}

impl Stream for Incoming {
    type Item = io::Result<Caller>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Caller>>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(context)) {
                Ok((socket, _)) => {
                    let Some(place) = self.place() else { continue };
                    if socket.set_nodelay(true).is_ok() {
                        return Poll::Ready(Some(Ok(Caller::new(socket, place, self.silence))));
                    }
                }
                Err(problem) => {
                    warn!("a connection cannot be taken: {problem}");
                    self.pause = Some(Box::pin(sleep(PAUSE)));
                }
            }
        }
    }
}

/// What goes on until a caller has begun to speak.
#[derive(Debug)]
struct Beginning {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// A connection that has a place.
#[derive(Debug)]
pub struct Caller {
    socket: TcpStream,
    begins: Option<Beginning>,
    pace: Pace,
    _place: OwnedSemaphorePermit,
}

impl Caller {
    fn new(
        socket: TcpStream,
        (place, stranger): (OwnedSemaphorePermit, OwnedSemaphorePermit),
        silence: Duration,
    ) -> Caller {
        let begins = Beginning { missing: PREFACE, deadline: Box::pin(sleep(silence)), _place: stranger };
        Caller { socket, begins: Some(begins), pace: Pace::new(), _place: place }
    }
}

impl Connected for Caller {
    type ConnectInfo = Pace;

    fn connect_info(&self) -> Pace {
        self.pace.clone()
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        let Some(begins) = &mut self.begins else { return polled };
        begins.missing = begins.missing.saturating_sub(buffer.filled().len() - before);
        if begins.missing == 0 {
            self.begins = None;
        } else if polled.is_pending() && begins.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Caller {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    use super::*;

    async fn listen(places: usize, silence: Duration) -> (Incoming, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Incoming::new(listener, places, silence), address)
    }

    #[tokio::test]
    async fn there_are_only_so_many_connections_and_a_place_is_given_back() {
        let (mut incoming, address) = listen(1, SILENCE).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let caller = incoming.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        // It is hung up on; nobody is taken.
        let mut byte = [0];
        tokio::select! {
            taken = incoming.next() => panic!("{taken:?}"),
            end = second.read(&mut byte) => assert!(matches!(end, Ok(0) | Err(_)), "{end:?}"),
        }
        drop(caller);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_does_not_begin_to_speak_is_hung_up_on() {
        let (mut incoming, address) = listen(2, Duration::from_millis(20)).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(&[0; PREFACE - 1]).await.unwrap();
        let mut caller = incoming.next().await.unwrap().unwrap();
        let mut bytes = Vec::new();
        assert_eq!(caller.read_to_end(&mut bytes).await.unwrap_err().kind(), ErrorKind::TimedOut);
        drop(caller);
        // Who has begun is not.
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(&[0; PREFACE]).await.unwrap();
        let mut caller = incoming.next().await.unwrap().unwrap();
        caller.read_exact(&mut [0; PREFACE]).await.unwrap();
        let read = tokio::time::timeout(Duration::from_millis(60), caller.read(&mut bytes)).await;
        assert!(read.is_err() || bytes.is_empty(), "{read:?}");
        slow.write_all(b"x").await.unwrap();
        assert_eq!(caller.read_u8().await.unwrap(), b'x');
    }
}
