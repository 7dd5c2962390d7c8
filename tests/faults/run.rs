//! One run: load, a move, its faults, and what is there afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ferry_tests::client::End;
use ferry_tests::faults::plan::{Fault, Moved, Part, Plan};
use ferry_tests::faults::verdict::{self, Cost, Ending, Observed, expected_cost};
use ferry_tests::faults::wire::{self, Turn};
use ferry_tests::harness::capture::Capture;
use ferry_tests::harness::{Client, output_within};
use ferry_tests::trace::pcap;
use serde_json::Value;

use crate::inject::{Cast, Done, inject};
use crate::rig::{HOSTS, Known, Rig, SERVICES, Service, qemus};
use crate::watch::Migrate;

/// How long the service is under load before the move begins.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long the clients go on once everything has settled.
const AFTER: Duration = Duration::from_millis(200);
/// By when every move has ended and every service is whole again, from the end of the last fault on.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for clients to finish: TCP's own timers may have grown while a link was cut.
const END_LIMIT: Duration = Duration::from_secs(40);
/// Longest time for a new client.
const PROBE_LIMIT: Duration = Duration::from_secs(15);

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// From where to where, and what.
    pub what: String,
    /// Each fault, and whether it found what it is for.
    pub faults: Vec<(Fault, bool)>,
    /// How the move ended, with the reason.
    pub ending: String,
    /// How long everything took to come to its end after the last fault had ended.
    pub settled: Duration,
    /// What the faults cost, which was to be expected.
    pub cost: Cost,
    /// Everything that should not be.
    pub violations: Vec<String>,
    /// Who spoke when, for the service that moved.
    pub turns: Vec<(String, Turn)>,
    /// What passed the switch, as a pcap file.
    pub trace: Vec<u8>,
}

/// Does a run.
#[must_use]
pub fn run(rig: &Rig, plan: &Plan) -> Outcome {
    let (service, other) = (Service::of(plan.moved), Service::other(plan.moved));
    let before = rig.known(service.name).expect("the manager answers before a run");
    let mac_other = rig.known(other.name).expect("the manager answers before a run").mac;
    let source = before.owner.clone().expect("the service runs before a run");
    let mut free = HOSTS.into_iter().filter(|host| *host != source);
    let destination = if plan.to_second { free.next_back() } else { free.next() };
    let destination = destination.expect("three hosts").to_owned();
    let cast = Cast {
        source: source.clone(),
        destination: destination.clone(),
        leader: rig.world.leader(),
        mac: before.mac.clone(),
        holders: rig.pids("nodes"),
        daemons: rig.pids("daemons"),
    };
    let known_moves = rig.moves().map_or(0, |all| all.len());

    let capture =
        Capture::switch(&rig.world, &format!("arp or host {} or host {}", service.ip, other.ip));
    let mut clients: BTreeMap<&str, Vec<Client>> = BTreeMap::new();
    for service in &SERVICES {
        clients.insert(service.name, load(rig, service));
    }
    std::thread::sleep(WARM_UP);

    let migrate = Migrate::start(&rig.world, service.name, &destination);
    let done: Vec<Done> = std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .faults
            .iter()
            .map(|fault| scope.spawn(|| inject(rig, fault, &cast, &migrate.progress)))
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a fault is done")).collect()
    });
    // Agents last: they are not ready before a manager knows them.
    let mut down: Vec<&String> = done.iter().filter_map(|done| done.down.as_ref()).collect();
    down.sort_by_key(|node| HOSTS.contains(&node.as_str()));
    down.into_iter().for_each(|node| rig.restart(node));
    let killed: Vec<Part> = done.iter().filter_map(|done| done.killed).collect();

    let faulted = Instant::now();
    let after = settle(rig, service, other, known_moves, &killed, &cast, &migrate);
    let settled = faulted.elapsed();
    let cost = expected_cost(&killed, &after.ending);
    std::thread::sleep(AFTER);
    let mut ends: BTreeMap<&str, Vec<End>> = BTreeMap::new();
    for (name, clients) in clients {
        // Those of a service that may be gone have nobody to wait for.
        let waits = name != service.name || cost == Cost::None;
        let ended = clients.into_iter().filter(|_| waits).map(|client| client.end(END_LIMIT));
        ends.insert(name, ended.collect());
    }
    // Its question for the address reaches every host: whoever answers is in the capture.
    let _ = rig.world.exec("client", &["ip", "neigh", "flush", "all"]);
    let probes = SERVICES.each_ref().map(|service| probe(rig, service));
    let file = capture.end_raw();
    let frames = pcap::frames_of(&file, pcap::LINUX_SLL2).expect("the capture is whole");

    let observe = |service: &Service, mac: &str, known: Option<&Known>| {
        let mut spoken = wire::spoken(&frames, octets(mac));
        // The switch itself hears broadcasts too.
        spoken.retain(|frame| rig.ports.contains_key(&frame.port));
        let name = |turn: &Turn| rig.ports.get(&turn.port).cloned().unwrap_or_default();
        let turns: Vec<(String, Turn)> =
            wire::turns(&spoken).into_iter().map(|turn| (name(&turn), turn)).collect();
        let index = SERVICES.iter().position(|it| it.name == service.name).unwrap_or_default();
        let observed = verdict::Service {
            name: service.name.to_owned(),
            owner: known.and_then(|known| known.owner.clone()),
            runs: known.is_some_and(whole),
            instances: instances(&cast, mac),
            speakers: turns.iter().map(|(node, _)| node.clone()).collect(),
            resets: wire::resets(&spoken),
            clients: ends.get(service.name).cloned().unwrap_or_default(),
            probe: probes[index].clone(),
        };
        (observed, turns)
    };
    let (moved, turns) = observe(service, &before.mac, after.moved.as_ref());
    let (other, _) = observe(other, &mac_other, after.other.as_ref());
    let observed = Observed {
        source: source.clone(),
        destination: destination.clone(),
        ending: after.ending,
        open_moves: after.open_moves,
        killed,
        moved,
        other,
    };
    Outcome {
        what: format!("{} {source}→{destination}", service.name),
        faults: plan.faults.iter().copied().zip(done.iter().map(|done| done.hit)).collect(),
        ending: after.told,
        settled,
        cost,
        violations: verdict::violations(&observed),
        turns,
        trace: file,
    }
}

/// The clients of a service: checked bytes in both directions, at a rate that leaves the machine room.
fn load(rig: &Rig, service: &Service) -> Vec<Client> {
    let at = service.at();
    let start = |arguments: &[&str]| Client::start(&rig.world, arguments);
    if service.name == Service::of(Moved::Pingpong).name {
        let (connections, think) = (["--connections", "4"], ["--think-ms", "3"]);
        return vec![start(&[&["pingpong", "--connect", &at][..], &connections, &think].concat())];
    }
    let many = ["--connections", "2", "--bytes", "262144", "--again", "--rate", "1000000"];
    ["download", "upload"]
        .map(|direction| start(&[&[direction, "--connect", &at][..], &many].concat()))
        .into()
}

/// A new client of a service: whether it is answered, with the right bytes.
fn probe(rig: &Rig, service: &Service) -> Result<(), String> {
    let at = service.at();
    let arguments: &[&str] = if service.name == Service::of(Moved::Pingpong).name {
        &["pingpong", "--connect", &at, "--seconds", "0.05"]
    } else {
        &["download", "--connect", &at, "--bytes", "65536"]
    };
    let out = output_within(&Client::command(&rig.world, arguments), PROBE_LIMIT);
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{}, {}", out.status, String::from_utf8_lossy(&out.stdout).trim()))
}

/// What is there once everything has come to an end, or the time for that is over.
struct After {
    ending: Ending,
    told: String,
    open_moves: Vec<String>,
    moved: Option<Known>,
    other: Option<Known>,
}

/// Waits for the end of all moves and for whole services.
fn settle(
    rig: &Rig,
    service: &Service,
    other: &Service,
    known_moves: usize,
    killed: &[Part],
    cast: &Cast,
    migrate: &Migrate,
) -> After {
    let begun = Instant::now();
    loop {
        let moves = rig.moves().unwrap_or_default();
        let ours = moves.get(known_moves);
        let (ending, told) = ending(ours);
        let open_moves: Vec<String> = moves
            .iter()
            .filter(|it| it["result"].is_null())
            .filter_map(|it| it["id"].as_str().map(str::to_owned))
            .collect();
        let after = After {
            open_moves,
            moved: rig.known(service.name),
            other: rig.known(other.name),
            ending,
            told,
        };
        let may_be_gone = expected_cost(killed, &after.ending) == Cost::Service;
        let alone = |mac: &str, gone: bool| {
            instances(cast, mac).values().sum::<usize>() == usize::from(!gone)
        };
        let gone = may_be_gone && after.moved.as_ref().is_some_and(|it| it.state == "failed");
        let settled = moves.len() >= known_moves
            && migrate.progress.ended()
            && after.open_moves.is_empty()
            && (gone || after.moved.as_ref().is_some_and(whole))
            && alone(&cast.mac, gone)
            && after.other.as_ref().is_some_and(|it| whole(it) && alone(&it.mac, false));
        if settled || begun.elapsed() > SETTLE_LIMIT {
            return after;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Whether it runs, where and under the epoch that the manager says.
fn whole(known: &Known) -> bool {
    known.state == "running" && known.instance_epoch == Some(known.epoch)
}

fn ending(migration: Option<&Value>) -> (Ending, String) {
    let Some(migration) = migration else { return (Ending::None, "no move".into()) };
    let result = &migration["result"];
    let phase = result["phase"].as_str().unwrap_or_default();
    let told =
        |name: &str| format!("{name} {phase}: {}", result["reason"].as_str().unwrap_or_default());
    match result["outcome"].as_str() {
        Some("moved") => (Ending::Moved, "moved".into()),
        Some("kept") => (Ending::Kept, told("kept in")),
        Some("taken-back") => (Ending::TakenBack, told("taken back in")),
        Some("broken") => (Ending::Broken, told("lost in")),
        _ => {
            let open = format!("in {}", migration["phase"].as_str().unwrap_or("no phase"));
            (Ending::Open(open.clone()), open)
        }
    }
}

fn instances(cast: &Cast, mac: &str) -> BTreeMap<String, usize> {
    HOSTS
        .into_iter()
        .filter_map(|host| Some((host.to_owned(), qemus(*cast.holders.get(host)?, mac).len())))
        .collect()
}

fn octets(mac: &str) -> [u8; 6] {
    let mut octets = [0; 6];
    for (octet, text) in octets.iter_mut().zip(mac.split(':')) {
        *octet = u8::from_str_radix(text, 16).unwrap_or_default();
    }
    octets
}
