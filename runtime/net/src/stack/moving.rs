//! Drain, thaw and resume.

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

use super::{Mode, Stack, quiet};
use crate::device::probe;
use crate::drain::{Answer, DrainStatus, Drained, Peer, Phase, Run};
use crate::link::Nic;
use crate::table::connection::Connection;
use crate::table::established::ConnId;

/// Held frames taken before the announcement, at most: more than any ring holds.
const MAX_HELD_FRAMES: u32 = 16 * 1024;

/// What a resume or thaw did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Connections whose windows are reopened.
    pub connections: u32,
    /// Frames that had been held during the switch and were taken first.
    pub held_frames: u32,
}

impl Stack {
    /// Begins to drain: from now on every window is zero and nothing of ours is sent but
    /// acknowledgements and barriers. The service must not run until [`thaw`](Self::thaw) or
    /// [`resume`](Self::resume); what it had written stays queued.
    pub fn drain_begin(&mut self, now: Instant, deadline: Instant) {
        self.now = now;
        let mut run = Run::new(now, deadline);
        let mut to_tell = alloc::vec::Vec::new();
        let ids: alloc::vec::Vec<_> = self.established.ids().collect();
        for id in ids {
            let Some(connection) = self.established.get_mut(id) else { continue };
            if quiet::told(connection) {
                run.connections += 1;
                continue;
            }
            // Of a drain before this one that was not undone.
            connection.drain = None;
            connection.flow.closed = false;
            if connection.synchronised() {
                let peer = quiet::drained(connection, now);
                // The round trips to those that are asked pass while the others are told.
                if peer.quiet() {
                    to_tell.push(id)
                } else {
                    run.to_ask.push_back(id)
                }
                connection.drain = Some(peer);
                run.connections += 1;
                run.open += 1;
            }
        }
        run.to_ask.extend(to_tell);
        self.to_announce.clear();
        self.announced = None;
        self.quiet = None;
        self.mark = None;
        self.mode = Mode::Draining(run);
    }

    /// Takes frames, acknowledges, asks again. To be called when a frame arrives and at the moment it
    /// names.
    pub fn drain_poll(&mut self, now: Instant, nic: &mut impl Nic) -> DrainStatus {
        let progress = self.poll(now, nic);
        let Mode::Draining(run) = &self.mode else {
            return DrainStatus::Done(Drained {
                connections: 0,
                settled: 0,
                elapsed_us: 0,
                timed_out: false,
            });
        };
        let asked = run.open == 0 && run.to_ask.is_empty() && run.to_ack.is_empty();
        if (asked && !progress.more) || now >= run.deadline {
            DrainStatus::Done(self.drained(run, !asked))
        } else if progress.more {
            DrainStatus::Pending(now)
        } else {
            DrainStatus::Pending(self.poll_at().unwrap_or(run.deadline).min(run.deadline))
        }
    }

    /// Whether the [mark](ferry_protocol::mark) with this number is the last that came in this drain: all that
    /// was before it on its way here is taken.
    #[must_use]
    pub fn marked(&self, number: u32) -> bool {
        self.mark == Some(number)
    }

    fn drained(&self, run: &Run, timed_out: bool) -> Drained {
        let settled = |phase| matches!(phase, Phase::Told | Phase::Settled | Phase::Gone);
        let unsettled = self
            .established
            .iter()
            .filter(|connection| {
                connection.drain.as_ref().is_some_and(|peer| !settled(peer.phase()))
            })
            .count() as u32;
        Drained {
            connections: run.connections,
            settled: run.connections.saturating_sub(unsettled),
            elapsed_us: u32::try_from((self.now - run.started).total_micros()).unwrap_or(u32::MAX),
            timed_out,
        }
    }

    /// What a drain has to send; `true` if the ring is full. Only if everything that has arrived is
    /// taken does a retry time mean that there is no answer.
    pub(super) fn drain_egress(&mut self, nic: &mut impl Nic, all_taken: bool) -> bool {
        while let Some(id) = self.run().and_then(|run| run.to_ack.pop()) {
            let owes = self.established.get(id).is_some_and(|it| it.flow.owes_ack());
            if owes && !self.acknowledge_now(id, nic) {
                self.with_run(|run| run.to_ack.push(id));
                return true;
            }
        }
        while let Some(id) = self.run().and_then(|run| run.to_ask.pop_front()) {
            if !self.ask(id, nic) {
                self.with_run(|run| run.to_ask.push_front(id));
                return true;
            }
        }
        let now = self.now;
        while all_taken && let Some((at, id)) = self.run().and_then(|run| run.timers.pop(now)) {
            let Some(peer) =
                self.established.get_mut(id).and_then(|connection| connection.drain.as_mut())
            else {
                continue;
            };
            if !peer.armed.fires(at) {
                continue;
            }
            if peer.timer(now) {
                self.with_run(|run| run.to_ask.push_back(id));
            } else if let Some(at) = peer.retry_at()
                && let Mode::Draining(run) = &mut self.mode
            {
                run.timers.arm(id, at, &mut peer.armed);
            }
        }
        while let Some(id) = self.run().and_then(|run| run.to_ask.pop_front()) {
            if !self.ask(id, nic) {
                self.with_run(|run| run.to_ask.push_front(id));
                return true;
            }
        }
        false
    }

    fn run(&mut self) -> Option<&mut Run> {
        match &mut self.mode {
            Mode::Draining(run) => Some(run),
            _ => None,
        }
    }

    fn with_run(&mut self, f: impl FnOnce(&mut Run)) {
        if let Some(run) = self.run() {
            f(run);
        }
    }

    /// Sends the zero window and the barrier to one peer; `false` if the ring is full.
    fn ask(&mut self, id: ConnId, nic: &mut impl Nic) -> bool {
        let Some(peer) = self.established.get(id).and_then(|connection| connection.drain) else {
            return true;
        };
        if peer.done() {
            return true;
        }
        if peer.tells_window() && !self.told_zero(id, &peer) && !self.acknowledge_now(id, nic) {
            return false;
        }
        let told = |connection: &mut Connection| connection.drain.as_mut().is_some_and(Peer::told);
        if self.established.get_mut(id).is_some_and(told) {
            self.drain_done_one();
            return true;
        }
        let local = self.link.ip();
        for _ in 0..peer.volley() {
            if !nic.transmit_ready() {
                return false;
            }
            let Some(connection) = self.established.get_mut(id) else { return true };
            let dst = connection.flow.tuple.remote_addr();
            let (packet, seq) = probe(&connection.flow, local, 0);
            connection.flow.probed(self.now);
            self.send_raw(nic, dst, &packet);
            let now = self.now;
            if let Some(peer) =
                self.established.get_mut(id).and_then(|connection| connection.drain.as_mut())
                && let Mode::Draining(run) = &mut self.mode
            {
                let at = peer.asked(seq, now);
                run.timers.arm(id, at, &mut peer.armed);
            }
        }
        true
    }

    /// Whether a peer that is asked for the first time has been told already: what it had sent was acknowledged
    /// in this drain.
    fn told_zero(&self, id: ConnId, peer: &Peer) -> bool {
        peer.phase() == Phase::Waiting
            && self.established.get(id).is_some_and(|it| it.flow.closed && !it.flow.owes_ack())
    }

    /// A segment of a connection came in during the drain.
    pub(super) fn drain_heard(&mut self, id: ConnId, answer: Answer) {
        let Mode::Draining(run) = &mut self.mode else { return };
        let Some(connection) = self.established.get_mut(id) else { return };
        if connection.flow.owes_ack() {
            run.to_ack.push(id);
        }
        if connection.drain.is_none() {
            // A handshake that was finished in the drain: this peer has to be told too.
            if connection.synchronised() {
                let flow = &connection.flow;
                connection.drain = Some(Peer::new(flow.sack_permitted, flow.srtt));
                run.connections += 1;
                run.open += 1;
                run.to_ask.push_back(id);
            }
            return;
        }
        let acknowledged = connection.flow.all_acknowledged();
        let ended = matches!(connection.state(), State::TimeWait | State::Closed);
        if let Some(peer) = &mut connection.drain
            && !peer.done()
        {
            if ended {
                peer.gone();
            } else if peer.heard(answer, acknowledged) {
                run.to_ask.push_back(id);
            }
            if peer.done() {
                run.open -= 1;
            }
        } else if let Some(peer) = &mut connection.drain {
            let _ = peer.heard(answer, acknowledged);
        }
    }

    /// One connection fewer is waited for.
    pub(super) fn drain_done_one(&mut self) {
        self.with_run(|run| run.open = run.open.saturating_sub(1));
    }

    /// Goes on after a drain on the same host: windows reopen.
    pub fn thaw(&mut self, now: Instant, nic: &mut impl Nic) -> Resumed {
        self.reopen(now, nic)
    }

    /// Goes on after a drain, as the image of it on another host. `now` continues the clock of before;
    /// `seed` is fresh, so two resumes of one image share no random numbers. Frames that the card has
    /// held are taken first, and of those the ones that belong to nothing are not refused.
    pub fn resume(&mut self, now: Instant, seed: [u64; 4], nic: &mut impl Nic) -> Resumed {
        self.secret = crate::hash::Key::new(
            self.secret.hash_words(&[seed[0], seed[1]]) ^ seed[2],
            self.secret.hash_words(&[seed[2], seed[3]]) ^ seed[0],
        );
        self.drawn = 0;
        self.link.doubt_neighbours();
        self.now = now;
        self.renew_interface();
        self.cold.resumed();
        self.reopen(now, nic)
    }

    fn reopen(&mut self, now: Instant, nic: &mut impl Nic) -> Resumed {
        self.now = now;
        self.mode = Mode::Resuming;
        let ids: alloc::vec::Vec<_> = self.established.ids().collect();
        // Also one that a drain had no time for owes its peer a word from here.
        for &id in &ids {
            if let Some(connection) = self.established.get_mut(id) {
                connection.flow.closed = true;
            }
        }
        let held_frames = self.receive(nic, MAX_HELD_FRAMES);
        for frame in core::mem::take(&mut self.held_syns) {
            self.replay(nic, &frame);
        }
        self.announced = Some((now, 0));
        let ids: alloc::vec::Vec<_> = self.established.ids().collect();
        let mut connections = 0;
        let mut quiet = alloc::vec::Vec::new();
        self.to_announce.clear();
        for id in ids {
            let Some(connection) = self.established.get_mut(id) else { continue };
            let quiet_one = |peer: Peer| peer.phase() == Phase::Told && peer.quiet();
            let told = connection.drain.take().is_some_and(quiet_one);
            if connection.synchronised() {
                connections += 1;
                // Nobody there waits for it: the service runs first.
                if told { quiet.push(id) } else { self.to_announce.push_back(id) }
            }
            if !connection.at_rest() {
                self.mark_ready(id);
            }
        }
        self.mode = Mode::Running;
        self.woke = true;
        self.resumed_at = now;
        self.quiet = None;
        self.blocked = self.announce_up_to(usize::MAX, nic);
        self.to_announce.extend(quiet);
        nic.flush();
        Resumed { connections, held_frames }
    }
}
