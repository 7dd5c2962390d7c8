//! Whether there is memory for one more connection: for its buffers when its SYN comes, and to serve it with
//! when it is accepted. How much that is, [`buffers`] says.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

use ferry_net::{ConnId, Storage, StreamError};

use crate::engine::with_stack;
use crate::single::Single;
use crate::{buffers, heap};

/// Who waits to accept a connection until there is memory to serve it with.
static SHORT: Single<RefCell<Vec<Waker>>> = Single::new(RefCell::new(Vec::new()));
/// That memory is short has been said, and it has been since.
static WARNED: Single<Cell<bool>> = Single::new(Cell::new(false));
/// A connection was accepted, and whoever is to serve it may not have run yet.
static ACCEPTED: Single<Cell<bool>> = Single::new(Cell::new(false));

/// A new connection's buffers, by the memory that is left, in whole pages, so that one that is empty need not move.
pub fn buffers(_port: u16) -> Option<Storage> {
    let size = buffers::size(heap::free_bytes(), heap::total_bytes())?;
    Some(Storage { rx: uninitialised(size)?, tx: uninitialised(size)? })
}

/// A buffer whose pages nobody has touched yet: zeroing it would make all of it state.
fn uninitialised(size: usize) -> Option<Vec<u8>> {
    let layout = Layout::array::<u8>(size).ok()?;
    // SAFETY: no connection has a buffer of size 0.
    let start = unsafe { std::alloc::alloc(layout) };
    // SAFETY: the block was allocated by the global allocator with this size. Its bytes are RAM that
    // this machine or a former owner has written, hidden from the compiler behind the allocator; only
    // smoltcp's ring buffer sees them, which hands out none that it has not received.
    (!start.is_null()).then(|| unsafe { Vec::from_raw_parts(start, size, size) })
}

/// The next connection to `port`, once there is memory to serve it with. After each, whoever was spawned to serve it
/// runs before the next is accepted: what it needs is taken from what is free then.
///
/// # Errors
/// If the port is not bound.
pub fn poll_accept(cx: &mut Context<'_>, port: u16) -> Poll<Result<ConnId, StreamError>> {
    if ACCEPTED.take() {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    if !buffers::admits(heap::free_bytes(), heap::total_bytes()) {
        if !WARNED.replace(true) {
            log::warn!("memory is short: connections wait to be accepted until others end");
        }
        let mut short = SHORT.borrow_mut();
        if !short.iter().any(|known| known.will_wake(cx.waker())) {
            short.push(cx.waker().clone());
        }
        return Poll::Pending;
    }
    let accepted = with_stack(|stack| stack.poll_accept(cx, port));
    ACCEPTED.set(accepted.is_ready());
    accepted
}

/// Wakes those who wait for memory, if there is some again. Returns whether it did.
pub fn wake() -> bool {
    if !WARNED.get() {
        return false;
    }
    let (free, total) = (heap::free_bytes(), heap::total_bytes());
    if buffers::recovered(free, total) {
        WARNED.set(false);
    }
    if !buffers::admits(free, total) || SHORT.borrow().is_empty() {
        return false;
    }
    SHORT.take().into_iter().for_each(Waker::wake);
    true
}
