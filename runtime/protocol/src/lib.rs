//! What a guest and its host agree on, in one small `no_std` crate.
//!
//! In the order in which data meets it:
//!
//! 1. [`layout`]: where the portable region lies in guest RAM, and the header at its start.
//! 2. [`frame`]: how bytes on the control port become frames: magic, version, length, CRC-32,
//!    all checked before a byte of the payload is decoded.
//! 3. [`control`]: the orders an agent gives a guest and the answers it gets.
//! 4. [`mark`]: the frame up to which a guest takes frames in before it is captured.
//! 5. [`snapshot`]: the fixed header of a snapshot file.
//!
//! Nothing in here does I/O, and every decoder takes bytes from a side it does not trust.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod control;
pub mod frame;
pub mod layout;
pub mod mark;
pub mod snapshot;
