//! The service's log, which follows it across moves.
//!
//! The log of a service is one stream of bytes over its whole life. Each instance has two files: what
//! earlier instances wrote (the history, which arrives after the move) and what it writes itself. QEMU
//! appends the latter to its file, also while no agent is there to look.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::qemu::vm::Ended;
use crate::wire::readable;

/// Most bytes of history that travel with a move; older ones are dropped.
pub const MAX_HISTORY: u64 = 4 << 20;
/// How often the file is looked at where the kernel cannot tell of changes.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How much of the log there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the first byte that is kept.
    pub start: u64,
    /// Offset at which this instance's own bytes begin; `None` until the history has arrived.
    pub own: Option<u64>,
    /// Bytes this instance has written.
    pub written: u64,
    /// Nothing will be added.
    pub ended: bool,
}

impl Extent {
    /// Offset of the end, once it is known.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.own.map(|own| own + self.written)
    }
}

/// The log at one instance.
#[derive(Debug)]
pub struct Console {
    paths: [PathBuf; 2],
    history: File,
    own: File,
    extent: watch::Sender<Extent>,
}

impl Console {
    /// Makes the two files, empty. A service's first instance has no history to wait for.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn create(directory: &Path, stem: &str, first: bool) -> io::Result<Self> {
        let paths = Self::paths(directory, stem);
        let make = |path: &PathBuf| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
        };
        let (history, own) = (make(&paths[0])?, make(&paths[1])?);
        let extent = Extent { own: first.then_some(0), ..Extent::default() };
        Ok(Self { paths, history, own, extent: watch::channel(extent).0 })
    }

    /// Opens the files of an instance that goes on under a new agent. The history begins at `start` in
    /// the whole log; what of it has not arrived will not come any more.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn reopen(directory: &Path, stem: &str, start: u64) -> io::Result<Self> {
        let paths = Self::paths(directory, stem);
        let open = |path: &PathBuf| OpenOptions::new().read(true).write(true).open(path);
        let (history, own) = (open(&paths[0])?, open(&paths[1])?);
        let extent = Extent {
            start,
            own: Some(start + history.metadata()?.len()),
            written: own.metadata()?.len(),
            ended: false,
        };
        Ok(Self { paths, history, own, extent: watch::channel(extent).0 })
    }

    /// The files of an instance: history, and its own.
    #[must_use]
    pub fn paths(directory: &Path, stem: &str) -> [PathBuf; 2] {
        ["history", "console"].map(|kind| directory.join(format!("{stem}.{kind}")))
    }

    /// How much there is, and a way to wait for more.
    #[must_use]
    pub fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// Notices what QEMU writes until it has ended.
    pub async fn follow(&self, mut death: watch::Receiver<Option<Ended>>) {
        let mut changes = Changes::of(&self.paths[1]);
        loop {
            self.measure();
            tokio::select! {
                () = changes.next() => {}
                _ = death.wait_for(Option::is_some) => break,
            }
        }
        self.measure();
        self.extent.send_modify(|extent| extent.ended = true);
    }

    /// Takes in how long its own file is by now.
    fn measure(&self) -> Extent {
        if let Ok(found) = self.own.metadata() {
            self.extent.send_if_modified(|extent| {
                let grown = extent.written != found.len();
                extent.written = found.len();
                grown
            });
        }
        *self.extent.borrow()
    }

    /// Puts a part of the history in front. `start` is its offset in the whole log; `last` says that
    /// the history is complete.
    pub fn put_history(&self, start: u64, bytes: &[u8], last: bool) {
        let mut known = *self.extent.borrow();
        if known.own.is_some() {
            return;
        }
        let held = self.history.metadata().map_or(0, |meta| meta.len());
        if held == 0 {
            known.start = start;
        }
        let stored = start == known.start + held
            && held + bytes.len() as u64 <= MAX_HISTORY
            && self.history.write_all_at(bytes, held).is_ok();
        let held = if stored { held + bytes.len() as u64 } else { held };
        self.extent.send_modify(|extent| {
            extent.start = known.start;
            extent.own = last.then_some(known.start + held);
        });
    }

    /// Gives up waiting for history.
    pub fn without_history(&self) {
        let held = self.history.metadata().map_or(0, |meta| meta.len());
        self.extent.send_if_modified(|extent| {
            let waits = extent.own.is_none();
            extent.own = extent.own.or(Some(extent.start + held));
            waits
        });
    }

    /// Reads at most `max` bytes from `offset` on. Returns the offset of the first byte read, which is
    /// later than asked for where old bytes were dropped.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<(u64, Vec<u8>)> {
        let extent = self.measure();
        let Some(own) = extent.own else { return Ok((offset, Vec::new())) };
        let offset = offset.max(extent.start);
        let (file, at, len) = if offset < own {
            (&self.history, offset - extent.start, own - offset)
        } else {
            let at = offset - own;
            (&self.own, at, extent.written.saturating_sub(at))
        };
        let mut bytes = vec![0; len.min(max as u64) as usize];
        file.read_exact_at(&mut bytes, at)?;
        Ok((offset, bytes))
    }

    /// At most the last `max` bytes of the whole log as text, and the offset where they begin.
    #[must_use]
    pub fn last(&self, max: u64) -> (u64, String) {
        let extent = self.measure();
        let from = extent.end().unwrap_or(0).saturating_sub(max);
        let (mut offset, mut text) = (from, Vec::new());
        while let Ok((first, bytes)) = self.read(offset, max as usize) {
            if bytes.is_empty() {
                break;
            }
            offset = first + bytes.len() as u64;
            text.extend(bytes);
        }
        // What is no text counts as its replacement; the offsets of what follows then move a little.
        (offset - text.len() as u64, String::from_utf8_lossy(&text).into_owned())
    }

    /// The last bytes, as text for a message.
    #[must_use]
    pub fn tail(&self) -> String {
        const TAIL: u64 = 600;
        let written = self.measure().written;
        let mut bytes = vec![0; written.min(TAIL) as usize];
        let at = written - bytes.len() as u64;
        if self.own.read_exact_at(&mut bytes, at).is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Nothing will be added. Readers still see the rest, also when the files are removed.
    pub fn close(&self) {
        self.extent.send_modify(|extent| extent.ended = true);
    }
}

/// Tells when a file changes.
enum Changes {
    Notified(AsyncFd<OwnedFd>),
    /// The kernel gives no more notifications to this user (`fs.inotify.max_user_instances`).
    Polled,
}

impl Changes {
    fn of(path: &Path) -> Self {
        let notified = || -> io::Result<AsyncFd<OwnedFd>> {
            let queue =
                inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&queue, path, inotify::WatchFlags::MODIFY)?;
            readable(queue)
        };
        notified().map_or(Self::Polled, Self::Notified)
    }

    async fn next(&mut self) {
        let Self::Notified(queue) = self else { return tokio::time::sleep(LOOK_INTERVAL).await };
        let Ok(mut ready) = queue.readable().await else {
            return tokio::time::sleep(LOOK_INTERVAL).await;
        };
        // What changed is known; the queue has to be empty before the next wait.
        let mut buf = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(ready.get_inner(), &mut buf);
        while events.next().is_ok() {}
        ready.clear_ready();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Console {
        fn add(&self, bytes: &[u8]) {
            use std::io::Write;
            OpenOptions::new().append(true).open(&self.paths[1]).unwrap().write_all(bytes).unwrap();
        }
    }

    fn all(console: &Console) -> (u64, Vec<u8>) {
        let (first, mut bytes) = console.read(0, 1 << 20).unwrap();
        let (_, rest) = console.read(first + bytes.len() as u64, 1 << 20).unwrap();
        bytes.extend(rest);
        (first, bytes)
    }

    #[test]
    fn a_log_goes_on_where_the_last_instance_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Console::create(dir.path(), "a", true).unwrap();
        first.add(b"one\n");
        let second = Console::create(dir.path(), "b", false).unwrap();
        second.add(b"two\n");
        assert_eq!(second.read(0, 10).unwrap(), (0, vec![]), "the history has not arrived");
        let (start, bytes) = first.read(0, 100).unwrap();
        second.put_history(start, &bytes[..2], false);
        second.put_history(start + 2, &bytes[2..], true);
        assert_eq!(all(&second), (0, b"one\ntwo\n".to_vec()));
        assert_eq!(second.read(5, 2).unwrap(), (5, b"wo".to_vec()));
        assert_eq!(second.extent.borrow().end(), Some(8));
        assert_eq!(second.last(6), (2, "e\ntwo\n".into()));
        assert_eq!(second.last(100), (0, "one\ntwo\n".into()));
    }

    #[test]
    fn a_log_outlives_its_agent() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::create(dir.path(), "a", false).unwrap();
        console.put_history(7, b"old\n", true);
        console.add(b"one\n");
        let start = console.extent.borrow().start;
        drop(console);
        let console = Console::reopen(dir.path(), "a", start).unwrap();
        console.add(b"two\n");
        assert_eq!(all(&console), (7, b"old\none\ntwo\n".to_vec()));
    }

    #[tokio::test]
    async fn what_is_written_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let console = std::sync::Arc::new(Console::create(dir.path(), "a", true).unwrap());
        let (death, dead) = watch::channel(None);
        let following = std::sync::Arc::clone(&console);
        let task = tokio::spawn(async move { following.follow(dead).await });
        let mut extent = console.extent();
        for round in 1..4 {
            console.add(b"x");
            extent.wait_for(|extent| extent.written == round).await.unwrap();
        }
        death.send_replace(Some(Ended { reason: String::new() }));
        task.await.unwrap();
        assert!(extent.borrow().ended);
    }

    #[test]
    fn a_hole_in_the_history_is_not_filled_with_the_wrong_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::create(dir.path(), "a", false).unwrap();
        console.put_history(100, b"abc", false);
        console.put_history(999, b"xyz", false);
        console.without_history();
        console.add(b"d");
        assert_eq!(all(&console), (100, b"abcd".to_vec()));
        console.put_history(0, b"late", true);
        assert_eq!(all(&console), (100, b"abcd".to_vec()));
        assert_eq!(console.tail(), "d");
    }
}
