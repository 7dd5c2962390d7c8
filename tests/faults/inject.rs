//! Doing a fault when its time has come, and ending it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ferry_tests::faults::plan::{Deed, Fault, Part, Target};
use rustix::process::Signal;

use crate::rig::{Rig, qemus, signal};
use crate::watch::Progress;

/// How long a fault waits for its phase: another fault may hold the move up.
const PHASE_LIMIT: Duration = Duration::from_secs(10);
/// How long it waits for a standby that is still to come, and how often it looks: nobody tells.
const QEMU_LIMIT: Duration = Duration::from_millis(800);
const QEMU_PAUSE: Duration = Duration::from_millis(2);

/// Who is who in a run.
#[derive(Clone, Debug)]
pub struct Cast {
    pub source: String,
    pub destination: String,
    /// The node of the manager that leads.
    pub leader: String,
    /// The moving service's address on the wire.
    pub mac: String,
    /// Process ids by node, before the faults.
    pub holders: BTreeMap<String, i32>,
    pub daemons: BTreeMap<String, i32>,
}

impl Cast {
    /// The node of a part.
    #[must_use]
    pub fn node(&self, part: Part) -> &str {
        match part {
            Part::Source => &self.source,
            Part::Destination => &self.destination,
            Part::Manager => &self.leader,
        }
    }
}

/// What a fault has left to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// It found what it is for.
    pub hit: bool,
    /// The daemon that has to be started again.
    pub down: Option<String>,
    /// The part whose QEMU was killed.
    pub killed: Option<Part>,
}

/// Waits for the fault's point, does it, and ends what ends by itself.
#[must_use]
pub fn inject(rig: &Rig, fault: &Fault, cast: &Cast, progress: &Progress) -> Done {
    let entered = progress.await_phase(fault.point.phase, PHASE_LIMIT);
    let due = entered + fault.point.offset;
    std::thread::sleep(due.saturating_duration_since(Instant::now()));
    let at = |part: Part| cast.node(part);
    let hit = Done { hit: true, ..Done::default() };
    match (fault.target, fault.deed) {
        (Target::Between(one, other), Deed::Cut(time)) => {
            rig.between(at(one), at(other), true);
            std::thread::sleep(time);
            rig.between(at(one), at(other), false);
            hit
        }
        (Target::Cable(part), Deed::Cut(time)) => {
            rig.cable(at(part), true);
            std::thread::sleep(time);
            rig.cable(at(part), false);
            hit
        }
        (Target::SourceQemu, deed) => to_qemu(cast, Part::Source, deed, progress),
        (Target::DestinationQemu, deed) => to_qemu(cast, Part::Destination, deed, progress),
        (target, deed) => {
            let daemon = match target {
                Target::SourceAgent => cast.source.clone(),
                Target::DestinationAgent => cast.destination.clone(),
                Target::StoreMember(number) => format!("etcd{number}"),
                _ => cast.leader.clone(),
            };
            let Some(&pid) = cast.daemons.get(&daemon) else { return Done::default() };
            match deed {
                Deed::Stop(time) => {
                    pause(pid, time);
                    hit
                }
                Deed::Kill(time) | Deed::Cut(time) => {
                    let hit = signal(pid, Signal::KILL);
                    std::thread::sleep(time);
                    Done { hit, down: hit.then_some(daemon), killed: None }
                }
            }
        }
    }
}

fn pause(pid: i32, time: Duration) -> bool {
    let stopped = signal(pid, Signal::STOP);
    std::thread::sleep(time);
    stopped && signal(pid, Signal::CONT)
}

fn to_qemu(cast: &Cast, part: Part, deed: Deed, progress: &Progress) -> Done {
    let host = cast.node(part);
    let Some(&holder) = cast.holders.get(host) else { return Done::default() };
    let begun = Instant::now();
    let pid = loop {
        if let Some(pid) = qemus(holder, &cast.mac).pop() {
            break pid;
        }
        if begun.elapsed() > QEMU_LIMIT || progress.ended() {
            return Done::default();
        }
        std::thread::sleep(QEMU_PAUSE);
    };
    match deed {
        Deed::Stop(time) => Done { hit: pause(pid, time), ..Done::default() },
        Deed::Kill(_) | Deed::Cut(_) => {
            let hit = signal(pid, Signal::KILL);
            Done { hit, down: None, killed: hit.then_some(part) }
        }
    }
}
