//! What a service sees as time: one monotonic clock over all machines it runs on.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Service clock minus machine clock, in nanoseconds.
static OFFSET: AtomicI64 = AtomicI64::new(0);
/// Service clock when the last map of free pages was written: no later reading was given out before
/// the next machine took over, because the service does not run in between.
static PREPARED: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds since the service first started. Stands still while the service is frozen.
pub fn monotonic_ns() -> u64 {
    ferry_abi::host_monotonic_ns().wrapping_add_signed(OFFSET.load(Ordering::Relaxed))
}

/// Notes the time at which the service may be captured.
pub fn prepare() -> u64 {
    let now = monotonic_ns();
    PREPARED.store(now, Ordering::Relaxed);
    now
}

/// Goes on, on whatever machine this is now, from where [`prepare`] noted it.
pub fn resume() {
    let offset = PREPARED.load(Ordering::Relaxed).wrapping_sub(ferry_abi::host_monotonic_ns());
    OFFSET.store(offset.cast_signed(), Ordering::Relaxed);
}

/// The machine clock at which the service clock shows `service_ns`.
pub fn machine_ns(service_ns: u64) -> u64 {
    service_ns.saturating_add_signed(OFFSET.load(Ordering::Relaxed).saturating_neg())
}
