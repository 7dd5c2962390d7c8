//! How fast a service serves: HTTP over connections that stay open, and bulk each way, beside a Linux guest and
//! stock Hermit on the same host of the same lab, one after the other, each with one processor.

use ferry_tests::harness::World;

use crate::Bench;
use crate::figure::{Goal, Peer, Sample};
use crate::kit::{BARE_IP, HOST, IP};
use crate::load::{self, Bulk, Load, Plan};
use crate::peers::{Assets, LinuxGuest, Program, hermit};

const SECTION: &str = "serving";
/// Requests per second, as a multiple of a peer's.
const REQUESTS_GOAL: Goal = Goal::AtLeast(2.0);
/// The same beside a bare server in C.
const EPOLL_GOAL: Goal = Goal::AtLeast(1.0);
/// Bulk, as a multiple of stock Hermit's.
const HERMIT_BULK_GOAL: Goal = Goal::AtLeast(3.0);
/// Stock Hermit gets this part of the bytes of a transfer.
const HERMIT_BULK_PART: u64 = 10;
/// Bulk, as a multiple of the Linux guest's.
const LINUX_BULK_GOAL: Goal = Goal::AtLeast(0.9);
/// At so many connections the goals beside servers of a Linux guest count.
const COMPARED: usize = 64;
/// RAM of the image: with the default of 64 MiB the service ends for want of memory at 1,000 connections.
const MEMORY: &str = "512M";
const HERMIT: &str = "stock Hermit";
const NGINX: &str = "Linux guest, nginx";
const EPOLL: &str = "Linux guest, C and epoll";
const LINUX: &str = "Linux guest, the same service";

/// Measures it.
pub fn measure(bench: &mut Bench) -> Result<(), String> {
    let plan = Plan {
        connections: vec![1, 64, 1_000],
        runs: bench.by_scale(3, 5),
        seconds: bench.by_scale(3, 6),
        bulk_runs: bench.by_scale(3, 5),
        bulk_bytes: bench.by_scale(50_000_000, 200_000_000),
    };
    let (loads, bulk) = ferry(bench, &plan)?;
    for (connections, load) in plan.connections.iter().zip(&loads) {
        report_load(bench, *connections, load, None);
    }
    report_bulk(bench, &bulk, None);
    let mut missing = Vec::new();
    match stock_hermit(bench, &plan) {
        Ok((theirs, their_bulk)) => {
            let goals = &plan.connections;
            beside(bench, HERMIT, &plan, &loads, &theirs, (goals, REQUESTS_GOAL));
            report_bulk(bench, &bulk, Some((HERMIT, &their_bulk, HERMIT_BULK_GOAL)));
        }
        Err(error) => missing.push(format!("{HERMIT}: {error}")),
    }
    match Assets::find(&bench.scratch) {
        Ok(assets) => {
            for (name, program, goal) in [
                (NGINX, Program::nginx(&assets), REQUESTS_GOAL),
                (EPOLL, Program::epoll(&assets), EPOLL_GOAL),
            ] {
                match program.and_then(|program| server(bench, &assets, &plan, program)) {
                    Ok(theirs) => beside(bench, name, &plan, &loads, &theirs, (&[COMPARED], goal)),
                    Err(error) => missing.push(format!("{name}: {error}")),
                }
            }
            match linux(bench, &assets, &plan) {
                Ok((theirs, their_bulk)) => {
                    beside(bench, LINUX, &plan, &loads, &theirs, (&[], REQUESTS_GOAL));
                    report_bulk(bench, &bulk, Some((LINUX, &their_bulk, LINUX_BULK_GOAL)));
                }
                Err(error) => missing.push(format!("{LINUX}: {error}")),
            }
        }
        Err(error) => missing.push(format!("Linux guest: {error}")),
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

fn beside(
    bench: &mut Bench,
    name: &'static str,
    plan: &Plan,
    ours: &[Load],
    theirs: &[Load],
    (goals, goal): (&[usize], Goal),
) {
    for ((connections, ours), theirs) in plan.connections.iter().zip(ours).zip(theirs) {
        let goal = goals.contains(connections).then_some(goal);
        report_load(bench, *connections, ours, Some((name, theirs, goal)));
    }
}

fn ferry(bench: &mut Bench, plan: &Plan) -> Result<(Vec<Load>, Bulk), String> {
    let world = bench.world("serving");
    let service = world.service("transfer", "tr", HOST, IP, &["--memory", MEMORY]);
    let loads = load::requests(&world, &service.at(80), plan)?;
    // Of Ferry nothing may fail.
    bench.damage.failed += loads.iter().map(|load| load.errors).sum::<usize>();
    let (bulk, ends) = load::bulk(&world, &service.at(80), plan)?;
    ends.iter().for_each(|end| bench.judge(end));
    Ok((loads, bulk))
}

fn stock_hermit(bench: &Bench, plan: &Plan) -> Result<(Vec<Load>, Bulk), String> {
    let world = bench.world("serving-hermit");
    let _machine = hermit::start(&world, &bench.scratch, HOST)?;
    let connections = plan.connections.iter().copied();
    let plan = Plan {
        connections: connections.filter(|count| *count <= hermit::CONNECTIONS).collect(),
        // As much as the others would take minutes.
        bulk_bytes: plan.bulk_bytes / HERMIT_BULK_PART,
        ..plan.clone()
    };
    both(&world, &format!("{}:80", hermit::IP), &plan)
}

fn server(
    bench: &Bench,
    assets: &Assets,
    plan: &Plan,
    program: Program,
) -> Result<Vec<Load>, String> {
    let world = bench.world("serving-www");
    let _guest = LinuxGuest::start(&world, assets, HOST, BARE_IP, &[program])?;
    load::requests(&world, &format!("{BARE_IP}:80"), plan)
}

fn linux(bench: &Bench, assets: &Assets, plan: &Plan) -> Result<(Vec<Load>, Bulk), String> {
    let world = bench.world("serving-linux");
    let _guest =
        LinuxGuest::start(&world, assets, HOST, BARE_IP, &[Program::service(assets, "transfer")?])?;
    both(&world, &format!("{BARE_IP}:80"), plan)
}

/// Requests, then bulk, of a peer.
fn both(world: &World, at: &str, plan: &Plan) -> Result<(Vec<Load>, Bulk), String> {
    let loads = load::requests(world, at, plan)?;
    let (bulk, ends) = load::bulk(world, at, plan)?;
    match ends.iter().find(|end| !end.flawless()) {
        Some(end) => Err(format!("a transfer failed: {end:?}")),
        None => Ok((loads, bulk)),
    }
}

/// Ferry's figures by themselves, or beside a peer's with a goal.
fn report_load(
    bench: &mut Bench,
    connections: usize,
    ours: &Load,
    peer: Option<(&str, &Load, Option<Goal>)>,
) {
    let of = match connections {
        1 => "1 connection".to_owned(),
        many => format!("{many} connections"),
    };
    let beside = peer.map_or(String::new(), |(name, ..)| format!(", beside {name}"));
    let named = |sample: fn(&Load) -> &Sample| {
        peer.map(|(name, load, _)| Peer { name: name.to_owned(), sample: sample(load).clone() })
    };
    let figure =
        bench.add(SECTION, &format!("HTTP, {of}{beside}"), "requests/s", ours.requests.clone());
    figure.peer = named(|load| &load.requests);
    figure.goal = peer.and_then(|(.., goal)| goal);
    if let Some((_, theirs, _)) = peer
        && theirs.errors > 0
    {
        figure.note(&format!("{} of the peer's requests failed", theirs.errors));
    }
    let figure = bench.add(
        SECTION,
        &format!("HTTP, 99 % answered within, {of}{beside}"),
        "ms",
        ours.p99_ms.clone(),
    );
    figure.peer = named(|load| &load.p99_ms);
}

fn report_bulk(bench: &mut Bench, ours: &Bulk, peer: Option<(&str, &Bulk, Goal)>) {
    let beside = peer.map_or(String::new(), |(name, ..)| format!(", beside {name}"));
    for (way, ours, theirs) in [
        ("download", &ours.down, peer.map(|(_, bulk, _)| &bulk.down)),
        ("upload", &ours.up, peer.map(|(_, bulk, _)| &bulk.up)),
    ] {
        let figure = bench.add(SECTION, &format!("{way}{beside}"), "MB/s", ours.clone());
        figure.goal = peer.map(|(.., goal)| goal);
        figure.peer = peer
            .zip(theirs)
            .map(|((name, ..), sample)| Peer { name: name.to_owned(), sample: sample.clone() });
    }
}
