//! Faults in the middle of a move: what a seed chooses, what the wire shows, and what may not be.
//!
//! 1. [`plan`]: the faults of a run, a pure function of its seed.
//! 2. [`wire`]: from which host each frame of a service came, read off a capture at the lab's switch.
//! 3. [`verdict`]: whether what was observed after a run keeps Ferry's promises.
//!
//! What does things to processes and links is `tests/faults`.

pub mod plan;
pub mod verdict;
pub mod wire;
