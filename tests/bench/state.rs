//! How a move grows with the state of a service that is mostly left alone: bytes, time, and what a client feels.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::Duration;

use ferry_tests::harness::{Client, World};
use serde_json::Value;

use crate::Bench;
use crate::figure::{Goal, Peer, Sample};
use crate::kit::IP;
use crate::measure;
use crate::mover::Ferry;
use crate::workload::Workload;

const SECTION: &str = "cost";
/// How much the added gap may grow from the smallest state to the largest.
const GAP_GOAL: Goal = Goal::AtMost(1.5);
/// RAM beside the state, in MiB.
const REST_MIB: usize = 64;
/// Longest time for a GiB to be written in the guest.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Measures it.
pub fn measure(bench: &mut Bench) -> Result<(), String> {
    let sizes: &[usize] = bench.by_scale(&[16, 128, 1024], &[16, 64, 256, 1024]);
    let moves = bench.by_scale(5, 10);
    let mut gaps = Vec::new();
    for &mib in sizes {
        gaps.push((mib, with(bench, mib, moves)?));
    }
    let (Some((least, small)), Some((most, large))) = (gaps.first(), gaps.last()) else {
        return Ok(());
    };
    let name = format!("growth of the added gap from {least} to {most} MiB of state");
    let peer = Peer { name: format!("with {least} MiB"), sample: small.clone() };
    bench.add(SECTION, &name, "ms", large.clone()).goal(GAP_GOAL).peer = Some(peer);
    Ok(())
}

/// The added gaps with one amount of state.
fn with(bench: &mut Bench, mib: usize, moves: usize) -> Result<Sample, String> {
    let world = bench.world(&format!("state{mib}"));
    let memory = format!("{}M", mib + mib / 16 + REST_MIB);
    let mut service = Ferry::start(&world, "stateful", &["--memory", &memory]);
    let filled = ask(&world, &format!("{IP}:7000"), &format!("fill {mib}"))?;
    if filled["bulk_mib"] != mib {
        return Err(format!("not {mib} MiB of state fit into {memory} of RAM: {filled}"));
    }
    let found = measure::measure(&world, &mut service, Workload::PingPong(1), moves)?;
    bench.damage.add(found.damage);
    if let Some(why) = found.broke {
        return Err(format!("with {mib} MiB of state: {why}"));
    }
    let of = format!("{mib} MiB of state");
    let mib_moved = Sample(found.bytes.0.iter().map(|bytes| bytes / 1_048_576.0).collect());
    bench
        .add(SECTION, &format!("added gap, {of}"), "ms", found.added_ms.clone())
        .note("ping-pong, 1 connection; the state is left alone");
    bench.add(SECTION, &format!("bytes moved, {of}"), "MiB", mib_moved);
    bench.add(SECTION, &format!("whole move, {of}"), "ms", found.total_ms);
    Ok(found.added_ms)
}

/// One question to the service and its answer. Ends with the connection, at the latest with the client's patience.
fn ask(world: &World, at: &str, question: &str) -> Result<Value, String> {
    let mut command = Client::command(world, &["lines", "--connect", at]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a client: {error}"))?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (send, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Some(output) = output
            && BufReader::new(output).read_line(&mut line).is_ok()
        {
            // Nobody waits for it any more: then nobody misses it.
            let _ = send.send(line);
        }
    });
    let asked = input.map(|mut input| writeln!(input, "{question}").map(|()| input));
    let answer = answer.recv_timeout(ANSWER_LIMIT);
    drop(asked);
    let _ = child.kill();
    let _ = child.wait();
    let line = answer.map_err(|_| format!("the service does not answer `{question}`"))?;
    serde_json::from_str(&line).map_err(|error| format!("{error} in `{line}`"))
}
