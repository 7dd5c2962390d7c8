//! The paper's experiment (§4, Figures 5 and 6): how long a suspend and a restart of pingpong take, and which part
//! of that its connections take.
//!
//! The *whole* is what a user waits for: `host-tools suspend` (drain, freeze, memory into the repository, a holder
//! for the connections) and `host-tools resume` (a new guest, memory from the repository, the connections go on).
//! The *connection part* is what TCP needs of it: the drain before the freeze, with what quiet peers are told while
//! the service still runs, and the guest's own resume, in which the windows of all but quiet peers are reopened;
//! those follow while the service runs. Commands report neither; a move, which gives its guests the same two orders,
//! reports both. What an order takes without any connection is no work on connections: its median is taken
//! off. All is measured on one service with a growing number of idle connections, in one run.

use std::collections::BTreeMap;

use ferry_tests::harness::{Service, World};

use crate::Bench;
use crate::figure::{Goal, Sample};
use crate::kit::{IP, Phases, await_connections, idle_clients, number, timed_ms};

const SECTION: &str = "paper";
/// Half of the paper's 0.7 %, in percent of a suspend.
const SUSPEND_GOAL: Goal = Goal::AtMost(0.35);
/// Half of the paper's 1.1 %, in percent of a restart.
const RESTART_GOAL: Goal = Goal::AtMost(0.55);
/// Microseconds for a connection. Capybara has 4.
const CONNECTION_GOAL: Goal = Goal::AtMost(10.0);
/// From so many connections on, the time for one of them tells more than that of a round trip.
const MANY: usize = 100;

/// One half of the experiment, with one number of connections.
#[derive(Default)]
struct Half {
    /// The command, in milliseconds.
    whole_ms: Vec<f64>,
    /// The order in the guest that concerns connections, in microseconds.
    order_us: Vec<f64>,
}

#[derive(Default)]
struct Runs {
    suspend: Half,
    restart: Half,
}

/// Measures it.
pub fn measure(bench: &mut Bench) -> Result<(), String> {
    let counts: &[usize] = bench.by_scale(&[0, 1, 100, 1_000], &[0, 1, 100, 1_000, 10_000]);
    let runs = bench.by_scale(8, 20);
    // Ten thousand connections need more; the same for all.
    let memory = bench.by_scale("64M", "192M");
    let world = bench.world("paper");
    let service = world.service("pingpong", "pp", "a", IP, &["--memory", memory]);
    let mut found = BTreeMap::new();
    for &connections in counts {
        await_connections(&world, service.name(), 0)?;
        let client = idle_clients(&world, &service.at(7), connections)?;
        let measured = experiment(&world, &service, connections, runs);
        if let Some(client) = client {
            bench.end(client);
        }
        found.insert(connections, measured?);
    }
    let none = found.remove(&0).unwrap_or_default();
    report(
        bench,
        "suspend",
        &none.suspend,
        found.iter().map(|(n, runs)| (*n, &runs.suspend)),
        SUSPEND_GOAL,
    );
    report(
        bench,
        "restart",
        &none.restart,
        found.iter().map(|(n, runs)| (*n, &runs.restart)),
        RESTART_GOAL,
    );
    Ok(())
}

/// Suspends, resumes and moves a service so often.
fn experiment(
    world: &World,
    service: &Service<'_>,
    connections: usize,
    runs: usize,
) -> Result<Runs, String> {
    let mut found = Runs::default();
    for turn in 0..2 * runs {
        let to = if turn % 2 == 0 { "b" } else { "a" };
        let moved = Phases::of_move(service, to)?;
        if moved.summary["resumed"] != connections {
            return Err(format!("not {connections} connections have moved: {}", moved.summary));
        }
        let closing = moved.step_us("drain", "close quiet")?;
        found.suspend.order_us.push(closing + number(&moved.summary, "drain_us")?);
        found.restart.order_us.push(moved.step_us("resume", "guest")?);
    }
    for _ in 0..runs {
        let (made, ms) = timed_ms(|| world.json(&["suspend", service.name()]));
        if made["connections"] != connections {
            return Err(format!("not {connections} connections were suspended: {made}"));
        }
        found.suspend.whole_ms.push(ms);
        let (resumed, ms) = timed_ms(|| world.json(&["resume", service.name()]));
        if resumed["resumed"]["connections"] != connections {
            return Err(format!("not {connections} connections go on: {resumed}"));
        }
        found.restart.whole_ms.push(ms);
    }
    Ok(found)
}

fn report<'a>(
    bench: &mut Bench,
    name: &str,
    none: &Half,
    with: impl Iterator<Item = (usize, &'a Half)>,
    goal: Goal,
) {
    let median = |values: &[f64]| Sample(values.to_vec()).median().unwrap_or(f64::NAN);
    let (whole_of_none, order_of_none) = (median(&none.whole_ms), median(&none.order_us));
    bench
        .add(SECTION, &format!("{name}, 0 connections"), "ms", Sample(none.whole_ms.clone()))
        .note("the memory part: the command, from its start to its end");
    for (connections, half) in with {
        let of = match connections {
            1 => "1 connection".to_owned(),
            many => format!("{many} connections"),
        };
        let whole = median(&half.whole_ms);
        let part: Vec<f64> = half.order_us.iter().map(|us| us - order_of_none).collect();
        let scaled = |by: f64| Sample(part.iter().map(|us| us / by).collect());
        bench.add(SECTION, &format!("{name}, {of}"), "ms", Sample(half.whole_ms.clone()));
        bench
            .add(SECTION, &format!("{name}: connection part, {of}"), "ms", scaled(1e3))
            .note(&format!("less the {order_of_none:.0} µs that the order takes with none"));
        bench
            .add(
                SECTION,
                &format!("{name}: connection part of the whole, {of}"),
                "%",
                scaled(whole * 1e3 / 100.0),
            )
            .goal(goal);
        let each = bench.add(
            SECTION,
            &format!("{name}: per connection, {of}"),
            "µs",
            scaled(connections as f64),
        );
        if connections >= MANY {
            each.goal(CONNECTION_GOAL);
        }
        let outside =
            half.whole_ms.iter().map(|ms| (ms - whole_of_none) * 1e3 / connections as f64);
        let sample = Sample(outside.collect());
        if connections >= MANY {
            bench
                .add(SECTION, &format!("{name}: per connection, from outside, {of}"), "µs", sample)
                .note("what the command takes longer than with none: also their memory, their list, their holder");
        }
    }
}
