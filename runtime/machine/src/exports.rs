//! The `host_*` functions of `ferry_abi`: all that the portable side can call of this one.

use core::arch::asm;
use core::sync::atomic::Ordering;

use ferry_abi::{Frame, Machine, Report, Wake};

use crate::{clock, control, entry, nic, park, random, uart};

#[unsafe(no_mangle)]
extern "C" fn host_park(deadline_ns: u64) -> Wake {
    park::park(deadline_ns)
}

#[unsafe(no_mangle)]
extern "C" fn host_pending() -> bool {
    uart::PENDING.load(Ordering::Relaxed) || nic::with(nic::Nic::ready)
}

#[unsafe(no_mangle)]
extern "C" fn host_report(report: Report) {
    control::report(report);
}

#[unsafe(no_mangle)]
extern "C" fn host_machine() -> &'static Machine {
    entry::machine()
}

#[unsafe(no_mangle)]
extern "C" fn host_receive() -> Frame {
    nic::with(|nic| match nic.receive() {
        Some(frame) => Frame { data: frame.as_ptr(), len: frame.len() as u64 },
        None => Frame { data: core::ptr::null(), len: 0 },
    })
}

#[unsafe(no_mangle)]
extern "C" fn host_receive_done() {
    nic::with(nic::Nic::receive_done);
}

#[unsafe(no_mangle)]
extern "C" fn host_transmit(len: u64) -> *mut u8 {
    nic::with(|nic| match nic.transmit(len as usize) {
        Some(buffer) => buffer.as_mut_ptr(),
        None => core::ptr::null_mut(),
    })
}

#[unsafe(no_mangle)]
extern "C" fn host_transmit_done() {
    nic::with(nic::Nic::transmit_done);
}

#[unsafe(no_mangle)]
extern "C" fn host_flush() {
    nic::with(nic::Nic::flush);
}

#[unsafe(no_mangle)]
extern "C" fn host_monotonic_ns() -> u64 {
    clock::monotonic_ns()
}

#[unsafe(no_mangle)]
extern "C" fn host_wall_ns() -> u64 {
    clock::wall_ns()
}

#[unsafe(no_mangle)]
extern "C" fn host_random() -> u64 {
    random::random()
}

#[unsafe(no_mangle)]
extern "C" fn host_exit(code: i32) -> ! {
    control::exited(code);
    uart::early_print(format_args!("ferry: the service ended with exit status {code}\n"));
    power_off()
}

/// ACPI power-off as `q35` and `pc` have it, then, for machines without, a triple fault: with
/// `-no-reboot` QEMU ends at either.
pub fn power_off() -> ! {
    uart::outw(0x604, 0x2000);
    uart::outw(0xb004, 0x2000);
    let no_idt = [0u16; 5];
    loop {
        // SAFETY: without an IDT the breakpoint cannot be delivered, and the CPU shuts down.
        unsafe { asm!("cli", "lidt [{}]", "int3", in(reg) &raw const no_idt, options(nostack)) };
    }
}
