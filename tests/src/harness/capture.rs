//! A trace of the client's link, or of all ports of the switch, by tcpdump.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
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
    /// What it says; closes when it ends.
    said: Receiver<String>,
}

impl Capture {
    /// Begins to capture what has to do with `service`; frames from now on are in it.
    #[must_use]
    pub fn start(world: &World, service: &str) -> Self {
        let filter = format!("arp or (host {service} and (tcp or icmp))");
        Self::begin(world, "client", &["-i", "eth0"], &filter)
    }

    /// Begins to capture what comes in by the ports of the lab's switch and matches `filter`.
    #[must_use]
    pub fn switch(world: &World, filter: &str) -> Self {
        Self::begin(world, "switch", &["-i", "any", "-Q", "in"], filter)
    }

    fn begin(world: &World, node: &str, link: &[&str], filter: &str) -> Self {
        let file = world.files().join(format!("{node}.pcap"));
        let path = file.to_string_lossy().into_owned();
        // -Z root: in a user namespace there is nobody else to become. The buffer of 32 MiB holds what
        // arrives while this machine is busy with QEMU. Immediate mode: else the last second's frames wait in
        // the kernel, and are lost when the capture is ended.
        let dump = [
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
            filter,
        ];
        let mut command = world.in_node(node, &[&["tcpdump"], link, &dump].concat());
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
        let capture = Self { child, file, said: lines };
        let deadline = Instant::now() + LIMIT;
        let mut said = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match capture.said.recv_timeout(left) {
                Ok(line) if line.contains("listening on") => return capture,
                Ok(line) => said.push(line),
                Err(_) => panic!("tcpdump does not begin: {}", said.join("\n")),
            }
        }
    }

    /// Ends the capture in order and returns what matters of it.
    #[must_use]
    pub fn end(self) -> Vec<Packet> {
        let path = self.file.clone();
        let file = self.end_raw();
        let frames = pcap::frames(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        frames.iter().filter_map(parse).collect()
    }

    /// Ends the capture in order and returns its file.
    #[must_use]
    pub fn end_raw(mut self) -> Vec<u8> {
        let pid = self.child.id().to_string();
        // SIGINT makes tcpdump write out what it has.
        let status = Command::new("kill").args(["-INT", &pid]).status();
        assert!(status.is_ok_and(|s| s.success()), "tcpdump has ended early");
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("tcpdump does not end"),
            }
        }
        let _ = self.child.wait();
        std::fs::read(&self.file)
            .unwrap_or_else(|e| panic!("no trace in {}: {e}", self.file.display()))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
