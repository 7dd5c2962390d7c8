//! The link between the agents of a move.

use host_tools::transfer::frame::{self, Kind};
use host_tools::transfer::link::Received;
use host_tools::transfer::{FromDestination, FromSource, Link};
use serde::{Serialize, de::DeserializeOwned};

async fn listen<R: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) {
    let mut link = Link::new(tokio::io::join(bytes, tokio::io::sink()));
    // Ends with the first error: at the latest, the end of the bytes.
    while let Ok(received) = link.receive::<R>().await {
        let Received::Message(message) = received else { continue };
        let written = postcard::to_stdvec(&message).expect("plain data");
        let again: R = postcard::from_bytes(&written).expect("what was written a moment ago");
        assert!(again == message, "a message changes when it is written again");
    }
}

pub fn run(input: &[u8]) {
    let Some((&side, rest)) = input.split_first() else { return };
    let mut framed = Vec::new();
    let bytes = if side & 1 == 0 {
        rest
    } else {
        frame::begin(&mut framed);
        framed.extend(rest);
        let kind = [Kind::Message, Kind::Packed, Kind::Pages][usize::from(side >> 2) % 3];
        frame::finish(&mut framed, kind);
        &framed
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        if side & 2 == 0 {
            listen::<FromSource>(bytes).await
        } else {
            listen::<FromDestination>(bytes).await
        }
    });
}
