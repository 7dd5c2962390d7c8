//! One QEMU on a host of a lab, its guest on the lab's segment.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ferry_tests::harness::World;

use super::qmp::Qmp;

/// How many lines of a console are shown when something fails.
const SHOWN: usize = 60;

/// What it boots on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chipset {
    Q35,
    /// For guests with drivers for virtio over MMIO.
    Microvm,
}

/// What boots.
#[derive(Clone, Debug)]
pub struct Boot {
    pub chipset: Chipset,
    pub memory_mib: u32,
    pub kernel: PathBuf,
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// Address of the guest. Its NIC's address and its tap's name follow from it.
    pub ip: Ipv4Addr,
    /// Options of its NIC, each after a comma.
    pub nic: &'static str,
}

impl Boot {
    /// The Ethernet address of the guest.
    #[must_use]
    pub fn mac(&self) -> String {
        let [.., last] = self.ip.octets();
        format!("52:54:00:4d:00:{last:02x}")
    }
}

/// A running QEMU. It is ended when this is dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: Option<Qmp>,
    console: Receiver<String>,
    /// What was read of the console last.
    said: VecDeque<String>,
}

impl Machine {
    /// Starts QEMU on `node`. With `arrival` it boots nothing, and waits to be told where a guest comes in.
    pub fn start(world: &World, node: &str, boot: &Boot, arrival: bool) -> Result<Self, String> {
        let [.., last] = boot.ip.octets();
        let tap = format!("guest{last}");
        // Replaces the one of a QEMU that has ended.
        let plug = format!(
            "ip link delete {tap} 2>/dev/null; ip tuntap add dev {tap} mode tap vnet_hdr && \
             ip link set {tap} master br0 up"
        );
        world.exec(node, &["sh", "-c", &plug]);
        let socket = world.files().join(format!("{node}{last}.qmp"));
        let _ = std::fs::remove_file(&socket);
        let arguments = arguments(boot, &tap, &boot.mac(), &socket, arrival);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = world.in_node(node, &arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot start QEMU: {e}"))?;
        let output = child.stdout.take();
        let (send, console) = channel();
        std::thread::spawn(move || {
            // To the end of the file, also when nobody listens: QEMU would wait.
            for line in
                output.into_iter().flat_map(|out| BufReader::new(out).split(b'\n')).flatten()
            {
                let _ = send.send(String::from_utf8_lossy(&line).trim().to_owned());
            }
        });
        let mut machine = Self { child, qmp: None, console, said: VecDeque::new() };
        machine.qmp = Some(Qmp::connect(&socket).map_err(|e| machine.explain(&e))?);
        Ok(machine)
    }

    /// The process: what starts it in the lab becomes it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its control connection.
    pub fn qmp(&mut self) -> Result<&mut Qmp, String> {
        self.qmp.as_mut().ok_or_else(|| "QEMU has no control connection".to_owned())
    }

    /// Waits until the console has said all of `words`, each in a line of its own.
    pub fn says(&mut self, words: &[&str], limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let mut missing = words.to_vec();
        while !missing.is_empty() {
            match self.console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    missing.retain(|words| !line.contains(words));
                    self.said.push_back(line);
                    if self.said.len() > SHOWN {
                        self.said.pop_front();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(
                        self.explain(&format!("the guest did not say {missing:?} in {limit:?}"))
                    );
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(
                        self.explain(&format!("QEMU ended before its guest said {missing:?}"))
                    );
                }
            }
        }
        Ok(())
    }

    /// An error with the end of the console.
    pub fn explain(&mut self, error: &str) -> String {
        self.said.extend(self.console.try_iter());
        let begin = self.said.len().saturating_sub(SHOWN);
        let lines: Vec<&str> = self.said.iter().skip(begin).map(String::as_str).collect();
        format!("{error}; its console:\n{}", lines.join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Killing what has ended does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments(boot: &Boot, tap: &str, mac: &str, qmp: &Path, arrival: bool) -> Vec<String> {
    // As host-tools starts them.
    let (chipset, card) = match boot.chipset {
        Chipset::Q35 => ("q35,sata=off", "virtio-net-pci,disable-legacy=on,romfile="),
        Chipset::Microvm => ("microvm,ioapic2=off", "virtio-net-device"),
    };
    let mut all: Vec<String> =
        ["qemu-system-x86_64", "-machine", chipset, "-accel", accel(), "-cpu", "max"]
            .into_iter()
            .chain([
                "-smp",
                "1",
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .chain(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            // The second serial port is where Ferry's images have their control port.
            .chain(["-chardev", "null,id=control", "-device", "isa-serial,chardev=control,index=1"])
            .map(str::to_owned)
            .collect();
    let mut option = |name: &str, value: String| all.extend([name.to_owned(), value]);
    option("-m", format!("{}M", boot.memory_mib));
    option("-kernel", boot.kernel.display().to_string());
    if let Some(initramfs) = &boot.initramfs {
        option("-initrd", initramfs.display().to_string());
    }
    option("-append", boot.append.clone());
    option("-netdev", format!("tap,id=net0,ifname={tap},script=no,downscript=no"));
    option("-device", format!("{card},netdev=net0,mac={mac}{}", boot.nic));
    option("-qmp", format!("unix:{},server=on,wait=off", qmp.display()));
    if arrival {
        option("-incoming", "defer".into());
    }
    all
}

/// What host-tools would choose: KVM where the processor itself has virtualisation, since `/dev/kvm` alone proves
/// nothing; `FERRY_ACCEL` overrides it.
fn accel() -> &'static str {
    match std::env::var("FERRY_ACCEL").as_deref() {
        Ok("kvm") => return "kvm",
        Ok("tcg") => return "tcg",
        _ => {}
    }
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = flags.split_ascii_whitespace().any(|word| word == "vmx" || word == "svm");
    if has && Path::new("/dev/kvm").exists() { "kvm" } else { "tcg" }
}
