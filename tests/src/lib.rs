//! What Ferry's tests and its demonstration are made of.
//!
//! - [`pattern`]: bytes that both ends can make from a number.
//! - [`gap`]: how long a client waits without progress.
//! - [`client`]: the clients of `ferry-client`: ordinary Linux TCP, every byte checked.
//! - [`faults`]: what a seed does to a move, and the verdict on what came of it.
//! - [`trace`]: what a move looks like on the wire, checked against TCP's rules.
//! - [`harness`]: a lab of its own for each test, services in it, clients, counters, captures.

pub mod client;
pub mod faults;
pub mod gap;
pub mod harness;
pub mod pattern;
pub mod trace;
