//! What an agent that is started again has to know of an instance: one small file for each.
//!
//! It is written whole or not at all, but not synced: it is for an agent that was killed, and the page cache
//! outlives that. When the host itself goes down its guests are gone too, and nothing is left to take up.
//! So writing costs some ten microseconds, and none of it happens while a service is frozen: a move is noted
//! before it begins; the destination notes that its pages are whole while the source asks for the commit,
//! by an empty file, which is no data that the commit's own sync could have to wait for; and it notes its
//! new epoch after it has told the source that the service runs. A kill between a deed and its note is found
//! out by asking guest and store, see [`recovery`](super::recovery).

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::console::Console;
use crate::api::ServiceSpec;
use crate::process::{Process, with_argument_containing};
use crate::qemu::Accel;

/// Version of the file's format.
const VERSION: u32 = 1;
/// Ending of a descriptor's name.
const ENDING: &str = ".instance";

/// An instance, as its file tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Version of the format.
    pub version: u32,
    /// The service.
    pub spec: ServiceSpec,
    /// Distinguishes it from other instances on this host.
    pub number: u64,
    /// How it is executed.
    pub accel: Accel,
    /// Name of its tap.
    pub tap: String,
    /// Its memory's file, which has no name any more once the guest has booted.
    pub ram_file: PathBuf,
    /// Its QEMU; `None` until it was started.
    pub process: Option<Process>,
    /// Length of the portable region in bytes; `None` until the guest has booted.
    pub portable_len: Option<u64>,
    /// The epoch under which it was last known to run; 0 for a standby.
    pub epoch: u64,
    /// The move it is part of.
    pub migration: Option<String>,
    /// A standby: all pages have arrived and were found right. Noted by a file of its own.
    #[serde(skip)]
    pub verified: bool,
    /// Offset of the first byte of the kept history in the service's whole log.
    pub log_start: u64,
}

/// Why the descriptors of a host cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum LoadError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path} describes an instance in a way this version does not know ({reason}); its guest runs on \
         unattended: start the agent that wrote it, or end the guest and remove the file"
    )]
    Unreadable { path: PathBuf, reason: String },
}

impl Descriptor {
    /// An instance that has not been started.
    #[must_use]
    pub fn new(spec: ServiceSpec, number: u64, accel: Accel, tap: String, ram_dir: &Path) -> Self {
        let ram_file = ram_dir.join(format!("{}-{number}-{}.ram", spec.name, spec.id));
        Self {
            version: VERSION,
            spec,
            number,
            accel,
            tap,
            ram_file,
            process: None,
            portable_len: None,
            epoch: 0,
            migration: None,
            verified: false,
            log_start: 0,
        }
    }

    /// What the names of its files begin with.
    #[must_use]
    pub fn stem(&self) -> String {
        format!("{}-{}", self.spec.name, self.number)
    }

    fn path(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}{ENDING}", self.stem()))
    }

    fn socket(&self, run_dir: &Path, kind: &str) -> PathBuf {
        run_dir.join(format!("{:.8}-{}.{kind}", self.spec.id, self.number))
    }

    /// The guest's control port.
    #[must_use]
    pub fn control(&self, run_dir: &Path) -> PathBuf {
        self.socket(run_dir, "ctl")
    }

    /// QEMU's control port.
    #[must_use]
    pub fn qmp(&self, run_dir: &Path) -> PathBuf {
        self.socket(run_dir, "qmp")
    }

    /// What QEMU says on its standard error.
    #[must_use]
    pub fn messages(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}.messages", self.stem()))
    }

    fn verified_mark(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}.verified", self.stem()))
    }

    /// Notes that all pages have arrived and were found right.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn mark_verified(&mut self, run_dir: &Path) -> io::Result<()> {
        std::fs::File::create(self.verified_mark(run_dir))?;
        self.verified = true;
        Ok(())
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The file system refuses; what was written before is still there.
    pub fn store(&self, run_dir: &Path) -> io::Result<()> {
        let path = self.path(run_dir);
        let next = path.with_extension("part");
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        std::fs::write(&next, json)?;
        std::fs::rename(&next, &path)?;
        if !self.verified {
            remove(&self.verified_mark(run_dir))?;
        }
        Ok(())
    }

    /// All descriptors of a host.
    ///
    /// # Errors
    /// One cannot be read: its guest would be left alone without a word.
    pub fn load_all(run_dir: &Path) -> Result<Vec<Self>, LoadError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| LoadError::Io { path, source }
        };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(run_dir).map_err(io_error(run_dir))? {
            let path = entry.map_err(io_error(run_dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.ends_with(".part") {
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
            if !name.ends_with(ENDING) {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(io_error(&path))?;
            let unreadable = |reason: String| LoadError::Unreadable { path: path.clone(), reason };
            let mut found: Self =
                serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
            if found.version != VERSION {
                return Err(unreadable(format!("version {}", found.version)));
            }
            found.verified = found.verified_mark(run_dir).exists();
            all.push(found);
        }
        all.sort_by_key(|descriptor| descriptor.number);
        Ok(all)
    }

    /// Its QEMU, if that runs. One that was started by an agent which did not live to note it is found by
    /// its memory's file, which no other process names.
    #[must_use]
    pub fn running(&self) -> Option<Process> {
        let memory = self.ram_file.to_string_lossy();
        match self.process {
            // After a restart of the machine another process may have both number and start time.
            Some(process) => process.mentions(&memory).then_some(process),
            None => with_argument_containing(&memory).into_iter().next(),
        }
    }

    /// Removes every file of the instance, this description last.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_files(&self, run_dir: &Path) -> io::Result<()> {
        let [history, console] = Console::paths(run_dir, &self.stem());
        let sockets = [self.control(run_dir), self.qmp(run_dir)];
        let rest = [history, console, self.messages(run_dir), self.ram_file.clone()];
        let last = [self.verified_mark(run_dir), self.path(run_dir)];
        sockets.iter().chain(&rest).chain(&last).try_for_each(|path| remove(path))
    }
}

/// No error if it is gone already.
fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::{Digest32, ImageRef};
    use crate::qemu::Machine;

    pub fn spec(name: &str) -> ServiceSpec {
        let digest = Digest32([1; 32]);
        ServiceSpec {
            name: name.into(),
            id: "0123456789abcdef".into(),
            image: ImageRef { name: "i".into(), digest, build_id: digest },
            ip: [10, 77, 0, 50].into(),
            prefix: 24,
            gateway: None,
            mac: "52:00:00:00:00:01".into(),
            memory_mib: 64,
            machine: Machine::Q35,
            args: vec![],
        }
    }

    #[test]
    fn written_read_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let new = |name: &str, number| {
            Descriptor::new(spec(name), number, Accel::Tcg, "ft-0".into(), dir.path())
        };
        let (mut first, second) = (new("a", 1), new("b", 2));
        second.store(dir.path()).unwrap();
        first.store(dir.path()).unwrap();
        first.migration = Some("m7".into());
        first.store(dir.path()).unwrap();
        // A kill while it was being written leaves the one before.
        std::fs::write(dir.path().join("a-1.part"), "{").unwrap();
        let all = Descriptor::load_all(dir.path()).unwrap();
        assert_eq!(all, [first.clone(), second.clone()]);
        assert_eq!(first.running(), None);
        first.mark_verified(dir.path()).unwrap();
        assert_eq!(Descriptor::load_all(dir.path()).unwrap()[0], first);
        first.verified = false;
        first.store(dir.path()).unwrap();
        assert_eq!(Descriptor::load_all(dir.path()).unwrap()[0], first);
        for descriptor in all {
            descriptor.remove_files(dir.path()).unwrap();
            descriptor.remove_files(dir.path()).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_that_cannot_be_read_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a-1.instance"), "{").unwrap();
        let error = Descriptor::load_all(dir.path()).unwrap_err();
        assert!(error.to_string().contains("a-1.instance"), "{error}");
    }
}
