//! An ordinary Linux guest that runs Ferry's services: Debian's kernel for virtual machines, and a file system of
//! one static program, the services and an `init` of a few lines.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ferry_tests::harness::World;

use super::Assets;
use super::cpio::{Entry, archive};
use super::machine::{Boot, Chipset, Machine};

/// RAM of the guest.
const MEMORY_MIB: u32 = 128;
/// How long a guest may take from the start of QEMU until its programs serve. Under TCG it is some seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// Modules of the NIC, each after those it needs.
const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// What a guest runs: a static program that listens, and says so.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<String>,
    /// A part of the line it prints when it listens.
    pub says: &'static str,
    /// Files that it needs: where in the guest, without the first `/`, and what is in them.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Program {
    /// Ferry's service `pingpong` or `transfer`, at the port it has in Ferry's images too.
    pub fn service(assets: &Assets, name: &str) -> Result<Self, String> {
        let (port, says) = match name {
            "pingpong" => (7, "pingpong: echoing on"),
            "transfer" => (80, "transfer: http://"),
            other => return Err(format!("no service {other} runs in a Linux guest")),
        };
        Ok(Self {
            path: assets.service(name)?,
            arguments: vec![format!("0.0.0.0:{port}")],
            says,
            files: Vec::new(),
        })
    }
}

/// A guest whose programs serve. It is ended when this is dropped.
#[derive(Debug)]
pub struct LinuxGuest {
    /// Its QEMU, whose process is among [`World::guests`].
    pub machine: Machine,
    /// What it booted.
    pub boot: Boot,
}

impl LinuxGuest {
    /// Boots a guest on `node` of a lab (made with [`World::bare`]) and waits until its programs serve.
    pub fn start(
        world: &World,
        assets: &Assets,
        node: &str,
        ip: Ipv4Addr,
        programs: &[Program],
    ) -> Result<Self, String> {
        let boot = boot(assets, world.files(), ip, programs)?;
        let mut machine = Machine::start(world, node, &boot, false)?;
        let lines: Vec<&str> = programs.iter().map(|program| program.says).collect();
        machine.says(&lines, BOOT_LIMIT)?;
        Ok(Self { machine, boot })
    }
}

/// Makes the guest's file system, in `dir`.
pub fn boot(
    assets: &Assets,
    dir: &Path,
    ip: Ipv4Addr,
    programs: &[Program],
) -> Result<Boot, String> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let directory = |name: &str| Entry::Directory { name: name.to_owned() };
    let file = |name: String, content| Entry::File { name, content };
    let mut entries: Vec<Entry> =
        ["bin", "dev", "modules", "proc", "programs"].map(directory).into();
    entries.push(file("init".into(), init(ip, programs).into_bytes()));
    entries.push(file("bin/busybox".into(), read(&assets.busybox)?));
    for name in MODULES {
        entries.push(file(
            format!("modules/{name}.ko"),
            read(&assets.modules.join(format!("{name}.ko")))?,
        ));
    }
    for (index, program) in programs.iter().enumerate() {
        entries.push(file(format!("programs/{index}"), read(&program.path)?));
    }
    let files = || programs.iter().flat_map(|program| &program.files);
    let parents = files().flat_map(|(name, _)| Path::new(name).ancestors().skip(1));
    // Sorted: a directory comes before what is in it.
    let parents: BTreeSet<String> = parents.map(|dir| dir.display().to_string()).collect();
    entries.extend(parents.iter().filter(|dir| !dir.is_empty()).map(|dir| directory(dir)));
    entries.extend(files().map(|(name, content)| file(name.clone(), content.clone())));
    let initramfs = dir.join(format!("{ip}.cpio"));
    std::fs::write(&initramfs, archive(&entries))
        .map_err(|e| format!("{}: {e}", initramfs.display()))?;
    Ok(Boot {
        chipset: Chipset::Q35,
        memory_mib: MEMORY_MIB,
        kernel: assets.kernel.clone(),
        initramfs: Some(initramfs),
        append: "console=ttyS0 quiet panic=-1".into(),
        ip,
        nic: "",
    })
}

/// The first process.
fn init(ip: Ipv4Addr, programs: &[Program]) -> String {
    let mut text = "#!/bin/busybox sh\nset -e\n".to_owned();
    text += "busybox mount -t devtmpfs dev /dev\nbusybox mount -t proc proc /proc\n";
    text += &format!(
        "for module in {}; do\n  busybox insmod /modules/$module.ko\ndone\n",
        MODULES.join(" ")
    );
    text += "busybox ip link set lo up\n";
    text += &format!("busybox ip address add {ip}/24 dev eth0\nbusybox ip link set eth0 up\n");
    // Ten thousand connections are as many files.
    text += "ulimit -n 65536\n";
    for (index, program) in programs.iter().enumerate() {
        text += &format!("/programs/{index} {} &\n", program.arguments.join(" "));
    }
    text + "wait\n"
}
