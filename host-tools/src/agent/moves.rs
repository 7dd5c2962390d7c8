//! The events of moves, kept so that they can be asked for again.
//!
//! A manager that lost its connection, or was started again, asks the source's agent for all events of a
//! move from the first on. An agent that was started again knows none: its moves ended with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::api::MoveEvent;

/// Ended moves whose events an agent keeps.
const KEPT_MOVES: usize = 64;

/// All events of one move, in order.
#[derive(Debug, Default)]
pub struct EventLog {
    inner: Mutex<Inner>,
    /// Why the move is to end.
    cancelled: watch::Sender<Option<&'static str>>,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<MoveEvent>,
    followers: Vec<UnboundedSender<MoveEvent>>,
}

impl Inner {
    fn ended(&self) -> bool {
        matches!(self.events.last(), Some(MoveEvent::Ended { .. }))
    }
}

impl EventLog {
    /// A log that begins with these events.
    #[must_use]
    pub fn with(events: Vec<MoveEvent>) -> Self {
        Self { inner: Mutex::new(Inner { events, followers: Vec::new() }), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event and tells all who follow.
    pub fn push(&self, event: MoveEvent) {
        let mut inner = self.lock();
        inner.events.push(event.clone());
        inner.followers.retain(|follower| follower.send(event.clone()).is_ok());
        if inner.ended() {
            inner.followers.clear();
        }
    }

    /// Asks whoever carries out the move to end it; the first reason counts.
    pub fn cancel(&self, reason: &'static str) {
        self.cancelled.send_if_modified(|known| known.is_none() && known.replace(reason).is_none());
    }

    /// Ends with the reason when [`EventLog::cancel`] is called, or was called before.
    pub async fn cancelled(&self) -> &'static str {
        let mut cancelled = self.cancelled.subscribe();
        // The sender lives as long as this log.
        let reason = cancelled.wait_for(Option::is_some).await.ok().and_then(|reason| *reason);
        reason.unwrap_or("it was cancelled")
    }

    /// Tells all who follow, and forgets it.
    pub fn tell(&self, event: &MoveEvent) {
        self.lock().followers.retain(|follower| follower.send(event.clone()).is_ok());
    }

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<MoveEvent> {
        self.lock().events.clone()
    }

    /// Whether the move has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.lock().ended()
    }

    /// All events, those to come included; it closes after the last.
    #[must_use]
    pub fn follow(&self) -> UnboundedReceiver<MoveEvent> {
        let mut inner = self.lock();
        let (sender, receiver) = unbounded_channel();
        for event in &inner.events {
            // The receiver is held here: it takes everything.
            let _ = sender.send(event.clone());
        }
        if !inner.ended() {
            inner.followers.push(sender);
        }
        receiver
    }
}

/// The moves that began at this agent.
#[derive(Debug, Default)]
pub struct Moves {
    all: Mutex<Vec<(String, Arc<EventLog>)>>,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, Vec<(String, Arc<EventLog>)>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events of a move that is under way or ended not long ago.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<EventLog>> {
        self.lock().iter().find(|(known, _)| known == id).map(|(_, log)| Arc::clone(log))
    }

    /// Begins the log of a move; `None` if it has one: a move begins once, however often it is asked for.
    #[must_use]
    pub fn begin(&self, id: &str) -> Option<Arc<EventLog>> {
        let mut all = self.lock();
        if all.iter().any(|(known, _)| known == id) {
            return None;
        }
        if all.len() >= KEPT_MOVES
            && let Some(oldest) = all.iter().position(|(_, log)| log.ended())
        {
            all.remove(oldest);
        }
        let log = Arc::new(EventLog::default());
        all.push((id.to_owned(), Arc::clone(&log)));
        Some(log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::{Outcome, Phase};

    fn ended() -> MoveEvent {
        MoveEvent::Ended { result: Outcome::Moved { epoch: 2 }, summary: Box::default() }
    }

    #[test]
    fn late_followers_see_everything_and_the_end_closes() {
        let moves = Moves::default();
        let log = moves.begin("m1").unwrap();
        assert!(moves.begin("m1").is_none(), "a move begins once");
        let entered = MoveEvent::Entered { phase: Phase::Request };
        log.push(entered.clone());
        let mut early = log.follow();
        log.tell(&MoveEvent::Waiting { reason: "why".into() });
        log.push(ended());
        let mut late = moves.get("m1").unwrap().follow();
        assert_eq!(early.blocking_recv(), Some(entered.clone()));
        assert_eq!(early.blocking_recv(), Some(MoveEvent::Waiting { reason: "why".into() }));
        assert_eq!(early.blocking_recv(), Some(ended()));
        assert_eq!(early.blocking_recv(), None);
        assert_eq!(late.blocking_recv(), Some(entered));
        assert_eq!(late.blocking_recv(), Some(ended()));
        assert_eq!(late.blocking_recv(), None);
    }

    #[test]
    fn old_moves_are_forgotten_once_they_have_ended() {
        let moves = Moves::default();
        let open = moves.begin("open").unwrap();
        for index in 0..2 * KEPT_MOVES {
            moves.begin(&format!("m{index}")).unwrap().push(ended());
        }
        assert_eq!(moves.lock().len(), KEPT_MOVES);
        assert!(moves.get("open").is_some_and(|log| Arc::ptr_eq(&log, &open)));
        assert!(moves.get("m0").is_none());
    }
}
