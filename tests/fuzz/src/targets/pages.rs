//! Runs of pages that a source sends.

use ferry_fuzz::{PAGES, ram};
use ferry_protocol::layout::PAGE_SIZE;
use host_tools::transfer::{PageDigest, pages};

/// Most run headers in an input: beyond it there is nothing new to find.
const RUNS: usize = 64;

pub fn run(input: &[u8]) {
    // An input is a list of run headers, 8 bytes each. Whole pages would only make inputs long: content is
    // made from the header, cut short where its last bit says so.
    let mut payload = Vec::new();
    for header in input.chunks_exact(8).take(RUNS) {
        payload.extend(header);
        let count = usize::from(u16::from_le_bytes([header[4], header[5]]) % 4);
        let cut = usize::from(header[7] >> 7);
        // Of zeros nothing follows.
        if header[6] != 1 {
            payload.resize(payload.len() + (count * PAGE_SIZE).saturating_sub(cut), header[0]);
        }
    }
    let (ram, mut digest) = (ram(), PageDigest::default());
    if let Ok(written) = pages::apply(&payload, &ram, &mut digest) {
        assert!(digest.count() <= written.min(PAGES), "more pages in the digest than were written");
    }
}
