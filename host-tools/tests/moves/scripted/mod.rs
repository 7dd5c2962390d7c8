//! A manager, agents, and guests that play a script: processes, all of which can be killed.
//!
//! 1. [`qemu`]: what the agents start in QEMU's place: it speaks QMP and the control protocol, keeps
//!    its memory in the file it is given, and does what its script says when an order comes.
//! 2. [`switch`]: what the agents plug their guests into.
//! 3. [`world`]: manager, agents, and the real `host-tools` command.
//! 4. [`random`]: numbers that a seed repeats.
//! 5. [`mishap`]: daemons that are killed in the midst of a command.

pub mod mishap;
pub mod qemu;
pub mod random;
pub mod switch;
pub mod world;
