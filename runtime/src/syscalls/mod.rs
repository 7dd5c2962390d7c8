//! The kernel calls that std makes and that must not reach the kernel: either they would tie the
//! service to this machine, or they would block the only CPU. `build.rs` renames the kernel's own.

mod files;
mod random;
mod threads;
mod time;
mod wait;

/// `struct timespec` of Hermit's ABI.
#[repr(C)]
#[derive(Clone, Copy)]
struct Timespec {
    seconds: i64,
    nanoseconds: i32,
}

impl Timespec {
    fn from_ns(ns: u64) -> Self {
        Self {
            seconds: (ns / 1_000_000_000).cast_signed(),
            nanoseconds: (ns % 1_000_000_000) as i32,
        }
    }

    /// Nanoseconds; `None` for a negative or malformed time.
    fn to_ns(self) -> Option<u64> {
        let seconds = u64::try_from(self.seconds).ok()?;
        let nanoseconds = u64::try_from(self.nanoseconds).ok().filter(|ns| *ns < 1_000_000_000)?;
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
    }
}

const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const EAGAIN: i32 = 11;
const ETIMEDOUT: i32 = 110;
