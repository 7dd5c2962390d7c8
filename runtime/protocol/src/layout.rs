//! Where things lie in guest RAM. Virtual address = guest-physical address = offset in the RAM file.

/// Bytes in one page; the unit of dirty logging and of transfer.
pub const PAGE_SIZE: usize = 4096;

/// First byte of the portable region. Below it everything is host-bound.
pub const PORTABLE_BASE: u64 = 32 << 20;

/// End of the largest RAM that is one range at guest-physical 0 on every machine type (`q35` splits
/// RAM at 2 GiB), hence the largest guest.
pub const MAX_RAM: u64 = 2 << 30;

/// Pages in the largest portable region.
pub const MAX_PAGES: usize = ((MAX_RAM - PORTABLE_BASE) / PAGE_SIZE as u64) as usize;

/// Identifies an image: the descriptor of its ELF note `GNU`, type 3 (`NT_GNU_BUILD_ID`), which the
/// linker computes over the whole file; shorter ones are padded with zeros at the end.
pub type BuildId = [u8; 32];

/// `b"FERRYPRT"`, the first eight bytes of a portable region that holds a service.
pub const PORTABLE_MAGIC: u64 = u64::from_le_bytes(*b"FERRYPRT");

/// Version of [`PortableHeader`].
pub const PORTABLE_VERSION: u32 = 1;

/// The first bytes of the portable region, written at the freeze and read at the resume.
///
/// The whole region is data from another host: the destination checks every field before it uses one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortableHeader {
    /// [`PORTABLE_MAGIC`].
    pub magic: u64,
    /// [`PORTABLE_VERSION`].
    pub version: u32,
    /// Always 0.
    pub reserved: u32,
    /// The image that wrote this region; code addresses in it hold only in that image.
    pub build_id: BuildId,
    /// End of the portable region on the host where the service started, in bytes from address 0.
    pub end: u64,
    /// Stack pointer of the parked portable side; the callee-saved registers lie above it.
    pub saved_sp: u64,
    /// FS base (thread pointer) of the portable side.
    pub fs_base: u64,
    /// Service-monotonic clock at the freeze, in nanoseconds since the service first started.
    pub monotonic_ns: u64,
    /// Wall clock at the freeze, in nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Ownership number under which the region last ran.
    pub epoch: u64,
}

/// Number of the page that holds `addr`, counted from [`PORTABLE_BASE`].
#[must_use]
pub const fn page_index(addr: u64) -> Option<usize> {
    if addr < PORTABLE_BASE || addr >= MAX_RAM {
        None
    } else {
        Some(((addr - PORTABLE_BASE) / PAGE_SIZE as u64) as usize)
    }
}

/// Address of the first byte of page `index`.
#[must_use]
pub const fn page_address(index: usize) -> u64 {
    PORTABLE_BASE + (index * PAGE_SIZE) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_a_fixed_layout() {
        assert_eq!(size_of::<PortableHeader>(), 96);
        assert_eq!(core::mem::offset_of!(PortableHeader, build_id), 16);
        assert_eq!(core::mem::offset_of!(PortableHeader, saved_sp), 56);
    }

    #[test]
    fn page_numbers_and_addresses_are_inverse() {
        assert_eq!(page_index(PORTABLE_BASE), Some(0));
        assert_eq!(page_index(PORTABLE_BASE - 1), None);
        assert_eq!(page_index(MAX_RAM), None);
        assert_eq!(page_index(page_address(17) + 4095), Some(17));
    }
}
