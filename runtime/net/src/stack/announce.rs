//! After a move: the network learns where the service is now, and peers that their windows are open.
//!
//! Nothing says that an announcement has arrived. A service whose peers all wait for it says nothing by itself, and
//! where switches send what is for it to its old host, its peers ask in vain. So it is repeated for as long as
//! switches and hosts remember, and the loss of all the first ones, by a cable that was unplugged for some seconds,
//! costs seconds and no more.

use smoltcp::time::{Duration, Instant};

use super::Stack;
use crate::device::{fin, probe};
use crate::link::Nic;
use crate::table::connection::Connection;
use crate::table::established::ConnId;

/// Connections announced in one turn.
const TURN_ANNOUNCED: usize = 64;
/// Gratuitous ARPs after the first: the time before each, and whether peers not heard since get their window
/// update again with it. Together two minutes.
const REPEATS: [(Duration, bool); 11] = [
    (Duration::from_millis(50), true),
    (Duration::from_millis(150), false),
    (Duration::from_millis(500), false),
    (Duration::from_secs(1), true),
    (Duration::from_secs(2), true),
    (Duration::from_secs(4), true),
    (Duration::from_secs(8), true),
    (Duration::from_secs(16), true),
    (Duration::from_secs(32), false),
    (Duration::from_secs(32), false),
    (Duration::from_secs(32), false),
];

impl Stack {
    /// What is left of an announcement, a part of it in a turn; `true` if the ring is full.
    pub(super) fn announce(&mut self, nic: &mut impl Nic) -> bool {
        self.announce_up_to(TURN_ANNOUNCED, nic)
    }

    pub(super) fn announce_up_to(&mut self, most: usize, nic: &mut impl Nic) -> bool {
        if let Some((at, sent)) = self.announced.filter(|_| self.announced_at().is_some())
            && at <= self.now
        {
            if !self.link.announce(nic) {
                return true;
            }
            let repeat = |number: u8| REPEATS.get(usize::from(number));
            self.announced = repeat(sent).map(|&(interval, _)| (self.now + interval, sent + 1));
            if sent.checked_sub(1).and_then(repeat).is_some_and(|&(_, updates)| updates) {
                self.announce_again();
            }
        }
        self.announce_connections(most, nic)
    }

    /// When the announcement is repeated. Not while windows are closed for a drain: what follows it is announced
    /// elsewhere.
    pub(super) fn announced_at(&self) -> Option<Instant> {
        self.announced.map(|(at, _)| at).filter(|_| self.quiet.is_none())
    }

    /// A window update that was lost leaves a peer to its persist timer, so those not heard since get
    /// it once more. What the card had held was sent before.
    fn announce_again(&mut self) {
        let silent = |id: &ConnId| {
            self.established.get(*id).is_some_and(|connection| {
                connection.synchronised() && connection.flow.heard <= self.resumed_at
            })
        };
        let ids: alloc::vec::Vec<_> = self.established.ids().filter(silent).collect();
        for id in ids {
            if let Some(connection) = self.established.get_mut(id) {
                connection.flow.closed = true;
            }
            self.to_announce.push_back(id);
        }
    }

    fn announce_connections(&mut self, most: usize, nic: &mut impl Nic) -> bool {
        for _ in 0..most {
            let Some(&id) = self.to_announce.front() else { break };
            if !self.announce_one(id, nic) {
                return true;
            }
            self.to_announce.pop_front();
        }
        false
    }

    /// The window update, and where something of ours is unacknowledged an octet that makes the peer
    /// say how far it has come; `false` if the ring is full. Data that leaves anyway says the window too.
    fn announce_one(&mut self, id: ConnId, nic: &mut impl Nic) -> bool {
        let now = self.now;
        let reads_zero = |connection: &&mut Connection| connection.flow.closed;
        let Some(connection) = self.established.get_mut(id).filter(reads_zero) else { return true };
        if connection.flow.all_acknowledged() && connection.socket().send_queue() > 0 {
            if !nic.transmit_ready() {
                return false;
            }
            self.send_one(id, nic);
        }
        let Some(connection) = self.established.get_mut(id).filter(reads_zero) else { return true };
        // With data that does not leave, the peer has no room: it may have made some meanwhile.
        let settled = connection.flow.all_acknowledged() && connection.socket().send_queue() == 0;
        if !self.acknowledge_now(id, nic) {
            return false;
        }
        if settled {
            return true;
        }
        if let Some(connection) = self.established.get_mut(id) {
            connection.flow.probed(now);
        }
        self.elicit(id, nic)
    }

    /// Makes a peer say how far it has come: by an octet it has, or by our FIN once more if nothing
    /// else is outstanding; `false` if the ring is full.
    pub(super) fn elicit(&mut self, id: ConnId, nic: &mut impl Nic) -> bool {
        if !nic.transmit_ready() {
            return false;
        }
        let Some(connection) = self.established.get(id) else { return true };
        let (flow, local) = (&connection.flow, self.link.ip());
        let dst = flow.tuple.remote_addr();
        if connection.only_fin_outstanding() {
            self.send_raw(nic, dst, &fin(&connection.flow, local));
        } else {
            let (packet, _) = probe(flow, local, flow.last_window);
            self.send_raw(nic, dst, &packet);
        }
        true
    }
}
