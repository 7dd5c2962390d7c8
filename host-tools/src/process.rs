//! Processes: told apart from strangers with the same number, ended within a deadline.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process, and when it began: the number alone may belong to somebody else by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// When it began, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    #[must_use]
    pub fn now(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = parse_stat(&stat)?;
        // A zombie runs nothing and holds no namespace.
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    /// Whether it still runs.
    #[must_use]
    pub fn runs(self) -> bool {
        Self::now(self.pid) == Some(self)
    }

    /// A handle of it, which is readable once it has ended; `None` if it has.
    ///
    /// # Errors
    /// The kernel has no handle to give.
    pub fn handle(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            // The handle is for whoever has the number now: compare after opening it.
            Ok(handle) => Ok(self.runs().then_some(handle)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether one of its arguments contains this text.
    #[must_use]
    pub fn mentions(self, text: &str) -> bool {
        mentions(self.pid, text) && self.runs()
    }

    /// Asks it to end (SIGTERM), and after `grace` makes it end (SIGKILL). Returns once it has ended;
    /// at once if it had. `Err` if it is still there 5 s after SIGKILL.
    pub fn end(self, grace: Duration) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // The handle is for whoever has the number now: compare after opening it.
        if !self.runs() {
            return Ok(());
        }
        for (signal, wait) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(5))] {
            match pidfd_send_signal(&handle, signal) {
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                other => other?,
            }
            if readable_within(&handle, wait)? {
                return Ok(());
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {} does not end, not even after SIGKILL", self.pid),
        ))
    }
}

/// Waits until a descriptor has something to read (a pidfd: until its process has ended).
pub fn readable_within(fd: impl std::os::fd::AsFd, wait: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Every process whose network namespace has this inode number.
#[must_use]
pub fn in_network_namespace(inode: u64) -> Vec<Process> {
    every_pid()
        .filter(|pid| network_namespace(*pid) == Some(inode))
        .filter_map(Process::now)
        .collect()
}

/// The inode number of a process's network namespace, if this user may see it.
#[must_use]
pub fn network_namespace(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|m| m.ino())
}

/// Processes whose arguments, from the second on, begin with these.
#[must_use]
pub fn with_arguments(wanted: &[&str]) -> Vec<Process> {
    every_pid()
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments: Vec<&[u8]> = line.split(|b| *b == 0).skip(1).collect();
            arguments.len() >= wanted.len()
                && wanted.iter().zip(&arguments).all(|(w, a)| w.as_bytes() == *a)
        })
        .filter_map(Process::now)
        .collect()
}

fn mentions(pid: i32, text: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).any(|argument| String::from_utf8_lossy(argument).contains(text))
}

/// Processes that have an argument which contains this text.
#[must_use]
pub fn with_argument_containing(text: &str) -> Vec<Process> {
    every_pid().filter(|pid| mentions(*pid, text)).filter_map(Process::now).collect()
}

/// Processes that were started with all of these in their environment (`NAME=value`, or `NAME=` for
/// any value).
#[must_use]
pub fn with_environment(wanted: &[String]) -> Vec<Process> {
    every_pid()
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = |w: &String| {
                environment.split(|b| *b == 0).any(|entry| {
                    if w.ends_with('=') {
                        entry.starts_with(w.as_bytes())
                    } else {
                        entry == w.as_bytes()
                    }
                })
            };
            wanted.iter().all(has)
        })
        .filter_map(Process::now)
        .collect()
}

/// This process, its parent, and so on up to the first.
#[must_use]
pub fn ancestors() -> Vec<i32> {
    let mut line = vec![std::process::id().cast_signed()];
    while let Some(&pid) = line.last().filter(|pid| **pid > 1) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rfind(')').and_then(|i| stat[i + 1..].split_ascii_whitespace().nth(1));
        match parent.and_then(|p| p.parse().ok()) {
            Some(parent) if !line.contains(&parent) => line.push(parent),
            _ => break,
        }
    }
    line
}

fn every_pid() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// State and start time. The name in parentheses may itself contain blanks and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "42 (a) S (b)) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2";
        assert_eq!(parse_stat(stat), Some(('S', 987_654)));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn ends_its_process_and_no_other() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::now(child.id().cast_signed()).unwrap();
        let stranger = Process { start: process.start + 1, ..process };
        assert!(!stranger.runs());
        stranger.end(Duration::from_secs(1)).unwrap();
        assert!(process.runs());
        // A process has no arguments for a moment while it becomes its program.
        let begun = Instant::now();
        while !process.mentions("60") {
            assert!(begun.elapsed() < Duration::from_secs(5), "sleep does not start");
            std::thread::yield_now();
        }
        assert!(with_arguments(&["60"]).contains(&process));
        assert!(!with_arguments(&["60", "61"]).contains(&process));
        assert!(with_argument_containing("60").contains(&process));
        assert!(!process.mentions("61"));
        assert!(stranger.handle().unwrap().is_none());
        let handle = process.handle().unwrap().unwrap();
        assert!(!readable_within(&handle, Duration::ZERO).unwrap());
        assert!(!ancestors().contains(&process.pid));
        // Reaped from here on by a thread, as init would do for the lab's processes.
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        process.end(Duration::from_secs(5)).unwrap();
        reaper.join().unwrap();
        assert!(!process.runs());
        assert!(readable_within(&handle, Duration::ZERO).unwrap());
        assert!(process.handle().unwrap().is_none());
    }
}
