//! A snapshot file, whoever wrote it.

use ferry_fuzz::ram;
use ferry_protocol::snapshot::HEADER_LEN;
use host_tools::snapshot::{DIGEST_LEN, Snapshot};

pub fn run(input: &[u8]) {
    let Some((&mode, rest)) = input.split_first() else { return };
    let mut file = rest.to_vec();
    // Odd: lengths, checksum of the header and digest of the file are made right.
    if mode & 1 == 1 && file.len() >= HEADER_LEN + DIGEST_LEN {
        ferry_fuzz::mend_snapshot(&mut file);
    }
    if let Ok(snapshot) = Snapshot::read(&file) {
        // A guest with less memory refuses it; nothing else may happen.
        let _ = snapshot.fill(&ram());
    }
}
