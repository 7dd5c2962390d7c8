//! Clocks.

use super::{EINVAL, Timespec};
use crate::{clock, engine};

const REALTIME: i32 = 1;
const MONOTONIC: i32 = 4;

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_clock_gettime(clock: i32, out: *mut Timespec) -> i32 {
    let ns = match clock {
        REALTIME => ferry_abi::host_wall_ns(),
        MONOTONIC => {
            engine::look();
            clock::monotonic_ns()
        }
        _ => return -EINVAL,
    };
    if out.is_null() {
        return -EINVAL;
    }
    // SAFETY: the caller passes a place for the result, as the call's contract says.
    unsafe { out.write(Timespec::from_ns(ns)) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_clock_getres(clock: i32, out: *mut Timespec) -> i32 {
    if out.is_null() || ![REALTIME, MONOTONIC].contains(&clock) {
        return -EINVAL;
    }
    // SAFETY: as above.
    unsafe { out.write(Timespec::from_ns(1)) };
    0
}
