//! The network of a movable service: TCP over one IPv4 address, without I/O of its own.
//!
//! Frames, time and randomness come in as arguments; what a [`Stack`] owns is plain heap data, so a
//! move copies it byte for byte and it goes on elsewhere. The layers, in the order a frame meets them:
//!
//! 1. [`link`]: Ethernet and ARP; the neighbour table.
//! 2. [`device`]: the device below smoltcp. Here each connection's sequence numbers are followed,
//!    and here the window is closed in a drain.
//! 3. [`table`]: the bind table and the established table; one smoltcp socket per connection, found
//!    by hash, driven alone.
//! 4. [`drain`]: zero window, barrier, in-flight data in; ends on evidence.
//! 5. [`stack`]: the facade, with sockets for the service and drain, thaw and resume for the mover.
//!
//! [`understudy`] is a peer for rehearsals. smoltcp does TCP itself, unmodified.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod device;
pub mod drain;
mod hash;
pub mod link;
pub mod stack;
pub mod table;
pub mod understudy;

pub use drain::{DrainStatus, Drained};
pub use link::{MAX_FRAME_LEN, Nic};
pub use smoltcp::time::{Duration, Instant};
pub use stack::{Config, ConnectError, ListenError, Progress, Resumed, Stack, StreamError};
pub use table::bind::MAX_HALF_OPEN;
pub use table::connection::{Buffers, Storage};
pub use table::established::ConnId;
