//! Where a guest waits: the loop of the host-bound side, and the portable side's call into it.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use ferry_abi::{Task, Wake};
use ferry_protocol::control::State;

use crate::{clock, control, lapic, nic, side, uart};

/// Machine clock at which the parked portable side wants to run again.
static DEADLINE: AtomicU64 = AtomicU64::new(0);

/// The host-bound side's loop: orders first, then the portable side if it has a reason to run, else
/// halt until there is one.
pub fn run() -> ! {
    loop {
        control::poll();
        match control::state() {
            State::Standby => {
                nic::with(nic::Nic::hold);
                halt(u64::MAX, true, nic::Nic::received);
            }
            State::Frozen => halt(u64::MAX, false, |_| false),
            State::Running | State::Draining => {
                let deadline = DEADLINE.load(Ordering::Relaxed);
                if control::has_task()
                    || clock::monotonic_ns() >= deadline
                    || nic::with(nic::Nic::ready)
                {
                    nic::with(nic::Nic::tell);
                    side::run_portable();
                    control::complete();
                } else {
                    control::tell();
                    halt(deadline, true, nic::Nic::ready);
                }
            }
        }
    }
}

/// The portable side's wait; see `ferry_abi::host_park`.
pub fn park(deadline_ns: u64) -> Wake {
    DEADLINE.store(deadline_ns, Ordering::Relaxed);
    nic::with(nic::Nic::flush);
    side::park_portable();
    control::take_task().unwrap_or(Wake { task: Task::None, argument: 0 })
}

/// Halts until an order, the deadline or (if `network`) the NIC ends it. Everything is looked at once
/// more with interrupts off, and `sti; hlt` lets none slip in between.
fn halt(deadline: u64, network: bool, ready: fn(&mut nic::Nic) -> bool) {
    // SAFETY: turning interrupts off and on again touches no memory.
    unsafe { asm!("cli", options(nomem, nostack)) };
    if network {
        nic::with(nic::Nic::listen);
    }
    let left = deadline.saturating_sub(clock::monotonic_ns());
    let idle = !uart::PENDING.load(Ordering::SeqCst) && left > 0 && !(network && nic::with(ready));
    if idle {
        if deadline != u64::MAX {
            lapic::arm(left);
        }
        // SAFETY: every interrupt that can come has a handler, which runs on a stack of its own.
        unsafe { asm!("sti", "hlt", options(nomem, nostack)) };
        if deadline != u64::MAX {
            lapic::disarm();
        }
    } else {
        // SAFETY: as above.
        unsafe { asm!("sti", options(nomem, nostack)) };
    }
    if network {
        nic::with(nic::Nic::attend);
    }
}
