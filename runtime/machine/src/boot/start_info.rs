//! The PVH start info (`struct hvm_start_info`, Xen's `arch-x86/hvm/start_info.h`).

use core::{ffi::CStr, fmt, slice};

use ferry_protocol::layout::PORTABLE_BASE;

const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const RAM: u32 = 1;

#[repr(C)]
pub(super) struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    addr: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// What the boot stub needs of it.
pub(super) struct Info {
    pub command_line: &'static str,
    pub rsdp: u64,
    /// End of the RAM range that holds (or should hold) the portable region.
    pub ram_end: u64,
}

pub(super) enum StartError {
    Magic { found: u32 },
    MemoryMap { version: u32 },
    CommandLine,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic { found } => {
                write!(
                    f,
                    "started without PVH (magic {found:#x}): boot the image with qemu's -kernel"
                )
            }
            Self::MemoryMap { version } => {
                write!(
                    f,
                    "PVH start info of version {version} has no memory map: a newer qemu is needed"
                )
            }
            Self::CommandLine => write!(f, "the command line (-append) is not UTF-8"),
        }
    }
}

/// Reads the start info.
///
/// # Safety
/// `info` must be the pointer that the boot protocol passed; what it points to is never written.
pub(super) unsafe fn read(info: *const StartInfo) -> Result<Info, StartError> {
    // SAFETY: by this function's contract.
    let info = unsafe { &*info };
    if info.magic != MAGIC {
        return Err(StartError::Magic { found: info.magic });
    }
    if info.version == 0 || info.memory_map == 0 {
        return Err(StartError::MemoryMap { version: info.version });
    }
    // SAFETY: the start info says that so many entries lie there; all of it is identity mapped.
    let map = unsafe {
        slice::from_raw_parts(
            info.memory_map as *const MemoryMapEntry,
            info.memory_map_entries as usize,
        )
    };
    let ram = || map.iter().filter(|entry| entry.kind == RAM);
    let ram_end = ram()
        .find(|entry| (entry.addr..entry.addr + entry.size).contains(&PORTABLE_BASE))
        .or_else(|| ram().max_by_key(|entry| entry.addr))
        .map_or(0, |entry| entry.addr + entry.size);
    let command_line = if info.command_line == 0 {
        ""
    } else {
        // SAFETY: the start info points to a NUL-terminated string.
        let text = unsafe { CStr::from_ptr(info.command_line as *const _) };
        text.to_str().map_err(|_| StartError::CommandLine)?
    };
    Ok(Info { command_line, rsdp: info.rsdp, ram_end })
}
