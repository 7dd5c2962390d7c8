//! Taking a lab down: end its processes, and the kernel removes the rest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::exec::NODE_VARIABLE;
use super::state::{State, run_dir};
use super::{LabError, plan};
use crate::process::{self, Process};

/// How long managers, agents and QEMUs have to end by themselves.
const GRACE: Duration = Duration::from_secs(3);

/// `lab down`.
pub fn run() -> Result<(), LabError> {
    let dir = run_dir();
    if !dir.exists() {
        println!("no lab in {}", dir.display());
        return Ok(());
    }
    let _lock = lock(&dir)?;
    let ended = take_down(&dir)?;
    if ended == 0 {
        println!("no lab was running in {}", dir.display());
    } else {
        println!("the lab is down ({ended} processes ended)");
    }
    Ok(())
}

/// Held while a lab changes. Released by the kernel when this process ends.
pub fn lock(dir: &Path) -> Result<File, LabError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| LabError::File { path: path.clone(), source })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LabError::Busy { dir: dir.to_owned() }),
        Err(e) => Err(LabError::File { path, source: e.into() }),
    }
}

/// Ends everything that belongs to the lab in `dir` and removes its files. Returns how many processes
/// it ended. A state file that cannot be read does not stop it.
pub fn take_down(dir: &Path) -> Result<usize, LabError> {
    let state = State::load(dir).unwrap_or_default();
    let mut holders: Vec<Process> =
        state.iter().flat_map(|s| &s.nodes).map(|n| n.holder).filter(|p| p.runs()).collect();
    let dir_text = dir.to_string_lossy();
    holders.extend(process::with_arguments(&["lab", "hold", "--dir", &dir_text]));

    // Daemons first: an agent that still lives might start another QEMU.
    let daemons = state.iter().flat_map(|s| &s.daemons).map(|d| d.process).filter(|p| p.runs());
    let mut ended = end_all(daemons.collect(), GRACE)?;
    ended += end_all(inhabitants(dir, &holders), GRACE)?;
    ended += end_all(holders, Duration::from_millis(200))?;
    remove_files(dir)?;
    Ok(ended)
}

/// All that runs inside the nodes, or was started there, other than their holders and whoever called.
fn inhabitants(dir: &Path, holders: &[Process]) -> Vec<Process> {
    let mut found = BTreeMap::new();
    let own = process::network_namespace(std::process::id().cast_signed());
    for holder in holders {
        // A holder that has not come as far as its namespace is still in ours.
        let Some(inode) = process::network_namespace(holder.pid) else { continue };
        if Some(inode) != own {
            found.extend(process::in_network_namespace(inode).into_iter().map(|p| (p.pid, p)));
        }
    }
    let marks = [format!("FERRY_LAB_DIR={}", dir.display()), format!("{NODE_VARIABLE}=")];
    found.extend(process::with_environment(&marks).into_iter().map(|p| (p.pid, p)));
    for pid in process::ancestors().into_iter().chain(holders.iter().map(|h| h.pid)) {
        found.remove(&pid);
    }
    found.into_values().collect()
}

/// Ends processes side by side. All are tried, then the first failure is reported.
fn end_all(mut processes: Vec<Process>, grace: Duration) -> Result<usize, LabError> {
    processes.sort_by_key(|p| p.pid);
    processes.dedup();
    let results: Vec<(i32, io::Result<()>)> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            processes.iter().map(|p| (p.pid, scope.spawn(move || p.end(grace)))).collect();
        let joined = |t: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
            t.join().unwrap_or_else(|_| Err(io::Error::other("panicked")))
        };
        threads.into_iter().map(|(pid, thread)| (pid, joined(thread))).collect()
    });
    for (pid, result) in results {
        result.map_err(|source| LabError::End { pid, source })?;
    }
    Ok(processes.len())
}

/// Removes what labs put into their directory, and then the directory if nothing else is in it.
fn remove_files(dir: &Path) -> Result<(), LabError> {
    let own_directories: Vec<String> =
        plan::nodes(plan::HOSTS_MAX, plan::MANAGERS_MAX).into_iter().map(|n| n.name).collect();
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| LabError::File { path, source }
    };
    for entry in fs::read_dir(dir).map_err(fail(dir))? {
        let entry = entry.map_err(fail(dir))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_dir = entry.file_type().map_err(fail(&path))?.is_dir();
        let own_file = name.ends_with(".log")
            || name.ends_with(".sock")
            || name == "lock"
            || name.starts_with("state.json");
        let removed = if is_dir && own_directories.contains(&name) {
            fs::remove_dir_all(&path)
        } else if !is_dir && own_file {
            fs::remove_file(&path)
        } else {
            Ok(())
        };
        removed.map_err(fail(&path))?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(fail(dir)(e)),
        _ => Ok(()),
    }
}
