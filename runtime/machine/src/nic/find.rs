//! Where the virtio-net device is: on PCI (`q35`, `pc`) or behind virtio-mmio (`microvm`).

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, MemoryBarType, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use super::NicError;
use super::dma::MachineHal;
use super::queue::{RECEIVE, TRANSMIT};
use crate::uart::{inl, outl};

/// A vector without a handler of its own: Hermit's general handler acknowledges it.
const VECTOR: u32 = 0x79;
/// `microvm` has up to 32 virtio-mmio transports here (QEMU `hw/i386/microvm.c`).
const MMIO_BASE: u64 = 0xfeb0_0000;
const MMIO_STRIDE: u64 = 512;
const MMIO_SLOTS: u64 = 32;
/// Where the device's memory is put if the firmware has put it nowhere: below the IOAPIC, far above the RAM of a
/// guest (2 GiB at most) and, on `q35`, above the configuration space at 0xB0000000.
const BARS: core::ops::Range<u32> = 0xfe00_0000..0xfec0_0000;

/// The device, not yet started.
pub struct Found {
    pub transport: SomeTransport<'static>,
    pub msix: Option<MsiX>,
}

/// Looks for the first virtio-net device.
pub fn find() -> Option<Result<Found, NicError>> {
    find_pci().or_else(|| find_mmio().map(Ok))
}

/// PCI configuration space through ports 0xCF8 and 0xCFC, bus 0 and up.
struct Ports;

impl Ports {
    fn select(function: DeviceFunction, offset: u8) {
        let address = 1 << 31
            | u32::from(function.bus) << 16
            | u32::from(function.device) << 11
            | u32::from(function.function) << 8
            | u32::from(offset & 0xfc);
        outl(0xcf8, address);
    }
}

impl ConfigurationAccess for Ports {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        Self::select(function, offset);
        inl(0xcfc)
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        Self::select(function, offset);
        outl(0xcfc, data);
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self
    }
}

fn find_pci() -> Option<Result<Found, NicError>> {
    let mut root = PciRoot::new(Ports);
    let function = root
        .enumerate_bus(0)
        .find(|(_, info)| virtio_device_type(info) == Some(DeviceType::Network))?
        .0;
    place_memory(&mut root, function);
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let msix = MsiX::find(&mut root, function);
    let transport = PciTransport::new::<MachineHal, _>(&mut root, function);
    Some(match transport {
        Ok(transport) => Ok(Found { transport: transport.into(), msix }),
        Err(_) => Err(NicError::Device(virtio_drivers::Error::Unsupported)),
    })
}

/// Gives an address to the memory of a device that has none: `qboot` leaves that to the kernel, SeaBIOS does not
/// (PCI 3.0 §6.2.5.1).
fn place_memory(root: &mut PciRoot<Ports>, function: DeviceFunction) {
    let Ok(bars) = root.bars(function) else { return };
    let mut next = BARS.start;
    for (bar, info) in (0..).zip(bars) {
        let Some(BarInfo::Memory { address_type, address: 0, size, .. }) = info else { continue };
        let Ok(size) = u32::try_from(size) else { continue };
        // Sizes are powers of two, and the alignment.
        let address = next.next_multiple_of(size);
        if BARS.end - address < size {
            continue;
        }
        match address_type {
            MemoryBarType::Width64 => root.set_bar_64(function, bar, address.into()),
            MemoryBarType::Width32 | MemoryBarType::Below1MiB => {
                root.set_bar_32(function, bar, address)
            }
        }
        next = address + size;
    }
}

fn find_mmio() -> Option<Found> {
    (0..MMIO_SLOTS).find_map(|slot| {
        let address = MMIO_BASE + slot * MMIO_STRIDE;
        // SAFETY: the page is mapped uncached; where there is no device, reads give 0 or all ones.
        if unsafe { (address as *const u32).read_volatile() } != u32::from_le_bytes(*b"virt") {
            return None;
        }
        let header = NonNull::new(address as *mut VirtIOHeader)?;
        // SAFETY: the magic says that a virtio-mmio transport is there; each is used once.
        let transport = unsafe { MmioTransport::new(header, MMIO_STRIDE as usize) }.ok()?;
        (transport.device_type() == DeviceType::Network)
            .then(|| Found { transport: transport.into(), msix: None })
    })
}

/// Message-signalled interrupts of the device (PCI 3.0 §6.8.2; virtio 1.2 §4.1.4.3).
#[derive(Clone, Copy)]
pub struct MsiX {
    function: DeviceFunction,
    /// Offset of the capability in configuration space.
    capability: u8,
    /// The MSI-X table.
    table: u64,
    /// `struct virtio_pci_common_cfg`.
    common: u64,
}

impl MsiX {
    const CAPABILITY_VENDOR: u8 = 0x09;
    const CAPABILITY_MSIX: u8 = 0x11;
    /// `VIRTIO_PCI_CAP_COMMON_CFG`.
    const COMMON_CFG: u32 = 1;
    /// Offsets in `virtio_pci_common_cfg`.
    const CONFIG_VECTOR: u64 = 0x10;
    const QUEUE_SELECT: u64 = 0x16;
    const QUEUE_VECTOR: u64 = 0x1a;
    const NO_VECTOR: u16 = 0xffff;

    fn find(root: &mut PciRoot<Ports>, function: DeviceFunction) -> Option<Self> {
        let mut address = |bar: u8| match root.bar_info(function, bar).ok()?? {
            BarInfo::Memory { address, .. } => Some(address),
            BarInfo::IO { .. } => None,
        };
        let mut table = None;
        let mut common = None;
        let mut capability = (Ports.read_word(function, 0x34) & 0xfc) as u8;
        // A list in 192 bytes of four-byte aligned entries has at most 48 of them.
        for _ in 0..48 {
            if capability == 0 {
                break;
            }
            let head = Ports.read_word(function, capability);
            match head as u8 {
                Self::CAPABILITY_MSIX => {
                    let at = Ports.read_word(function, capability + 4);
                    table = Some((capability, address((at & 7) as u8)? + u64::from(at & !7)));
                }
                Self::CAPABILITY_VENDOR if head >> 24 == Self::COMMON_CFG && common.is_none() => {
                    let bar = Ports.read_word(function, capability + 4) as u8;
                    let offset = Ports.read_word(function, capability + 8);
                    common = Some(address(bar)? + u64::from(offset));
                }
                _ => {}
            }
            capability = (head >> 8) as u8 & 0xfc;
        }
        let (capability, table) = table?;
        Some(Self { function, capability, table, common: common? })
    }

    /// Points both queues at entry 0 of the table; none for configuration changes.
    pub fn assign_queues(&self) {
        let write = |offset: u64, value: u16| {
            // SAFETY: the common configuration lies in a BAR, which is mapped uncached.
            unsafe { ((self.common + offset) as *mut u16).write_volatile(value) };
        };
        write(Self::CONFIG_VECTOR, Self::NO_VECTOR);
        for queue in [RECEIVE, TRANSMIT] {
            write(Self::QUEUE_SELECT, queue);
            write(Self::QUEUE_VECTOR, 0);
        }
    }

    /// Fills entry 0 (this CPU's local APIC, edge-triggered) and turns MSI-X on.
    pub fn enable(&self) {
        let entry = self.table as *mut u32;
        for (at, word) in [0xfee0_0000, 0, VECTOR, 0].into_iter().enumerate() {
            // SAFETY: entry 0 of the table lies in a BAR, which is mapped uncached.
            unsafe { entry.add(at).write_volatile(word) };
        }
        let head = Ports.read_word(self.function, self.capability);
        Ports.write_word(self.function, self.capability, (head | 1 << 31) & !(1 << 30));
    }
}
