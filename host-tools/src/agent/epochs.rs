//! The epochs under which services have run here and ended. None of them runs here again: an order that
//! comes late, or is said a second time, starts nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::api::ApiError;
use crate::snapshot::file::write_atomically;

/// Highest epoch by the service's id, in one file that is replaced as a whole.
#[derive(Debug)]
pub struct Epochs {
    path: PathBuf,
    ended: Mutex<BTreeMap<String, u64>>,
}

/// An order under an epoch that is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` has been under epoch {known} here, and epoch {asked} is not newer: the order is an old one, \
     nothing was started"
)]
pub struct OldEpoch {
    /// Name of the service.
    pub name: String,
    /// Highest epoch it had here.
    pub known: u64,
    /// Epoch of the order.
    pub asked: u64,
}

impl From<OldEpoch> for ApiError {
    fn from(error: OldEpoch) -> Self {
        Self::conflict(error.to_string())
    }
}

impl Epochs {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<Self, ApiError> {
        let named = |error: &dyn std::fmt::Display| {
            ApiError::failed(format!("{}: {error}", path.display()))
        };
        let ended = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| named(&error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(named(&error)),
        };
        Ok(Self { path: path.to_owned(), ended: Mutex::new(ended) })
    }

    /// Whether a service may begin to run here under an epoch. `running` is that of its instance here.
    ///
    /// # Errors
    /// It may not.
    pub fn admit(&self, name: &str, id: &str, running: u64, asked: u64) -> Result<(), OldEpoch> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ended.get(id).copied().unwrap_or(0).max(running);
        if asked > known { Ok(()) } else { Err(OldEpoch { name: name.to_owned(), known, asked }) }
    }

    /// Notes that a service has ended here. A standby never ran: its epoch is 0.
    ///
    /// # Errors
    /// The file cannot be written; until this agent ends it is known all the same.
    pub fn ended(&self, id: &str, epoch: u64) -> std::io::Result<()> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let known = ended.get(id).copied().unwrap_or(0);
        if epoch <= known {
            return Ok(());
        }
        ended.insert(id.to_owned(), epoch);
        write_atomically(&self.path, &serde_json::to_vec(&*ended)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_does_not_begin_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.json");
        let epochs = Epochs::open(&path).unwrap();
        assert_eq!(epochs.admit("p", "1", 0, 1), Ok(()));
        assert!(epochs.admit("p", "1", 0, 0).is_err(), "no service has epoch 0");
        epochs.ended("1", 3).unwrap();
        epochs.ended("1", 2).unwrap();
        epochs.ended("2", 0).unwrap();
        let epochs = Epochs::open(&path).unwrap();
        for asked in 0..=3 {
            let refused = OldEpoch { name: "p".into(), known: 3, asked };
            assert_eq!(epochs.admit("p", "1", 0, asked), Err(refused));
        }
        assert_eq!(epochs.admit("p", "1", 0, 4), Ok(()));
        assert!(epochs.admit("p", "1", 4, 4).is_err(), "it runs under it already");
        assert_eq!(epochs.admit("p", "2", 0, 1), Ok(()), "another service of that name");
        std::fs::write(&path, "?").unwrap();
        assert!(Epochs::open(&path).is_err());
    }
}
