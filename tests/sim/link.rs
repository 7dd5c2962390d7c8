//! A switched segment in virtual time: loss, duplication, delay and reordering of frames.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::Random;

/// A place on the segment.
pub type Node = usize;

/// How bad the segment is.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Frames lost, in a thousand.
    pub loss: u64,
    /// Frames that arrive twice, in a thousand.
    pub duplication: u64,
    /// Frames that take a detour and are overtaken, in a thousand.
    pub reordering: u64,
    /// One-way delay, in microseconds.
    pub delay: u64,
}

impl Weather {
    pub const CLEAR: Self = Self { loss: 0, duplication: 0, reordering: 0, delay: 100 };
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: u64,
    order: u64,
    to: Node,
    frame: Vec<u8>,
}

pub struct Link {
    pub weather: Weather,
    random: Random,
    macs: Vec<[u8; 6]>,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
}

impl Link {
    pub fn new(weather: Weather, macs: Vec<[u8; 6]>, random: Random) -> Self {
        Self { weather, random, macs, flying: BinaryHeap::new(), order: 0 }
    }

    /// Takes a frame from a node; times in microseconds.
    pub fn send(&mut self, from: Node, frame: &[u8], now: u64) {
        for to in 0..self.macs.len() {
            if to != from && (frame[0] & 1 == 1 || frame[..6] == self.macs[to]) {
                self.deliver(to, frame, now);
            }
        }
    }

    fn deliver(&mut self, to: Node, frame: &[u8], now: u64) {
        if self.random.chance(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.chance(self.weather.duplication));
        for copy in 0..copies {
            let mut at = now + self.weather.delay + copy * self.random.range(1, 300);
            if self.random.chance(self.weather.reordering) {
                at += self.random.range(50, 3 * self.weather.delay + 100);
            }
            self.order += 1;
            let frame = frame.to_vec();
            self.flying.push(Reverse(Flying { at, order: self.order, to, frame }));
        }
    }

    pub fn next(&self) -> Option<u64> {
        self.flying.peek().map(|Reverse(flying)| flying.at)
    }

    /// The next frame that has arrived by `now`.
    pub fn arrived(&mut self, now: u64) -> Option<(Node, Vec<u8>)> {
        if self.next()? > now {
            return None;
        }
        self.flying.pop().map(|Reverse(flying)| (flying.to, flying.frame))
    }

    pub fn is_quiet(&self) -> bool {
        self.flying.is_empty()
    }
}
