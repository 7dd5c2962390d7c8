//! Entering and making namespaces.
//!
//! As root a node is a network namespace. For any other user the whole lab lies in one user namespace,
//! made by the switch's holder, in which that user is root; all network namespaces belong to it.
//!
//! Changing the user namespace needs a process of one thread: these functions are called right after
//! `main` began.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::LabError;

/// How the namespaces of a lab are owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Network namespaces only.
    Root,
    /// Network namespaces inside a user namespace.
    User,
}

impl Mode {
    /// What this process may do.
    #[must_use]
    pub fn of_this_process() -> Self {
        // Root without the right to make network namespaces, as in most containers, is like a user.
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        const CAP_NET_ADMIN: u64 = 1 << 12;
        let needed = CAP_SYS_ADMIN | CAP_NET_ADMIN;
        let root = rustix::process::geteuid().is_root();
        if root && effective_capabilities() & needed == needed { Self::Root } else { Self::User }
    }
}

fn effective_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

/// Makes the namespaces of the lab's first node, and moves this process into them.
pub fn found(mode: Mode) -> Result<(), LabError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if mode == Mode::User {
        unshare(UnshareFlags::NEWUSER).map_err(|source| LabError::UserNamespace { source })?;
        let map = || -> io::Result<()> {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
        };
        map().map_err(|source| LabError::UserNamespace { source })?;
    }
    new_network()
}

/// Makes a network namespace owned by the lab, and moves this process into it.
pub fn join_and_make_network(mode: Mode, first: i32) -> Result<(), LabError> {
    if mode == Mode::User {
        enter_one(first, "user", LinkNameSpaceType::User)?;
    }
    new_network()
}

/// Moves this process into the namespaces of a node, whose holder is `pid`.
pub fn enter(mode: Mode, pid: i32) -> Result<(), LabError> {
    if mode == Mode::User {
        enter_one(pid, "user", LinkNameSpaceType::User)?;
    }
    enter_one(pid, "net", LinkNameSpaceType::Network)
}

/// Runs something with this thread in the network namespace of `pid`, and comes back.
pub fn within_network<T>(pid: i32, run: impl FnOnce() -> T) -> Result<T, LabError> {
    let fail = |source| LabError::Enter { pid, source };
    let home = File::open("/proc/thread-self/ns/net").map_err(fail)?;
    enter_one(pid, "net", LinkNameSpaceType::Network)?;
    let result = run();
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| fail(e.into()))?;
    Ok(result)
}

fn new_network() -> Result<(), LabError> {
    unshare(UnshareFlags::NEWNET).map_err(|source| LabError::NetworkNamespace { source })
}

fn enter_one(pid: i32, name: &str, kind: LinkNameSpaceType) -> Result<(), LabError> {
    let fail = |source| LabError::Enter { pid, source };
    let namespace = File::open(format!("/proc/{pid}/ns/{name}")).map_err(fail)?;
    // A user namespace cannot be entered from inside itself.
    let here = fs::metadata(format!("/proc/thread-self/ns/{name}")).map_err(fail)?.ino();
    if namespace.metadata().map_err(fail)?.ino() == here {
        return Ok(());
    }
    move_into_link_name_space(namespace.as_fd(), Some(kind)).map_err(|e| fail(e.into()))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only CLONE_FILES, which is never asked for here, can pull descriptors away from under
    // other code.
    unsafe { unshare_unsafe(flags) }.map_err(Into::into)
}
