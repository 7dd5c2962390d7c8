//! The page stream between the agents of a move.
//!
//! 1. [`frame`]: length-bounded, checksummed frames on a byte stream.
//! 2. [`message`]: what the two agents tell each other.
//! 3. [`pages`]: runs of pages in a frame, read from one memory file and written into another.
//! 4. [`sent`]: copies of the pages that were sent, for what has changed in them.
//! 5. [`digest`]: both sides' running digest over (page number, content), compared at the end.
//! 6. [`link`]: the two ends of the connection.

pub mod digest;
pub mod frame;
pub mod link;
pub mod message;
pub mod pages;
pub mod sent;

pub use digest::PageDigest;
pub use frame::FrameError;
pub use link::{Link, LinkError};
pub use message::{FromDestination, FromSource};
