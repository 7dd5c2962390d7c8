//! A move as its event stream tells it, for those who wait for a phase of it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferry_tests::faults::plan::PHASES;
use ferry_tests::harness::World;
use serde_json::Value;

#[derive(Debug, Default)]
struct Seen {
    /// Phases that were entered, and when that was heard.
    entered: Vec<(String, Instant)>,
    /// When the stream ended.
    ended: Option<Instant>,
}

/// What is known of a move so far. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<(Mutex<Seen>, Condvar)>);

impl Progress {
    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Waits until `phase`, or one after it, has been entered, or the stream has ended, at most this long.
    /// Returns when that was.
    #[must_use]
    pub fn await_phase(&self, phase: &str, limit: Duration) -> Instant {
        let rank = |name: &str| PHASES.iter().position(|known| *known == name);
        let wanted = rank(phase);
        let due = |seen: &Seen| {
            let entered = seen.entered.iter().find(|(name, _)| rank(name) >= wanted);
            entered.map(|(_, at)| *at).or(seen.ended)
        };
        let seen = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(seen, limit, |seen| due(seen).is_none());
        let (seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        due(&seen).unwrap_or_else(Instant::now)
    }

    /// Whether the move, or its manager, has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).ended.is_some()
    }
}

/// The command that moves a service. It is ended when this is dropped.
#[derive(Debug)]
pub struct Migrate {
    child: Child,
    /// What it has told.
    pub progress: Progress,
}

impl Migrate {
    /// Begins a move.
    #[must_use]
    pub fn start(world: &World, service: &str, to: &str) -> Self {
        let mut command = world.command(&["migrate", service, "--to", to, "-o", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start `migrate`: {e}"));
        let progress = Progress::default();
        let (output, told) = (child.stdout.take(), progress.clone());
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { break };
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                let now = Instant::now();
                if event["event"] == "entered" {
                    let phase = event["phase"].as_str().unwrap_or_default().to_owned();
                    told.change(|seen| seen.entered.push((phase, now)));
                }
            }
            told.change(|seen| seen.ended = Some(Instant::now()));
        });
        Self { child, progress }
    }
}

impl Drop for Migrate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
