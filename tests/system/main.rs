//! System tests: services in real QEMUs on the hosts of a lab, ordinary Linux clients, real moves. Each
//! test has a lab of its own; the modules follow the lines by which the issue is judged.
//!
//! Before: `cargo build -p host-tools`, and the images of `services/` and `tests/services/`
//! with `--release --target x86_64-unknown-hermit`; `sh tests/run.sh system` does all of it.
//!
//! `FERRY_TEST_MOVES` changes how often a service moves in each test (default 20), `FERRY_TEST_SLEEP` how
//! many seconds a suspended service sleeps (default 40). Measurements are printed also when the tests pass.

mod bad_input;
mod checkpoint;
mod drain;
mod gap;
mod lease;
mod load;
mod managers;
mod moves;
mod sleep;
mod state;
mod wire;

use std::io::Write;

use ferry_tests::harness::World;
use rustix::process::{Pid, Signal, kill_process};

/// Address of the service under test.
const IP: &str = "10.77.0.50";

/// A lab for one test.
fn world(name: &str) -> World {
    World::start(env!("CARGO_TARGET_TMPDIR"), name, 2)
}

/// Sends a signal to the daemon of a node.
fn signal(world: &World, node: &str, signal: Signal) {
    let status = world.status();
    let daemons = status["daemons"].as_array().unwrap();
    let daemon = daemons.iter().find(|daemon| daemon["node"] == node).unwrap();
    let pid = i32::try_from(daemon["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// How often a service moves.
fn move_count() -> usize {
    std::env::var("FERRY_TEST_MOVES").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

/// A line of measurement: on standard error, which the test program does not hold back.
fn report(line: &str) {
    // Nobody reads it: then nobody misses it.
    let _ = writeln!(std::io::stderr(), "  {line}");
}
