//! A drain as a whole: who has still to be told, who is still waited for.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use smoltcp::time::Instant;

use crate::table::established::ConnId;
use crate::table::timers::Timers;

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections in a synchronised state.
    pub connections: u32,
    /// Those whose peer answered the barrier and acknowledged all we had sent, or was quiet, with nothing under
    /// way.
    pub settled: u32,
    /// Time since the drain began, in microseconds.
    pub elapsed_us: u32,
    /// It ended at its deadline, not on evidence.
    pub timed_out: bool,
}

/// Where a drain stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainStatus {
    /// Call again when a frame arrives, at the latest at this moment.
    Pending(Instant),
    /// Every peer is settled, or the deadline has passed. Frames that still arrive are taken and
    /// acknowledged with a zero window as long as the stack is polled.
    Done(Drained),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Run {
    pub started: Instant,
    pub deadline: Instant,
    /// Connections to close the window of and to ask.
    pub to_ask: VecDeque<ConnId>,
    /// Connections that owe an acknowledgement for what arrived.
    pub to_ack: Vec<ConnId>,
    pub timers: Timers,
    pub connections: u32,
    /// Those not done yet.
    pub open: u32,
}

impl Run {
    pub fn new(started: Instant, deadline: Instant) -> Self {
        Self {
            started,
            deadline,
            to_ask: VecDeque::new(),
            to_ack: Vec::new(),
            timers: Timers::default(),
            connections: 0,
            open: 0,
        }
    }

    /// When something has to be done if no frame arrives. Past the deadline the mover has been told.
    pub fn poll_at(&self, now: Instant) -> Option<Instant> {
        let deadline = (now < self.deadline).then_some(self.deadline);
        [self.timers.next(), deadline].into_iter().flatten().min()
    }
}
