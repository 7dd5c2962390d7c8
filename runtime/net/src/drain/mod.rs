//! The drain: a zero window to every peer, until what was in flight has arrived.
//!
//! ```text
//!          begin, quiet                        answered, all acknowledged
//!   Told ◀────────────── (none) ──────▶ Asked ──────────────────────────▶ Settled
//!                                        │ ▲                                 ▲
//!                               answered │ │ timer: barrier again            │ all acknowledged
//!                                        ▼                                   │
//!                                     Answered ──────────────────────────────┤
//!                                        │                                   │
//!                                        │ answered again, still not         │
//!                                        ▼ all acknowledged                  │
//!                                      Owing ────────────────────────────────┘
//! ```
//!
//! A peer is *asked* by the barrier, one octet at SND.UNA - 1 that it acknowledged long ago: it
//! answers at once, and because segments stay in order on most paths, its answer proves that all it
//! had sent before has arrived. A D-SACK (RFC 2883) for exactly that octet is proof by itself. A peer
//! that sends none answers with a bare ACK, which could also be one already on its way; at most one
//! of those is to be expected, so two of them are taken as proof, and four of those that report a
//! hole.
//!
//! A peer that has been *quiet*, with nothing under way in either direction, is told the zero window and not
//! asked (`Told`): there is nothing of which its answer could be evidence. What it begins to send in this very
//! moment is what any peer may send that has not read the window yet: it is taken here, or held for the
//! service elsewhere. So a drain costs an idle connection one frame, and a peer that has vanished without
//! a word is not waited for.
//!
//! What is lost in the drain is repaired by TCP after it: the drain is for speed, never for
//! correctness.

mod peer;
mod run;

pub(crate) use peer::{Answer, Peer, Phase};
pub(crate) use run::Run;
pub use run::{DrainStatus, Drained};
