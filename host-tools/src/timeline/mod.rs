//! A move as a picture: an SVG with a lane for each host and a bar for each phase.
//!
//! Phases differ in length by a factor of a thousand (a boot against a freeze), so there are two
//! rulers: the whole move above, and below it the time from the drain to the resume, drawn to its own
//! scale. The frozen interval, in which nobody serves, is marked in both.

pub mod draw;

pub use draw::{rulers, svg};
