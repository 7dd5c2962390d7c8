//! After a move the service is slow at first: its code is new to the processor, or has still to be translated.
//!
//! What a peer sends while the service works waits in the card until the work is done, and a peer that hears nothing for
//! two of its round trips and some milliseconds sends its last segment again (tail loss probe, RFC 8985 §7.2). So after
//! a resume the first window update of each connection waits until the service does: what has arrived is acknowledged,
//! and nothing is in flight meanwhile. The peer loses the time in which its segments would have waited.

use alloc::vec::Vec;
use smoltcp::time::{Duration, Instant};

use super::{Progress, Stack};
use crate::link::Nic;
use crate::table::established::ConnId;

/// Longest wait: a service that is never done keeps its peers waiting for less than their persist timers take (200 ms
/// and more).
const LIMIT: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// How often this service was resumed.
    resumes: u32,
    /// The turn under way is one in the middle of the service's work.
    at_work: bool,
    /// Connections whose updates wait, and since when the first does.
    withheld: Vec<ConnId>,
    since: Option<Instant>,
}

impl Cold {
    /// The service goes on elsewhere.
    pub fn resumed(&mut self) {
        self.resumes = self.resumes.wrapping_add(1);
    }
}

impl Stack {
    /// As [`poll`](Self::poll), in the middle of the service's work.
    pub fn poll_at_work(&mut self, now: Instant, nic: &mut impl Nic) -> Progress {
        if self.cold.since.is_some_and(|since| since + LIMIT <= now) {
            self.release_updates();
        }
        self.cold.at_work = true;
        let progress = self.turn(now, nic);
        self.cold.at_work = false;
        progress
    }

    /// Whether all that a connection has to send is a window update that waits.
    pub(super) fn withholds(&mut self, id: ConnId) -> bool {
        let Some(connection) = self.established.get_mut(id).filter(|_| self.cold.at_work) else {
            return false;
        };
        if connection.warm == self.cold.resumes || !connection.nothing_under_way() {
            return false;
        }
        if !connection.withheld {
            connection.withheld = true;
            self.cold.withheld.push(id);
            self.cold.since.get_or_insert(self.now);
        }
        true
    }

    /// The service waits: so need no window update any more.
    pub(super) fn release_updates(&mut self) {
        self.cold.since = None;
        for id in core::mem::take(&mut self.cold.withheld) {
            if let Some(connection) = self.established.get_mut(id) {
                (connection.withheld, connection.warm) = (false, self.cold.resumes);
                self.mark_ready(id);
            }
        }
    }
}
