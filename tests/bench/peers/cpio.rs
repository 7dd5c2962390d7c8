//! Archives in cpio's "newc" format, which Linux unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// A directory, or a file that may be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Directory { name: String },
    File { name: String, content: Vec<u8> },
}

/// The bytes of an archive. Directories come before what is in them.
#[must_use]
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        match entry {
            Entry::Directory { name } => put(&mut out, index + 1, name, 0o040_755, &[]),
            Entry::File { name, content } => put(&mut out, index + 1, name, 0o100_755, content),
        }
    }
    put(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

fn put(out: &mut Vec<u8>, inode: usize, name: &str, mode: usize, content: &[u8]) {
    out.extend_from_slice(b"070701");
    let links = 1;
    // inode, mode, user, group, links, time, size, two numbers each of the device and of the special file, length
    // of the name with its zero byte, checksum (unused).
    let fields = [inode, mode, 0, 0, links, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    align(out);
    out.extend_from_slice(content);
    align(out);
}

fn align(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
