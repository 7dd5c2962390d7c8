//! The established table: four-tuple → connection, and handle → connection.

use alloc::boxed::Box;
use alloc::vec::Vec;
use hashbrown::HashMap;

use super::connection::Connection;
use crate::device::Tuple;
use crate::hash::Key;

/// Handle of a connection. One that has ended is never confused with a later one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

impl ConnId {
    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }
}

struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// See the module.
pub(crate) struct Established {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, ConnId, Key>,
}

impl Established {
    pub fn new(key: Key) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_tuple: HashMap::with_hasher(key) }
    }

    /// Connections there are, in all states.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, connection: Box<Connection>) -> ConnId {
        let tuple = connection.flow.tuple;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, connection: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.connection = Some(connection);
        let id = ConnId::new(index, slot.generation);
        self.by_tuple.insert(tuple, id);
        id
    }

    pub fn find(&self, tuple: &Tuple) -> Option<ConnId> {
        self.by_tuple.get(tuple).copied()
    }

    pub fn get(&self, id: ConnId) -> Option<&Connection> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation == id.generation { slot.connection.as_deref() } else { None }
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation == id.generation { slot.connection.as_deref_mut() } else { None }
    }

    /// Frames of this four-tuple no longer reach the connection; its handle stays valid.
    pub fn unhash(&mut self, id: ConnId) {
        if let Some(connection) = self.get(id) {
            let tuple = connection.flow.tuple;
            if self.by_tuple.get(&tuple) == Some(&id) {
                self.by_tuple.remove(&tuple);
            }
        }
    }

    pub fn remove(&mut self, id: ConnId) -> Option<Box<Connection>> {
        self.unhash(id);
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(connection)
    }

    pub fn ids(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.connection.is_some())
            .map(|(index, slot)| ConnId::new(index as u32, slot.generation))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().filter_map(|slot| slot.connection.as_deref())
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_deref_mut())
    }
}
