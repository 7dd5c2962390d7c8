//! The portable side's allocator.
//!
//! Memory comes in whole pages from [`spans::Spans`], whose bitmap also says which pages hold no state
//! and need not move. A page or more (socket buffers, large vectors) gets pages of its own; smaller
//! allocations share chunks that [`talc`] manages.

pub mod spans;

use core::alloc::{GlobalAlloc, Layout};
use core::cell::RefCell;
use core::ptr::{NonNull, null_mut};

use ferry_protocol::layout::PAGE_SIZE;
use talc::{OomHandler, Span, Talc};

use self::spans::Spans;
use crate::single::Single;

/// Allocations of this many bytes and more get pages of their own.
const LARGE: usize = PAGE_SIZE / 2;
/// Pages of the chunks that smaller allocations share.
const CHUNK_PAGES: usize = 16;

/// Gives talc another chunk when it runs out.
struct Chunks;

impl OomHandler for Chunks {
    fn handle_oom(talc: &mut Talc<Self>, layout: Layout) -> Result<(), ()> {
        // Talc keeps some bookkeeping in the chunk.
        let pages = (layout.size() + layout.align() + 1024).div_ceil(PAGE_SIZE).max(CHUNK_PAGES);
        let start = with_spans(|spans| spans.allocate(pages, 1)).ok_or(())?;
        // SAFETY: the span is unused memory that stays talc's for ever.
        unsafe { talc.claim(Span::from_base_size(start as *mut u8, pages * PAGE_SIZE)).map(|_| ()) }
    }
}

static SPANS: Single<RefCell<Option<Spans>>> = Single::new(RefCell::new(None));
static SMALL: Single<RefCell<Talc<Chunks>>> = Single::new(RefCell::new(Talc::new(Chunks)));

fn with_spans<R>(f: impl FnOnce(&mut Spans) -> R) -> R {
    f(SPANS.borrow_mut().as_mut().expect("the heap is set up before the first allocation"))
}

/// The allocator of the portable side; Hermit's serves the kernel alone.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// Sets the heap up on `start..end`, which must be unused memory of the portable region.
///
/// # Safety
/// To be called once, before anything is allocated; the range must be nobody else's.
pub unsafe fn init(start: u64, end: u64) {
    // SAFETY: by this function's contract.
    *SPANS.borrow_mut() = Some(unsafe { Spans::new(start as usize, end as usize) });
}

/// Bytes in free pages.
pub fn free_bytes() -> usize {
    with_spans(|spans| spans.free_pages() * PAGE_SIZE)
}

/// Bytes in all pages of the heap.
pub fn total_bytes() -> usize {
    with_spans(|spans| spans.pages() * PAGE_SIZE)
}

/// Sets the bit of every page of the region that holds no state, and clears all others. Bit 0 is the
/// page at `ferry_protocol::layout::PORTABLE_BASE`.
pub fn free_map(map: &mut [u8]) {
    with_spans(|spans| spans.free_map(map));
}

// SAFETY: both allocators return memory that is theirs, unused and aligned; there is one thread, and
// neither is entered while it is borrowed (talc calls only `handle_oom`, which borrows the other).
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            let pages = layout.size().div_ceil(PAGE_SIZE);
            let align = layout.align().div_ceil(PAGE_SIZE);
            with_spans(|spans| spans.allocate(pages, align)).map_or(null_mut(), |at| at as *mut u8)
        } else {
            // SAFETY: the layout's size is not zero, by `alloc`'s contract.
            unsafe { SMALL.borrow_mut().malloc(layout) }.map_or(null_mut(), NonNull::as_ptr)
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if layout.size() >= LARGE {
            with_spans(|spans| spans.free(ptr as usize, layout.size().div_ceil(PAGE_SIZE)));
        } else if let Some(ptr) = NonNull::new(ptr) {
            // SAFETY: talc gave this pointer out for this layout, by `dealloc`'s contract.
            unsafe { SMALL.borrow_mut().free(ptr, layout) };
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.size() >= LARGE && new_size >= LARGE {
            let (old, new) = (layout.size().div_ceil(PAGE_SIZE), new_size.div_ceil(PAGE_SIZE));
            if with_spans(|spans| spans.resize(ptr as usize, old, new)) {
                return ptr;
            }
        }
        let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
            return null_mut();
        };
        // SAFETY: `new_size` is not zero, by `realloc`'s contract; old and new block are distinct.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                new.copy_from_nonoverlapping(ptr, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }
}
