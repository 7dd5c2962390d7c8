//! What services are made of, addressed by content: a file is stored under the BLAKE3 of its bytes,
//! and checked against it when it is read.
//!
//! 1. [`blobs`]: the files.
//! 2. [`images`]: the service repository: names and tags for images.
//!
//! The workspace repository is the same blobs for snapshots, without names.

pub mod blobs;
pub mod images;

pub use blobs::{BlobError, Blobs, Stored};
pub use images::{ImageName, Images};
