//! Stock Hermit, bootable by QEMU's `-kernel`: Ferry's way from the first instruction to the kernel's `_start`
//! without a portable region. All RAM is the kernel's, and the kernel starts the application by itself.
#![no_std]

#[path = "../../../../../../runtime/machine/src/boot/fdt.rs"]
mod fdt;
#[path = "../../../../../../runtime/machine/src/boot/pages.rs"]
#[expect(dead_code, reason = "only the tables of the entry are used, which map all RAM by 2-MiB pages")]
mod pages;
#[path = "../../../../../../runtime/machine/src/boot/pvh.rs"]
mod pvh;
#[path = "../../../../../../runtime/machine/src/boot/start_info.rs"]
#[expect(dead_code, reason = "the command line means nothing here")]
mod start_info;

use core::ptr::addr_of;

// The kernel brings the panic handler and the allocator.
use hermit as _;
use spin::Once;

use self::start_info::StartInfo;

/// I/O port of the console.
const COM1: u16 = 0x3f8;
/// Alignment of the image's thread-local storage, as the link script has it.
const TLS_ALIGN: u64 = 64;

unsafe extern "C" {
    static stock_start: u8;
    static stock_end: u8;
    static stock_tls_start: u8;
    static stock_tls_file_end: u8;
    static stock_tls_end: u8;
    fn _start(boot_info: *const RawBootInfo, cpu_id: u32) -> !;
}

/// Mirror of `hermit_entry::boot_info::RawBootInfo` (entry version 4).
#[repr(C)]
struct RawBootInfo {
    phys_addr_start: u64,
    phys_addr_end: u64,
    serial_port_base: u16,
    device_tree: u64,
    image_start: u64,
    image_end: u64,
    /// Start, bytes in the file, bytes in memory, alignment.
    tls: [u64; 4],
    /// Discriminant of `RawPlatformInfo::Fdt`, then the space of the largest variant.
    platform: u32,
    platform_rest: [u64; 5],
}

extern "C" fn boot_main(start_info: *const StartInfo) -> ! {
    // SAFETY: the PVH entry passes on the pointer that the boot protocol put into EBX.
    let Ok(info) = (unsafe { start_info::read(start_info) }) else {
        panic!("QEMU did not boot this by its PVH note");
    };
    let (image_start, image_end) = (addr_of!(stock_start) as u64, addr_of!(stock_end) as u64);
    // Hermit takes RAM by pages of 2 MiB.
    let ram_end = info.ram_end >> 21 << 21;
    let tls = addr_of!(stock_tls_start) as u64;
    let boot_info = RawBootInfo {
        phys_addr_start: image_start,
        phys_addr_end: ram_end,
        serial_port_base: COM1,
        device_tree: fdt::write(image_start, ram_end, info.rsdp, None),
        image_start,
        image_end,
        tls: [
            tls,
            addr_of!(stock_tls_file_end) as u64 - tls,
            addr_of!(stock_tls_end) as u64 - tls,
            TLS_ALIGN,
        ],
        platform: 3,
        platform_rest: [0; 5],
    };
    static KERNEL: Once<RawBootInfo> = Once::new();
    let boot_info = KERNEL.call_once(|| boot_info);
    // SAFETY: the boot info lives for ever, and nothing on the boot stack is used again.
    unsafe { pvh::enter_kernel(boot_info, _start) }
}
