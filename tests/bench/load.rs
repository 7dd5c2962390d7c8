//! Load on a server: requests by wrk, bulk by `ferry-client`, which checks every byte.

use std::time::Duration;

use ferry_tests::client::End;
use ferry_tests::harness::{Client, World, output_within};

use crate::figure::Sample;

/// Longest time for a transfer.
const BULK_LIMIT: Duration = Duration::from_secs(180);
/// How long a server warms up, in seconds: code is translated, windows grow.
const WARM_UP: u32 = 1;

/// How much is asked of each server.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Numbers of connections that ask side by side.
    pub connections: Vec<usize>,
    /// Runs with each.
    pub runs: usize,
    /// Length of a run.
    pub seconds: u32,
    /// Transfers each way.
    pub bulk_runs: usize,
    /// Bytes of a transfer.
    pub bulk_bytes: u64,
}

/// Requests with one number of connections.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Per second.
    pub requests: Sample,
    /// Time in which 99 of 100 are answered.
    pub p99_ms: Sample,
    /// Requests that failed, in all runs.
    pub errors: usize,
}

/// One transfer at a time, in millions of bytes per second.
#[derive(Clone, Debug, Default)]
pub struct Bulk {
    pub down: Sample,
    pub up: Sample,
}

/// `GET /` over connections that stay open.
pub fn requests(world: &World, at: &str, plan: &Plan) -> Result<Vec<Load>, String> {
    let mut all = Vec::new();
    for &connections in &plan.connections {
        let mut load = Load::default();
        wrk(world, at, connections, WARM_UP)?;
        for _ in 0..plan.runs {
            let run = wrk(world, at, connections, plan.seconds)?;
            load.requests.0.push(run.requests);
            load.p99_ms.0.push(run.p99_ms);
            load.errors += run.errors;
        }
        all.push(load);
    }
    Ok(all)
}

/// What wrk says of one run.
#[derive(Debug, PartialEq)]
struct Run {
    requests: f64,
    p99_ms: f64,
    errors: usize,
}

fn wrk(world: &World, at: &str, connections: usize, seconds: u32) -> Result<Run, String> {
    // A shell's limit of open files is often 1,024.
    let run = format!(
        "ulimit -n 4096 && exec wrk -t 1 -c {connections} -d {seconds}s --timeout 10s --latency http://{at}/"
    );
    let limit = Duration::from_secs(u64::from(seconds) + 60);
    let out = output_within(&world.in_node("client", &["sh", "-c", &run]), limit);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let wrong =
        || format!("wrk {at}: {}\n{text}{}", out.status, String::from_utf8_lossy(&out.stderr));
    if out.status.success() { parse(&text).ok_or_else(wrong) } else { Err(wrong()) }
}

fn parse(text: &str) -> Option<Run> {
    let after =
        |label: &str| text.lines().find_map(|line| Some(line.trim().strip_prefix(label)?.trim()));
    let numbers = |line: &str| -> usize {
        let words = line.split(|c: char| !c.is_ascii_digit());
        words.filter_map(|word| word.parse::<usize>().ok()).sum()
    };
    let errors = ["Socket errors:", "Non-2xx or 3xx responses:"];
    Some(Run {
        requests: after("Requests/sec:")?.parse().ok()?,
        p99_ms: milliseconds(after("99%")?)?,
        errors: errors.into_iter().filter_map(after).map(numbers).sum(),
    })
}

/// A time as wrk writes it: `812.00us`, `1.20ms`, `3.40s`, `1.00m`.
fn milliseconds(text: &str) -> Option<f64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let scale = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
    Some(number * scale)
}

/// Downloads and uploads over one connection, and what became of each.
pub fn bulk(world: &World, at: &str, plan: &Plan) -> Result<(Bulk, Vec<End>), String> {
    let (mut bulk, mut ends) = (Bulk::default(), Vec::new());
    let bytes = plan.bulk_bytes.to_string();
    // The first of each way warms up.
    for run in 0..=plan.bulk_runs {
        for (way, sample) in [("download", &mut bulk.down), ("upload", &mut bulk.up)] {
            let client = Client::start(world, &[way, "--connect", at, "--bytes", &bytes]);
            let end = client.end(BULK_LIMIT);
            let moved = end.bytes_received.max(end.bytes_sent);
            if moved != plan.bulk_bytes {
                return Err(format!("a transfer broke off: {end:?}"));
            }
            if run > 0 {
                sample.0.push(moved as f64 / 1e6 / end.seconds);
            }
            ends.push(end);
        }
    }
    Ok((bulk, ends))
}
