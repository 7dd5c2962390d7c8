//! Files addressed by content.

use std::io;
use std::path::{Path, PathBuf};

use crate::api::Digest32;
use crate::snapshot::file::write_atomically;

/// Why a file was not stored or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum BlobError {
    #[error("nothing with the digest {digest} is stored here")]
    NotFound { digest: Digest32 },
    #[error("the file stored as {digest} has been changed since: it is not used")]
    Changed { digest: Digest32 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A directory of files named by their digests.
#[derive(Clone, Debug)]
pub struct Blobs {
    directory: PathBuf,
}

impl Blobs {
    /// Opens or makes the directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| BlobError::Io { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where the file with this digest lies, if it does.
    #[must_use]
    pub fn path(&self, digest: &Digest32) -> PathBuf {
        self.directory.join(digest.to_string())
    }

    /// Stores bytes durably; returns their digest. Storing the same again changes nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest32, BlobError> {
        let digest = Digest32::of(bytes);
        let path = self.path(&digest);
        if self.get(&digest).is_err() {
            write_atomically(&path, bytes).map_err(|source| BlobError::Io { path, source })?;
        }
        Ok(digest)
    }

    /// Reads a file and checks it.
    ///
    /// # Errors
    /// It is not there, or no longer what it was.
    pub fn get(&self, digest: &Digest32) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BlobError::NotFound { digest: *digest },
            _ => BlobError::Io { path, source },
        })?;
        if Digest32::of(&bytes) == *digest {
            Ok(bytes)
        } else {
            Err(BlobError::Changed { digest: *digest })
        }
    }

    /// Removes a file. No error if it is not there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, digest: &Digest32) -> Result<(), BlobError> {
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(BlobError::Io { path, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_not_used_and_can_be_put_again() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(&dir.path().join("b")).unwrap();
        let digest = blobs.put(b"content").unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), b"content");
        std::fs::write(blobs.path(&digest), b"other").unwrap();
        assert!(matches!(blobs.get(&digest), Err(BlobError::Changed { .. })));
        assert_eq!(blobs.put(b"content").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap(), b"content");
        blobs.remove(&digest).unwrap();
        blobs.remove(&digest).unwrap();
        assert!(matches!(blobs.get(&digest), Err(BlobError::NotFound { .. })));
    }
}
