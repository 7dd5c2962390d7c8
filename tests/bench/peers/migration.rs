//! QEMU's own live migration: memory is copied over TCP while the guest runs, then it stops, the rest is copied, and
//! the QEMU at the destination goes on with it and announces the guest's address.

use std::path::Path;
use std::time::{Duration, Instant};

use ferry_tests::harness::World;
use serde_json::{Value, json};

use super::Assets;
use super::linux::{LinuxGuest, Program};
use super::machine::{Boot, Chipset, Machine};
use crate::mover::{IP, Moved, Mover, NODES};

/// Where QEMU at each of [`NODES`] listens for a guest: the address of the host in the lab.
const ARRIVAL: [&str; 2] = ["tcp:10.77.0.11:4444", "tcp:10.77.0.12:4444"];
/// How often QEMU is asked for what it does not know yet.
const POLL: Duration = Duration::from_millis(5);
/// Longest migration.
const LIMIT: Duration = Duration::from_secs(60);
/// How long an image of Ferry may take to listen.
const BOOT_LIMIT: Duration = Duration::from_secs(20);

/// How QEMU is told to migrate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// As QEMU comes: 300 ms may be lost, 128 MiB/s at most.
    Default,
    /// For the shortest gap: 20 ms may be lost, no limit of the rate, the new place announced at once and often.
    Short,
}

/// A guest that QEMU migrates.
pub struct Migrated<'w> {
    world: &'w World,
    boot: Boot,
    tuning: Tuning,
    running: Machine,
    /// Where in [`NODES`] it runs.
    at: usize,
    /// The QEMU that waits for it on the other host.
    arrival: Option<Machine>,
}

impl<'w> Migrated<'w> {
    /// A Linux guest with one of Ferry's services.
    pub fn linux(
        world: &'w World,
        assets: &Assets,
        service: &str,
        tuning: Tuning,
    ) -> Result<Self, String> {
        let programs = [Program::service(assets, service)?];
        let LinuxGuest { machine: running, boot } =
            LinuxGuest::start(world, assets, NODES[0], IP, &programs)?;
        Ok(Self { world, boot, tuning, running, at: 0, arrival: None })
    }

    /// An image of Ferry.
    pub fn image(world: &'w World, image: &Path, tuning: Tuning) -> Result<Self, String> {
        let boot = Boot {
            chipset: Chipset::Q35,
            memory_mib: 64,
            kernel: image.to_owned(),
            initramfs: None,
            append: format!("ip={IP}/24"),
            ip: IP,
            nic: "",
        };
        let mut running = Machine::start(world, NODES[0], &boot, false)?;
        running.says(&["listening on port"], BOOT_LIMIT)?;
        Ok(Self { world, boot, tuning, running, at: 0, arrival: None })
    }
}

impl Mover for Migrated<'_> {
    fn prepare(&mut self) -> Result<(), String> {
        let to = 1 - self.at;
        let mut arrival = Machine::start(self.world, NODES[to], &self.boot, true)?;
        for machine in [&mut self.running, &mut arrival] {
            tune(machine, self.tuning).map_err(|error| machine.explain(&error))?;
        }
        arrival.qmp()?.execute("migrate-incoming", json!({ "uri": ARRIVAL[to] }))?;
        self.arrival = Some(arrival);
        Ok(())
    }

    fn explain(&mut self, error: &str) -> String {
        self.running.explain(error)
    }

    fn go(&mut self) -> Result<Moved, String> {
        let mut arrival = self.arrival.take().ok_or("no QEMU waits for the guest")?;
        let to = 1 - self.at;
        let source = self.running.qmp()?;
        source.execute("migrate", json!({ "uri": ARRIVAL[to] }))?;
        source.forget();
        let ended = |data: &Value| data["status"] == "completed" || data["status"] == "failed";
        let event = source.event("MIGRATION", LIMIT, ended)?;
        if event["data"]["status"] == "failed" {
            let why = source.execute("query-migrate", json!({}))?;
            return Err(format!("QEMU's migration failed: {why}"));
        }
        arrival.qmp()?.event("RESUME", LIMIT, |_| true)?;
        // QEMU says that it has completed a moment before it knows how long that took.
        let deadline = Instant::now() + LIMIT;
        let figures = loop {
            let figures = source.execute("query-migrate", json!({}))?;
            if figures["total-time"].as_f64() > Some(0.0) {
                break figures;
            }
            if Instant::now() > deadline {
                return Err(format!("QEMU does not say how long its migration took: {figures}"));
            }
            std::thread::sleep(POLL);
        };
        // Ends the QEMU at the source.
        self.running = arrival;
        self.at = to;
        let figure =
            |value: &Value| value.as_f64().ok_or_else(|| format!("QEMU reports {figures}"));
        Ok(Moved {
            downtime_ms: figure(&figures["downtime"])?,
            total_ms: figure(&figures["total-time"])?,
            bytes: figure(&figures["ram"]["transferred"])?,
        })
    }
}

fn tune(machine: &mut Machine, tuning: Tuning) -> Result<(), String> {
    let qmp = machine.qmp()?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.execute("migrate-set-capabilities", events)?;
    if tuning == Tuning::Short {
        let parameters = json!({
            // Milliseconds, bytes per second.
            "downtime-limit": 20,
            "max-bandwidth": 100_u64 << 30,
            // The first announcement is made at once, the next after 1 ms, 2 ms, and so on up to 20 ms.
            "announce-initial": 1,
            "announce-step": 1,
            "announce-max": 20,
            "announce-rounds": 20,
        });
        qmp.execute("migrate-set-parameters", parameters)?;
    }
    Ok(())
}
