//! What a service costs: time to its first answer, the size of its image, memory, processor while idle, and what
//! connections and state add to what has to be moved.

use std::path::Path;
use std::time::{Duration, Instant};

use ferry_tests::harness::{Client, Service, World};

use crate::Bench;
use crate::figure::{Goal, Peer, Sample};
use crate::kit::{BARE_IP, HOST, IP, Phases, await_connections, idle_clients, number};
use crate::peers::machine::{Boot, Chipset, Machine};
use crate::peers::{Assets, LinuxGuest, Program, linux};
use crate::process::{cpu_percent, populated, resident};

const SECTION: &str = "cost";
/// Guest RAM of the small services.
const MEMORY_MIB: u64 = 64;
/// Longest time for a guest to answer.
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long a process is watched that should do nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Of the Linux guest's time to the first answer.
const BOOT_GOAL: Goal = Goal::AtMost(1.0 / 15.0);
/// What an idle connection may add to the state that moves, in bytes.
const CONNECTION_GOAL: Goal = Goal::AtMost(2048.0);
/// Connections whose cost is measured.
const CONNECTIONS: usize = 1_000;
const LINUX: &str = "Linux guest";

/// Measures all of it.
pub fn measure(bench: &mut Bench) -> Result<(), String> {
    // Ferry's own figures are worth having without the peer's.
    let assets = Assets::find(&bench.scratch);
    boot(bench, assets.as_ref().ok())?;
    idle(bench, assets.as_ref().ok())?;
    crate::state::measure(bench)?;
    assets.map(drop).map_err(|error| format!("without its peer: {error}"))
}

/// From the start of QEMU to the first answer over HTTP, several times.
pub fn first_answers(world: &World, boot: &Boot, runs: usize) -> Result<Sample, String> {
    // Nobody answers ARP yet, and a question is repeated after a second only.
    let (ip, mac) = (boot.ip.to_string(), boot.mac());
    world.exec(
        "client",
        &["ip", "neigh", "replace", &ip, "lladdr", &mac, "nud", "permanent", "dev", "eth0"],
    );
    let mut took = Vec::new();
    for _ in 0..runs {
        let client = Client::start(world, &["first", "--connect", &format!("{ip}:80")]);
        let begun = Instant::now();
        let mut machine = Machine::start(world, HOST, boot, false)?;
        let end = client.end(BOOT_LIMIT);
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        if !end.flawless() {
            let what = format!("{} does not answer: {end:?}", boot.kernel.display());
            return Err(machine.explain(&what));
        }
    }
    Ok(Sample(took))
}

fn bytes_of(path: &Path) -> Result<f64, String> {
    let file = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file.len() as f64)
}

fn peer(sample: Option<Sample>) -> Option<Peer> {
    sample.map(|sample| Peer { name: LINUX.to_owned(), sample })
}

fn boot(bench: &mut Bench, assets: Option<&Assets>) -> Result<(), String> {
    let (runs, peer_runs) = bench.by_scale((7, 3), (30, 10));
    let world = bench.world("boot");
    let image = Boot {
        chipset: Chipset::Q35,
        memory_mib: MEMORY_MIB as u32,
        kernel: world.image("transfer"),
        initramfs: None,
        append: format!("ip={BARE_IP}/24"),
        ip: BARE_IP,
        nic: "",
    };
    let took = first_answers(&world, &image, runs)?;
    let small = Boot { chipset: Chipset::Microvm, ..image.clone() };
    let took_small = first_answers(&world, &small, runs)?;
    let size = bytes_of(&image.kernel)?;
    let (mut peer_took, mut peer_size) = (None, None);
    if let Some(assets) = assets {
        let programs = [Program::service(assets, "transfer")?];
        let boot = linux::boot(assets, world.files(), BARE_IP, &programs)?;
        let initramfs = boot.initramfs.as_deref().map(bytes_of).transpose()?.unwrap_or(0.0);
        peer_size = Some(Sample(vec![bytes_of(&boot.kernel)? + initramfs]));
        peer_took = Some(first_answers(&world, &boot, peer_runs)?);
    }
    let figure =
        bench.add(SECTION, "boot to the first answer over HTTP", "ms", took).goal(BOOT_GOAL);
    figure.note("the service transfer, from the start of QEMU").peer = peer(peer_took.clone());
    let figure = bench
        .add(SECTION, "boot to the first answer over HTTP, microvm", "ms", took_small)
        .goal(BOOT_GOAL);
    figure.note("--machine microvm; the Linux guest, whose kernel needs PCI, as before").peer =
        peer(peer_took);
    let figure = bench.add(SECTION, "image", "bytes", Sample(vec![size]));
    figure
        .note("transfer: all that boots; the peer: kernel and initramfs with the same service")
        .peer = peer(peer_size);
    Ok(())
}

/// What a process uses while it has nothing to do.
struct Idle {
    percent: Sample,
    resident_mib: Sample,
}

impl Idle {
    fn of(pid: i32, runs: usize) -> Result<Self, String> {
        let percent: Result<Vec<f64>, String> = (0..runs).map(|_| cpu_percent(pid, IDLE)).collect();
        Ok(Self { percent: Sample(percent?), resident_mib: Sample(vec![resident(pid)? / MIB]) })
    }
}

/// The Linux guest with as many idle connections.
fn idle_linux(
    bench: &Bench,
    assets: &Assets,
    connections: usize,
    runs: usize,
) -> Result<Idle, String> {
    let world = bench.world("idle-linux");
    let guest =
        LinuxGuest::start(&world, assets, HOST, BARE_IP, &[Program::service(assets, "pingpong")?])?;
    let client = idle_clients(&world, &format!("{BARE_IP}:7"), connections)?;
    let idle =
        Idle::of(i32::try_from(guest.machine.pid()).map_err(|error| error.to_string())?, runs);
    drop(client);
    idle
}

/// What matters of a service's size.
struct Size {
    snapshot_pages: f64,
    moved: f64,
    ram: f64,
}

/// A guest without work, without and with connections.
fn idle(bench: &mut Bench, assets: Option<&Assets>) -> Result<(), String> {
    let runs = bench.by_scale(2, 6);
    let mut linux = Vec::new();
    for connections in [0, CONNECTIONS] {
        linux.push(assets.map(|assets| idle_linux(bench, assets, connections, runs)).transpose()?);
    }
    let world = bench.world("idle");
    let service =
        world.service("pingpong", "pp", HOST, IP, &["--memory", &format!("{MEMORY_MIB}M")]);
    let mut sizes = Vec::new();
    for (connections, linux) in [0, CONNECTIONS].into_iter().zip(linux) {
        let client = idle_clients(&world, &service.at(7), connections)?;
        await_connections(&world, service.name(), connections)?;
        let of = format!("{connections} idle connections");
        let pid = *world.guests(HOST).first().ok_or("the service has no QEMU")?;
        let Idle { percent, resident_mib } = Idle::of(pid, runs)?;
        let (peer_percent, peer_resident) =
            linux.map(|idle| (idle.percent, idle.resident_mib)).unzip();
        let figure = bench.add(SECTION, &format!("processor, {of}"), "%", percent);
        figure.note("of one processor; QEMU, over 10 s each").peer = peer(peer_percent);
        let figure =
            bench.add(SECTION, &format!("resident memory of QEMU, {of}"), "MiB", resident_mib);
        figure.peer = peer(peer_resident);
        sizes.push(size(bench, &world, &service, pid, &of)?);
        if let Some(client) = client {
            bench.end(client);
        }
    }
    let [without, with] = &sizes[..] else { return Err("two measurements were expected".into()) };
    let each = |more: f64| Sample(vec![more / CONNECTIONS as f64]);
    let pages = (with.snapshot_pages - without.snapshot_pages) * PAGE;
    bench
        .add(SECTION, "state of an idle connection, in a snapshot", "bytes", each(pages))
        .goal(CONNECTION_GOAL)
        .note("pages of the snapshot with 1,000 connections less those with none");
    bench
        .add(SECTION, "state of an idle connection, moved", "bytes", each(with.moved - without.moved))
        .goal(CONNECTION_GOAL)
        .note("bytes of a move with 1,000 less those with none; a page that is written on the way counts again");
    bench
        .add(SECTION, "guest RAM for an idle connection", "bytes", each(with.ram - without.ram))
        .note("populated pages of the RAM file, also those that opening the connections took for a moment");
    Ok(())
}

/// Measures a service that is idle.
fn size(
    bench: &mut Bench,
    world: &World,
    service: &Service<'_>,
    pid: i32,
    of: &str,
) -> Result<Size, String> {
    let ram = populated(pid, MEMORY_MIB)?;
    bench.add(SECTION, &format!("guest RAM in use, {of}"), "MiB", Sample(vec![ram / MIB]));
    let file = world.files().join("snapshot");
    let made = world.json(&["checkpoint", service.name(), "-R", "-e", &file.to_string_lossy()]);
    let kib = number(&made, "bytes")? / 1024.0;
    bench
        .add(SECTION, &format!("snapshot, {of}"), "KiB", Sample(vec![kib]))
        .note("compressed and sealed, as on disk");
    let mut moved = Vec::new();
    for to in ["b", HOST, "b", HOST] {
        moved.push(number(&Phases::of_move(service, to)?.summary, "bytes")?);
    }
    let kib = Sample(moved.iter().map(|bytes| bytes / 1024.0).collect());
    bench.add(SECTION, &format!("bytes moved, {of}"), "KiB", kib);
    let moved = Sample(moved).median().unwrap_or(f64::NAN);
    Ok(Size { snapshot_pages: number(&made, "pages")?, moved, ram })
}

const MIB: f64 = 1_048_576.0;
const PAGE: f64 = 4096.0;
