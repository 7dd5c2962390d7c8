//! QEMU's command line, as a pure function.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Accel;
use super::firmware::QBOOT;

/// A machine type that images boot on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// PCI Express chipset of a PC.
    #[default]
    Q35,
    /// No PCI, virtio over MMIO; the least to emulate.
    Microvm,
}

/// All that the command line depends on.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named after QEMU's options")]
pub struct CommandLine {
    pub machine: Machine,
    pub accel: Accel,
    /// Whether QEMU has that firmware ([`super::firmware`]).
    pub qboot: bool,
    pub memory_mib: u32,
    /// QEMU gets it open, as its descriptor [`RAM_FD`], and does not need a way to it; likewise the next. No
    /// other process has its path among its arguments, as the guest's name.
    pub ram_file: PathBuf,
    pub kernel: PathBuf,
    pub append: String,
    /// Whether the guest has a NIC, on the tap that QEMU gets as its descriptor [`TAP_FD`].
    pub nic: bool,
    pub mac: String,
    /// Whether QEMU gives up the system calls that it does not need (`-sandbox`).
    pub sandbox: bool,
    /// File that QEMU appends the guest's console to, also while no agent is there.
    pub console: PathBuf,
    /// Unix sockets for one agent after the other. QEMU gets them listening, as its descriptors
    /// [`CONTROL_FD`] and [`QMP_FD`], and waits for the first connection: no byte comes too early.
    pub control: PathBuf,
    pub qmp: PathBuf,
    /// File for QEMU's own messages.
    pub messages: PathBuf,
}

/// QEMU's descriptor of the listening control socket: its standard input.
pub const CONTROL_FD: i32 = 0;
/// QEMU's descriptor of the listening QMP socket: its standard output.
pub const QMP_FD: i32 = 1;

/// QEMU's descriptors of the files it uses. Those below ten are all that a shell can redirect.
pub const KERNEL_FD: i32 = 10;
/// See [`KERNEL_FD`].
pub const CONSOLE_FD: i32 = 11;
/// See [`KERNEL_FD`].
pub const RAM_FD: i32 = 12;
/// See [`KERNEL_FD`].
pub const TAP_FD: i32 = 13;

/// A file that QEMU opens once more by its descriptor, which takes no way to it.
fn open_file(fd: i32) -> String {
    format!("/proc/self/fd/{fd}")
}

/// Boot arguments of a guest.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named after the arguments")]
pub struct BootArguments<'a> {
    pub ip: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Option<Ipv4Addr>,
    pub standby: bool,
    pub epoch: u64,
    pub service: &'a [String],
}

impl BootArguments<'_> {
    /// The kernel command line.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("ip={}/{}", self.ip, self.prefix);
        if let Some(gateway) = self.gateway {
            text += &format!(" gw={gateway}");
        }
        if self.standby {
            text += " standby";
        } else {
            text += &format!(" epoch={}", self.epoch);
        }
        if !self.service.is_empty() {
            text += " -- ";
            text += &self.service.join(" ");
        }
        text
    }
}

impl CommandLine {
    /// The arguments, without the program's name.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: String| {
            out.push(name.into());
            out.push(value.into());
        };
        // An agent that is started again knows its guests by that.
        option("-name", self.ram_file.display().to_string().replace(',', ",,"));
        option(
            "-machine",
            match self.machine {
                // Without its disk controller, which the firmware would search for 12 ms.
                Machine::Q35 => "q35,sata=off,memory-backend=ram".into(),
                // Two IOAPICs make the kernel panic.
                Machine::Microvm => "microvm,ioapic2=off,memory-backend=ram".into(),
            },
        );
        option("-accel", self.accel.to_string());
        option("-cpu", "max".into());
        // A microvm takes no longer with its own.
        if self.qboot && self.machine == Machine::Q35 {
            option("-bios", QBOOT.into());
        }
        option("-smp", "1".into());
        option("-m", format!("{}M", self.memory_mib));
        option(
            "-object",
            format!(
                "memory-backend-file,id=ram,size={}M,mem-path={},share=on",
                self.memory_mib,
                open_file(RAM_FD)
            ),
        );
        option("-kernel", open_file(KERNEL_FD));
        option("-append", self.append.clone());
        if self.nic {
            // Without its ROM, which could boot from the network and only costs time.
            let device = match self.machine {
                Machine::Q35 => "virtio-net-pci,romfile=",
                Machine::Microvm => "virtio-net-device",
            };
            option("-netdev", format!("tap,id=net0,fd={TAP_FD}"));
            option("-device", format!("{device},netdev=net0,mac={}", self.mac));
        }
        option("-chardev", format!("file,id=log,path={},append=on", open_file(CONSOLE_FD)));
        for (id, fd) in [("ctl", CONTROL_FD), ("qmp", QMP_FD)] {
            option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=on"));
        }
        option("-serial", "chardev:log".into());
        match self.machine {
            Machine::Q35 => option("-serial", "chardev:ctl".into()),
            // microvm makes one serial port of its own; the second must be asked for.
            Machine::Microvm => option("-device", "isa-serial,index=1,chardev=ctl".into()),
        }
        option("-mon", "chardev=qmp,mode=control".into());
        option("-display", "none".into());
        if self.sandbox {
            let all = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
            option("-sandbox", all.into());
        }
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            out.push(flag.into());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(machine: Machine) -> String {
        let line = CommandLine {
            machine,
            accel: Accel::Tcg,
            qboot: true,
            memory_mib: 64,
            ram_file: "/dev/shm/a,b".into(),
            kernel: "/images/x".into(),
            append: "ip=10.0.0.1/24".into(),
            nic: true,
            mac: "02:00:00:00:00:01".into(),
            sandbox: true,
            console: "/run/log".into(),
            control: "/run/ctl".into(),
            qmp: "/run/qmp".into(),
            messages: "/run/messages".into(),
        };
        let arguments = line.arguments();
        arguments.iter().map(|part| part.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn q35() {
        assert_eq!(
            command(Machine::Q35),
            "-name /dev/shm/a,,b -machine q35,sata=off,memory-backend=ram -accel tcg -cpu max -bios qboot.rom \
             -smp 1 -m 64M \
             -object memory-backend-file,id=ram,size=64M,mem-path=/proc/self/fd/12,share=on \
             -kernel /proc/self/fd/10 -append ip=10.0.0.1/24 \
             -netdev tap,id=net0,fd=13 \
             -device virtio-net-pci,romfile=,netdev=net0,mac=02:00:00:00:00:01 \
             -chardev file,id=log,path=/proc/self/fd/11,append=on \
             -chardev socket,id=ctl,fd=0,server=on,wait=on \
             -chardev socket,id=qmp,fd=1,server=on,wait=on \
             -serial chardev:log -serial chardev:ctl -mon chardev=qmp,mode=control \
             -display none \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -nodefaults -no-user-config -no-reboot"
        );
    }

    #[test]
    fn microvm_has_virtio_mmio_and_asks_for_its_second_port() {
        let line = command(Machine::Microvm);
        assert!(line.contains("-machine microvm,ioapic2=off,"));
        assert!(line.contains("virtio-net-device,netdev=net0"));
        assert!(line.contains("-device isa-serial,index=1,chardev=ctl"));
    }

    #[test]
    fn boot_arguments() {
        let service = ["-v".to_owned(), "x".to_owned()];
        let mut boot = BootArguments {
            ip: Ipv4Addr::new(10, 77, 0, 50),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 77, 0, 1)),
            standby: false,
            epoch: 3,
            service: &service,
        };
        assert_eq!(boot.render(), "ip=10.77.0.50/24 gw=10.77.0.1 epoch=3 -- -v x");
        boot.standby = true;
        boot.gateway = None;
        assert_eq!(boot.render(), "ip=10.77.0.50/24 standby -- -v x");
    }
}
