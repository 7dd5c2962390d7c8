//! Frames on the control port.
//!
//! ```text
//!  0      2         3      4            8            12
//!  | "FY" | version | kind | length u32 | crc-32 u32 | payload (postcard) … |
//! ```
//!
//! Integers are little-endian; the CRC-32 (IEEE 802.3) covers the payload. The magic, version and
//! length are checked before the payload is awaited, the CRC before it is decoded.

use core::fmt;

use serde::{Serialize, de::DeserializeOwned};

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"FY";
/// Version of the framing and of the messages in it.
pub const VERSION: u8 = 3;
/// Bytes that a guest's UART takes in before it interrupts (trigger level of a 16550's FIFO). What an agent sends is
/// filled up with zeros to a multiple of it: the rest of a burst would wait for the FIFO's timeout, and with a
/// level of 1 each byte would cost the machine a turn.
pub const BURST: usize = 14;
/// Bytes before the payload.
pub const HEADER_LEN: usize = 12;
/// Longest payload. Bulk data (bitmaps, connection lists) is read from guest RAM instead.
pub const MAX_PAYLOAD: usize = 1024;
/// Longest frame.
pub const MAX_FRAME: usize = HEADER_LEN + MAX_PAYLOAD;

/// Why bytes on the control port were not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The bytes do not begin with [`MAGIC`]; the decoder skips to the next possible start.
    Magic,
    /// A frame of another protocol version.
    Version {
        /// What the frame says.
        found: u8,
    },
    /// The length field is beyond [`MAX_PAYLOAD`].
    Length {
        /// What the frame says, in bytes.
        found: u32,
    },
    /// The payload does not match its checksum.
    Checksum,
    /// The payload is not the message it should be.
    Payload,
    /// The message does not fit in one frame.
    TooLong,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "bytes that are no frame"),
            Self::Version { found } => {
                write!(f, "frame of protocol version {found}, this side speaks {VERSION}")
            }
            Self::Length { found } => {
                write!(f, "frame of {found} bytes, the most is {MAX_PAYLOAD}")
            }
            Self::Checksum => write!(f, "frame with a wrong checksum"),
            Self::Payload => write!(f, "frame whose content is not a known message"),
            Self::TooLong => write!(f, "message does not fit in {MAX_PAYLOAD} bytes"),
        }
    }
}

impl core::error::Error for FrameError {}

/// Writes `message` as one frame into `buf` and returns the bytes used.
///
/// # Errors
/// [`FrameError::TooLong`] if the message does not fit.
pub fn encode<'a, T: Serialize>(
    message: &T,
    buf: &'a mut [u8; MAX_FRAME],
) -> Result<&'a [u8], FrameError> {
    let (header, payload) = buf.split_at_mut(HEADER_LEN);
    let used = postcard::to_slice(message, payload).map_err(|_| FrameError::TooLong)?.len();
    header[0..2].copy_from_slice(&MAGIC);
    header[2] = VERSION;
    header[3] = 0;
    header[4..8].copy_from_slice(&(used as u32).to_le_bytes());
    header[8..12].copy_from_slice(&crc32fast::hash(&payload[..used]).to_le_bytes());
    Ok(&buf[..HEADER_LEN + used])
}

/// Turns a byte stream into frames, one byte at a time, in constant memory.
///
/// After an error it looks for the next [`MAGIC`] in what follows, so garbage costs only itself.
#[derive(Debug)]
pub struct Decoder {
    buf: [u8; MAX_FRAME],
    len: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub const fn new() -> Self {
        Self { buf: [0; MAX_FRAME], len: 0 }
    }

    /// Takes one byte; `Some` when it completes a frame or shows that the bytes are none. Zeros between frames
    /// are neither.
    pub fn push<T: DeserializeOwned>(&mut self, byte: u8) -> Option<Result<T, FrameError>> {
        if self.len == 0 && byte == 0 {
            return None;
        }
        self.buf[self.len] = byte;
        self.len += 1;
        match self.check() {
            Ok(None) => None,
            Ok(Some(payload_len)) => {
                self.len = 0;
                let payload = &self.buf[HEADER_LEN..HEADER_LEN + payload_len];
                Some(match postcard::take_from_bytes(payload) {
                    Ok((message, [])) => Ok(message),
                    _ => Err(FrameError::Payload),
                })
            }
            Err(error) => {
                self.resynchronise();
                Some(Err(error))
            }
        }
    }

    /// The payload length of a complete frame, `None` while more bytes are needed.
    fn check(&self) -> Result<Option<usize>, FrameError> {
        let have = &self.buf[..self.len];
        if have[0] != MAGIC[0] || (have.len() > 1 && have[1] != MAGIC[1]) {
            return Err(FrameError::Magic);
        }
        if have.len() > 2 && have[2] != VERSION {
            return Err(FrameError::Version { found: have[2] });
        }
        if have.len() < 8 {
            return Ok(None);
        }
        let length = u32::from_le_bytes([have[4], have[5], have[6], have[7]]);
        if length as usize > MAX_PAYLOAD {
            return Err(FrameError::Length { found: length });
        }
        let end = HEADER_LEN + length as usize;
        if have.len() < end {
            return Ok(None);
        }
        let crc = u32::from_le_bytes([have[8], have[9], have[10], have[11]]);
        if crc32fast::hash(&have[HEADER_LEN..end]) != crc {
            return Err(FrameError::Checksum);
        }
        Ok(Some(length as usize))
    }

    /// Drops the first byte and all after it up to the next possible start of a frame.
    fn resynchronise(&mut self) {
        let start = (1..self.len).find(|&at| {
            self.buf[at] == MAGIC[0] && (at + 1 == self.len || self.buf[at + 1] == MAGIC[1])
        });
        match start {
            Some(at) => {
                self.buf.copy_within(at..self.len, 0);
                self.len -= at;
            }
            None => self.len = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Message {
        id: u32,
        data: heapless::Vec<u8, 64>,
    }

    fn message(id: u32) -> Message {
        Message { id, data: heapless::Vec::from_slice(b"FYFYFYsome bytes").unwrap() }
    }

    fn encoded(id: u32) -> std::vec::Vec<u8> {
        encode(&message(id), &mut [0; MAX_FRAME]).unwrap().to_vec()
    }

    fn decode_all(bytes: &[u8]) -> std::vec::Vec<Result<Message, FrameError>> {
        let mut decoder = Decoder::new();
        bytes.iter().filter_map(|&byte| decoder.push(byte)).collect()
    }

    #[test]
    fn round_trip_of_two_frames_back_to_back() {
        let bytes = [encoded(1), encoded(2)].concat();
        assert_eq!(decode_all(&bytes), [Ok(message(1)), Ok(message(2))]);
    }

    #[test]
    fn garbage_before_a_frame_costs_only_itself() {
        let bytes = [b"noise F FF".to_vec(), encoded(3)].concat();
        assert_eq!(decode_all(&bytes).last(), Some(&Ok(message(3))));
    }

    #[test]
    fn zeros_between_frames_are_nothing() {
        let mut bytes = vec![0; 5];
        for id in [1, 2] {
            bytes.extend(encoded(id));
            bytes.resize(bytes.len().next_multiple_of(BURST), 0);
        }
        assert_eq!(decode_all(&bytes), [Ok(message(1)), Ok(message(2))]);
    }

    #[test]
    fn every_flipped_bit_is_refused_and_the_next_frames_arrive() {
        let good = encoded(4);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // The kind byte is reserved and carries nothing.
            if bit / 8 == 3 {
                continue;
            }
            // A longer length swallows what follows, up to one longest frame; then it is found wrong.
            let mut bytes = bad;
            for _ in 0..2 * MAX_FRAME / good.len() {
                bytes.extend_from_slice(&good);
            }
            let got = decode_all(&bytes);
            assert!(got.iter().any(Result::is_err), "bit {bit} went unnoticed");
            assert_eq!(got.last(), Some(&Ok(message(4))), "bit {bit}: stream lost");
        }
    }

    #[test]
    fn absurd_length_is_refused_before_its_payload() {
        let mut bytes = encoded(5);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::new();
        let errors: std::vec::Vec<_> =
            bytes[..8].iter().filter_map(|&byte| decoder.push::<Message>(byte)).collect();
        assert_eq!(errors, [Err(FrameError::Length { found: u32::MAX })]);
    }

    #[test]
    fn trailing_bytes_in_a_payload_are_refused() {
        let mut bytes = encoded(6);
        bytes.push(0);
        let length = (bytes.len() - HEADER_LEN) as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let crc = crc32fast::hash(&bytes[HEADER_LEN..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_all(&bytes), [Err(FrameError::Payload)]);
    }
}
