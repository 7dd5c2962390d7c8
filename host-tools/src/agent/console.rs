//! The service's log, which follows it across moves.
//!
//! The log of a service is one stream of bytes over its whole life. Each instance has two files: what
//! earlier instances wrote (the history, which arrives after the move) and what it writes itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::watch;

/// Most bytes of history that travel with a move; older ones are dropped.
pub const MAX_HISTORY: u64 = 4 << 20;

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
    append: Mutex<File>,
    extent: watch::Sender<Extent>,
}

impl Console {
    /// Makes the two files, empty. A service's first instance has no history to wait for.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn create(directory: &Path, stem: &str, first: bool) -> io::Result<Self> {
        let paths = ["history", "console"].map(|kind| directory.join(format!("{stem}.{kind}")));
        let make = |path: &PathBuf| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
        };
        let (history, own) = (make(&paths[0])?, make(&paths[1])?);
        let append = Mutex::new(own.try_clone()?);
        let extent = Extent { own: first.then_some(0), ..Extent::default() };
        Ok(Self { paths, history, own, append, extent: watch::channel(extent).0 })
    }

    /// How much there is, and a way to wait for more.
    #[must_use]
    pub fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.subscribe()
    }

    /// Takes what the guest writes until it ends.
    pub async fn capture(&self, mut stream: UnixStream) {
        let mut buf = [0; 4096];
        while let Ok(read) = stream.read(&mut buf).await {
            if read == 0 {
                break;
            }
            self.add(&buf[..read]);
        }
        self.extent.send_modify(|extent| extent.ended = true);
    }

    /// Adds bytes; also used for the agent's own remarks.
    pub fn add(&self, bytes: &[u8]) {
        let mut file = self.append.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A full disk costs log lines, never the service.
        if file.write_all(bytes).is_ok() {
            self.extent.send_modify(|extent| extent.written += bytes.len() as u64);
        }
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
        let extent = *self.extent.borrow();
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
        let extent = *self.extent.borrow();
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
        let written = self.extent.borrow().written;
        let mut bytes = vec![0; written.min(TAIL) as usize];
        let at = written - bytes.len() as u64;
        if self.own.read_exact_at(&mut bytes, at).is_err() {
            return String::new();
        }
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Removes the files. Readers that have them open still see the rest.
    pub fn remove(&self) {
        self.extent.send_modify(|extent| extent.ended = true);
        self.paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
