//! The page stream between the agents of a move.
//!
//! 1. [`frame`]: length-bounded, checksummed frames on a byte stream.
//! 2. [`pack`]: how pages are packed in a frame.
//! 3. [`message`]: what the two agents tell each other.
//! 4. [`pages`]: runs of pages in a frame, read from one memory file and written into another.
//! 5. [`sent`]: copies of the pages that were sent, for what has changed in them.
//! 6. [`digest`]: both sides' running digest over (page number, content), compared at the end.
//! 7. [`link`]: the two ends of the connection.

pub mod digest;
pub mod frame;
pub mod link;
pub mod message;
pub mod pack;
pub mod pages;
pub mod sent;

pub use digest::PageDigest;
pub use frame::FrameError;
pub use link::{Link, LinkError};
pub use message::{FromDestination, FromSource};
