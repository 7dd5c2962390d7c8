//! CRIU: a Linux process with its TCP connections (`--tcp-established`), dumped on one host and restored on the
//! other, where its address goes too.
//!
//! Nobody may answer for the service while it is nowhere. On the source its address is locked just before the freeze,
//! with one rule, as CRIU does for a container that has a network of its own. The destination has the address from
//! before the move, and is silent about it; it answers and announces it when the process is about to run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use ferry_tests::harness::{World, output_within};

use super::Assets;
use super::linux::Program;
use crate::mover::{IP, Moved, Mover, NODES};

/// How long CRIU may take to dump or to restore.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the program may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Of nftables, on the host where the service is dumped.
const TABLE: &str = "ip service-away";

/// A process that CRIU moves.
pub struct Process<'w> {
    world: &'w World,
    criu: String,
    /// What CRIU calls just before the freeze, and just before the process runs again.
    script: PathBuf,
    /// The number it has, here and after every restore.
    pid: i32,
    /// Whether it has not ended with a dump.
    runs: bool,
    /// Where in [`NODES`] it runs.
    at: usize,
    moves: usize,
}

impl<'w> Process<'w> {
    /// Starts one of Ferry's services as a process.
    pub fn start(world: &'w World, assets: &Assets, service: &str) -> Result<Self, String> {
        if assets.criu.as_os_str().is_empty() {
            return Err("no CRIU works on this kernel: `sh qemu/setup.sh --bench` says more".into());
        }
        let program = Program::service(assets, service)?;
        let at = program.arguments.join(" ").replace("0.0.0.0", &IP.to_string());
        let log = world.files().join("service.log");
        let new = |path: &Path| {
            std::fs::File::create(path).map_err(|e| format!("{}: {e}", path.display()))
        };
        let output = new(&log)?;
        // For a restore later: it leads a session, and nothing of it is open that has an end outside.
        let path = program.path.display().to_string();
        world.exec(NODES[0], &["ip", "address", "add", &format!("{IP}/32"), "dev", "br0"]);
        let mut command = world.in_node(NODES[0], &["setsid", &path, &at]);
        let errors = output.try_clone().map_err(|e| e.to_string())?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut child = command.spawn().map_err(|e| format!("cannot start {path}: {e}"))?;
        let pid = i32::try_from(child.id()).map_err(|e| e.to_string())?;
        // A number is free for a restore when somebody has waited for its last owner.
        std::thread::spawn(move || child.wait());
        let busybox = assets.busybox.display().to_string();
        let script = world.files().join("criu.sh");
        std::fs::write(&script, actions(&busybox))
            .map_err(|e| format!("{}: {e}", script.display()))?;
        let criu = assets.criu.display().to_string();
        let process = Self { world, criu, script, pid, runs: true, at: 0, moves: 0 };
        process.world.exec(NODES[0], &["chmod", "+x", &process.script.display().to_string()]);
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            match said.contains(program.says) {
                true => return Ok(process),
                false if Instant::now() > deadline => {
                    return Err(format!("{path} does not listen: {said}"));
                }
                false => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Runs CRIU on a host; it must succeed.
    fn criu(&self, node: &str, command: &str, images: &Path, more: &[&str]) -> Result<(), String> {
        let (images, script) = (images.display().to_string(), self.script.display().to_string());
        let log = format!("{command}.log");
        let common = [&*self.criu, command, "-D", &images, "-o", &log, "-v2", "--tcp-established"];
        let lock =
            ["--network-lock", "skip", "--manage-cgroups=ignore", "--action-script", &script];
        let out =
            output_within(&self.world.in_node(node, &[&common[..], &lock, more].concat()), LIMIT);
        if out.status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(format!("{images}/{log}")).unwrap_or_default();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
        let said = String::from_utf8_lossy(&out.stderr);
        Err(format!("criu {command}: {}: {said}{}", out.status, errors.join("\n")))
    }
}

impl Mover for Process<'_> {
    fn prepare(&mut self) -> Result<(), String> {
        let to = NODES[1 - self.at];
        let address = format!(
            "nft delete table {TABLE} 2>/dev/null; echo 8 >/proc/sys/net/ipv4/conf/br0/arp_ignore && \
             ip address add {IP}/32 dev br0"
        );
        self.world.exec(to, &["sh", "-c", &address]);
        Ok(())
    }

    fn go(&mut self) -> Result<Moved, String> {
        let (from, to) = (NODES[self.at], NODES[1 - self.at]);
        self.moves += 1;
        let images = |node: &str| self.world.files().join(format!("images-{}-{node}", self.moves));
        let (here, there) = (images(from), images(to));
        let made = |error: std::io::Error| format!("{}: {error}", here.display());
        std::fs::create_dir_all(&here)
            .and_then(|()| std::fs::create_dir_all(&there))
            .map_err(made)?;
        let begun = Instant::now();
        self.criu(from, "dump", &here, &["-t", &self.pid.to_string()])?;
        self.runs = false;
        let copying = Instant::now();
        let bytes = copy(&here, &there).map_err(made)?;
        let copied_ms = copying.elapsed().as_secs_f64() * 1e3;
        self.criu(to, "restore", &there, &["-d"])?;
        self.runs = true;
        let total_ms = begun.elapsed().as_secs_f64() * 1e3;
        self.world.exec(from, &["ip", "address", "delete", &format!("{IP}/32"), "dev", "br0"]);
        self.at = 1 - self.at;
        // criu/images/stats.proto: StatsEntry { dump = 1 { frozen_time = 2 }, restore = 2 { restore_time = 4 } }
        let frozen_ms = statistic(&here.join("stats-dump"), 1, 2)? / 1e3;
        let restored_ms = statistic(&there.join("stats-restore"), 2, 4)? / 1e3;
        Ok(Moved {
            downtime_ms: frozen_ms + copied_ms + restored_ms,
            total_ms,
            bytes: bytes as f64,
        })
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid)
            && self.runs
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// CRIU says which of its stages it is at.
fn actions(busybox: &str) -> String {
    format!(
        "#!/bin/sh\ncase $CRTOOLS_SCRIPT_ACTION in\npre-dump)\n  exec nft '\n    add table {TABLE}\n    \
         add chain {TABLE} in {{ type filter hook input priority 0; }}\n    \
         add chain {TABLE} out {{ type filter hook output priority 0; }}\n    \
         add rule {TABLE} in ip daddr {IP} drop\n    add rule {TABLE} out ip saddr {IP} drop\n  ' ;;\n\
         post-restore)\n  echo 0 >/proc/sys/net/ipv4/conf/br0/arp_ignore\n  \
         {busybox} arping -q -A -c 1 -I br0 {IP} >/dev/null 2>&1 & ;;\nesac\n"
    )
}

/// Copies CRIU's images. Returns how many bytes.
fn copy(from: &Path, to: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "img") {
            bytes += std::fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(bytes)
}

/// A number of CRIU's statistics: field `inner` of the message that is field `outer`. In the file that message comes
/// after two words of magic and one of length, encoded by protobuf.
fn statistic(file: &Path, outer: u64, inner: u64) -> Result<f64, String> {
    let bytes = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let find = || {
        let mut message = bytes.get(12..)?;
        loop {
            match field(&mut message)? {
                (number, Value::Bytes(mut part)) if number == outer => loop {
                    if let (number, Value::Number(found)) = field(&mut part)?
                        && number == inner
                    {
                        return Some(found as f64);
                    }
                },
                _ => {}
            }
        }
    };
    find().ok_or_else(|| format!("{}: no statistics of CRIU", file.display()))
}

/// A value of protobuf's encoding, of the two kinds that CRIU's statistics are made of.
enum Value<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

/// Takes the next field: its number and its value.
fn field<'b>(rest: &mut &'b [u8]) -> Option<(u64, Value<'b>)> {
    let tag = number(rest)?;
    let value = number(rest)?;
    match tag & 7 {
        0 => Some((tag >> 3, Value::Number(value))),
        2 => {
            let (bytes, after) = rest.split_at_checked(usize::try_from(value).ok()?)?;
            *rest = after;
            Some((tag >> 3, Value::Bytes(bytes)))
        }
        _ => None,
    }
}

/// Takes a number: seven bits a byte, the lowest first.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut out = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}
