//! What of the portable region is state, and whether a region from elsewhere can be taken over.

use core::ptr::addr_of_mut;

use ferry_protocol::control::{Range, Refusal};
use ferry_protocol::layout::{
    BuildId, MAX_PAGES, PAGE_SIZE, PORTABLE_BASE, PORTABLE_MAGIC, PORTABLE_VERSION, PortableHeader,
    page_address, page_index,
};

use crate::boot::{boot, entries, flush, flush_all};
use crate::entry::{build_id, places};
use crate::{clock, side};

const MAP_BYTES: usize = MAX_PAGES.div_ceil(8);
/// Beyond so many pages, forgetting every translation is cheaper than forgetting each.
const FLUSH_EACH: usize = 32;

#[repr(C, align(4096))]
struct Map([u8; MAP_BYTES]);

/// Read by the agent from the RAM file after an answer has named them; written at the next scan.
static mut DIRTY_MAP: Map = Map([0; MAP_BYTES]);
static mut FREE_MAP: Map = Map([0; MAP_BYTES]);

/// The result of a scan.
pub struct Scan {
    pub dirty: Range,
    pub free: Range,
    pub count: u32,
    pub scan_us: u32,
}

/// Collects the pages written since the last scan (all, if `full`) that hold state, and clears the
/// dirty bits. `free` is the portable side's map of pages without state.
pub fn scan(full: bool, free: &[u8]) -> Scan {
    let started = clock::monotonic_ns();
    let (entry, pages) = entries(boot().portable_end);
    let map_len = pages.div_ceil(8);
    let (dirty_map, free_map) = (addr_of_mut!(DIRTY_MAP), addr_of_mut!(FREE_MAP));
    // SAFETY: only this function touches the maps, on the host-bound side, one CPU; the agent reads
    // them between two orders.
    let (dirty_map, free_map) =
        unsafe { (&mut (&mut (*dirty_map).0)[..map_len], &mut (&mut (*free_map).0)[..map_len]) };
    dirty_map.fill(0);
    free_map.fill(0);
    let copied = free.len().min(map_len);
    free_map[..copied].copy_from_slice(&free[..copied]);
    mark_unused_stack(free_map);

    let mut count = 0;
    let mut cleared = 0;
    for page in 0..pages {
        // SAFETY: the table has `pages` entries.
        let slot = unsafe { entry.add(page) };
        // SAFETY: as above; the CPU may set a dirty bit at any write, but nothing writes now.
        let value = unsafe { slot.read_volatile() };
        let written = value & crate::boot::DIRTY != 0;
        if written {
            // SAFETY: as above.
            unsafe { slot.write_volatile(value & !crate::boot::DIRTY) };
            cleared += 1;
            if cleared <= FLUSH_EACH {
                flush(page_address(page));
            }
        }
        let (byte, bit) = (page / 8, 1 << (page % 8));
        if (full || written) && value != 0 && free_map[byte] & bit == 0 {
            dirty_map[byte] |= bit;
            count += 1;
        }
    }
    if cleared > FLUSH_EACH {
        flush_all();
    }
    let range = |map: &[u8]| Range { addr: map.as_ptr() as u64, len: map.len() as u64 };
    Scan {
        dirty: range(dirty_map),
        free: range(free_map),
        count,
        scan_us: ((clock::monotonic_ns() - started) / 1000) as u32,
    }
}

/// The portable stack below the parked stack pointer holds nothing.
fn mark_unused_stack(free_map: &mut [u8]) {
    let (sp, _) = side::parked();
    let first = page_index(places().stack_start).unwrap_or(0);
    let end = page_index(sp).unwrap_or(0);
    for page in first..end {
        free_map[page / 8] |= 1 << (page % 8);
    }
}

/// Writes the header of a parked portable side.
pub fn write_header(epoch: u64, monotonic_ns: u64) {
    let (saved_sp, fs_base) = side::parked();
    let header = PortableHeader {
        magic: PORTABLE_MAGIC,
        version: PORTABLE_VERSION,
        reserved: 0,
        build_id: build_id(),
        end: places().end,
        saved_sp,
        fs_base,
        monotonic_ns,
        wall_ns: clock::wall_ns(),
        epoch,
    };
    // SAFETY: the first page of the portable region is the header's alone.
    unsafe { (PORTABLE_BASE as *mut PortableHeader).write_volatile(header) };
}

/// Checks the header that an agent has put into this machine's portable region.
pub fn check_header(epoch: u64) -> Result<PortableHeader, Refusal> {
    // SAFETY: the page is mapped, and any bytes are a valid `PortableHeader`: integers only.
    let header = unsafe { (PORTABLE_BASE as *const PortableHeader).read_volatile() };
    check(&header, build_id(), boot().portable_end, epoch)?;
    Ok(header)
}

/// The rules of [`check_header`], apart from memory.
fn check(
    header: &PortableHeader,
    build_id: BuildId,
    portable_end: u64,
    epoch: u64,
) -> Result<(), Refusal> {
    if header.magic != PORTABLE_MAGIC || header.version != PORTABLE_VERSION {
        return Err(Refusal::Header);
    }
    if header.build_id != build_id {
        return Err(Refusal::BuildId);
    }
    let first = PORTABLE_BASE + PAGE_SIZE as u64;
    let holds = |addr: u64, len: u64| {
        addr >= first
            && addr.checked_add(len).is_some_and(|end| end <= header.end)
            && addr.is_multiple_of(8)
    };
    if header.end > portable_end
        || !header.end.is_multiple_of(PAGE_SIZE as u64)
        || !holds(header.saved_sp, side::SAVED_WORDS * 8)
        || !holds(header.fs_base, 8)
    {
        return Err(Refusal::Range);
    }
    if header.epoch >= epoch {
        return Err(Refusal::Epoch);
    }
    Ok(())
}
