//! Waiting: where other systems block a thread, the portable side parks.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{EAGAIN, EINVAL, ETIMEDOUT, Timespec};
use crate::{clock, engine};

/// The timeout counts from now; otherwise it is a time of the monotonic clock.
const RELATIVE: u32 = 1;

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_futex_wait(
    address: *mut u32,
    expected: u32,
    timeout: *const Timespec,
    flags: u32,
) -> i32 {
    if address.is_null() {
        return -EINVAL;
    }
    // SAFETY: the caller passes an aligned futex that lives as long as the call.
    let futex = unsafe { AtomicU32::from_ptr(address) };
    let deadline = if timeout.is_null() {
        None
    } else {
        // SAFETY: not null, so the caller's timeout.
        let Some(ns) = (unsafe { *timeout }).to_ns() else { return -EINVAL };
        let base = if flags & RELATIVE != 0 { clock::monotonic_ns() } else { 0 };
        Some(base.saturating_add(ns))
    };
    if futex.load(Ordering::SeqCst) != expected {
        return -EAGAIN;
    }
    while futex.load(Ordering::SeqCst) == expected {
        if deadline.is_some_and(|deadline| clock::monotonic_ns() >= deadline) {
            return -ETIMEDOUT;
        }
        // A wait may end without a wake-up of its futex: there is one thread, so only what `idle` woke
        // can make the waiter go on.
        if engine::idle(deadline) {
            return 0;
        }
    }
    0
}

/// Nobody else can be waiting; a wait sees the changed value itself.
#[unsafe(no_mangle)]
extern "C" fn sys_futex_wake(_address: *mut u32, _count: i32) -> i32 {
    0
}

fn sleep(ns: u64) {
    let deadline = clock::monotonic_ns().saturating_add(ns);
    while clock::monotonic_ns() < deadline {
        engine::idle(Some(deadline));
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_usleep(microseconds: u64) {
    sleep(microseconds.saturating_mul(1_000));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_nanosleep(request: *const Timespec, _left: *mut Timespec) -> i32 {
    if request.is_null() {
        return -EINVAL;
    }
    // SAFETY: not null, so the caller's request.
    let Some(ns) = (unsafe { *request }).to_ns() else { return -EINVAL };
    sleep(ns);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_clock_nanosleep(
    _clock: i32,
    flags: i32,
    request: *const Timespec,
    _left: *mut Timespec,
) -> i32 {
    if request.is_null() {
        return -EINVAL;
    }
    // SAFETY: not null, so the caller's request.
    let Some(ns) = (unsafe { *request }).to_ns() else { return -EINVAL };
    let absolute = flags != 0;
    sleep(if absolute { ns.saturating_sub(clock::monotonic_ns()) } else { ns });
    0
}

/// One thread: there is nobody to yield to but the network.
#[unsafe(no_mangle)]
extern "C" fn sys_yield() {
    engine::idle(Some(0));
}
