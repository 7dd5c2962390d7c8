//! From the first instruction to Hermit's `_start`.
//!
//! QEMU's `-kernel` finds the PVH note in the image and jumps to [`pvh`]'s 32-bit entry, which turns on
//! long mode and calls [`boot_main`] here: read the start info, lay out the portable region, write the
//! device tree, hand over to the kernel.

mod fdt;
mod pages;
mod pvh;
mod start_info;

pub use self::pages::{DIRTY, entries, flush, flush_all, guard};

use core::ptr::addr_of;

use ferry_protocol::layout::{MAX_RAM, PAGE_SIZE};
use spin::Once;

use self::start_info::StartInfo;
use crate::uart::{COM1, early_print};

/// What the boot stub found out, kept for [`crate::entry`].
#[derive(Debug)]
pub struct Boot {
    /// Kernel command line as QEMU's `-append` gave it.
    pub command_line: &'static str,
    /// End of the portable region.
    pub portable_end: u64,
}

static BOOT: Once<Boot> = Once::new();

/// The facts of this boot. Panics before [`boot_main`] has run.
pub fn boot() -> &'static Boot {
    BOOT.get().expect("boot_main has run")
}

unsafe extern "C" {
    static ferry_host_start: u8;
    static ferry_host_end: u8;
    static ferry_portable_end: u8;
    fn _start(boot_info: *const RawBootInfo, cpu_id: u32) -> !;
}

/// Mirror of `hermit_entry::boot_info::RawBootInfo`, whose fields are private; the layout is its ABI
/// (entry version 4).
#[repr(C)]
struct RawBootInfo {
    phys_addr_start: u64,
    phys_addr_end: u64,
    serial_port_base: u16,
    device_tree: u64,
    image_start: u64,
    image_end: u64,
    tls: [u64; 4],
    /// Discriminant of `RawPlatformInfo::Fdt` (the fourth variant), then the space of the largest one.
    platform: u32,
    platform_rest: [u64; 5],
}

/// Least portable region behind the image's own statics: stack, TLS and a small heap.
const LEAST_HEAP: u64 = 4 << 20;

/// The TSC frequency that the kernel is told, so that it does not measure it for 30 to 40 ms; low, so that the 30 ms
/// by it for which the kernel compares the APIC timer are one or two. Nothing here uses the kernel's own time: the
/// clock is [`crate::clock`], the timer [`crate::lapic`].
const KERNEL_TSC_KHZ: u32 = 100_000;

/// End of the host-bound part of the image, in bytes from address 0.
pub fn host_end() -> u64 {
    addr_of!(ferry_host_end) as u64
}

/// End of the portable statics.
pub fn statics_end() -> u64 {
    addr_of!(ferry_portable_end) as u64
}

/// First Rust code of the image, on the boot stack, interrupts off, 4 GiB identity mapped.
extern "C" fn boot_main(start_info: *const StartInfo) -> ! {
    // SAFETY: the PVH entry passes on the pointer that the boot protocol put into EBX.
    let info = match unsafe { start_info::read(start_info) } {
        Ok(info) => info,
        Err(error) => fail(format_args!("{error}")),
    };
    let portable_end = info.ram_end.min(MAX_RAM) / PAGE_SIZE as u64 * PAGE_SIZE as u64;
    let least = statics_end() + LEAST_HEAP;
    if portable_end < least {
        fail(format_args!(
            "{} MiB of RAM are too few for this image: it needs at least {} MiB (qemu: -m)",
            info.ram_end.div_ceil(1 << 20),
            least.div_ceil(1 << 20) + 1
        ));
    }
    let kernel_end = pages::map_portable(portable_end);
    BOOT.call_once(|| Boot { command_line: info.command_line, portable_end });

    let image_start = addr_of!(ferry_host_start) as u64;
    let device_tree = fdt::write(image_start, kernel_end, info.rsdp, Some(KERNEL_TSC_KHZ));
    let boot_info = RawBootInfo {
        phys_addr_start: image_start,
        phys_addr_end: kernel_end,
        serial_port_base: COM1,
        device_tree,
        image_start,
        image_end: host_end(),
        tls: [0; 4],
        platform: 3,
        platform_rest: [0; 5],
    };
    static KERNEL: Once<RawBootInfo> = Once::new();
    let boot_info = KERNEL.call_once(|| boot_info);
    // SAFETY: Hermit's entry wants the boot info in RDI, CPU 0 in ESI, and RSP at the *bottom* of a
    // 32-KiB stack; `enter_kernel` gives it the boot stack from its start.
    unsafe { pvh::enter_kernel(boot_info, _start) }
}

/// Says why the image cannot run here, and ends the machine.
fn fail(reason: core::fmt::Arguments<'_>) -> ! {
    early_print(format_args!("ferry: {reason}\n"));
    crate::exports::power_off()
}
