//! DMA memory: pages of the image's own `.bss`, host-bound and identity mapped.

use core::ptr::{NonNull, addr_of_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PhysAddr};

const PAGE: usize = 4096;
/// Two rings need 3 pages each in the modern layout, 4 in the legacy one.
const PAGES: usize = 16;

#[repr(C, align(4096))]
struct Pool([u8; PAGES * PAGE]);

static mut POOL: Pool = Pool([0; PAGES * PAGE]);
static USED: AtomicUsize = AtomicUsize::new(0);

/// What the virtio-drivers crate asks of the machine.
pub struct MachineHal;

// SAFETY: dma_alloc hands out each page of the pool once, zeroed and page aligned; everything the
// driver shares lies in the image or the pool, where virtual and physical address are the same.
unsafe impl Hal for MachineHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = USED.fetch_add(pages, Ordering::Relaxed);
        if first + pages > PAGES {
            // Address 0 is this trait's word for failure.
            return (0, NonNull::dangling());
        }
        // SAFETY: the pages lie in the pool.
        let start = unsafe { addr_of_mut!(POOL).cast::<u8>().add(first * PAGE) };
        let start = NonNull::new(start).expect("a static is not at address 0");
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        // The NIC lives as long as the machine.
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("device memory is not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
