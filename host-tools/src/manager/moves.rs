//! The moves as objects: what is known of each, and what of it is durable.
//!
//! A move is in the store before the source's agent hears of it, and its end is in the store before the
//! service's record lets go of it. So a record names a move only while that move's document is open, or a
//! moment longer, which [`Manager::recover`](super::Manager::recover) mends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::agent::moves::EventLog;
use crate::api::{ApiError, Migration, MoveEvent, SeenMove, move_number, now_us};
use crate::migration::Phase;
use crate::store::Record;

/// A move as the store keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeptMove {
    /// What users see.
    #[serde(flatten)]
    pub migration: Migration,
    /// The epoch under which the source ran when it began.
    #[serde(default)]
    pub epoch: u64,
    /// Its events so far.
    #[serde(default)]
    pub events: Vec<MoveEvent>,
    /// Nodes that a user has given up in it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone: BTreeSet<String>,
}

/// Changes of moves that somebody who watches may be behind.
const FEED_LENGTH: usize = 256;

/// All moves, by number.
#[derive(Debug)]
pub struct Moves {
    all: Mutex<BTreeMap<u32, Tracked>>,
    next: AtomicU32,
    feed: broadcast::Sender<SeenMove>,
}

#[derive(Debug)]
struct Tracked {
    migration: Migration,
    epoch: u64,
    log: Arc<EventLog>,
    /// Nodes that a user has given up.
    gone: watch::Sender<BTreeSet<String>>,
}

impl Tracked {
    fn new(kept: KeptMove) -> Self {
        let KeptMove { migration, epoch, events, gone } = kept;
        let log = Arc::new(EventLog::with(events));
        Self { migration, epoch, log, gone: watch::Sender::new(gone) }
    }

    fn kept(&self) -> KeptMove {
        KeptMove {
            migration: self.migration.clone(),
            epoch: self.epoch,
            events: self.log.events(),
            gone: self.gone.borrow().clone(),
        }
    }
}

impl Moves {
    /// The moves that a store has kept.
    #[must_use]
    pub fn new(kept: Vec<KeptMove>) -> Self {
        let tracked = kept
            .into_iter()
            .filter_map(|kept| Some((move_number(&kept.migration.id)?, Tracked::new(kept))));
        let all: BTreeMap<_, _> = tracked.collect();
        let last = all.keys().next_back().copied().unwrap_or(0);
        let feed = broadcast::channel(FEED_LENGTH).0;
        Self { all: Mutex::new(all), next: AtomicU32::new(last + 1), feed }
    }

    /// Shows a move to all who watch.
    fn show(&self, migration: &Migration, waiting: Option<String>) {
        if self.feed.receiver_count() > 0 {
            // Whoever watched may have gone away just now.
            let _ = self.feed.send(SeenMove { migration: migration.clone(), waiting });
        }
    }

    /// All moves, oldest first, and every change of one from this moment on.
    pub fn watch(&self) -> (Vec<Migration>, broadcast::Receiver<SeenMove>) {
        let all = self.lock();
        (all.values().map(|tracked| tracked.migration.clone()).collect(), self.feed.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Tracked>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new move; its number. It is not in the store yet.
    pub(super) fn begin(&self, record: &Record, source: &str, destination: &str) -> u32 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let migration = Migration {
            id: format!("m{number}"),
            service: record.spec.name.clone(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            began_us: now_us(),
            phases: Vec::new(),
            phase: Some(Phase::Request),
            result: None,
            summary: None,
        };
        let begun = MoveEvent::Begun {
            migration: migration.id.clone(),
            service: migration.service.clone(),
            source: migration.source.clone(),
            destination: migration.destination.clone(),
        };
        let mut all = self.lock();
        self.show(&migration, None);
        let (epoch, events, gone) = (record.epoch, vec![begun], BTreeSet::new());
        all.insert(number, Tracked::new(KeptMove { migration, epoch, events, gone }));
        number
    }

    /// Takes an event into the object and tells it to all who follow. Returns what is then to be kept.
    pub(super) fn add(&self, number: u32, event: MoveEvent) -> Option<KeptMove> {
        let mut all = self.lock();
        let tracked = all.get_mut(&number)?;
        take(&mut tracked.migration, &event);
        tracked.log.push(event);
        self.show(&tracked.migration, None);
        Some(tracked.kept())
    }

    /// What will be to be kept once this event is added.
    pub(super) fn preview(&self, number: u32, event: &MoveEvent) -> Option<KeptMove> {
        let mut kept = self.kept(number)?;
        take(&mut kept.migration, event);
        kept.events.push(event.clone());
        Some(kept)
    }

    /// A move as it is to be kept.
    pub(super) fn kept(&self, number: u32) -> Option<KeptMove> {
        self.lock().get(&number).map(Tracked::kept)
    }

    /// Tells those who follow a move what it waits for.
    pub(super) fn tell_waiting(&self, number: u32, reason: String) {
        if let Some(tracked) = self.lock().get(&number) {
            self.show(&tracked.migration, Some(reason.clone()));
            tracked.log.tell(&MoveEvent::Waiting { reason });
        }
    }

    /// Notes that a node never comes back. Whoever brings the move to its end keeps that.
    pub(super) fn give_up(&self, id: &str, node: String) {
        let all = self.lock();
        if let Some(tracked) = move_number(id).and_then(|number| all.get(&number)) {
            tracked.gone.send_if_modified(|gone| gone.insert(node));
        }
    }

    /// The nodes that were given up in a move, those to come included.
    pub(super) fn gone(&self, number: u32) -> Option<watch::Receiver<BTreeSet<String>>> {
        self.lock().get(&number).map(|tracked| tracked.gone.subscribe())
    }

    /// The numbers of the moves that have not ended.
    pub(super) fn open(&self) -> Vec<u32> {
        let all = self.lock();
        all.iter().filter(|(_, t)| t.migration.result.is_none()).map(|(n, _)| *n).collect()
    }

    /// All events of a move, those to come included.
    ///
    /// # Errors
    /// There is no such move.
    pub fn follow(&self, id: &str) -> Result<UnboundedReceiver<MoveEvent>, ApiError> {
        let all = self.lock();
        let found = move_number(id).and_then(|number| all.get(&number));
        found.map(|tracked| tracked.log.follow()).ok_or_else(|| unknown(id))
    }

    /// A move and the epoch it began with.
    ///
    /// # Errors
    /// There is none with this id.
    pub fn get(&self, id: &str) -> Result<(Migration, u64), ApiError> {
        let all = self.lock();
        let found = move_number(id).and_then(|number| all.get(&number));
        found.map(|t| (t.migration.clone(), t.epoch)).ok_or_else(|| unknown(id))
    }

    /// All moves, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Migration> {
        self.lock().values().map(|tracked| tracked.migration.clone()).collect()
    }
}

fn take(migration: &mut Migration, event: &MoveEvent) {
    match event {
        MoveEvent::Begun { .. } | MoveEvent::Waiting { .. } => {}
        MoveEvent::Entered { phase } => migration.phase = Some(*phase),
        MoveEvent::Phase(record) => migration.phases.push(record.clone()),
        MoveEvent::Ended { result, summary } => {
            migration.phase = None;
            migration.result = Some(result.clone());
            migration.summary = Some(summary.clone());
        }
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no move `{id}`"))
        .hint("`host-tools migration ls` lists them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::record;

    #[test]
    fn the_next_manager_knows_which_nodes_were_given_up() {
        let moves = Moves::new(Vec::new());
        let number = moves.begin(&record("p", 50), "a", "b");
        assert_eq!(number, 1);
        let before = serde_json::to_string(&moves.kept(number).unwrap()).unwrap();
        assert!(!before.contains("gone"), "{before}");
        moves.give_up("m1", "b".into());
        let json = serde_json::to_vec(&moves.kept(number).unwrap()).unwrap();
        let next = Moves::new(vec![serde_json::from_slice(&json).unwrap()]);
        let gone = next.gone(number).unwrap().borrow().clone();
        assert_eq!(gone, BTreeSet::from(["b".to_owned()]));
        // What is kept later has it too.
        let entered = MoveEvent::Entered { phase: Phase::Prepare };
        assert_eq!(next.add(number, entered).unwrap().gone, gone);
    }
}
