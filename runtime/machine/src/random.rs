//! The machine's random source: RDRAND, mixed with the TSC where the CPU has none.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};

use crate::cell::Local;

/// State of the mixer for CPUs without RDRAND.
static FALLBACK: Local<u64> = Local::new(0);

/// 64 random bits. From RDRAND where the CPU has it (every `-cpu max`); otherwise from the jitter of
/// the TSC, which is no source for keys: [`crate::entry`] says so at boot.
pub fn random() -> u64 {
    if has_rdrand() {
        // Intel SDM vol. 1, §7.3.17.1: ten tries suffice on a working generator.
        for _ in 0..10 {
            let (value, ok): (u64, u8);
            // SAFETY: the CPU has RDRAND.
            unsafe {
                asm!("rdrand {0}", "setc {1}", out(reg) value, out(reg_byte) ok, options(nomem, nostack));
            }
            if ok != 0 {
                return value;
            }
        }
    }
    let mut state = FALLBACK.borrow();
    // SAFETY: every x86-64 CPU has a TSC.
    *state = (*state ^ unsafe { _rdtsc() }).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Whether the CPU has a random source of its own.
pub fn has_rdrand() -> bool {
    __cpuid(1).ecx & (1 << 30) != 0
}
