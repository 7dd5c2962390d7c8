//! What manager, agents and commands say to each other: JSON over HTTP/1.1.
//!
//! 1. [`spec`]: a service and where it comes from.
//! 2. [`types`]: bodies of requests and answers.
//! 3. [`sleep`]: bodies that concern suspended services.
//! 4. [`error`]: the one form in which a request fails, with its HTTP status and exit code.
//! 5. [`mod@client`] asks.

pub mod client;
pub mod error;
pub mod sleep;
pub mod spec;
pub mod types;

pub use client::Client;
pub use error::{ApiError, Problem};
pub use sleep::*;
pub use spec::{Digest32, ImageRef, ServiceSpec};
pub use types::*;
