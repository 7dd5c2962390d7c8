//! TCP echo: every byte that arrives goes back, in order, until the peer closes its side.
//!
//! [`echo`] is the whole service. An idle connection owns no buffer: bytes pass through one that all
//! connections share, and only what the peer does not take at once is kept until it does. That is
//! what lets one small guest hold thousands of connections and keeps its snapshot small.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The port the service listens on (RFC 862).
pub const PORT: u16 = 7;

/// Most bytes taken from a connection at a time.
const SCRATCH_BYTES: usize = 16 * 1024;

thread_local! {
    /// Where bytes lie between a read and the write that follows at once. Filled with zeroes only
    /// here, not for every read.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Reads answered before other connections get their turn.
const ROUNDS_PER_TURN: usize = 16;

/// Echoes until the peer has closed its side and everything was sent back, then closes ours.
/// Returns the number of bytes echoed.
pub async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<u64> {
    let mut state = Echo::default();
    poll_fn(|cx| state.poll(Pin::new(&mut stream), cx)).await?;
    poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await?;
    Ok(state.echoed_bytes)
}

/// What one connection remembers between two wake-ups.
#[derive(Default)]
struct Echo {
    /// Bytes read that the peer has no room for yet.
    unsent: Vec<u8>,
    /// How many of `unsent` went out already.
    sent: usize,
    echoed_bytes: u64,
}

impl Echo {
    fn poll<S: AsyncRead + AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS_PER_TURN {
            ready!(self.poll_unsent(stream.as_mut(), cx))?;
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut input = ReadBuf::new(scratch);
                stream.as_mut().poll_read(cx, &mut input)?.map(|()| {
                    self.answer(stream.as_mut(), input.filled(), cx)?;
                    io::Result::Ok(input.filled().len())
                })
            });
            match read? {
                Poll::Ready(0) => return stream.poll_flush(cx),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    // Nothing more to read for now: what was written must not wait in a buffer.
                    ready!(stream.poll_flush(cx))?;
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Sends `bytes` back; what does not go out at once is kept.
    fn answer<S: AsyncWrite>(
        &mut self,
        stream: Pin<&mut S>,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.echoed_bytes += bytes.len() as u64;
        let taken = match stream.poll_write(cx, bytes) {
            Poll::Ready(taken) => taken?,
            Poll::Pending => 0,
        };
        self.unsent.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Ready once nothing is left over from an earlier read.
    fn poll_unsent<S: AsyncWrite>(
        &mut self,
        mut stream: Pin<&mut S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.unsent.len() {
            let taken = ready!(stream.as_mut().poll_write(cx, &self.unsent[self.sent..]))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += taken;
        }
        if !self.unsent.is_empty() {
            // Given back, not kept for the next time: most connections are idle most of the time.
            self.unsent = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::timeout;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 131 + i / 251) as u8).collect()
    }

    /// Runs `client` against an echo whose pipe holds `room` bytes each way.
    async fn against_echo<F: Future>(
        room: usize,
        client: impl FnOnce(tokio::io::DuplexStream) -> F,
    ) -> u64 {
        let (near, far) = duplex(room);
        let both = async { tokio::join!(echo(far), client(near)).0 };
        timeout(Duration::from_secs(20), both).await.expect("the echo stands still").unwrap()
    }

    #[tokio::test]
    async fn small_messages_come_back_one_by_one() {
        let echoed = against_echo(4096, |mut peer| async move {
            for i in 0..100u8 {
                let message = [i; 64];
                peer.write_all(&message).await.unwrap();
                let mut answer = [0; 64];
                peer.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, message);
            }
        })
        .await;
        assert_eq!(echoed, 6400);
    }

    #[tokio::test]
    async fn a_peer_that_reads_late_and_little_gets_every_byte() {
        // 97 divides neither the scratch size nor the data: every write is a partial one.
        let sent = pattern(300_001);
        let echoed = against_echo(97, |peer| async {
            let (mut read, mut write) = tokio::io::split(peer);
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let reading = async { read.read_to_end(&mut got).await.unwrap() };
            tokio::join!(writing, reading);
            assert_eq!(got, sent);
        })
        .await;
        assert_eq!(echoed, 300_001);
    }

    #[tokio::test]
    async fn a_half_closed_peer_still_gets_the_rest_and_then_the_end() {
        against_echo(1 << 20, |mut peer| async move {
            let sent = pattern(50_000);
            peer.write_all(&sent).await.unwrap();
            peer.shutdown().await.unwrap();
            let mut got = Vec::new();
            peer.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, sent);
        })
        .await;
    }

    #[tokio::test]
    async fn nothing_is_kept_for_an_idle_connection() {
        let (mut near, mut far) = duplex(64);
        let mut state = Echo::default();
        near.write_all(&pattern(64)).await.unwrap();
        let waiting = poll_fn(|cx| Poll::Ready(state.poll(Pin::new(&mut far), cx))).await;
        assert!(waiting.is_pending());
        assert_eq!((state.unsent.capacity(), state.echoed_bytes), (0, 64));
    }
}
