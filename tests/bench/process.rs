//! What a process uses, from /proc.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Nanoseconds that all threads of a process have run (`/proc/PID/task/TID/schedstat`).
fn run_ns(pid: i32) -> Result<u64, String> {
    let dir = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&dir).map_err(|error| format!("{dir}: {error}"))?;
    let mut all = 0;
    for task in tasks.flatten() {
        let path = task.path().join("schedstat");
        // A thread may end meanwhile; one that was idle before is not missed.
        let text = fs::read_to_string(&path).unwrap_or_default();
        all += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    if all == 0 {
        Err(format!("{dir}: this kernel counts no run times (CONFIG_SCHED_INFO)"))
    } else {
        Ok(all)
    }
}

/// Percent of one processor that a process uses over a time.
pub fn cpu_percent(pid: i32, over: Duration) -> Result<f64, String> {
    let (before, begun) = (run_ns(pid)?, Instant::now());
    std::thread::sleep(over);
    let (after, passed) = (run_ns(pid)?, begun.elapsed());
    Ok(after.saturating_sub(before) as f64 / passed.as_nanos() as f64 * 100.0)
}

/// Resident memory of a process in bytes (`VmRSS`).
pub fn resident(pid: i32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.map(|kib| kib * 1024.0).ok_or_else(|| format!("{path}: no VmRSS"))
}

/// Bytes that the file of a guest's RAM occupies. QEMU has it open; it is as long as the RAM.
pub fn populated(pid: i32, memory_mib: u64) -> Result<f64, String> {
    let dir = format!("/proc/{pid}/fd");
    let open = fs::read_dir(&dir).map_err(|error| format!("{dir}: {error}"))?;
    let found = open
        .flatten()
        // Through the link: the file may have no name any more.
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .find(|file| file.is_file() && file.len() == memory_mib << 20);
    // Blocks of stat(2) are of 512 bytes, whatever the file system.
    found
        .map(|file| (file.blocks() * 512) as f64)
        .ok_or_else(|| format!("{dir}: no file of {memory_mib} MiB"))
}
