//! Which node a service goes to: pure.

/// A node that services can be placed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its name.
    pub node: String,
    /// Memory for guests in MiB: all, and not yet given out.
    pub all_mib: u64,
    #[expect(missing_docs, reason = "said above")]
    pub free_mib: u64,
}

/// A service and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its name.
    pub service: String,
    /// Where it runs.
    pub node: String,
    /// Memory it takes in MiB, that of its QEMU included.
    pub need_mib: u64,
}

/// A service that is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Relocation {
    pub service: String,
    pub from: String,
    pub to: String,
}

impl Room {
    /// The part of its memory that is given out when `more` MiB are added, in millionths.
    fn used(&self, more: i64) -> u64 {
        let used = self.all_mib.saturating_sub(self.free_mib).saturating_add_signed(more);
        used.saturating_mul(1_000_000) / self.all_mib.max(1)
    }
}

/// The node that is used least once it has taken `need_mib` MiB; of equal ones the first by name. `None`
/// if no node outside `except` has so much memory.
#[must_use]
pub fn choose<'r>(rooms: &'r [Room], need_mib: u64, except: &[String]) -> Option<&'r str> {
    rooms
        .iter()
        .filter(|room| room.free_mib >= need_mib && !except.contains(&room.node))
        .min_by_key(|room| (room.used(need_mib.cast_signed()), &room.node))
        .map(|room| room.node.as_str())
}

/// Moves that make the most used node less used, one after the other, until no single move does.
#[must_use]
pub fn rebalance(rooms: &[Room], loads: &[Load]) -> Vec<Relocation> {
    let (mut rooms, mut loads) = (rooms.to_vec(), loads.to_vec());
    let mut relocations = Vec::new();
    // A service moves once at most: else two of equal size could change places for ever.
    while let Some((load, to)) = best(&rooms, &loads) {
        let load = loads.swap_remove(load);
        for room in &mut rooms {
            if room.node == load.node {
                room.free_mib += load.need_mib;
            } else if room.node == to {
                room.free_mib = room.free_mib.saturating_sub(load.need_mib);
            }
        }
        relocations.push(Relocation { service: load.service, from: load.node, to });
    }
    relocations
}

/// The move off the most used node after which the more used of the two is used least.
fn best(rooms: &[Room], loads: &[Load]) -> Option<(usize, String)> {
    let fullest = rooms.iter().max_by_key(|room| (room.used(0), &room.node))?;
    let moves = loads.iter().enumerate().filter(|(_, load)| load.node == fullest.node);
    let outcomes = moves.filter_map(|(index, load)| {
        let to = choose(rooms, load.need_mib, std::slice::from_ref(&fullest.node))?;
        let there = rooms.iter().find(|room| room.node == to)?.used(load.need_mib.cast_signed());
        let here = fullest.used(-load.need_mib.cast_signed());
        Some((here.max(there), &load.service, index, to.to_owned()))
    });
    let (used, _, index, to) = outcomes.min()?;
    (used < fullest.used(0)).then_some((index, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(node: &str, all_mib: u64, free_mib: u64) -> Room {
        Room { node: node.into(), all_mib, free_mib }
    }

    fn load(service: &str, node: &str, need_mib: u64) -> Load {
        Load { service: service.into(), node: node.into(), need_mib }
    }

    #[test]
    fn the_least_used_node_with_room_is_chosen() {
        let rooms = [room("a", 1000, 900), room("b", 1000, 950), room("c", 100, 100)];
        assert_eq!(choose(&rooms, 50, &[]), Some("b"));
        assert_eq!(choose(&rooms, 50, &["b".into()]), Some("a"));
        assert_eq!(choose(&rooms, 950, &["b".into()]), None);
        assert_eq!(choose(&[], 1, &[]), None);
        let equal = [room("b", 500, 500), room("a", 500, 500)];
        assert_eq!(choose(&equal, 128, &[]), Some("a"));
    }

    #[test]
    fn rebalancing_evens_out_and_ends() {
        let rooms = [room("a", 1000, 488), room("b", 1000, 1000)];
        let loads: Vec<_> = ["p", "q", "r", "s"].map(|s| load(s, "a", 128)).into();
        let moves = rebalance(&rooms, &loads);
        let named: Vec<_> = moves.iter().map(|m| (&*m.service, &*m.from, &*m.to)).collect();
        assert_eq!(named, [("p", "a", "b"), ("q", "a", "b")]);
    }

    #[test]
    fn what_is_even_or_cannot_be_better_stays() {
        let even = [room("a", 1000, 872), room("b", 1000, 872)];
        assert_eq!(rebalance(&even, &[load("p", "a", 128), load("q", "b", 128)]), []);
        // One service on one of two nodes: anywhere it is as heavy.
        let one = [room("a", 1000, 872), room("b", 1000, 1000)];
        assert_eq!(rebalance(&one, &[load("p", "a", 128)]), []);
        // The other node is too small.
        let small = [room("a", 1000, 500), room("b", 100, 100)];
        assert_eq!(rebalance(&small, &[load("p", "a", 250), load("q", "a", 250)]), []);
        assert_eq!(rebalance(&[], &[]), []);
    }
}
