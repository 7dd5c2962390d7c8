//! Messages of a live connection: the y-sync protocol (`y-protocols` in the page), and a probe.
//!
//! One WebSocket message holds one or more of them, one after another:
//! `0 0 vector` what I have · `0 1 update` what you miss · `0 2 update` an edit ·
//! `1 states` who is here · `3` who is here? · `100 token` a probe.
//!
//! The answer to a probe is the same probe. It comes after everything that lay before it was taken
//! in, so it is what tells a page that its edits have arrived.

use bytes::Bytes;
use yrs::StateVector;
use yrs::encoding::read::{Cursor, Error};
use yrs::sync::{AwarenessUpdate, Message, SyncMessage};
use yrs::updates::decoder::{Decode, DecoderV1};
use yrs::updates::encoder::{Encode, Encoder, EncoderV1};

/// Tag of a probe.
pub(crate) const PROBE: u8 = 100;

/// Longest token of a probe.
pub(crate) const PROBE_TOKEN_BYTES: usize = 16;

/// Most y-sync messages in one WebSocket message.
const MESSAGES_AT_ONCE: usize = 16;

/// Takes a WebSocket message apart. Unlike the reader of yrs it does not take a cut message for
/// the end of the sequence.
pub(crate) fn read(bytes: &[u8]) -> Result<Vec<Message>, Error> {
    let mut messages = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        if messages.len() == MESSAGES_AT_ONCE {
            return Err(Error::UnexpectedValue);
        }
        let mut decoder = DecoderV1::new(Cursor::new(rest));
        messages.push(Message::decode(&mut decoder)?);
        let unread = yrs::updates::decoder::Decoder::read_to_end(&mut decoder)?.len();
        rest = &rest[rest.len() - unread..];
    }
    Ok(messages)
}

/// Puts messages one after another.
pub(crate) struct Writer(EncoderV1);

impl Default for Writer {
    fn default() -> Self {
        Self(EncoderV1::new())
    }
}

impl Writer {
    /// "This is what I have; tell me what I miss."
    pub(crate) fn have(&mut self, vector: StateVector) {
        Message::Sync(SyncMessage::SyncStep1(vector)).encode(&mut self.0);
    }

    /// "This is what you miss."
    pub(crate) fn missing(&mut self, update: Vec<u8>) {
        Message::Sync(SyncMessage::SyncStep2(update)).encode(&mut self.0);
    }

    /// "Somebody edited."
    pub(crate) fn edit(&mut self, update: Vec<u8>) {
        Message::Sync(SyncMessage::Update(update)).encode(&mut self.0);
    }

    /// "These people are here, or have gone."
    pub(crate) fn presence(&mut self, states: AwarenessUpdate) {
        if !states.clients.is_empty() {
            Message::Awareness(states).encode(&mut self.0);
        }
    }

    /// The answer to a probe.
    pub(crate) fn probe(&mut self, token: Vec<u8>) {
        Message::Custom(PROBE, token).encode(&mut self.0);
    }

    /// All that was written; empty if nothing was.
    pub(crate) fn finish(self) -> Bytes {
        self.0.to_vec().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_its_tag_and_a_token_with_its_length() {
        let mut writer = Writer::default();
        writer.probe(vec![7, 8]);
        let bytes = writer.finish();
        assert_eq!(&bytes[..], [100, 2, 7, 8]);
        assert_eq!(read(&bytes).unwrap(), [Message::Custom(PROBE, vec![7, 8])]);
    }

    #[test]
    fn several_messages_lie_one_after_another() {
        let mut writer = Writer::default();
        writer.have(StateVector::default());
        writer.edit(vec![0, 0]);
        writer.probe(vec![1]);
        let bytes = writer.finish();
        assert_eq!(&bytes[..], [0, 0, 1, 0, 0, 2, 2, 0, 0, 100, 1, 1]);
        assert_eq!(read(&bytes).unwrap().len(), 3);
    }

    #[test]
    fn a_cut_message_is_an_error_not_the_end() {
        for cut in 1..4 {
            assert!(read(&[100, 3, 7, 8, 9][..=cut]).is_err(), "cut after {cut}");
        }
    }

    #[test]
    fn a_message_of_messages_without_end_is_refused() {
        assert!(read(&[3; MESSAGES_AT_ONCE]).is_ok());
        assert!(read(&[3; MESSAGES_AT_ONCE + 1]).is_err());
    }
}
