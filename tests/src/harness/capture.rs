//! A trace of the client's link, by tcpdump.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::World;
use crate::trace::packet::{Packet, parse};
use crate::trace::pcap;

/// How long tcpdump may take to begin, and to end.
const LIMIT: Duration = Duration::from_secs(15);
/// Headers with all options; payloads are the clients' business.
const SNAPLEN: &str = "128";

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Begins to capture what has to do with `service`; frames from now on are in it.
    #[must_use]
    pub fn start(world: &World, service: &str) -> Self {
        let file = world.files().join("client.pcap");
        let filter = format!("arp or (host {service} and (tcp or icmp))");
        let path = file.to_string_lossy().into_owned();
        // -Z root: in a user namespace there is nobody else to become. The buffer of 32 MiB holds what
        // arrives while this machine is busy with QEMU. Immediate mode: else the last second's frames wait in
        // the kernel, and are lost when the capture is ended.
        let dump = [
            "tcpdump",
            "-i",
            "eth0",
            "-n",
            "-Z",
            "root",
            "-s",
            SNAPLEN,
            "-B",
            "32768",
            "--immediate-mode",
            "--time-stamp-precision=nano",
            "-w",
            &path,
            &filter,
        ];
        let mut command = world.in_node("client", &dump);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start tcpdump: {e}"));
        let errors = child.stderr.take();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in errors.into_iter().flat_map(|e| BufReader::new(e).lines()) {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let capture = Self { child, file };
        let deadline = Instant::now() + LIMIT;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) if line.contains("listening on") => return capture,
                Ok(line) => said.push(line),
                Err(_) => panic!("tcpdump does not begin: {}", said.join("\n")),
            }
        }
    }

    /// Ends the capture in order and returns what matters of it.
    #[must_use]
    pub fn end(mut self) -> Vec<Packet> {
        let pid = self.child.id().to_string();
        // SIGINT makes tcpdump write out what it has.
        let status = Command::new("kill").args(["-INT", &pid]).status();
        assert!(status.is_ok_and(|s| s.success()), "tcpdump has ended early");
        let waited = Command::new("timeout")
            .args([&LIMIT.as_secs().to_string(), "tail", "--pid", &pid, "-f", "/dev/null"])
            .status();
        assert!(waited.is_ok(), "cannot wait for tcpdump");
        let _ = self.child.wait();
        let file = std::fs::read(&self.file)
            .unwrap_or_else(|e| panic!("no trace in {}: {e}", self.file.display()));
        let frames = pcap::frames(&file).unwrap_or_else(|e| panic!("{}: {e}", self.file.display()));
        frames.iter().filter_map(parse).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
