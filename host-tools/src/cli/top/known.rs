//! What the manager's stream has told so far.

use std::time::{Duration, Instant};

use crate::api::{Overview, SeenMove, WatchEvent};

/// How long a move that has ended stays among those under way.
const LINGER: Duration = Duration::from_secs(8);

/// Everything that is shown.
#[derive(Debug, Default)]
pub struct Known {
    /// Hosts and services.
    pub overview: Option<(Overview, Instant)>,
    /// Moves, oldest first.
    pub moves: Vec<KnownMove>,
    /// Why nothing is told any more.
    pub lost: Option<String>,
    heard_moves: bool,
}

/// A move and when its end was seen.
#[derive(Debug)]
pub struct KnownMove {
    /// The move.
    pub seen: SeenMove,
    ended: Option<Instant>,
}

impl KnownMove {
    /// Whether it is under way, or has ended just now.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.seen.migration.result.is_none()
            || self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < LINGER)
    }
}

impl Known {
    /// Takes an event in.
    pub fn take(&mut self, event: WatchEvent, now: Instant) {
        self.lost = None;
        match event {
            WatchEvent::Hello { .. } => {}
            WatchEvent::Overview(overview) => self.overview = Some((overview, now)),
            WatchEvent::Moves { moves } => {
                self.heard_moves = true;
                self.moves =
                    moves.into_iter().map(|seen| KnownMove { seen, ended: None }).collect();
            }
            WatchEvent::Move(seen) => {
                let ended = seen.migration.result.is_some().then_some(now);
                let id = &seen.migration.id;
                match self.moves.iter_mut().find(|known| known.seen.migration.id == *id) {
                    Some(known) => *known = KnownMove { seen, ended },
                    None => self.moves.push(KnownMove { seen, ended }),
                }
            }
        }
    }

    /// Whether the whole of the present state is known.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.overview.is_some() && self.heard_moves
    }

    /// The manager's clock, in microseconds.
    #[must_use]
    pub fn clock_us(&self, now: Instant) -> u64 {
        self.overview.as_ref().map_or(0, |(overview, at)| {
            overview.now_us + now.saturating_duration_since(*at).as_micros() as u64
        })
    }
}
