//! What manager, agents and commands say to each other: JSON over HTTP/1.1.
//!
//! 1. [`spec`]: a service and where it comes from.
//! 2. [`types`]: bodies of requests and answers.
//! 3. [`relocation`]: bodies about moving many services at once.
//! 4. [`check`]: bodies about whether a service could be moved.
//! 5. [`error`]: the one form in which a request fails, with its HTTP status and exit code.
//! 6. [`mod@client`] asks.

pub mod check;
pub mod client;
pub mod error;
pub mod relocation;
pub mod spec;
pub mod types;

pub use client::Client;
pub use error::{ApiError, Problem};
pub use relocation::{RelocateEvent, RelocateRequest};
pub use spec::{Digest32, ImageRef, ServiceSpec};
pub use types::*;
