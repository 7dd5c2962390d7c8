//! Around a move: what acknowledges a stream waits for a moment, so that its peer is used to waiting.
//!
//! A peer with data in flight that hears nothing for two of its round trips and 2 ms sends its last segment again
//! (tail loss probe, RFC 8985 §7.2; Linux counts in its timer's ticks). On a short path that is less than a processor
//! may be busy elsewhere while a standby boots and pages are copied, so nothing was lost and the probe is for nothing.
//! A round trip that is a millisecond longer gives the peer several milliseconds more of patience.
//!
//! Only bulk waits: where less is to be acknowledged smoltcp has its own delay, segments around a hole are answered
//! where they are taken in, and data that leaves carries the acknowledgement with it, all of it as ever. A drain
//! acknowledges by itself. RFC 9293 §3.8.6.3 bounds a delay by 500 ms. While it lasts a peer that fills its window
//! sends at most one window in [`WAIT`].

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

use super::Stack;
use crate::table::connection::Connection;
use crate::table::established::ConnId;

/// How long an acknowledgement waits.
const WAIT: Duration = Duration::from_millis(1);
/// Octets not yet acknowledged that make bulk: two segments of an Ethernet (RFC 9293 §3.8.6.3, SHLD-18).
const BULK: usize = 2 * 1460;
/// How long the host has still to do with a move that is over for the service: the source ends, its memory is freed.
pub(super) const SETTLING: Duration = Duration::from_secs(1);

impl Stack {
    /// Lets acknowledgements of bulk wait from now on for `span`; no longer with zero, or when a move is undone.
    pub fn delay_acks(&mut self, now: Instant, span: Duration) {
        self.now = now;
        self.late_until = now + span;
    }

    /// Whether all a connection has to send is an acknowledgement that waits; it comes up again when that is due.
    pub(super) fn waits(&mut self, id: ConnId) -> bool {
        let (now, late) = (self.now, self.now < self.late_until);
        let Some(connection) = self.established.get_mut(id) else { return false };
        if !late || !is_bulk(connection) {
            connection.ack_at = None;
            return false;
        }
        let at = *connection.ack_at.get_or_insert(now + WAIT);
        if at <= now {
            connection.ack_at = None;
            return false;
        }
        self.arm(id, at);
        true
    }
}

/// Whether a connection has nothing to say but that much has been received.
fn is_bulk(connection: &Connection) -> bool {
    let (flow, socket) = (&connection.flow, connection.socket());
    socket.state() == State::Established && socket.send_queue() == 0 && flow.owed() >= BULK
}
