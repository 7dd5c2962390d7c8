//! What the targets share.
//!
//! An input is what somebody else wrote: a guest, another agent, a client, a file. A decoder may refuse it,
//! with the reason; it may not panic, overflow, run on, or ask for more memory than a message of its kind
//! can need. Checksums and digests are mended where a target says so, so that what lies behind them is reached.

use std::alloc::System;

use cap::Cap;
use ferry_protocol::control::Range;
use ferry_protocol::layout::{PAGE_SIZE, PORTABLE_BASE};
use ferry_protocol::snapshot::{self, HEADER_LEN};
use host_tools::qemu::RamFile;
use host_tools::snapshot::DIGEST_LEN;
use serde::{Serialize, de::DeserializeOwned};
use smoltcp::wire::{Icmpv4Packet, IpProtocol, Ipv4Packet, TcpPacket};

/// All that a target may hold at any time. An allocation beyond it aborts, which the fuzzer reports.
pub const MEMORY_LIMIT: usize = 256 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY_LIMIT);

/// Pages of the portable region in [`ram`].
pub const PAGES: u32 = 64;

/// A guest's memory of which nothing is written yet.
///
/// # Panics
/// There is no room for temporary files.
#[must_use]
pub fn ram() -> RamFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let portable = u64::from(PAGES) * PAGE_SIZE as u64;
    let len = PORTABLE_BASE + portable;
    file.as_file().set_len(len).expect("room for a sparse file");
    let mut ram = RamFile::open(file.path(), len).expect("the file that was made a moment ago");
    ram.set_portable(Range { addr: PORTABLE_BASE, len: portable }).expect("whole pages");
    ram
}

/// A service as any other, in JSON.
pub const SPEC: &str = r#"{"name":"pingpong","id":"5f3a9c","image":{"name":"pingpong:1","digest":"0707070707070707070707070707070707070707070707070707070707070707","build_id":"0909090909090909090909090909090909090909090909090909090909090909"},"ip":"10.77.0.50","prefix":24,"gateway":null,"mac":"52:00:00:00:00:01","memory_mib":64,"machine":"q35","args":["--port","7"]}"#;

/// What is understood is understood in the same way once it has been written again.
///
/// # Panics
/// It is not.
pub fn read<T: DeserializeOwned + Serialize>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let written = serde_json::to_vec(&value).expect("plain data");
    let again: T = serde_json::from_slice(&written).expect("what was written a moment ago");
    assert_eq!(serde_json::to_vec(&again).expect("plain data"), written);
    Some(value)
}

/// Makes magic, version, length and checksum of a snapshot's header right, and its digest, so that what they
/// guard is reached. The file has at least the bytes of a header and a digest.
pub fn mend_snapshot(file: &mut [u8]) {
    let len = file.len();
    file[..8].copy_from_slice(&snapshot::MAGIC);
    file[8..12].copy_from_slice(&snapshot::VERSION.to_le_bytes());
    file[32..40].copy_from_slice(&(len as u64).to_le_bytes());
    let checksum = crc32fast::hash(&file[..HEADER_LEN - 4]);
    file[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
    let (body, digest) = file.split_at_mut(len - DIGEST_LEN);
    digest.copy_from_slice(blake3::hash(body).as_bytes());
}

/// Makes the checksums of an IPv4 frame and of the TCP or ICMP in it right.
pub fn mend_frame(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(14..) else { return };
    let Ok(mut ip) = Ipv4Packet::new_checked(packet) else { return };
    ip.fill_checksum();
    let (from, to, protocol) = (ip.src_addr(), ip.dst_addr(), ip.next_header());
    match protocol {
        IpProtocol::Tcp => {
            if let Ok(mut tcp) = TcpPacket::new_checked(ip.payload_mut()) {
                tcp.fill_checksum(&from.into(), &to.into());
            }
        }
        IpProtocol::Icmp => {
            if let Ok(mut icmp) = Icmpv4Packet::new_checked(ip.payload_mut()) {
                icmp.fill_checksum();
            }
        }
        _ => {}
    }
}
