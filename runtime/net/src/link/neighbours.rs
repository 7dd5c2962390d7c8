//! The neighbour table: IPv4 address → hardware address, and the packets that wait for one.

use alloc::vec::Vec;
use hashbrown::HashMap;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, Ipv4Address};

use crate::hash::Key;

/// Neighbours kept. Beyond it a new one displaces some other, which is then asked for again.
const MAX_NEIGHBOURS: usize = 32 * 1024;
/// Neighbours that may be asked for at one time.
const MAX_WAITING: usize = 256;
/// An entry not confirmed for this long is asked about while it stays in use.
const STALE_AFTER: Duration = Duration::from_secs(60);
/// Time between two questions about one neighbour.
const QUESTION_INTERVAL: Duration = Duration::from_secs(1);
/// Questions before the waiting packet is given up; TCP sends it again.
const MAX_QUESTIONS: u8 = 3;

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    mac: EthernetAddress,
    confirmed: Instant,
    asked: Option<Instant>,
    doubted: bool,
}

#[derive(Debug)]
struct Waiting {
    hop: Ipv4Address,
    frame: Vec<u8>,
    questions: u8,
    next: Instant,
}

/// Whether a known neighbour should be asked if it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refresh {
    Fresh,
    Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Known { mac: EthernetAddress, refresh: Refresh },
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Neighbours {
    known: HashMap<u32, Neighbour, Key>,
    waiting: Vec<Waiting>,
}

impl Neighbours {
    pub fn new(key: Key) -> Self {
        Self { known: HashMap::with_hasher(key), waiting: Vec::new() }
    }

    pub fn knows(&self, ip: Ipv4Address) -> bool {
        self.known.contains_key(&ip.to_bits())
    }

    /// Has every entry asked for at its next use: time has passed that our clock did not count.
    pub fn doubt(&mut self) {
        for entry in self.known.values_mut() {
            entry.doubted = true;
            entry.asked = None;
        }
    }

    pub fn insert(&mut self, ip: Ipv4Address, mac: EthernetAddress, now: Instant) {
        if let Some(entry) = self.known.get_mut(&ip.to_bits()) {
            *entry = Neighbour { mac, confirmed: now, asked: None, doubted: false };
            return;
        }
        if self.known.len() >= MAX_NEIGHBOURS
            && let Some(&displaced) = self.known.keys().next()
        {
            self.known.remove(&displaced);
        }
        self.known
            .insert(ip.to_bits(), Neighbour { mac, confirmed: now, asked: None, doubted: false });
    }

    pub(super) fn lookup(&mut self, ip: Ipv4Address, now: Instant) -> Lookup {
        let Some(entry) = self.known.get_mut(&ip.to_bits()) else {
            return Lookup::Unknown;
        };
        let stale = entry.doubted || now >= entry.confirmed + STALE_AFTER;
        let ask = stale && entry.asked.is_none_or(|at| now >= at + QUESTION_INTERVAL);
        if ask {
            entry.asked = Some(now);
        }
        Lookup::Known { mac: entry.mac, refresh: if ask { Refresh::Ask } else { Refresh::Fresh } }
    }

    /// Keeps `frame` until `hop` is known; one frame per neighbour, the newest. `true` if the caller
    /// has to ask for it now.
    pub(super) fn wait(&mut self, hop: Ipv4Address, frame: Vec<u8>, now: Instant) -> bool {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.hop == hop) {
            waiting.frame = frame;
            return false;
        }
        if self.waiting.len() >= MAX_WAITING {
            return false;
        }
        self.waiting.push(Waiting { hop, frame, questions: 1, next: now + QUESTION_INTERVAL });
        true
    }

    /// A frame whose neighbour is known by now.
    pub(super) fn take_resolved(&mut self) -> Option<(EthernetAddress, Vec<u8>)> {
        let (index, mac) = self.waiting.iter().enumerate().find_map(|(index, waiting)| {
            Some((index, self.known.get(&waiting.hop.to_bits())?.mac))
        })?;
        Some((mac, self.waiting.swap_remove(index).frame))
    }

    /// The next neighbour to ask for again; frames asked for in vain are dropped.
    pub(super) fn next_question(&mut self, now: Instant) -> Option<Ipv4Address> {
        self.waiting.retain(|waiting| waiting.next > now || waiting.questions < MAX_QUESTIONS);
        let waiting = self.waiting.iter_mut().find(|waiting| waiting.next <= now)?;
        waiting.questions += 1;
        waiting.next = now + QUESTION_INTERVAL;
        Some(waiting.hop)
    }

    pub(super) fn poll_at(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.next).min()
    }
}
