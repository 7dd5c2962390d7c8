//! The two ends of the connection between the agents of a move.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use super::frame::{self, FrameError, Kind};

/// Why nothing, or not the right thing, came over the link.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum LinkError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("a message that cannot be decoded")]
    Decode,
    #[error("pages where a message was expected")]
    UnexpectedPages,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
}

/// One end. What is received is either a message of type `R` or the payload of a frame of pages.
#[derive(Debug)]
pub struct Link<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes written so far.
    pub sent_bytes: u64,
}

/// What came.
#[derive(Debug)]
pub enum Received<'a, R> {
    /// A message.
    Message(R),
    /// The payload of a frame of pages.
    Pages(&'a [u8]),
}

impl<S: AsyncRead + AsyncWrite> Link<S> {
    /// A link over a connected stream.
    pub fn new(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer, incoming: Vec::new(), outgoing: Vec::new(), sent_bytes: 0 }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn send(&mut self, message: &impl Serialize) -> Result<(), LinkError> {
        frame::begin(&mut self.outgoing);
        self.outgoing = postcard::to_extend(message, std::mem::take(&mut self.outgoing))
            .map_err(|_| LinkError::Decode)?;
        frame::finish(&mut self.outgoing, Kind::Message);
        self.writer.write_all(&self.outgoing).await.map_err(FrameError::from)?;
        self.writer.flush().await.map_err(FrameError::from)?;
        self.sent_bytes += self.outgoing.len() as u64;
        Ok(())
    }

    /// Sends a frame that was built elsewhere.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn send_frame(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        self.writer.write_all(frame).await.map_err(FrameError::from)?;
        self.sent_bytes += frame.len() as u64;
        Ok(())
    }

    /// Hands everything to the network.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        Ok(self.writer.flush().await.map_err(FrameError::from)?)
    }

    /// Waits for the next frame. Not safe to drop half-way: the stream is then out of step.
    ///
    /// # Errors
    /// The connection ended, or what came is no frame or no message.
    pub async fn receive<R: DeserializeOwned>(&mut self) -> Result<Received<'_, R>, LinkError> {
        match frame::read(&mut self.reader, &mut self.incoming).await? {
            Kind::Pages | Kind::Packed | Kind::Compressed => Ok(Received::Pages(&self.incoming)),
            Kind::Message => match postcard::take_from_bytes(&self.incoming) {
                Ok((message, [])) => Ok(Received::Message(message)),
                _ => Err(LinkError::Decode),
            },
            Kind::Ethernet => {
                Err(LinkError::Frame(FrameError::Kind { found: Kind::Ethernet as u8 }))
            }
        }
    }

    /// Waits for a message for at most `limit`.
    ///
    /// # Errors
    /// As [`Link::receive`], or nothing came in time.
    pub async fn message<R: DeserializeOwned>(&mut self, limit: Duration) -> Result<R, LinkError> {
        match tokio::time::timeout(limit, self.receive()).await {
            Ok(Ok(Received::Message(message))) => Ok(message),
            Ok(Ok(Received::Pages(_))) => Err(LinkError::UnexpectedPages),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LinkError::Timeout(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::{FromDestination, FromSource};

    #[tokio::test]
    async fn messages_arrive_and_silence_has_a_limit() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (mut ours, mut theirs) = (Link::new(ours), Link::new(theirs));
        ours.send(&FromSource::Last { digest: [3; 32] }).await.unwrap();
        let limit = Duration::from_secs(1);
        let message: FromSource = theirs.message(limit).await.unwrap();
        assert_eq!(message, FromSource::Last { digest: [3; 32] });
        let error = ours.message::<FromDestination>(Duration::from_millis(5)).await.unwrap_err();
        assert!(matches!(error, LinkError::Timeout(_)), "{error}");
        drop(theirs);
        let error = ours.message::<FromDestination>(limit).await.unwrap_err();
        assert!(matches!(error, LinkError::Frame(FrameError::Ended)), "{error}");
    }
}
