//! The bind table: port → listener.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;
use hashbrown::HashMap;

use super::established::ConnId;
use crate::hash::Key;

/// Handshakes a listener has open at one time. A SYN beyond it is dropped without an answer: the
/// client sends it again, a flood of them costs no more than this.
pub const MAX_HALF_OPEN: usize = 256;

/// A bound port.
#[derive(Debug)]
pub(crate) struct Listener {
    backlog: usize,
    pub half_open: usize,
    pub queue: VecDeque<ConnId>,
    wakers: Vec<Waker>,
}

impl Listener {
    /// Whether a SYN may make a connection now.
    pub fn admits(&self) -> bool {
        self.half_open < MAX_HALF_OPEN && self.queue.len() < self.backlog
    }

    /// A handshake is complete.
    pub fn push(&mut self, id: ConnId) {
        self.queue.push_back(id);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    pub fn register(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|known| known.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Bind {
    ports: HashMap<u16, Listener, Key>,
}

impl Bind {
    pub fn new(key: Key) -> Self {
        Self { ports: HashMap::with_hasher(key) }
    }

    /// Binds `port`; `false` if it is bound already.
    pub fn insert(&mut self, port: u16, backlog: usize) -> bool {
        if self.ports.contains_key(&port) {
            return false;
        }
        let listener = Listener {
            backlog: backlog.max(1),
            half_open: 0,
            queue: VecDeque::new(),
            wakers: Vec::new(),
        };
        self.ports.insert(port, listener);
        true
    }

    pub fn get_mut(&mut self, port: u16) -> Option<&mut Listener> {
        self.ports.get_mut(&port)
    }

    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains_key(&port)
    }

    /// Unbinds `port`; those waiting to accept from it are woken to learn that.
    pub fn remove(&mut self, port: u16) -> Option<Listener> {
        let mut listener = self.ports.remove(&port)?;
        listener.wakers.drain(..).for_each(Waker::wake);
        Some(listener)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, &Listener)> {
        self.ports.iter().map(|(&port, listener)| (port, listener))
    }
}
