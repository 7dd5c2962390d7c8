//! CRIU: a Linux process with its TCP connections (`--tcp-established`), dumped on one host and restored on the
//! other, where its address goes too.
//!
//! Nobody may answer for the service while it is nowhere. On the source its address is locked just before the freeze,
//! with one rule, as CRIU does for a container that has a network of its own. The destination has the address from
//! before the move, locked too, and is silent about it; it announces it before the restore, and unlocks it when the
//! process is about to run. By then peers must know the new host: CRIU's sockets ask once for the peer's window, and
//! an answer that goes to the old host leaves them waiting for seconds. A question that gets out earlier does the same,
//! as peers answer such questions at most twice a second.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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
/// How often it is looked whether CRIU or the process has got on while nobody is served.
const POLL: Duration = Duration::from_millis(1);
/// The file that the script makes when the process runs again.
const RESUMED: &str = "resumed";
/// Starts a program with its arguments, as the leader of a session: CRIU restores no half of one. Ten thousand
/// connections are as many files.
const START: &str = "ulimit -n $(ulimit -Hn) && exec setsid \"$0\" \"$@\"";
/// Of nftables, on hosts where the service does not run.
const TABLE: &str = "ip service-away";

/// A process that CRIU moves.
pub struct Process<'w> {
    world: &'w World,
    criu: String,
    /// What CRIU calls just before the freeze, and just before the process runs again.
    script: PathBuf,
    /// The number it has, here and after every restore.
    pid: i32,
    /// The process itself, or the CRIU that restored it and is its parent: ends with it. Only when a parent has
    /// waited for the process, its number is free for the next restore.
    parent: Child,
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
        // Nothing of it is open that has an end outside.
        let path = program.path.display().to_string();
        // An earlier life may have ended on either host.
        let away = format!(
            "ip address delete {IP}/32 dev br0 2>/dev/null; nft delete table {TABLE} 2>/dev/null; \
             echo 0 >/proc/sys/net/ipv4/conf/br0/arp_ignore"
        );
        NODES.iter().for_each(|node| drop(world.exec(node, &["sh", "-c", &away])));
        world.exec(NODES[0], &["ip", "address", "replace", &format!("{IP}/32"), "dev", "br0"]);
        let mut command = world.in_node(NODES[0], &["sh", "-c", START, &path, &at]);
        let errors = output.try_clone().map_err(|e| e.to_string())?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let parent = command.spawn().map_err(|e| format!("cannot start {path}: {e}"))?;
        let pid = i32::try_from(parent.id()).map_err(|e| e.to_string())?;
        let busybox = assets.busybox.display().to_string();
        let script = world.files().join("criu.sh");
        std::fs::write(&script, actions(&busybox, &world.files().join(RESUMED)))
            .map_err(|e| format!("{}: {e}", script.display()))?;
        let criu = assets.criu.display().to_string();
        let process = Self { world, criu, script, pid, parent, runs: true, at: 0, moves: 0 };
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

    /// A command of CRIU on a host.
    fn criu(&self, node: &str, command: &str, images: &Path) -> Command {
        let (images, script) = (images.display().to_string(), self.script.display().to_string());
        let log = log_of(command);
        let common = [&*self.criu, command, "-D", &images, "-o", &log, "-v2", "--tcp-established"];
        let lock =
            ["--network-lock", "skip", "--manage-cgroups=ignore", "--action-script", &script];
        self.world.in_node(node, &[&common[..], &lock].concat())
    }

    fn dump(&mut self, node: &str, images: &Path) -> Result<(), String> {
        let mut command = self.criu(node, "dump", images);
        command.args(["-t", &self.pid.to_string()]);
        let out = output_within(&command, LIMIT);
        if !out.status.success() {
            return Err(complain("dump", images));
        }
        self.runs = false;
        Ok(())
    }

    /// Waits until nobody has the number of the process any more.
    fn wait_for_end(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match self.parent.try_wait() {
                Ok(Some(_)) => return Ok(()),
                Ok(None) if Instant::now() > deadline => {
                    return Err("the dumped process does not end".into());
                }
                Ok(None) => std::thread::sleep(POLL),
                Err(error) => return Err(format!("cannot wait for the dumped process: {error}")),
            }
        }
    }

    fn restore(&mut self, node: &str, images: &Path) -> Result<(), String> {
        let mut command = self.criu(node, "restore", images);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let resumed = self.world.files().join(RESUMED);
        let _ = std::fs::remove_file(&resumed);
        self.parent = command.spawn().map_err(|e| format!("cannot start CRIU: {e}"))?;
        let deadline = Instant::now() + LIMIT;
        while !resumed.exists() {
            let ended = !matches!(self.parent.try_wait(), Ok(None));
            if ended || Instant::now() > deadline {
                return Err(complain("restore", images));
            }
            std::thread::sleep(POLL);
        }
        self.runs = true;
        Ok(())
    }
}

fn log_of(command: &str) -> String {
    format!("{command}.log")
}

/// What CRIU says of its failure.
fn complain(command: &str, images: &Path) -> String {
    let log = std::fs::read_to_string(images.join(log_of(command))).unwrap_or_default();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("Error")).collect();
    format!("criu {command} failed: {}", errors.join("; "))
}

impl Mover for Process<'_> {
    fn prepare(&mut self) -> Result<(), String> {
        let to = NODES[1 - self.at];
        let address = format!(
            "nft delete table {TABLE} 2>/dev/null; echo 8 >/proc/sys/net/ipv4/conf/br0/arp_ignore && \
             {} && ip address add {IP}/32 dev br0",
            lock()
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
        self.dump(from, &here)?;
        let copying = Instant::now();
        let bytes = copy(&here, &there).map_err(made)?;
        let copied_ms = copying.elapsed().as_secs_f64() * 1e3;
        self.wait_for_end()?;
        self.restore(to, &there)?;
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
        } else {
            let _ = self.parent.kill();
        }
        let _ = self.parent.wait();
    }
}

/// A command that lets nothing to the address in and nothing from it out.
fn lock() -> String {
    format!(
        "nft 'add table {TABLE}; \
         add chain {TABLE} in {{ type filter hook input priority 0; }}; \
         add chain {TABLE} out {{ type filter hook output priority 0; }}; \
         add rule {TABLE} in ip daddr {IP} drop; add rule {TABLE} out ip saddr {IP} drop'"
    )
}

/// CRIU says which of its stages it is at.
fn actions(busybox: &str, resumed: &Path) -> String {
    let (lock, resumed) = (lock(), resumed.display());
    let ignore = "/proc/sys/net/ipv4/conf/br0/arp_ignore";
    format!(
        "#!/bin/sh\ncase $CRTOOLS_SCRIPT_ACTION in\n\
         pre-dump)\n  echo 8 >{ignore}\n  exec {lock} ;;\n\
         pre-restore)\n  echo 0 >{ignore}\n  \
         {busybox} arping -q -A -c 1 -I br0 {IP} >/dev/null 2>&1 & ;;\n\
         post-restore)\n  exec nft delete table {TABLE} ;;\n\
         post-resume)\n  touch {resumed} ;;\nesac\n"
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
