//! What manager, agents and commands say to each other: JSON over HTTP/1.1.
//!
//! 1. [`spec`]: a service and where it comes from.
//! 2. [`types`]: bodies of requests and answers.
//! 3. [`relocation`]: bodies about moving many services at once.
//! 4. [`watch`]: bodies about seeing what happens.
//! 5. [`error`]: the one form in which a request fails, with its HTTP status and exit code.
//! 6. [`mod@client`] asks.

pub mod client;
pub mod error;
pub mod relocation;
pub mod spec;
pub mod types;
pub mod watch;

pub use client::Client;
pub use error::{ApiError, Problem};
pub use relocation::{RelocateEvent, RelocateRequest};
pub use spec::{Digest32, ImageRef, ServiceSpec};
pub use types::*;
pub use watch::{Overview, SeenMove, SeenService, WatchEvent};
