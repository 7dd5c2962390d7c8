//! The machine's calls as the engine makes them: to the machine, or in a [rehearsal] to its stage. Both go
//! through the same code, which is what a rehearsal is for.
//!
//! [rehearsal]: crate::rehearsal

use ferry_abi::{Report, Wake};
use ferry_net::Nic;

use crate::rehearsal;

/// The machine's NIC as the stack wants it.
pub struct Card;

impl Nic for Card {
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let frame = if rehearsal::on() { rehearsal::receive() } else { ferry_abi::host_receive() };
        if frame.data.is_null() {
            return None;
        }
        // SAFETY: the frame is valid until it is given back, which is after `f`.
        let result = f(unsafe { std::slice::from_raw_parts(frame.data, frame.len as usize) });
        if !rehearsal::on() {
            ferry_abi::host_receive_done();
        }
        Some(result)
    }

    fn transmit_ready(&mut self) -> bool {
        rehearsal::on() || !ferry_abi::host_transmit(0).is_null()
    }

    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let buffer = if rehearsal::on() {
            rehearsal::transmit(len)
        } else {
            ferry_abi::host_transmit(len as u64)
        };
        if buffer.is_null() {
            return false;
        }
        // SAFETY: the buffer has room for `len` bytes and is ours until it is queued.
        fill(unsafe { std::slice::from_raw_parts_mut(buffer, len) });
        if !rehearsal::on() {
            ferry_abi::host_transmit_done();
        }
        true
    }

    fn flush(&mut self) {
        if !rehearsal::on() {
            ferry_abi::host_flush();
        }
    }
}

/// `host_park`.
pub fn park(deadline_ns: u64) -> Wake {
    if rehearsal::on() { rehearsal::park() } else { ferry_abi::host_park(deadline_ns) }
}

/// `host_pending`.
pub fn pending() -> bool {
    !rehearsal::on() && ferry_abi::host_pending()
}

/// `host_report`.
pub fn report(report: Report) {
    if !rehearsal::on() {
        ferry_abi::host_report(report);
    }
}
