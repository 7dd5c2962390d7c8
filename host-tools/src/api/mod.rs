//! What manager, agents and commands say to each other: JSON over HTTP/1.1.
//!
//! 1. [`spec`]: a service and where it comes from.
//! 2. [`types`]: bodies of requests and answers.
//! 3. [`relocation`]: bodies about moving many services at once.
//! 4. [`check`]: bodies about whether a service could be moved.
//! 5. [`sleep`]: bodies that concern suspended services.
//! 6. [`watch`]: bodies about seeing what happens.
//! 7. [`error`]: the one form in which a request fails, with its HTTP status and exit code.
//! 8. [`mod@client`] asks, [`request`] serves what was asked.

pub mod check;
pub mod client;
pub mod error;
pub mod relocation;
pub mod request;
pub mod sleep;
pub mod spec;
pub mod types;
pub mod watch;

pub use client::Client;
pub use error::{ApiError, Problem};
pub use relocation::{RelocateEvent, RelocateRequest};
pub use sleep::*;
pub use spec::{Digest32, ImageRef, ServiceSpec};
pub use types::*;
pub use watch::{Overview, SeenMove, SeenService, WatchEvent};
