//! All the ways in which a snapshot can be bad.

use super::*;
use std::net::Ipv4Addr;

use crate::api::{ImageRef, ServiceSpec};
use crate::holder::HeldTable;
use crate::qemu::Machine;
use crate::snapshot::write::snapshot;
use ferry_protocol::control::Range;

const PAGES: u64 = 100;

fn ram(dir: &tempfile::TempDir, name: &str, pages: u64) -> RamFile {
    let path = dir.path().join(name);
    let len = PORTABLE_BASE + pages * 4096;
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    let mut ram = RamFile::open(&path, len).unwrap();
    ram.set_portable(Range { addr: PORTABLE_BASE, len: pages * 4096 }).unwrap();
    ram
}

fn meta() -> Meta {
    let build_id = Digest32([7; 32]);
    Meta {
        spec: ServiceSpec {
            name: "p".into(),
            id: "1".into(),
            image: ImageRef { name: "pingpong:latest".into(), digest: Digest32([1; 32]), build_id },
            ip: [10, 77, 0, 50].into(),
            prefix: 24,
            gateway: None,
            mac: "02:00:00:00:00:01".into(),
            memory_mib: 64,
            machine: Machine::Q35,
            args: vec![],
        },
        connections: 3,
        held: Some(HeldTable {
            connections: vec![(Ipv4Addr::new(10, 77, 0, 100), 4001, 7, 5, 9).into()],
            ports: vec![7],
        }),
        log_start: 7,
        log: "up\n".into(),
        made_us: 5,
    }
}

/// A snapshot of 20 pages that do not compress well, and one zero page that is left out.
fn good() -> (tempfile::TempDir, RamFile, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let ram = ram(&dir, "a", PAGES);
    let numbers: Vec<u32> = (10..30).collect();
    for &number in &numbers {
        let mut page = [0; PAGE_SIZE];
        blake3::Hasher::new().update(&[number as u8]).finalize_xof().fill(&mut page);
        ram.write_pages(number, &page).unwrap();
    }
    let listed: Vec<u32> = (10..31).collect();
    let (bytes, pages) = snapshot(&meta(), 4, &ram, &listed).unwrap();
    assert_eq!(pages, 20);
    (dir, ram, bytes)
}

/// The same file with other content and checksums that match it: what only the last checks find.
fn forged(bytes: &[u8], change: impl FnOnce(&mut Header, &mut Vec<u8>)) -> Vec<u8> {
    let mut header = Header::decode(bytes, bytes.len() as u64).unwrap();
    let mut body = bytes[HEADER_LEN..bytes.len() - DIGEST_LEN].to_vec();
    change(&mut header, &mut body);
    header.file_len = (HEADER_LEN + body.len() + DIGEST_LEN) as u64;
    let mut out = [&header.encode()[..], &body].concat();
    let digest = blake3::hash(&out);
    out.extend_from_slice(digest.as_bytes());
    out
}

#[test]
fn round_trip() {
    let (dir, from, bytes) = good();
    let snapshot = Snapshot::read(&bytes).unwrap();
    assert_eq!((snapshot.header.epoch, snapshot.header.pages), (4, 20));
    assert_eq!(snapshot.meta, meta());
    let to = ram(&dir, "b", PAGES);
    snapshot.fill(&to).unwrap();
    let (mut a, mut b) = (vec![0; PAGES as usize * 4096], vec![1; PAGES as usize * 4096]);
    from.read_pages(0, &mut a).unwrap();
    to.read_pages(0, &mut b).unwrap();
    assert!(a == b);
    assert!(snapshot.fill(&ram(&dir, "small", 20)).is_err());
}

#[test]
fn cut_anywhere_it_is_refused() {
    let (_dir, _, bytes) = good();
    for len in (0..bytes.len()).step_by(997).chain((0..bytes.len()).step_by(4096)) {
        assert!(Snapshot::read(&bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let (_dir, _, mut bytes) = good();
    // Every bit of the parts with structure, one bit of every 61st byte of the pages.
    let dense = HEADER_LEN + 1000;
    let bits = (0..dense * 8).chain((dense..bytes.len()).step_by(61).map(|byte| byte * 8 + 3));
    for bit in bits.chain((bytes.len() - DIGEST_LEN) * 8..bytes.len() * 8) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Snapshot::read(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(Snapshot::read(&bytes).is_ok());
}

#[test]
fn another_image_is_named() {
    let (_dir, _, bytes) = good();
    let snapshot = Snapshot::read(&bytes).unwrap();
    assert!(snapshot.check_image(&[7; 32]).is_ok());
    assert_eq!(
        snapshot.check_image(&[8; 32]).unwrap_err().to_string(),
        "the snapshot is of image 070707070707, not of 080808080808"
    );
}

#[test]
fn absurd_lengths_with_good_checksums_are_refused() {
    let (_dir, _, bytes) = good();
    let read = |change: &dyn Fn(&mut Header, &mut Vec<u8>)| {
        Snapshot::read(&forged(&bytes, |header, body| change(header, body))).unwrap_err()
    };
    use SnapshotError as E;
    assert!(matches!(read(&|header, _| header.pages = u32::MAX), E::Header(_)));
    assert!(matches!(read(&|header, _| header.pages = 500_000), E::Lengths { .. }));
    assert!(matches!(read(&|header, _| header.meta_len = u32::MAX), E::Lengths { .. }));
    assert!(matches!(read(&|header, _| header.meta_len -= 1), E::Meta { .. }));
    assert!(matches!(read(&|header, _| header.pages -= 1), E::Block { .. } | E::Trailing { .. }));
    assert!(matches!(read(&|header, _| header.build_id[0] = 9), E::Meta { .. }));
    for end in [0, PORTABLE_BASE - 4096, MAX_RAM + 4096, PORTABLE_BASE + 1, u64::MAX] {
        let error = read(&|header, _| header.portable_end = end);
        assert!(matches!(error, E::PortableEnd { .. }), "{end:#x}");
    }
    let end = PORTABLE_BASE + 29 * 4096;
    let error = read(&|header, _| header.portable_end = end);
    assert!(matches!(error, E::TableRange { page: 29, pages: 29 }));
    assert!(matches!(read(&|_, body| body.push(0)), E::Trailing { extra: 1 }));
    let table_at = Header::decode(&bytes, bytes.len() as u64).unwrap().meta_len as usize;
    let error = read(&|_, body| body[table_at] = 11);
    assert!(matches!(error, E::TableOrder { index: 1 }), "{error}");
    let block_at = table_at + 20 * 4;
    let error = read(&|_, body| body[block_at + 3] = 0xff);
    assert!(matches!(error, E::Block { index: 0 }), "{error}");
    let error = read(&|_, body| body[block_at + 5] ^= 0xff);
    assert!(matches!(error, E::Block { index: 0 }), "{error}");
}
