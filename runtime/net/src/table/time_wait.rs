//! TIME-WAIT without a socket (RFC 9293 §3.10.7.4): the service has let go of the connection and both
//! FINs are acknowledged, so its buffers go back and 40 bytes remain.

use alloc::collections::VecDeque;
use hashbrown::HashMap;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpSeqNumber;

use crate::device::{Flow, Tuple};
use crate::hash::Key;

/// How long a four-tuple stays in TIME-WAIT, as smoltcp has it.
const TIME_WAIT: Duration = Duration::from_secs(10);
/// Entries kept; beyond it the oldest goes early.
const MAX_TIME_WAIT: usize = 16 * 1024;

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWait {
    pub seq: TcpSeqNumber,
    pub ack: TcpSeqNumber,
    until: Instant,
    /// Both FINs are acknowledged and ours was the first; else the connection is CLOSED and only kept
    /// quiet.
    waits: bool,
}

impl TimeWait {
    /// Whether a SYN with this sequence number may open the four-tuple anew (RFC 9293 §3.6.1, RFC
    /// 1122 §4.2.2.13): it must lie beyond all that the peer has sent before.
    pub fn reopens(&self, seq: TcpSeqNumber) -> bool {
        seq > self.ack
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    entries: HashMap<Tuple, TimeWait, Key>,
    order: VecDeque<(Instant, Tuple)>,
}

impl TimeWaits {
    pub fn new(key: Key) -> Self {
        Self { entries: HashMap::with_hasher(key), order: VecDeque::new() }
    }

    pub fn insert(&mut self, flow: &Flow, now: Instant) {
        self.enter(flow, true, now);
    }

    /// Keeps a four-tuple quiet that has come to CLOSED while answers to what we sent are on their
    /// way.
    pub fn linger(&mut self, flow: &Flow, now: Instant) {
        self.enter(flow, false, now);
    }

    fn enter(&mut self, flow: &Flow, waits: bool, now: Instant) {
        if self.entries.len() >= MAX_TIME_WAIT
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        let until = now + TIME_WAIT;
        let entry = TimeWait { seq: flow.nxt, ack: flow.rcv_nxt, until, waits };
        self.entries.insert(flow.tuple, entry);
        self.order.push_back((until, flow.tuple));
    }

    pub fn find(&self, tuple: &Tuple) -> Option<TimeWait> {
        self.entries.get(tuple).copied()
    }

    /// Begins the wait again: the peer has not seen our last acknowledgement.
    pub fn restart(&mut self, tuple: &Tuple, now: Instant) -> Option<TimeWait> {
        let entry = self.entries.get_mut(tuple)?;
        entry.until = now + TIME_WAIT;
        // The entry in `order` stays where it is; `expire` enters it again.
        Some(*entry)
    }

    pub fn remove(&mut self, tuple: &Tuple) {
        self.entries.remove(tuple);
    }

    /// Drops what has waited long enough.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(until, tuple)) = self.order.front()
            && until <= now
        {
            self.order.pop_front();
            match self.entries.get(&tuple).map(|entry| entry.until) {
                Some(until) if until <= now => {
                    self.entries.remove(&tuple);
                }
                // Restarted, or the four-tuple was closed a second time.
                Some(until) => self.order.push_back((until, tuple)),
                None => {}
            }
        }
    }

    /// Those in TIME-WAIT.
    pub fn iter(&self) -> impl Iterator<Item = (&Tuple, &TimeWait)> {
        self.entries.iter().filter(|(_, entry)| entry.waits)
    }
}
