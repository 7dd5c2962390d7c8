//! The local APIC: the one-shot timer that ends a halt, and end-of-interrupt.
//!
//! QEMU and KVM run the timer at 1 GHz before the divider, with every accelerator, so its counter is
//! also the ruler against which [`crate::clock`] measures the TSC. (Intel SDM vol. 3, §11.5.4, §11.12.)

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicBool, Ordering};

/// Physical address of the xAPIC's registers; the boot stub maps it uncached.
const XAPIC: u64 = 0xfee0_0000;
const X2APIC_MSR: u32 = 0x800;

const EOI: u32 = 0x0b;
const LVT_TIMER: u32 = 0x32;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
/// Divide by one.
const DIVIDE_BY_1: u32 = 0b1011;
const MASKED: u32 = 1 << 16;

/// A vector without a handler of its own: Hermit's general handler acknowledges it.
const TIMER_VECTOR: u32 = 0x7a;
/// Longest time one shot covers, in nanoseconds.
pub const LONGEST_SHOT_NS: u64 = 4_000_000_000;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// Finds out how the registers are reached, and programs the timer: one-shot, masked by count 0.
pub fn init() {
    let x2apic = __cpuid(1).ecx & (1 << 21) != 0;
    X2APIC.store(x2apic, Ordering::Relaxed);
    write(DIVIDE, DIVIDE_BY_1);
    write(LVT_TIMER, TIMER_VECTOR);
    write(INITIAL_COUNT, 0);
}

/// Fires the timer interrupt once, `ns` from now.
pub fn arm(ns: u64) {
    write(LVT_TIMER, TIMER_VECTOR);
    write(INITIAL_COUNT, ns.clamp(1, LONGEST_SHOT_NS) as u32);
}

/// Stops the timer.
pub fn disarm() {
    write(INITIAL_COUNT, 0);
}

/// Starts the counter without an interrupt, for measuring.
pub fn start_counter() {
    write(LVT_TIMER, TIMER_VECTOR | MASKED);
    write(INITIAL_COUNT, u32::MAX);
}

/// Nanoseconds since [`start_counter`], for the first four seconds.
pub fn counter_ns() -> u32 {
    u32::MAX - read(CURRENT_COUNT)
}

/// Acknowledges the interrupt being handled.
pub fn end_of_interrupt() {
    write(EOI, 0);
}

fn write(register: u32, value: u32) {
    if X2APIC.load(Ordering::Relaxed) {
        // SAFETY: the CPU has x2APIC mode and the kernel has turned it on; the registers named above
        // touch no memory.
        unsafe {
            asm!("wrmsr", in("ecx") X2APIC_MSR + register, in("eax") value, in("edx") 0,
                options(nomem, nostack, preserves_flags));
        }
    } else {
        // SAFETY: the xAPIC page is mapped uncached by the boot stub.
        unsafe { ((XAPIC + u64::from(register) * 16) as *mut u32).write_volatile(value) };
    }
}

fn read(register: u32) -> u32 {
    if X2APIC.load(Ordering::Relaxed) {
        let value;
        // SAFETY: as in `write`.
        unsafe {
            asm!("rdmsr", in("ecx") X2APIC_MSR + register, out("eax") value, out("edx") _,
                options(nomem, nostack, preserves_flags));
        }
        value
    } else {
        // SAFETY: as in `write`.
        unsafe { ((XAPIC + u64::from(register) * 16) as *const u32).read_volatile() }
    }
}
