//! A move, as pure logic: no I/O, no clock, no threads.
//!
//! 1. [`phase`]: the one table of phases: who does what, how long it may take, and what a failure
//!    in it leaves behind.
//! 2. [`machine`]: `step(state, event, now) -> actions`, the order of things in a move.
//! 3. [`precopy`]: when to stop copying pages of a running service and drain it.
//! 4. [`log`]: the times and bytes of each phase, which the commands print and the timeline draws.

pub mod log;
pub mod machine;
pub mod phase;
pub mod precopy;

pub use log::{PhaseLog, PhaseRecord};
pub use machine::{Action, Event, Machine, Outcome};
pub use phase::{Phase, TABLE};
