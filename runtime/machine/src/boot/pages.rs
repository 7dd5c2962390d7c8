//! The page tables of a guest: identity, 2-MiB pages, but 4-KiB pages for the portable region, whose
//! dirty bits are the dirty log.

use core::ptr::addr_of_mut;

use ferry_protocol::layout::{PAGE_SIZE, PORTABLE_BASE};

/// One page table of any level.
#[repr(C, align(4096))]
pub struct Table([u64; 512]);

pub(super) static mut PML4: Table = Table([0; 512]);
pub(super) static mut PDPT: Table = Table([0; 512]);
pub(super) static mut DIRECTORIES: [Table; 4] = [const { Table([0; 512]) }; 4];

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
/// Set by the CPU when a page is written through its entry.
pub const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;
const LARGE_PAGE: u64 = 2 << 20;

/// Address of the first of the portable region's page tables: they end where the region begins.
fn tables_start(portable_end: u64) -> u64 {
    let tables = (portable_end - PORTABLE_BASE).div_ceil(LARGE_PAGE);
    PORTABLE_BASE - tables * PAGE_SIZE as u64
}

/// The entries of the portable region's pages, page 0 first.
pub fn entries(portable_end: u64) -> (*mut u64, usize) {
    let pages = ((portable_end - PORTABLE_BASE) / PAGE_SIZE as u64) as usize;
    (tables_start(portable_end) as *mut u64, pages)
}

/// Maps [`PORTABLE_BASE`]`..portable_end` with 4-KiB pages (writable, not executable, clean) and
/// unmaps what lies between the end and the next 2-MiB boundary. Returns the end of the RAM that is
/// left to the kernel.
pub(super) fn map_portable(portable_end: u64) -> u64 {
    let start = tables_start(portable_end);
    let (entry, pages) = entries(portable_end);
    let slots = ((PORTABLE_BASE - start) / 8) as usize;
    for slot in 0..slots {
        let value = if slot < pages {
            (PORTABLE_BASE + (slot * PAGE_SIZE) as u64) | PRESENT | WRITABLE | NO_EXECUTE
        } else {
            0
        };
        // SAFETY: the slots lie in RAM below the portable region, which the kernel is told nothing of.
        unsafe { entry.add(slot).write(value) };
    }
    let first = (PORTABLE_BASE / LARGE_PAGE) as usize;
    for table in 0..slots / 512 {
        let value = (start + (table * PAGE_SIZE) as u64) | PRESENT | WRITABLE;
        // SAFETY: the directories are ours alone until the kernel starts; the index is below 2048
        // because the portable region ends below 4 GiB.
        unsafe {
            addr_of_mut!(DIRECTORIES).cast::<u64>().add(first + table).write(value);
        }
    }
    flush_all();
    start
}

/// Unmaps one page of the portable region, so that touching it faults.
pub fn guard(page: u64, portable_end: u64) {
    let (entry, pages) = entries(portable_end);
    let index = ((page - PORTABLE_BASE) / PAGE_SIZE as u64) as usize;
    assert!(index < pages, "a guard page lies in the portable region");
    // SAFETY: the index is in range, and nothing lives in a guard page.
    unsafe { entry.add(index).write(0) };
    flush(page);
}

/// Forgets the cached translation of one page.
pub fn flush(page: u64) {
    // SAFETY: INVLPG changes no memory; the entries it makes the CPU read again are valid.
    unsafe { core::arch::asm!("invlpg [{}]", in(reg) page, options(nostack, preserves_flags)) };
}

/// Forgets all cached translations.
pub fn flush_all() {
    // SAFETY: reloading CR3 with itself changes no mapping.
    unsafe {
        core::arch::asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags));
    }
}
