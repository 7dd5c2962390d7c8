//! What Ferry's tests and its demonstration are made of.
//!
//! - [`pattern`]: bytes that both ends can make from a number.
//! - [`gap`]: how long a client waits without progress.
//! - [`client`]: the clients of `ferry-client`: ordinary Linux TCP, every byte checked.

pub mod client;
pub mod gap;
pub mod pattern;
