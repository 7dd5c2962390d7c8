//! The service repository: images under names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use super::{BlobError, Blobs};
use crate::api::spec::check_name;
use crate::api::{ApiError, Digest32, Image, ImageRef, now_us};
use crate::qemu::ImageInfo;
use crate::snapshot::file::write_atomically;

/// `name[:tag]`; the tag is `latest` unless given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName(String);

impl FromStr for ImageName {
    type Err = crate::api::spec::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        check_name(name)?;
        check_name(tag)?;
        Ok(Self(format!("{name}:{tag}")))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Images and their names. The names lie in one JSON file that is replaced as a whole.
#[derive(Debug)]
pub struct Images {
    blobs: Blobs,
    index_path: PathBuf,
    index: Mutex<BTreeMap<String, Image>>,
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::NotFound { .. } => Self::not_found(error.to_string()),
            _ => Self::failed(error),
        }
    }
}

impl Images {
    /// Opens or makes the repository in `directory`.
    ///
    /// # Errors
    /// The directory or the list of names cannot be read.
    pub fn open(directory: &Path) -> Result<Self, ApiError> {
        let blobs = Blobs::open(directory)?;
        let index_path = directory.join("names.json");
        let index = match std::fs::read(&index_path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ApiError::failed(format!("{}: {error}", index_path.display())))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                return Err(ApiError::failed(format!("{}: {error}", index_path.display())));
            }
        };
        Ok(Self { blobs, index_path, index: Mutex::new(index) })
    }

    /// Stores an image under a name, which then no longer means what it meant before.
    ///
    /// # Errors
    /// The bytes are no image, or cannot be stored.
    pub fn push(&self, name: &ImageName, bytes: &[u8]) -> Result<Image, ApiError> {
        let info = ImageInfo::read(bytes).map_err(|error| ApiError::invalid(error.to_string()))?;
        let digest = self.blobs.put(bytes)?;
        let build_id = Digest32(info.build_id);
        let image = Image {
            image: ImageRef { name: name.to_string(), digest, build_id },
            bytes: bytes.len() as u64,
            pushed_us: now_us(),
        };
        self.change(|index| {
            index.insert(name.to_string(), image.clone());
        })?;
        Ok(image)
    }

    /// The image that a name or a digest means.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, text: &str) -> Result<ImageRef, ApiError> {
        let index = self.lock();
        let name = text.parse::<ImageName>().ok().map(|name| name.to_string());
        let by_name = name.and_then(|name| index.get(&name));
        let digest = text.parse::<Digest32>().ok();
        let by_digest = || index.values().find(|image| Some(image.image.digest) == digest);
        by_name.or_else(by_digest).map(|image| image.image.clone()).ok_or_else(|| {
            ApiError::not_found(format!("there is no image `{text}` in the service repository"))
                .hint(
                    "`host-tools image ls` lists them; `host-tools image push FILE NAME` adds one",
                )
        })
    }

    /// The image with this build id.
    #[must_use]
    pub fn find_build(&self, build_id: &Digest32) -> Option<ImageRef> {
        let index = self.lock();
        index
            .values()
            .find(|image| image.image.build_id == *build_id)
            .map(|image| image.image.clone())
    }

    /// An image's file.
    ///
    /// # Errors
    /// There is none with this digest.
    pub fn file(&self, digest: &Digest32) -> Result<Vec<u8>, ApiError> {
        Ok(self.blobs.get(digest)?)
    }

    /// All images, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Image> {
        self.lock().values().cloned().collect()
    }

    /// Takes a name away, and the file if no other name means it and `in_use` does not either.
    ///
    /// # Errors
    /// There is no such name.
    pub fn remove(
        &self,
        name: &ImageName,
        in_use: impl Fn(&Digest32) -> bool,
    ) -> Result<Image, ApiError> {
        let removed = self.change(|index| index.remove(&name.to_string()))?;
        let removed = removed.ok_or_else(|| {
            ApiError::not_found(format!("there is no image `{name}` in the service repository"))
        })?;
        let digest = removed.image.digest;
        let named = self.lock().values().any(|image| image.image.digest == digest);
        if !named && !in_use(&digest) {
            self.blobs.remove(&digest)?;
        }
        Ok(removed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Image>> {
        // A panic in a holder leaves the map whole: every change is one call on it.
        self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Image>) -> T,
    ) -> Result<T, ApiError> {
        let mut index = self.lock();
        let mut changed = index.clone();
        let result = change(&mut changed);
        let json = serde_json::to_vec_pretty(&changed).map_err(ApiError::failed)?;
        write_atomically(&self.index_path, &json).map_err(ApiError::failed)?;
        *index = changed;
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::image::tests::image;

    #[test]
    fn names_have_tags() {
        assert_eq!("p".parse::<ImageName>().unwrap().to_string(), "p:latest");
        assert_eq!("p:1.2".parse::<ImageName>().unwrap().to_string(), "p:1.2");
        for bad in ["", ":x", "p:", "p:x:y", "../x"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn push_find_and_remove() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path()).unwrap();
        let name: ImageName = "p".parse().unwrap();
        assert!(images.push(&name, b"no image").is_err());
        let pushed = images.push(&name, &image(&[5; 20])).unwrap().image;
        images.push(&"q:2".parse().unwrap(), &image(&[5; 20])).unwrap();
        assert_eq!(images.find("p").unwrap(), pushed);
        assert_eq!(images.find(&pushed.digest.to_string()).unwrap().digest, pushed.digest);
        assert_eq!(images.find_build(&pushed.build_id).unwrap().digest, pushed.digest);
        // The names are on the disk.
        assert_eq!(Images::open(dir.path()).unwrap().list().len(), 2);
        images.remove(&name, |_| false).unwrap();
        assert!(images.file(&pushed.digest).is_ok(), "q:2 still means it");
        images.remove(&"q:2".parse().unwrap(), |_| true).unwrap();
        assert!(images.file(&pushed.digest).is_ok(), "it is in use");
        assert!(images.find("p").is_err());
    }
}
