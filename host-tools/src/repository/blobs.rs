//! Files addressed by content.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

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

/// A file that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest32,
    /// When it was last put.
    pub modified: SystemTime,
}

/// A directory of files named by their digests.
#[derive(Clone, Debug)]
pub struct Blobs {
    directory: PathBuf,
    /// Held by who writes, so that nothing is removed for its age while it is put again.
    writing: Arc<Mutex<()>>,
}

impl Blobs {
    /// Opens or makes the directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| BlobError::Io { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned(), writing: Arc::default() })
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
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let written = if self.get(&digest).is_ok() {
            // Its age counts from now.
            File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
        } else {
            write_atomically(&path, bytes)
        };
        written.map_err(|source| BlobError::Io { path, source })?;
        Ok(digest)
    }

    /// All files whose names are digests.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Stored>, BlobError> {
        let failed = |source| BlobError::Io { path: self.directory.clone(), source };
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(Ok(digest)) = entry.file_name().to_str().map(str::parse) else { continue };
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            match modified {
                Ok(modified) => all.push(Stored { digest, modified }),
                // It was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(all)
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

    /// Removes a file that was last put before `then`. Returns whether it was.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_older(&self, digest: &Digest32, then: SystemTime) -> Result<bool, BlobError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let modified = std::fs::metadata(self.path(digest)).and_then(|it| it.modified());
        let is_older = modified.is_ok_and(|modified| modified < then);
        if is_older { self.remove(digest).map(|()| true) } else { Ok(false) }
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
        std::fs::write(dir.path().join("b/names.json"), "{}").unwrap();
        let digests: Vec<_> = blobs.list().unwrap().iter().map(|stored| stored.digest).collect();
        assert_eq!(digests, [digest]);
        let long_ago = SystemTime::UNIX_EPOCH;
        let file = File::options().write(true).open(blobs.path(&digest)).unwrap();
        file.set_modified(long_ago).unwrap();
        assert_eq!(blobs.list().unwrap()[0].modified, long_ago);
        blobs.put(b"content").unwrap();
        let put = blobs.list().unwrap()[0].modified;
        assert!(put > long_ago);
        assert!(!blobs.remove_older(&digest, put).unwrap());
        assert_eq!(blobs.get(&digest).unwrap(), b"content");
        assert!(blobs.remove_older(&digest, put + std::time::Duration::from_nanos(1)).unwrap());
        blobs.remove(&digest).unwrap();
        assert!(matches!(blobs.get(&digest), Err(BlobError::NotFound { .. })));
    }
}
