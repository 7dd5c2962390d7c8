//! The control port: what a guest says to its agent, and what an agent says to its guest.

use ferry_protocol::control::{FromGuest, Request};
use ferry_protocol::frame::{Decoder, MAX_FRAME, encode};
use serde::{Serialize, de::DeserializeOwned};

/// Every message that is understood is one that would have been written, and is understood again.
fn decode<T: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) {
    let mut decoder = Decoder::new();
    for &byte in bytes {
        let Some(Ok(message)) = decoder.push::<T>(byte) else { continue };
        let mut buf = [0; MAX_FRAME];
        let frame = encode(&message, &mut buf).expect("it came in a frame");
        let mut again = Decoder::new();
        let last = frame.iter().filter_map(|&byte| again.push::<T>(byte)).last();
        assert!(last == Some(Ok(message)), "a message changes when it is written again");
    }
}

pub fn run(input: &[u8]) {
    let Some((&side, rest)) = input.split_first() else { return };
    // Odd: the input is a payload, and gets the frame it needs.
    let framed;
    let bytes = if side & 1 == 0 {
        rest
    } else {
        let mut frame = vec![b'F', b'Y', 1, 0];
        frame.extend((rest.len() as u32).to_le_bytes());
        frame.extend(crc32fast::hash(rest).to_le_bytes());
        frame.extend(rest);
        framed = frame;
        &framed
    };
    if side & 2 == 0 { decode::<FromGuest>(bytes) } else { decode::<Request>(bytes) }
}
