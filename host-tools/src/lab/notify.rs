//! "I am ready", as systemd services say it (`man 3 sd_notify`): one datagram `READY=1` to the socket
//! named in `$NOTIFY_SOCKET`. So `lab up` and systemd can start manager and agents alike.

use std::fs;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Says that this daemon is ready. Does nothing when nobody waits for it.
pub fn tell_ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|p| !p.is_empty()) else {
        return Ok(());
    };
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
        None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(drop)
}

/// How a wait for readiness ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is ready.
    Ready,
    /// It ended first.
    Ended,
    /// Neither happened in time.
    Late,
}

/// The waiting end for one daemon.
#[derive(Debug)]
pub struct Listener {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket; its path is what the daemon gets as `NOTIFY_SOCKET`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self { socket: UnixDatagram::bind(path)?, path: path.to_owned() })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until the process `pid`, a child of this one, is ready, ends, or `deadline` has passed.
    pub fn wait(&self, pid: i32, deadline: Instant) -> io::Result<Outcome> {
        let Some(pid) = Pid::from_raw(pid) else { return Ok(Outcome::Ended) };
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut both =
                [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            match poll(&mut both, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Ok(Outcome::Late),
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
                Ok(_) => {}
            }
            if !both[0].revents().is_empty() {
                self.socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                let mut text = [0; 512];
                let len = self.socket.recv(&mut text)?;
                if text[..len].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
                    return Ok(Outcome::Ready);
                }
            } else if !both[1].revents().is_empty() {
                return Ok(Outcome::Ended);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nobody else looks at it; `lab down` removes what stays.
        let _ = fs::remove_file(&self.path);
    }
}
