//! The service's card: two rings of limited length.

use std::collections::VecDeque;

use ferry_net::Nic;

#[derive(Default)]
pub struct Card {
    pub received: VecDeque<Vec<u8>>,
    pub sent: Vec<Vec<u8>>,
    /// Places in the transmit ring.
    pub places: usize,
}

impl Card {
    pub fn new(places: usize) -> Self {
        Self { places, ..Self::default() }
    }
}

impl Nic for Card {
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        Some(f(&self.received.pop_front()?))
    }

    fn transmit_ready(&mut self) -> bool {
        self.sent.len() < self.places
    }

    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        if !self.transmit_ready() {
            return false;
        }
        // What a real ring holds from before.
        let mut frame = vec![0xA5; len];
        fill(&mut frame);
        self.sent.push(frame);
        true
    }

    fn flush(&mut self) {}
}
