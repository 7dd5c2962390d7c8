//! The machine's clock: nanoseconds from the TSC, whose frequency is measured once at boot.
//!
//! It starts at 0 with every machine; what a service sees as monotonic time is made from it on the
//! portable side.

use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::lapic;
use crate::uart::{inb, outb};

/// How long the TSC is compared with the APIC timer, in nanoseconds.
const CALIBRATION_NS: u32 = 5_000_000;

static BASE: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per TSC tick, as a 32.32 fixed-point number.
static SCALE: AtomicU64 = AtomicU64::new(1 << 32);
/// Wall clock minus machine clock, in nanoseconds.
static WALL: AtomicU64 = AtomicU64::new(0);

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has a TSC; reading it has no effect.
    unsafe { _rdtsc() }
}

/// A pair of readings taken as close together as a few tries allow, so that a host that puts the
/// virtual CPU off between the two does not distort the measurement.
fn sample() -> (u64, u32) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..8 {
        let before = tsc();
        let count = lapic::counter_ns();
        let width = tsc() - before;
        if width < best.0 {
            best = (width, before + width / 2, count);
        }
    }
    (best.1, best.2)
}

/// Measures the TSC against the APIC timer and reads the wall clock from the RTC.
pub fn init() {
    lapic::start_counter();
    let (tsc0, ns0) = sample();
    while lapic::counter_ns() - ns0 < CALIBRATION_NS {
        core::hint::spin_loop();
    }
    let (tsc1, ns1) = sample();
    lapic::disarm();
    let scale = (u128::from(ns1 - ns0) << 32) / u128::from((tsc1 - tsc0).max(1));
    SCALE.store(scale as u64, Ordering::Relaxed);
    BASE.store(tsc0, Ordering::Relaxed);
    set_wall(rtc_seconds() * 1_000_000_000);
}

/// Nanoseconds since this machine's clock was started. Never goes back.
pub fn monotonic_ns() -> u64 {
    let ticks = tsc().saturating_sub(BASE.load(Ordering::Relaxed));
    ((u128::from(ticks) * u128::from(SCALE.load(Ordering::Relaxed))) >> 32) as u64
}

/// Nanoseconds since the Unix epoch.
pub fn wall_ns() -> u64 {
    WALL.load(Ordering::Relaxed).wrapping_add(monotonic_ns())
}

/// Sets the wall clock to `ns` since the Unix epoch.
pub fn set_wall(ns: u64) {
    WALL.store(ns.wrapping_sub(monotonic_ns()), Ordering::Relaxed);
}

/// Reads the CMOS real-time clock, in seconds since the Unix epoch. QEMU keeps it in UTC, in BCD or
/// binary as register B says; 0 where there is none.
fn rtc_seconds() -> u64 {
    let register = |index: u8| {
        outb(0x70, index);
        inb(0x71)
    };
    let read = || [0u8, 2, 4, 7, 8, 9, 0x32].map(register);
    // Two equal readings: none of them was taken while the clock was being updated.
    let mut fields = read();
    for _ in 0..4 {
        let again = read();
        if again == fields {
            break;
        }
        fields = again;
    }
    let binary = register(0x0b) & 4 != 0;
    let value = |raw: u8| u64::from(if binary { raw } else { (raw >> 4) * 10 + (raw & 15) });
    if fields[3] == 0 || fields[3] == 0xff {
        return 0;
    }
    let [second, minute, hour, day, month, year, century] = fields.map(value);
    let year = if (19..30).contains(&century) { century * 100 + year } else { 2000 + year };
    // Days since the epoch of a Gregorian date, with March as the first month.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    ((days * 24 + hour) * 60 + minute) * 60 + second
}
