//! Manager, agents, and the real `host-tools` command.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use host_tools::agent::network::{Copying, End, Network, Port};
use host_tools::agent::{self};
use host_tools::api::{Client, Instance, Problem, Service};
use host_tools::hostnet::HostNetError;
use host_tools::manager;
use host_tools::wire::Address;
use tokio::sync::oneshot;

use super::qemu::{ARGUMENTS, Deed, SCRIPT_DIR, write_script};

/// What the agents did to their switches, in order, as `node port deed`.
#[derive(Clone, Debug, Default)]
pub struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A switch that only keeps a journal.
#[derive(Debug)]
struct PaperSwitch {
    node: String,
    journal: Journal,
}

#[derive(Debug)]
struct PaperPort {
    node: String,
    journal: Journal,
}

impl Network for PaperSwitch {
    fn plug(&self, _name: &str, _mac: &str, open: bool) -> Result<Box<dyn Port>, HostNetError> {
        let node = self.node.clone();
        self.journal.note(format!("{node} plug {}", if open { "open" } else { "closed" }));
        Ok(Box::new(PaperPort { node, journal: self.journal.clone() }))
    }
}

impl Port for PaperPort {
    fn tap(&self) -> Option<String> {
        None
    }

    fn set_open(&self, open: bool) -> Result<(), HostNetError> {
        self.journal.note(format!("{} {}", self.node, if open { "open" } else { "close" }));
        Ok(())
    }

    fn mirror(&self, end: End, _: Ipv4Addr, _: u32) -> Result<Box<dyn Copying>, HostNetError> {
        self.journal.note(format!("{} mirror {end:?}", self.node));
        Ok(Box::new(PaperMirror { node: self.node.clone(), journal: self.journal.clone() }))
    }

    fn unplug(self: Box<Self>) -> Result<(), HostNetError> {
        self.journal.note(format!("{} unplug", self.node));
        Ok(())
    }
}

#[derive(Debug)]
struct PaperMirror {
    node: String,
    journal: Journal,
}

impl Copying for PaperMirror {
    fn on(&mut self) -> Result<(), HostNetError> {
        self.journal.note(format!("{} mirror on", self.node));
        Ok(())
    }
}

impl Drop for PaperMirror {
    fn drop(&mut self) {
        self.journal.note(format!("{} mirror off", self.node));
    }
}

/// An agent and what its guests are to do.
pub struct Node {
    pub dir: PathBuf,
    pub address: String,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

/// All of it; ends with its value.
pub struct World {
    pub journal: Journal,
    pub manager: String,
    pub nodes: Vec<Node>,
    dir: tempfile::TempDir,
}

const LIMIT: Duration = Duration::from_secs(30);

impl World {
    /// A manager and nodes `a` and `b` with 1000 MiB each, and an image `svc` in the repository.
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, address) = oneshot::channel();
        let config = manager::Config {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            socket: None,
            state_dir: dir.path().join("manager"),
            pool: "10.77.0.50-10.77.0.99/24".parse().unwrap(),
        };
        tokio::spawn(async move {
            let forever = std::future::pending();
            let ready = |address| sender.send(address).unwrap();
            manager::serve(config, forever, ready).await.unwrap();
        });
        let manager = address.await.unwrap().unwrap().to_string();
        let mut world = Self { journal: Journal::default(), manager, nodes: Vec::new(), dir };
        for name in ["a", "b"] {
            world.add_node(name, 1000).await;
        }
        let image = world.dir.path().join("svc");
        std::fs::write(&image, image_file(7)).unwrap();
        world.good(&["image", "push", image.to_str().unwrap()]).await;
        world
    }

    async fn add_node(&mut self, name: &str, memory_mib: u64) {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(dir.join("ram")).unwrap();
        let script = dir.join("qemu");
        let text = format!(
            "#!/bin/sh\n{SCRIPT_DIR}='{}' {ARGUMENTS}=\"$(printf '%s\\n' \"$@\")\" exec '{}' --exact scripted_guest --nocapture\n",
            dir.display(),
            std::env::current_exe().unwrap().display()
        );
        std::fs::write(&script, text).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = agent::Config {
            name: name.into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            manager: self.manager.parse().unwrap(),
            state_dir: dir.clone(),
            ram_dir: dir.join("ram"),
            qemu: script.to_str().unwrap().into(),
            memory_mib: Some(memory_mib),
        };
        let network = PaperSwitch { node: name.into(), journal: self.journal.clone() };
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let task = tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            let ready = || ready.send(()).unwrap();
            agent::serve(config, Box::new(network), shutdown, ready).await.unwrap();
        });
        is_ready.await.unwrap();
        let nodes: Vec<host_tools::api::Node> = self.client().get("/v1/nodes").await.unwrap();
        let node = nodes.iter().find(|node| node.report.name == name).unwrap();
        let address = node.report.address.clone();
        self.nodes.push(Node { dir, address, stop: Some(stop), task });
    }

    pub fn client(&self) -> Client {
        Client::new(self.manager.parse::<Address>().unwrap(), "the manager")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn node(&self, name: &str) -> &Node {
        &self.nodes[usize::from(name == "b")]
    }

    /// What guests on a node do when orders come.
    pub fn script(&self, node: &str, deeds: &[(&str, Deed)]) {
        write_script(&self.node(node).dir, deeds);
    }

    /// File with the id of the node's newest guest process.
    pub fn pid_file(&self, node: &str) -> PathBuf {
        self.node(node).dir.join("pid")
    }

    /// Ends an agent and its guests.
    pub async fn end_node(&mut self, name: &str) {
        let node = &mut self.nodes[usize::from(name == "b")];
        drop(node.stop.take());
        (&mut node.task).await.unwrap();
    }

    /// Starts an agent again that was ended.
    pub async fn start_again(&mut self, name: &str) {
        self.add_node(name, 1000).await;
        if let Some(node) = self.nodes.pop() {
            self.nodes[usize::from(name == "b")] = node;
        }
    }

    /// Runs the command.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(host_tools_program());
        command.args(arguments).env("FERRY_MANAGER", &self.manager);
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        tokio::time::timeout(2 * LIMIT, run).await.unwrap().unwrap()
    }

    /// Runs the command, which must succeed; returns what it printed.
    pub async fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs the command, which must fail with this code; returns what it said.
    pub async fn bad(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments).await;
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        errors
    }

    pub async fn service(&self, name: &str) -> Service {
        self.client().get(&format!("/v1/services/{name}")).await.unwrap()
    }

    /// The instance a node has, if it has one.
    pub async fn instance(&self, node: &str, name: &str) -> Option<Instance> {
        let address = self.node(node).address.parse().unwrap();
        let client = Client::new(address, "the node");
        match client.get(&format!("/v1/instances/{name}")).await {
            Ok(instance) => Some(instance),
            Err(error) => {
                assert_eq!(error.problem, Problem::NotFound, "{error}");
                None
            }
        }
    }
}

/// An image with a build id of its own.
pub fn image_file(id: u8) -> Vec<u8> {
    let note = |name: &[u8; 4], kind: u32, descriptor: &[u8]| {
        let mut out = Vec::new();
        for number in [4, descriptor.len() as u32, kind] {
            out.extend(number.to_le_bytes());
        }
        out.extend(name);
        out.extend(descriptor);
        out
    };
    let notes = [note(b"Xen\0", 18, &[0; 8]), note(b"GNU\0", 3, &[id; 20])].concat();
    let mut file = vec![0; 64 + 2 * 56];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18..20].copy_from_slice(&62_u16.to_le_bytes());
    file[32..40].copy_from_slice(&64_u64.to_le_bytes());
    file[54..56].copy_from_slice(&56_u16.to_le_bytes());
    file[56..58].copy_from_slice(&2_u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, fields: [(usize, u64); 4]| {
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in fields {
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    };
    header(64, 1, [(8, 0), (16, 32 << 20), (32, 0), (40, 4096)]);
    let len = notes.len() as u64;
    header(120, 4, [(8, 176), (16, 0), (32, len), (40, len)]);
    file.extend(notes);
    file
}

/// The command under test, which cargo builds beside the tests. (Its own variable for it has a dash in
/// the name, which a compiler behind a shell script does not get to see.)
fn host_tools_program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("host-tools")
}

/// The files in a directory.
pub fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
