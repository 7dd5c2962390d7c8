//! Who is at a document: for every live connection the state that its page told.
//!
//! A page's client id belongs to the connection that told it last: a page that comes back before
//! its old connection was given up takes its id along, and the old connection's end says nothing.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use yrs::block::ClientID;
use yrs::sync::AwarenessUpdate;
use yrs::sync::awareness::AwarenessUpdateEntry;

use crate::room::{ConnectionId, Refusal};

/// Pages tell `null` when their person leaves.
const GONE: &str = "null";

/// The people at one document.
#[derive(Default)]
pub(crate) struct Presence {
    entries: HashMap<ClientID, (ConnectionId, AwarenessUpdateEntry)>,
}

impl Presence {
    /// Takes in what `connection` tells; returns what the others have to be told.
    pub(crate) fn tell(
        &mut self,
        connection: ConnectionId,
        told: AwarenessUpdate,
        limit_bytes: usize,
    ) -> Result<AwarenessUpdate, Refusal> {
        let mut news = HashMap::new();
        for (id, entry) in told.clients {
            let len_bytes = entry.json.len();
            if len_bytes > limit_bytes {
                return Err(Refusal::PresenceTooLong { len_bytes, limit_bytes });
            }
            if serde_json::from_str::<IgnoredAny>(&entry.json).is_err() {
                return Err(Refusal::PresenceNotJson);
            }
            if &*entry.json == GONE {
                // Pages also repeat that others are gone; the connection's end says it first.
                if self.entries.get(&id).is_some_and(|(owner, _)| *owner == connection) {
                    self.entries.remove(&id);
                    news.insert(id, entry);
                }
                continue;
            }
            let others = self.entries.iter();
            if others.filter(|(known, (owner, _))| *owner == connection && **known != id).count()
                > 0
            {
                return Err(Refusal::PresenceOfOthers);
            }
            self.entries.insert(id, (connection, entry.clone()));
            news.insert(id, entry);
        }
        Ok(AwarenessUpdate { clients: news })
    }

    /// The connection ended; returns what the others have to be told.
    ///
    /// The clock stays: a state with the next clock, told over a new connection, overrides it.
    pub(crate) fn leave(&mut self, connection: ConnectionId) -> AwarenessUpdate {
        let mut news = HashMap::new();
        self.entries.retain(|id, (owner, entry)| {
            let stays = *owner != connection;
            if !stays {
                let gone = AwarenessUpdateEntry { clock: entry.clock, json: GONE.into() };
                news.insert(*id, gone);
            }
            stays
        });
        AwarenessUpdate { clients: news }
    }

    /// Everybody, for one who comes in.
    pub(crate) fn all(&self) -> AwarenessUpdate {
        let states = self.entries.iter().map(|(id, (_, entry))| (*id, entry.clone()));
        AwarenessUpdate { clients: states.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(told: &[(u64, u32, &str)]) -> AwarenessUpdate {
        let entry = |&(id, clock, json): &(u64, u32, &str)| {
            (ClientID::new(id), AwarenessUpdateEntry { clock, json: json.into() })
        };
        AwarenessUpdate { clients: told.iter().map(entry).collect() }
    }

    #[test]
    fn one_who_comes_in_learns_who_is_here() {
        let mut presence = Presence::default();
        presence.tell(1, states(&[(10, 0, r#"{"name":"Ada"}"#)]), 100).unwrap();
        presence.tell(2, states(&[(20, 0, r#"{"name":"Bo"}"#)]), 100).unwrap();
        assert_eq!(
            presence.all(),
            states(&[(10, 0, r#"{"name":"Ada"}"#), (20, 0, r#"{"name":"Bo"}"#)])
        );
    }

    #[test]
    fn the_end_of_a_connection_takes_its_page_away() {
        let mut presence = Presence::default();
        presence.tell(1, states(&[(10, 4, "{}")]), 100).unwrap();
        assert_eq!(presence.leave(1), states(&[(10, 4, "null")]));
        assert_eq!(presence.all(), states(&[]));
    }

    #[test]
    fn a_page_that_came_back_survives_the_end_of_its_old_connection() {
        let mut presence = Presence::default();
        presence.tell(1, states(&[(10, 4, "{}")]), 100).unwrap();
        presence.tell(2, states(&[(10, 5, "{}")]), 100).unwrap();
        assert_eq!(presence.leave(1), states(&[]));
        assert_eq!(presence.all(), states(&[(10, 5, "{}")]));
    }

    #[test]
    fn nobody_can_send_others_away_or_pose_as_many() {
        let mut presence = Presence::default();
        presence.tell(1, states(&[(10, 4, "{}")]), 100).unwrap();
        assert_eq!(presence.tell(2, states(&[(10, 9, "null")]), 100).unwrap(), states(&[]));
        presence.tell(2, states(&[(20, 0, "{}")]), 100).unwrap();
        assert_eq!(
            presence.tell(2, states(&[(21, 0, "{}")]), 100).unwrap_err(),
            Refusal::PresenceOfOthers
        );
    }

    #[test]
    fn what_pages_could_not_read_is_refused() {
        let mut presence = Presence::default();
        assert_eq!(
            presence.tell(1, states(&[(10, 0, "{oops")]), 100).unwrap_err(),
            Refusal::PresenceNotJson
        );
        let long = format!("\"{}\"", "x".repeat(99));
        assert_eq!(
            presence.tell(1, states(&[(10, 0, &long)]), 100).unwrap_err(),
            Refusal::PresenceTooLong { len_bytes: 101, limit_bytes: 100 }
        );
    }
}
