//! What is on disk about a running lab: enough to enter it and to take it down, also after a crash.

use std::fs;
use std::path::{Path, PathBuf};

use super::LabError;
use super::namespace::Mode;
use super::plan::{Node, Role};
use crate::process::Process;
use crate::wire::{Address, Addresses};

/// Longest path of a Unix socket (`sun_path` less its zero byte).
const SOCKET_PATH_MAX: usize = 107;

/// Where a lab keeps its state: `$FERRY_LAB_DIR`, else `/run/ferry-lab` for root, else
/// `$XDG_RUNTIME_DIR/ferry-lab`, else `/tmp/ferry-lab-UID`.
#[must_use]
pub fn run_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("FERRY_LAB_DIR").filter(|d| !d.is_empty()) {
        return std::path::absolute(&dir).unwrap_or_else(|_| dir.into());
    }
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return "/run/ferry-lab".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("ferry-lab"),
        None => format!("/tmp/ferry-lab-{}", uid.as_raw()).into(),
    }
}

/// A node and the process that keeps its namespaces alive.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeldNode {
    /// The node.
    #[serde(flatten)]
    pub node: Node,
    /// Its holder.
    pub holder: Process,
}

/// A manager or an agent.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Daemon {
    /// The node it runs in.
    pub node: String,
    /// The process.
    pub process: Process,
    /// What it prints.
    pub log: PathBuf,
}

/// A lab, complete or on its way up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Version of this file's format.
    pub version: u32,
    /// Who owns the namespaces.
    pub mode: Mode,
    /// Whether `lab up` came to its end.
    pub complete: bool,
    /// The nodes, the switch first.
    pub nodes: Vec<HeldNode>,
    /// Manager and agents.
    pub daemons: Vec<Daemon>,
}

impl State {
    const VERSION: u32 = 1;

    /// A lab without nodes.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            version: Self::VERSION,
            mode,
            complete: false,
            nodes: Vec::new(),
            daemons: Vec::new(),
        }
    }

    /// Reads the state of the lab in `dir`; `None` if there is no lab.
    pub fn load(dir: &Path) -> Result<Option<Self>, LabError> {
        let path = dir.join("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LabError::File { path, source }),
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(state) if state.version == Self::VERSION => Ok(Some(state)),
            Ok(state) => Err(LabError::StateVersion { path, found: state.version }),
            Err(e) => Err(LabError::StateUnreadable { path, why: e.to_string() }),
        }
    }

    /// Writes it, whole or not at all.
    pub fn store(&self, dir: &Path) -> Result<(), LabError> {
        let (path, next) = (dir.join("state.json"), dir.join("state.json.new"));
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| LabError::StateUnreadable { path: path.clone(), why: e.to_string() })?;
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|source| LabError::File { path, source })
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&HeldNode> {
        self.nodes.iter().find(|n| n.node.name == name)
    }

    /// How many QEMU hosts it has.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.with_role(Role::Host)
    }

    /// How many managers it has.
    #[must_use]
    pub fn managers(&self) -> usize {
        self.with_role(Role::Manager)
    }

    fn with_role(&self, role: Role) -> usize {
        self.nodes.iter().filter(|n| n.node.role == role).count()
    }

    /// Whether every holder and daemon still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.complete
            && self.nodes.iter().all(|n| n.holder.runs())
            && self.daemons.iter().all(|d| d.process.runs())
    }
}

/// The socket of the manager on this node of the lab in `dir`.
#[must_use]
pub fn manager_socket_in(dir: &Path, node: &str) -> PathBuf {
    dir.join(format!("{node}.sock"))
}

/// Where the managers of the running lab listen, if there is one.
#[must_use]
pub fn managers() -> Option<Addresses> {
    let dir = run_dir();
    let nodes = super::plan::nodes(1, super::plan::MANAGERS_MAX);
    let sockets = nodes
        .iter()
        .filter(|node| node.role == Role::Manager)
        .map(|node| manager_socket_in(&dir, &node.name))
        .filter(|path| path.exists());
    Addresses::of(sockets.map(Address::Unix))
}

/// Makes the directory, readable by this user only, and checks that sockets can live in it.
pub fn make_run_dir(dir: &Path) -> Result<(), LabError> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let longest = manager_socket_in(dir, "manager3");
    // Agents put the sockets of their guests a little deeper.
    if longest.as_os_str().as_bytes().len() + 24 > SOCKET_PATH_MAX {
        return Err(LabError::DirTooLong { dir: dir.to_owned() });
    }
    let fail = |source| LabError::File { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    // /tmp belongs to all: what somebody else has put there is not ours to trust.
    if fs::symlink_metadata(dir).map_err(fail)?.uid() != rustix::process::geteuid().as_raw() {
        return Err(LabError::DirOwner { dir: dir.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), None);
        let mut state = State::new(Mode::Root);
        for (i, node) in super::super::plan::nodes(2, 1).into_iter().enumerate() {
            let holder = Process { pid: 1000 + i as i32, start: 5 };
            state.nodes.push(HeldNode { node, holder });
        }
        state.store(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), Some(state.clone()));
        assert_eq!(state.hosts(), 2);
        assert!(!state.alive());
        fs::write(dir.path().join("state.json"), "{").unwrap();
        assert!(matches!(State::load(dir.path()), Err(LabError::StateUnreadable { .. })));
    }

    #[test]
    fn a_directory_too_deep_for_sockets_is_refused() {
        let deep = PathBuf::from(format!("/tmp/{}", "x".repeat(90)));
        assert!(matches!(make_run_dir(&deep), Err(LabError::DirTooLong { .. })));
        assert!(!deep.exists());
    }
}
