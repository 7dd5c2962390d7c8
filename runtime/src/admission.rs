//! Whether there is memory: for one more connection's buffers when its SYN comes, to serve it with when it is
//! accepted, and for what comes of its input when that is read. How much that is, [`buffers`] says.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

use ferry_net::{ConnId, Storage, StreamError};

use crate::engine::with_stack;
use crate::gate::Gate;
use crate::single::Single;
use crate::{buffers, clock, heap};

/// Who waits to accept a connection until there is memory to serve it with.
static SHORT: Single<RefCell<Vec<Waker>>> = Single::new(RefCell::new(Vec::new()));
/// That memory is short has been said, and it has been since.
static WARNED: Single<Cell<bool>> = Single::new(Cell::new(false));
/// A connection was accepted, and whoever is to serve it may not have run yet.
static ACCEPTED: Single<Cell<bool>> = Single::new(Cell::new(false));
/// Who waits to read until there is memory for what comes of it.
static INPUT: Single<RefCell<Gate<Waker>>> = Single::new(RefCell::new(Gate::new()));
/// That input waits has been said, and memory is still short.
static WAITS_SAID: Single<Cell<bool>> = Single::new(Cell::new(false));

/// A new connection's buffers, by the memory that is left, in whole pages, so that one that is empty need not move.
pub fn buffers(_port: u16) -> Option<Storage> {
    let Some(size) = buffers::size(heap::free_bytes(), heap::total_bytes()) else {
        say_short();
        return None;
    };
    Some(Storage { rx: uninitialised(size)?, tx: uninitialised(size)? })
}

fn say_short() {
    if !WARNED.replace(true) {
        log::warn!("memory is short: new connections wait until others end");
    }
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
        say_short();
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

/// Whether a task may read now; if not, it is woken when it may.
pub fn poll_input(cx: &Context<'_>) -> Poll<()> {
    if heap::free_bytes() >= buffers::input_floor(heap::total_bytes()) {
        return Poll::Ready(());
    }
    let mut gate = INPUT.borrow_mut();
    if gate.admits() {
        return Poll::Ready(());
    }
    if !WAITS_SAID.replace(true) {
        log::warn!("memory is nearly used up: input is taken one connection at a time");
    }
    gate.wait(cx.waker().clone(), |known| known.will_wake(cx.waker()));
    Poll::Pending
}

/// A task that might read had nothing to.
pub fn no_input() {
    INPUT.borrow_mut().unused();
}

/// When [`wake`] may have something to do though nothing happens (service clock, nanoseconds).
pub fn next_ns() -> Option<u64> {
    INPUT.borrow().next_ns()
}

/// Wakes those who wait for memory, if there is some again. Returns whether it did.
pub fn wake() -> bool {
    if !WARNED.get() && !WAITS_SAID.get() {
        return false;
    }
    let (free, total) = (heap::free_bytes(), heap::total_bytes());
    if buffers::recovered(free, total) {
        WARNED.set(false);
        WAITS_SAID.set(!INPUT.borrow().is_empty());
    }
    let readers: Vec<Waker> =
        INPUT.borrow_mut().turn(clock::monotonic_ns(), free, buffers::input_floor(total)).collect();
    let woke = !readers.is_empty();
    readers.into_iter().for_each(Waker::wake);
    if !buffers::admits(free, total) || SHORT.borrow().is_empty() {
        return woke;
    }
    SHORT.take().into_iter().for_each(Waker::wake);
    true
}
