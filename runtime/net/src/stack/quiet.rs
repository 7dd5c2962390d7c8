//! Before a drain: the windows of quiet peers are closed while the service runs for the others.
//!
//! A drain stops the service, and a frame to each of ten thousand connections takes a while. Most of them say nothing
//! for minutes. So those are told first, a few in each turn of the stack, and whoever is being served waits
//! for none of it. It changes nothing else: whatever is sent on such a connection meanwhile shows its true
//! window again, as does the answer to a peer's probe, and the drain then takes it for one of the busy.

use alloc::collections::VecDeque;
use smoltcp::time::{Duration, Instant};

use super::Stack;
use crate::device::Window;
use crate::drain::{Peer, Phase};
use crate::link::Nic;
use crate::table::connection::Connection;
use crate::table::established::ConnId;

/// Peers told in one turn: 0.2 ms of it.
const TURN_TOLD: usize = 32;
/// The windows are opened again when no drain has begun for so long: whoever wanted one is gone.
const LIMIT: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Quiet {
    to_tell: VecDeque<ConnId>,
    told: u32,
    /// Somebody wants to know when all have been told.
    asked: bool,
    until: Instant,
}

impl Quiet {
    /// When the windows are opened again.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether somebody is still to be told.
    pub fn tells(&self) -> bool {
        !self.to_tell.is_empty()
    }
}

/// What a drain at `now` would make of a connection.
pub(super) fn drained(connection: &Connection, now: Instant) -> Peer {
    let flow = &connection.flow;
    match connection.nothing_under_way() {
        true => Peer::with_nothing_under_way(flow.sack_permitted, flow.srtt, now - flow.heard),
        false => Peer::new(flow.sack_permitted, flow.srtt),
    }
}

impl Stack {
    /// Begins to close the windows of quiet peers, of whom a drain is to follow soon. The service runs on.
    pub fn close_quiet(&mut self, now: Instant) {
        self.now = now;
        if !self.running() {
            return;
        }
        let quiet = |id: &ConnId| {
            self.established
                .get(*id)
                .is_some_and(|it| it.synchronised() && drained(it, now).quiet())
        };
        let to_tell = self.established.ids().filter(quiet).collect();
        self.quiet = Some(Quiet { to_tell, told: 0, asked: true, until: now + LIMIT });
    }

    /// How many have been told, once: when all have.
    pub fn quiet_closed(&mut self) -> Option<u32> {
        let quiet = self.quiet.as_mut().filter(|quiet| quiet.asked && !quiet.tells())?;
        quiet.asked = false;
        Some(quiet.told)
    }

    /// Tells the next few; `true` if the ring is full.
    pub(super) fn tell_quiet(&mut self, nic: &mut impl Nic) -> bool {
        let Some(mut quiet) = self.quiet.take() else { return false };
        for _ in 0..TURN_TOLD {
            let Some(&id) = quiet.to_tell.front() else { break };
            let now = self.now;
            let peer = self
                .established
                .get(id)
                .filter(|it| it.synchronised())
                .map(|connection| drained(connection, now));
            if let Some(mut peer) = peer.filter(Peer::quiet) {
                if !self.show_window(id, Window::Closed, nic) {
                    self.quiet = Some(quiet);
                    return true;
                }
                peer.told();
                if let Some(connection) = self.established.get_mut(id) {
                    connection.drain = Some(peer);
                    quiet.told += 1;
                }
            }
            quiet.to_tell.pop_front();
        }
        if quiet.tells() || self.now < quiet.until {
            self.quiet = Some(quiet);
        } else {
            self.open_quiet();
        }
        false
    }

    fn open_quiet(&mut self) {
        let ids: alloc::vec::Vec<_> = self.established.ids().collect();
        for id in ids {
            if let Some(connection) = self.established.get_mut(id)
                && connection.drain.take().is_some()
            {
                self.to_announce.push_back(id);
            }
        }
    }
}

/// Whether a connection's peer was told before the drain, and has not read another window since.
pub(super) fn told(connection: &Connection) -> bool {
    connection.drain.as_ref().is_some_and(|peer| peer.phase() == Phase::Told)
        && connection.flow.closed
        && connection.nothing_under_way()
}
