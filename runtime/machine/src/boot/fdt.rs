//! The flattened device tree that Hermit reads: which RAM is its own, and where the ACPI tables are.
//! (Devicetree Specification 0.4, §5.)

use core::ptr::addr_of_mut;

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;
const HEADER: usize = 40;
/// An empty memory reservation block: one terminating entry.
const RESERVATIONS: usize = 16;
const STRINGS: &[u8] =
    b"#address-cells\0#size-cells\0reg\0device_type\0bootargs\0compatible\0khz\0";
const ADDRESS_CELLS: u32 = 0;
const SIZE_CELLS: u32 = 15;
const REG: u32 = 27;
const DEVICE_TYPE: u32 = 31;
const BOOTARGS: u32 = 43;
const COMPATIBLE: u32 = 52;
const KHZ: u32 = 63;

#[repr(C, align(8))]
struct Blob([u8; 1024]);

static mut BLOB: Blob = Blob([0; 1024]);

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn cell(&mut self, value: u32) {
        self.bytes(&value.to_be_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
        self.at = self.at.next_multiple_of(4);
    }

    fn begin(&mut self, name: &[u8]) {
        self.cell(BEGIN_NODE);
        self.padded(name);
    }

    fn property(&mut self, name: u32, value: &[u8]) {
        self.cell(PROP);
        self.cell(value.len() as u32);
        self.cell(name);
        self.padded(value);
    }

    fn region(&mut self, start: u64, len: u64) {
        let mut reg = [0; 16];
        reg[..8].copy_from_slice(&start.to_be_bytes());
        reg[8..].copy_from_slice(&len.to_be_bytes());
        self.property(REG, &reg);
    }
}

/// Writes the tree with the kernel's RAM `start..end`, the RSDP's address, and the TSC's frequency unless the kernel
/// is to measure it; returns its address.
pub(super) fn write(start: u64, end: u64, rsdp: u64, tsc_khz: Option<u32>) -> u64 {
    let blob = addr_of_mut!(BLOB);
    // SAFETY: called once, on the boot CPU, before anything else runs.
    let out = unsafe { &mut (*blob).0 };
    let mut writer = Writer { out, at: HEADER + RESERVATIONS };
    writer.begin(b"\0");
    writer.property(ADDRESS_CELLS, &2u32.to_be_bytes());
    writer.property(SIZE_CELLS, &2u32.to_be_bytes());
    writer.property(COMPATIBLE, b"ferry\0");
    writer.begin(b"chosen\0");
    writer.property(BOOTARGS, b"ferry\0");
    writer.cell(END_NODE);
    writer.begin(b"memory@200000\0");
    writer.property(DEVICE_TYPE, b"memory\0");
    writer.region(start, end - start);
    writer.cell(END_NODE);
    writer.begin(b"hermit,rsdp@0\0");
    writer.region(rsdp, 1);
    writer.cell(END_NODE);
    if let Some(khz) = tsc_khz {
        writer.begin(b"hermit,tsc\0");
        writer.property(KHZ, &khz.to_be_bytes());
        writer.cell(END_NODE);
    }
    writer.cell(END_NODE);
    writer.cell(END);
    let structure_end = writer.at;
    writer.bytes(STRINGS);
    let total = writer.at;
    writer.at = 0;
    let structure = HEADER + RESERVATIONS;
    for field in [
        MAGIC,
        total as u32,
        structure as u32,
        structure_end as u32,
        HEADER as u32,
        17,
        16,
        0,
        STRINGS.len() as u32,
        (structure_end - structure) as u32,
    ] {
        writer.cell(field);
    }
    blob as u64
}
