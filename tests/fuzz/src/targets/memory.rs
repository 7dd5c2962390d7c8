//! What a guest shows in its memory: the range it names, bitmaps of pages, its list of connections.

use ferry_fuzz::{PAGES, ram};
use ferry_protocol::control::{Connection, Range};
use ferry_protocol::layout::PAGE_SIZE;

/// Most bytes the agent reads at once.
const LIMIT: u64 = 1 << 20;

pub fn run(input: &[u8]) {
    let Some((head, content)) = input.split_first_chunk::<16>() else { return };
    let [addr, len] = [0, 8].map(|at| {
        let bytes = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| head[at + i]);
        u64::from_le_bytes(bytes)
    });
    let mut ram = ram();
    // The guest says where its region lies; most of what it could say is refused.
    let _ = ram.set_portable(Range { addr, len });
    assert!(ram.pages() <= PAGES, "a region larger than the memory");
    let mut page = [0; PAGE_SIZE];
    let shown = content.len().min(PAGE_SIZE);
    page[..shown].copy_from_slice(&content[..shown]);
    ram.write_pages(0, &page).expect("the first page is there");
    let range = Range { addr, len };
    if let Ok(bytes) = ram.read_range(range, LIMIT) {
        assert_eq!(bytes.len() as u64, len);
    }
    // Where the content lies, whatever length the guest gives.
    let here = Range { addr: ferry_protocol::layout::PORTABLE_BASE, len };
    if let Ok(pages) = ram.read_bitmap(here) {
        assert!(pages.is_sorted() && pages.last().is_none_or(|&last| last < ram.pages()));
    }
    let mut rest = content;
    while let Ok((_, after)) = postcard::take_from_bytes::<Connection>(rest) {
        assert!(after.len() < rest.len(), "an entry of no bytes would never end");
        rest = after;
    }
}
