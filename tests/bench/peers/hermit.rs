//! Stock Hermit: the kernel's own network stack under a service on `std::net` (`hermit/`).

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ferry_tests::harness::World;

use super::machine::{Boot, Chipset, Machine};

/// Its address; the image has it inside, as `sh tests/bench.sh` builds it.
pub const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 60);
/// Every connection has buffers of 128 KiB, and 128 listen at any time.
const MEMORY_MIB: u32 = 512;
/// Its driver asks for the checksum of every frame from the octet after the Ethernet header on, also of ARP's, and
/// Linux takes no such frame: without that offload, and those that need it, it computes them itself.
const NIC: &str = ",csum=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";
/// The most connections with which it is measured: of 1,000 that are opened at once it refuses nearly all.
pub const CONNECTIONS: usize = 64;
/// How long it may take to listen.
const BOOT_LIMIT: Duration = Duration::from_secs(30);
/// Where the image lies, from the directory of all builds.
const IMAGE: &str = "hermit/stock-hermit";

/// Boots it on `node`; it listens when this returns. `scratch` is in the directory of all builds.
pub fn start(world: &World, scratch: &Path, node: &str) -> Result<Machine, String> {
    let image = scratch.parent().unwrap_or(Path::new("target")).join(IMAGE);
    let kernel = image.canonicalize().map_err(|error| {
        format!("{}: {error}; `sh tests/bench.sh` builds it before it measures", image.display())
    })?;
    let append = String::new();
    let boot = Boot {
        chipset: Chipset::Q35,
        memory_mib: MEMORY_MIB,
        kernel,
        initramfs: None,
        append,
        ip: IP,
        nic: NIC,
    };
    let mut machine = Machine::start(world, node, &boot, false)?;
    machine.says(&["stock hermit: listening"], BOOT_LIMIT)?;
    Ok(machine)
}
