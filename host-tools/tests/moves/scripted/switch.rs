//! A switch on paper: its ports are files, and what agents do to them is kept in a journal. At a change a
//! script may have it kill somebody: `plug`, `open`, `close` or `unplug`.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use host_tools::agent::network::{Network, Port, Wire};
use host_tools::hostnet::HostNetError;

use super::qemu::{Deed, VIOLATIONS, deed, kill};
use super::world::files;

/// What the agents did to their switches, in order, as `node port deed`.
#[derive(Clone, Debug)]
pub struct Journal(PathBuf);

impl Journal {
    pub fn of(world: &Path) -> Self {
        Self(world.join("journal"))
    }

    fn note(&self, text: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0).unwrap();
        file.write_all(format!("{text}\n").as_bytes()).unwrap();
    }

    pub fn take(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let _ = std::fs::remove_file(&self.0);
        text.lines().map(str::to_owned).collect()
    }
}

#[derive(Debug)]
pub struct PaperSwitch {
    node: String,
    taps: PathBuf,
    journal: Journal,
}

#[derive(Debug)]
struct PaperPort {
    node: String,
    file: PathBuf,
    journal: Journal,
}

impl PaperSwitch {
    pub fn new(node: String, taps: PathBuf, journal: Journal) -> Self {
        Self { node, taps, journal }
    }

    fn port(&self, name: &str) -> PaperPort {
        let (node, file) = (self.node.clone(), self.taps.join(name));
        PaperPort { node, file, journal: self.journal.clone() }
    }
}

impl PaperPort {
    /// Makes a change, and does what the script says before or after it.
    fn change<T>(&self, what: &str, deed_of_agent: impl FnOnce() -> T) -> T {
        let deed = deed(self.file.parent().and_then(Path::parent).unwrap(), what);
        if let Some(Deed::Kill(file)) = &deed {
            kill(file);
        }
        let done = deed_of_agent();
        if let Some(Deed::KillAfter(file)) = &deed {
            kill(file);
        }
        done
    }

    /// In one step, like the kernel: the agent may be killed, and tests look at it. Ports of one node are
    /// written side by side.
    fn write(&self, open: bool) {
        if open {
            self.check_alone();
        }
        let directory = self.file.parent().and_then(Path::parent).unwrap();
        let mut next = self.file.file_name().unwrap().to_owned();
        next.push(".part");
        let next = directory.join(next);
        std::fs::write(&next, word(open)).unwrap();
        std::fs::rename(next, &self.file).unwrap();
    }

    /// Nobody speaks for a service while a holder answers for it.
    fn check_alone(&self) {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let own = name(&self.file);
        let service = &own[..own.rfind('-').unwrap()];
        let world = self.file.ancestors().nth(3).unwrap();
        for node in ["a", "b"] {
            for other in files(&world.join(node).join("taps")) {
                let path = world.join(node).join("taps").join(&other);
                if path == self.file || !other.starts_with(service) {
                    continue;
                }
                let holds = own.ends_with("-hold") || other.ends_with("-hold");
                if other.ends_with("-hold") && !agent_runs(world, node) {
                    // Its holder has ended with the agent: nobody is behind the port.
                    continue;
                }
                if holds && std::fs::read_to_string(&path).is_ok_and(|word| word == "open") {
                    let text = format!("{own} opens while {other} is open\n");
                    std::fs::write(world.join(VIOLATIONS), text).unwrap();
                }
            }
        }
    }
}

fn agent_runs(world: &Path, node: &str) -> bool {
    let pid = std::fs::read_to_string(world.join(format!("{node}.pid"))).unwrap_or_default();
    Path::new("/proc").join(pid.trim()).exists()
}

fn word(open: bool) -> &'static str {
    if open { "open" } else { "closed" }
}

impl Network for PaperSwitch {
    fn plug(&self, name: &str, _mac: &str, open: bool) -> Result<Box<dyn Port>, HostNetError> {
        let port = self.port(name);
        port.change("plug", || port.write(open));
        self.journal.note(&format!("{} plug {}", self.node, word(open)));
        Ok(Box::new(port))
    }

    fn adopt(&self, name: &str, _mac: &str) -> Result<Box<dyn Port>, HostNetError> {
        let port = self.port(name);
        if !port.file.exists() {
            return Err(HostNetError::NoSuchLink { name: name.into() });
        }
        self.journal.note(&format!("{} adopt", self.node));
        Ok(Box::new(port))
    }
}

impl Port for PaperPort {
    fn set_open(&self, open: bool) -> Result<(), HostNetError> {
        self.change(if open { "open" } else { "close" }, || self.write(open));
        self.journal.note(&format!("{} {}", self.node, if open { "open" } else { "close" }));
        Ok(())
    }

    fn wire(&self) -> Result<Box<dyn Wire>, HostNetError> {
        self.journal.note(&format!("{} wire", self.node));
        Ok(Box::new(PaperWire { node: self.node.clone(), journal: self.journal.clone() }))
    }

    fn unplug(self: Box<Self>) -> Result<(), HostNetError> {
        self.change("unplug", || std::fs::remove_file(&self.file).unwrap());
        self.journal.note(&format!("{} unplug", self.node));
        Ok(())
    }
}

/// A wire without frames.
#[derive(Debug)]
struct PaperWire {
    node: String,
    journal: Journal,
}

impl Wire for PaperWire {
    fn listen(&self) -> Result<(), HostNetError> {
        self.journal.note(&format!("{} listen", self.node));
        Ok(())
    }

    fn poll_receive(&self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mark = ferry_protocol::mark::number(frame).map_or("frame", |_| "mark");
        self.journal.note(&format!("{} {mark}", self.node));
        Ok(())
    }
}

impl Drop for PaperWire {
    fn drop(&mut self) {
        self.journal.note(&format!("{} wire gone", self.node));
    }
}
