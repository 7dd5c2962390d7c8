//! What a member keeps: one file that only its owner reads.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::secret;

/// A key, a certificate for it, and what the other side is recognised by.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Who they are of.
    #[serde(flatten)]
    pub identity: Identity,
    /// Where the manager listens, if it was said.
    pub manager: Option<String>,
    /// The authority's certificate, in PEM.
    pub ca: String,
    /// The member's certificate, in PEM.
    pub certificate: String,
    /// When the certificate ends, in microseconds since the Unix epoch, if it was noted.
    #[serde(default)]
    pub expires_us: Option<u64>,
    /// Its key, in PEM.
    pub key: String,
    /// Public key that images are signed with, in base64.
    pub image_key: String,
    /// Key that snapshots are sealed with, in base64; manager and agents have it.
    pub seal_key: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.identity)
    }
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum CredentialsError {
    #[error("there is no file {path} with credentials")]
    NotFound { path: PathBuf },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} holds no credentials: {reason}")]
    Unreadable { path: PathBuf, reason: String },
}

impl Credentials {
    /// Reads them.
    ///
    /// # Errors
    /// There are none, or others can read them.
    pub fn load(path: &Path) -> Result<Self, CredentialsError> {
        let path = path.to_owned();
        match secret::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| CredentialsError::Unreadable { path, reason: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(CredentialsError::NotFound { path })
            }
            Err(source) => Err(CredentialsError::File { path, source }),
        }
    }

    /// Writes them, whole or not at all.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), CredentialsError> {
        let file = |source| CredentialsError::File { path: path.to_owned(), source };
        let json = serde_json::to_vec_pretty(self).map_err(|error| file(error.into()))?;
        if let Some(parent) = path.parent() {
            secret::make_directory(parent).map_err(file)?;
        }
        secret::write(path, &json).map_err(file)
    }
}

/// Where the commands look for the user's credentials: `$XDG_CONFIG_HOME/ferry/credentials.json`, else
/// the same below `$HOME/.config`.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let config = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config")))?;
    Some(config.join("ferry/credentials.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::identity::Role;

    #[test]
    fn written_and_read_back_and_never_shown() {
        let identity = Identity { cluster: "c".into(), role: Role::View, name: "n".into() };
        let credentials = Credentials {
            identity,
            manager: Some("10.0.0.1:1".into()),
            ca: "CA".into(),
            certificate: "CERT".into(),
            expires_us: Some(7),
            key: "SECRET".into(),
            image_key: "IK".into(),
            seal_key: None,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/credentials.json");
        credentials.store(&path).unwrap();
        assert_eq!(Credentials::load(&path).unwrap(), credentials);
        assert_eq!(format!("{credentials:?}"), "Credentials(ferry://c/view/n)");
        assert!(matches!(
            Credentials::load(dir.path().join("none").as_path()),
            Err(CredentialsError::NotFound { .. })
        ));
    }
}
