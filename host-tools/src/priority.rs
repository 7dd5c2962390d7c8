//! Priorities: a guest that serves is not kept waiting for a processor by what nobody waits for.
//!
//! Niceness alone does not do that. It shares out the time, but whoever has a processor keeps it up to the end of a
//! time slice, or to the next tick, while a guest has frames to answer. So a guest that serves asks for short slices:
//! the kernel then lets it run as soon as it wakes, without giving it a larger share (Linux 6.12 and later; others
//! ignore it). `SCHED_IDLE` is no way for the rest: to the kernel a processor with such work is a free one, so it puts
//! who wakes there, and if the two are in different groups (`sched(7)`, "autogroup"; cgroups) lets them wait for the
//! next tick.

use std::fs;
use std::io;

use rustix::process::{Resource, getpriority_process, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::process::Process;

/// What the niceness of [`Priority::Low`] is above this process's: with all processors busy, a tenth of one is left.
const LOW: i32 = 10;
/// The slice of [`Priority::Serving`], in nanoseconds: the shortest the kernel takes.
const SHORT_SLICE: u64 = 100_000;

/// How much of the processors something gets while others want them, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// As much as this process, and as soon as it wakes.
    Serving,
    /// A small share, but always some.
    Low,
}

impl Priority {
    /// For a process whose own niceness is `own`.
    fn attributes(self, own: i32) -> libc::sched_attr {
        let (niceness, slice) = match self {
            Self::Serving => (own, SHORT_SLICE),
            // Zero is the kernel's usual slice.
            Self::Low => ((own + LOW).min(19), 0),
        };
        libc::sched_attr {
            size: size_of::<libc::sched_attr>() as u32,
            sched_policy: 0,
            sched_flags: libc::SCHED_FLAG_KEEP_POLICY as u64,
            sched_nice: niceness,
            sched_priority: 0,
            sched_runtime: slice,
            sched_deadline: 0,
            sched_period: 0,
        }
    }
}

/// Gives all threads of a process this priority, and so those they make from now on.
///
/// # Errors
/// It has ended, or this user may not.
pub fn set(process: Process, priority: Priority) -> io::Result<()> {
    let attributes = priority.attributes(getpriority_process(None)?);
    // The first thread first: whom it makes afterwards takes after it, whom it made before is listed.
    set_thread(process.pid, attributes)?;
    for thread in fs::read_dir(format!("/proc/{}/task", process.pid))? {
        let number = thread?.file_name().to_str().and_then(|name| name.parse().ok());
        match number.map_or(Ok(()), |number| set_thread(number, attributes)) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            // A thread may end at any time.
            _ => {}
        }
    }
    Ok(())
}

/// The same for the calling thread alone.
fn set_own_thread(priority: Priority) -> io::Result<()> {
    // Zero is the calling thread, and no other of its process.
    set_thread(0, priority.attributes(getpriority_process(None)?))
}

/// Does something in a thread of this priority; a process that it starts begins with that.
///
/// # Panics
/// If `action` does.
pub fn at<T: Send>(priority: Priority, action: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // A courtesy: it is done in any case.
            let _ = set_own_thread(priority);
            action()
        });
        thread.join()
    });
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn set_thread(number: i32, attributes: libc::sched_attr) -> io::Result<()> {
    // SAFETY: sched_setattr(2) reads one `struct sched_attr` of the size that it names, which lives until it returns.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setattr, number, &raw const attributes, 0) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this process may give its children a lower priority and take that back.
#[must_use]
pub fn may_return() -> bool {
    let Ok(own) = getpriority_process(None) else { return false };
    let capable =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    // RLIMIT_NICE counts from the other end: 40 is niceness -20, 1 is niceness 19 (`getrlimit(2)`).
    let limit = getrlimit(Resource::Nice).current.map_or(i64::MAX, |limit| limit.min(40) as i64);
    capable || 20 - limit <= i64::from(own)
}

/// Drops what takes long to drop, in a thread of lower priority; at once if there can be none.
pub fn drop_in_background<T: Send + 'static>(value: T) {
    let thread = std::thread::Builder::new().name("drop".into());
    let _ = thread.spawn(move || {
        // A courtesy: it is dropped in any case.
        let _ = set_own_thread(Priority::Low);
        drop(value);
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// Niceness and slice in nanoseconds of a thread; 0 is the calling one.
    fn of(thread: i32) -> (i32, u64) {
        let mut attributes = Priority::Low.attributes(0);
        let size = size_of_val(&attributes);
        // SAFETY: sched_getattr(2) writes no more than `size` bytes, those of `attributes`, which lives until it
        // returns.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, size, 0) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        (attributes.sched_nice, attributes.sched_runtime)
    }

    #[test]
    fn a_process_goes_down_and_comes_back() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::now(child.id().cast_signed()).unwrap();
        let (own, usual) = of(0);
        set(process, Priority::Low).unwrap();
        assert_eq!(of(process.pid), ((own + LOW).min(19), usual));
        if may_return() {
            set(process, Priority::Serving).unwrap();
            let (niceness, slice) = of(process.pid);
            assert_eq!(niceness, own);
            // A kernel before 6.12 has no slices to give and says 0.
            assert!(usual == 0 || slice == SHORT_SLICE, "{slice} of {usual}");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(set(process, Priority::Low).is_err());
    }

    #[test]
    fn what_is_started_at_a_priority_begins_with_it() {
        let own = of(0);
        let mut child = at(Priority::Low, || Command::new("sleep").arg("60").spawn()).unwrap();
        assert_eq!(of(child.id().cast_signed()).0, (own.0 + LOW).min(19));
        assert_eq!(of(0), own);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_takes_long_to_drop_is_dropped_with_less_priority() {
        struct Tells(std::sync::mpsc::Sender<i32>);
        impl Drop for Tells {
            fn drop(&mut self) {
                let _ = self.0.send(of(0).0);
            }
        }
        let (sender, dropped) = std::sync::mpsc::channel();
        let own = of(0);
        drop_in_background(Tells(sender));
        let theirs = dropped.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(theirs, (own.0 + LOW).min(19));
        assert_eq!(of(0), own);
    }
}
