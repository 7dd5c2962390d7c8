//! What a machine with PCI runs before the kernel.
//!
//! SeaBIOS looks for disks, cards and their ROMs, of which there are none, and takes longer than the rest of a boot.
//! `qboot` loads the kernel and does nothing else; giving the network card its addresses is then left to the kernel.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The file, which QEMU looks for where it keeps its own.
pub const QBOOT: &str = "qboot.rom";

/// Whether this QEMU has `qboot`. Without an answer in five seconds it has not.
pub async fn has_qboot(qemu: &str) -> bool {
    const LIMIT: Duration = Duration::from_secs(5);
    let folders = tokio::process::Command::new(qemu)
        .args(["-L", "help"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(LIMIT, folders).await {
        Ok(Ok(output)) => lies_in(&String::from_utf8_lossy(&output.stdout)),
        _ => false,
    }
}

/// Whether one of the folders, a line each, has it.
fn lies_in(folders: &str) -> bool {
    folders.lines().any(|folder| Path::new(folder).join(QBOOT).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_looked_for_in_every_folder() {
        assert!(!has_qboot("/nonexistent/qemu").await);
        let folder = tempfile::tempdir().unwrap();
        let folders = format!("/nonexistent\n{}\n", folder.path().display());
        assert!(!lies_in(&folders));
        std::fs::write(folder.path().join(QBOOT), "").unwrap();
        assert!(lies_in(&folders));
        assert!(!lies_in(""));
    }
}
