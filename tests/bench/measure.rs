//! The one loop that measures every system under every workload.
//!
//! Time is cut into windows by the client's marks: a window in which the service moves, then a quiet one of the same
//! length, and so on. What the longest gap of the first has over that of the second is the *added gap*: it is what the
//! move costs, and not what the client, the service and the machine cost anyway.

use std::time::{Duration, Instant};

use ferry_tests::client::{End, Window};
use ferry_tests::harness::World;

use crate::caught;
use crate::figure::{Damage, Sample};
use crate::mover::Mover;
use crate::workload::{Clients, Workload};

/// Slow start and the first measurements of the round trip are over by then, and code is translated.
const WARM_UP: Duration = Duration::from_millis(1500);
/// What belongs to a move's window after its end: clients that lost something find that out by their timers, and a
/// window one second after a move is what the rate is taken from.
const SETTLE: Duration = Duration::from_secs(1);
/// Length of the window before the first move.
const FIRST_QUIET: Duration = Duration::from_secs(2);

/// What was measured of one system under one workload; the n-th of each is of the n-th move.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The client's longest gap in the move's window, less that in the quiet window after it, in milliseconds.
    pub added_ms: Sample,
    /// The longest gap in the quiet window, in milliseconds.
    pub quiet_ms: Sample,
    /// The longest gap in the move's window, in milliseconds.
    pub moving_ms: Sample,
    /// As the system reports it.
    pub downtime_ms: Sample,
    /// From the order to the end.
    pub total_ms: Sample,
    /// Bytes that went from host to host.
    pub bytes: Sample,
    /// Rate from one second after the move on, as part of the rate before it.
    pub kept_rate: Sample,
    /// What happened to connections.
    pub damage: Damage,
    /// Why the service did not live to the last move. The moves before that count.
    pub broke: Option<String>,
}

impl Outcome {
    /// Adds the moves of another life of the same system.
    pub fn append(&mut self, more: Self) {
        for (all, more) in [
            (&mut self.added_ms, more.added_ms),
            (&mut self.quiet_ms, more.quiet_ms),
            (&mut self.moving_ms, more.moving_ms),
            (&mut self.downtime_ms, more.downtime_ms),
            (&mut self.total_ms, more.total_ms),
            (&mut self.bytes, more.bytes),
            (&mut self.kept_rate, more.kept_rate),
        ] {
            all.0.extend(more.0);
        }
        self.damage.add(more.damage);
        self.broke = more.broke.or(self.broke.take());
    }

    /// Whether connections broke although the service was there to the end.
    pub fn lost_connections(&self) -> bool {
        self.broke.is_none() && self.damage.connections() > 0
    }

    /// What there is up to a move after which the service was not there any more.
    fn broken(mut self, number: usize, why: &str) -> Self {
        self.broke = Some(format!("after move {number}: {why}"));
        self
    }

    /// The smallest added gap that the median of these can tell from none, in milliseconds: its standard error, from
    /// the median deviation of the quiet windows' gaps as if they were distributed normally.
    pub fn resolution_ms(&self) -> f64 {
        let middle = self.quiet_ms.median().unwrap_or(0.0);
        let deviations = Sample(self.quiet_ms.0.iter().map(|gap| (gap - middle).abs()).collect());
        let deviation = 1.4826 * deviations.median().unwrap_or(0.0);
        // Each added gap is a difference of two; a median scatters by a quarter more than a mean.
        let error =
            1.2533 * deviation * 2_f64.sqrt() / (self.quiet_ms.0.len().max(1) as f64).sqrt();
        error.max(SMALLEST_MS)
    }
}

/// What a client's own thread needs for a round of its connections is no gap.
const SMALLEST_MS: f64 = 0.1;

/// Moves a service `moves` times under a workload. An error is one of the first move's preparation.
pub fn measure(
    world: &World,
    mover: &mut dyn Mover,
    workload: Workload,
    moves: usize,
) -> Result<Outcome, String> {
    let mut clients = Clients::start(world, workload);
    std::thread::sleep(WARM_UP);
    mover.prepare()?;
    let mut out = Outcome::default();
    let mut before = quiet(&mut clients, FIRST_QUIET)?;
    for number in 1..=moves {
        let begun = Instant::now();
        let moved = match mover.go() {
            Ok(moved) => moved,
            Err(error) => return Ok(out.broken(number, &error)),
        };
        std::thread::sleep(SETTLE);
        let moving = match mark(&mut clients, &format!("move {number}")) {
            Ok(moving) => moving,
            Err(error) => return Ok(out.broken(number, &error)),
        };
        let length = begun.elapsed();
        if number < moves
            && let Err(error) = mover.prepare()
        {
            return Ok(out.broken(number, &error));
        }
        let after = match quiet(&mut clients, length) {
            Ok(after) => after,
            Err(error) => return Ok(out.broken(number, &error)),
        };
        if after.progress == 0 {
            let silent = format!(
                "its clients heard {} times in the move's window and then no more",
                moving.progress
            );
            let error = mover.explain(&silent);
            return Ok(out.broken(number, &error));
        }
        out.added_ms.0.push(moving.gap_ms.max - after.gap_ms.max);
        out.moving_ms.0.push(moving.gap_ms.max);
        out.quiet_ms.0.push(after.gap_ms.max);
        out.downtime_ms.0.push(moved.downtime_ms);
        out.total_ms.0.push(moved.total_ms);
        out.bytes.0.push(moved.bytes);
        out.kept_rate.0.push(rate(&after) / rate(&before));
        before = after;
    }
    for end in clients.end() {
        count(&end, &mut out.damage);
    }
    Ok(out)
}

/// A window of that length in which nothing happens.
fn quiet(clients: &mut Clients, length: Duration) -> Result<Window, String> {
    mark(clients, "what was between")?;
    std::thread::sleep(length);
    mark(clients, "quiet")
}

/// Ends a window. A client that has ended, because its connection has, says why.
fn mark(clients: &mut Clients, name: &str) -> Result<Window, String> {
    let client = &mut clients.measured;
    caught(|| Ok(client.mark(name))).map_err(|error| match client.last_words() {
        Some(words) => format!("its client has ended: {words}"),
        None => error,
    })
}

/// Bytes or messages in a millisecond.
fn rate(window: &Window) -> f64 {
    window.progress as f64 / window.ms
}

fn count(end: &End, damage: &mut Damage) {
    damage.resets += end.resets;
    damage.damaged += end.damaged;
    damage.failed += end.connections - end.alive - end.resets - end.damaged;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_from_none_follows_from_the_quiet_windows() {
        let of = |quiet: &[f64]| {
            Outcome { quiet_ms: Sample(quiet.into()), ..Outcome::default() }.resolution_ms()
        };
        assert_eq!(of(&[]), SMALLEST_MS);
        assert_eq!(of(&[5.0; 9]), SMALLEST_MS, "they do not scatter");
        // Median deviation 1: 1.4826 * 1.2533 * sqrt(2 / 5).
        let found = of(&[3.0, 4.0, 5.0, 6.0, 9.0]);
        assert!((found - 1.1752).abs() < 1e-3, "{found}");
    }

    #[test]
    fn a_second_life_adds_its_moves_and_keeps_why_the_first_ended() {
        let life = |added: f64, broke: Option<&str>| Outcome {
            added_ms: Sample(vec![added]),
            damage: Damage { resets: 1, damaged: 0, failed: 2 },
            broke: broke.map(str::to_owned),
            ..Outcome::default()
        };
        let mut all = life(1.0, Some("panic"));
        all.append(life(2.0, None));
        assert_eq!(all.added_ms, Sample(vec![1.0, 2.0]));
        assert_eq!(all.damage, Damage { resets: 2, damaged: 0, failed: 4 });
        assert_eq!(all.broke.as_deref(), Some("panic"));
        all.append(life(3.0, Some("silence")));
        assert_eq!(all.broke.as_deref(), Some("silence"));
    }
}
