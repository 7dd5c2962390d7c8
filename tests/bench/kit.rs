//! What the parts have in common: labs, clients whose ends are judged, and what the commands' JSON says.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ferry_tests::client::End;
use ferry_tests::harness::{Client, Service, World};
use serde_json::Value;

use crate::figure::{Figure, Goal, Sample};
use crate::mover::NODES;
use crate::{Bench, Scale};

/// The host of a lab that services and peers run on.
pub const HOST: &str = NODES[0];
/// Address of the service that is measured.
pub const IP: &str = "10.77.0.50";
/// Address of what no agent starts: peers, and Ferry's image beside them.
pub const BARE_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 60);
/// Longest time for a client to end, and for connections to go away.
const END_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at something that only a command tells.
const LOOK: Duration = Duration::from_millis(50);

impl Bench {
    /// A lab for one part.
    pub fn world(&self, name: &str) -> World {
        World::start(&self.scratch.to_string_lossy(), &format!("bench-{name}"), 2)
    }

    /// `quick` or `full`, by the scale of this run.
    pub fn by_scale<T>(&self, quick: T, full: T) -> T {
        if self.scale == Scale::Quick { quick } else { full }
    }

    /// Ends a client and counts what it found wrong.
    pub fn end(&mut self, client: Client) {
        self.judge(&client.end(END_LIMIT));
    }

    /// Counts what a client of Ferry found wrong.
    pub fn judge(&mut self, end: &End) {
        self.damage.resets += end.resets;
        self.damage.damaged += end.damaged;
        self.damage.failed +=
            (end.connections - end.alive).saturating_sub(end.resets + end.damaged);
    }

    /// Adds a figure that stands by itself.
    pub fn add(&mut self, section: &str, name: &str, unit: &str, ferry: Sample) -> &mut Figure {
        println!(
            "   {name}: {:.4} {unit} ({} runs)",
            ferry.median().unwrap_or(f64::NAN),
            ferry.0.len()
        );
        self.figures.push(Figure {
            section: section.to_owned(),
            name: name.to_owned(),
            unit: unit.to_owned(),
            ferry,
            peer: None,
            goal: None,
            note: String::new(),
        });
        let last = self.figures.len() - 1;
        &mut self.figures[last]
    }
}

impl Figure {
    /// With a goal.
    pub fn goal(&mut self, goal: Goal) -> &mut Self {
        self.goal = Some(goal);
        self
    }

    /// With what to know when reading it.
    pub fn note(&mut self, note: &str) -> &mut Self {
        note.clone_into(&mut self.note);
        self
    }
}

/// A number in a command's JSON.
pub fn number(json: &Value, field: &str) -> Result<f64, String> {
    json[field].as_f64().ok_or_else(|| format!("no number `{field}` in {json}"))
}

/// Idle connections to an echo service, each of which has proved that it lives. `None` if none are asked for.
pub fn idle_clients(world: &World, at: &str, connections: usize) -> Result<Option<Client>, String> {
    if connections == 0 {
        return Ok(None);
    }
    let count = connections.to_string();
    let mut client = Client::start(world, &["hold", "--connect", at, "--connections", &count]);
    match client.mark("open").alive {
        alive if alive == connections => Ok(Some(client)),
        alive => Err(format!("{alive} of {connections} connections are open")),
    }
}

/// Waits until a service has as many connections, listening ports left out.
pub fn await_connections(world: &World, name: &str, wanted: usize) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let all = world.json(&["conns", name]);
        let listening = |line: &&Value| {
            line["state"].as_str().is_some_and(|state| state.eq_ignore_ascii_case("listen"))
        };
        let all: Vec<&Value> = all.as_array().into_iter().flatten().collect();
        let found = all.len() - all.iter().copied().filter(|line| listening(line)).count();
        if found == wanted {
            return Ok(());
        }
        if begun.elapsed() > END_LIMIT {
            return Err(format!("{name} has {found} connections, not {wanted}"));
        }
        std::thread::sleep(LOOK);
    }
}

/// What a move told of its phases.
pub struct Phases {
    /// Each with its steps.
    all: Vec<Value>,
    /// The figures of the whole.
    pub summary: Value,
}

impl Phases {
    /// Moves a service.
    pub fn of_move(service: &Service<'_>, node: &str) -> Result<Self, String> {
        let (code, out, error) = service.try_migrate(node);
        if code != Some(0) {
            return Err(format!(
                "{} did not move to {node} (exit code {code:?}): {error}",
                service.name()
            ));
        }
        let mut moved = Self { all: Vec::new(), summary: Value::Null };
        for line in out.lines() {
            let mut event: Value =
                serde_json::from_str(line).map_err(|e| format!("{e} in `{line}`"))?;
            match event["event"].as_str() {
                Some("phase") => moved.all.push(event),
                Some("ended") => moved.summary = event["summary"].take(),
                _ => {}
            }
        }
        Ok(moved)
    }

    fn phase(&self, name: &str) -> Result<&Value, String> {
        let found = self.all.iter().find(|phase| phase["phase"] == name);
        found.ok_or_else(|| format!("the move tells nothing of its phase {name}"))
    }

    /// Length of a named part of a phase in microseconds.
    pub fn step_us(&self, phase: &str, step: &str) -> Result<f64, String> {
        let steps = self.phase(phase)?["steps"].as_array().cloned().unwrap_or_default();
        let found = steps.iter().find(|pair| pair[0] == step).and_then(|pair| pair[1].as_f64());
        found.ok_or_else(|| format!("the phase {phase} of the move has no step `{step}`"))
    }
}

/// Milliseconds of something done.
pub fn timed_ms<T>(what: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let done = what();
    (done, begun.elapsed().as_secs_f64() * 1e3)
}
