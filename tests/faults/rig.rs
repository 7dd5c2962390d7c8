//! A lab of three hosts and three managers with two services, and what can be done to it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferry_tests::faults::plan::Moved;
use ferry_tests::harness::World;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The hosts.
pub const HOSTS: [&str; 3] = ["a", "b", "c"];
/// Longest time for the shell in the switch's namespace to do something.
const SHELL_LIMIT: Duration = Duration::from_secs(10);
/// Longest time for a daemon to be ready again.
const RESTART_LIMIT: Duration = Duration::from_secs(45);
/// A bridge without ports: what is sent there is gone.
const VOID: &str = "void0";

/// A service of the rig.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Its image.
    pub image: &'static str,
    /// Its address.
    pub ip: &'static str,
    /// Its port.
    pub port: u16,
}

/// The two services, in the order of [`Moved`].
pub const SERVICES: [Service; 2] = [
    Service { name: "echo", image: "pingpong", ip: "10.77.0.50", port: 7 },
    Service { name: "files", image: "transfer", ip: "10.77.0.51", port: 80 },
];

impl Service {
    /// The one that a plan means.
    #[must_use]
    pub fn of(moved: Moved) -> &'static Self {
        &SERVICES[usize::from(moved == Moved::Transfer)]
    }

    /// The other one.
    #[must_use]
    pub fn other(moved: Moved) -> &'static Self {
        &SERVICES[usize::from(moved == Moved::Pingpong)]
    }

    /// Address and port.
    #[must_use]
    pub fn at(&self) -> String {
        format!("{}:{}", self.ip, self.port)
    }
}

/// What the manager says of a service.
#[derive(Clone, Debug)]
pub struct Known {
    pub owner: Option<String>,
    pub epoch: u64,
    pub state: String,
    pub mac: String,
    pub instance_epoch: Option<u64>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Rig {
    /// The lab.
    pub world: World,
    /// A shell in the switch's namespace: it is there when a link is to be cut, within a millisecond or two.
    switch: Mutex<Shell>,
    /// Names of nodes by the index of the switch's port.
    pub ports: BTreeMap<u32, String>,
    /// Last octets of the nodes' addresses.
    octets: BTreeMap<String, u8>,
}

impl Rig {
    /// Brings it up, `echo` on host a and `files` on b.
    #[must_use]
    pub fn start(scratch: &str) -> Self {
        let world = World::with_managers(scratch, "faults", 3, 3);
        let mut ports = BTreeMap::new();
        for line in world.exec("switch", &["ip", "-o", "link"]).lines() {
            let mut words = line.split([':', '@']).map(str::trim);
            if let (Some(Ok(index)), Some(name)) = (words.next().map(str::parse), words.next())
                && let Some(node) = name.strip_prefix("to-")
            {
                ports.insert(index, node.to_owned());
            }
        }
        let mut shell = Shell::start(&world);
        shell.run(&format!("ip link add {VOID} type bridge && ip link set {VOID} up"));
        for node in ports.values() {
            shell.run(&format!("tc qdisc add dev to-{node} clsact"));
        }
        let status = world.status();
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let octets = nodes
            .filter_map(|node| {
                let octet = node["ip"].as_str()?.rsplit_once('.')?.1.parse().ok()?;
                Some((node["name"].as_str()?.to_owned(), octet))
            })
            .collect();
        for (service, node) in SERVICES.iter().zip(HOSTS) {
            world.service(service.image, service.name, node, service.ip, &[]);
        }
        Self { world, switch: Mutex::new(shell), ports, octets }
    }

    /// What the manager says of a service; `None` if it does not answer, or has none.
    #[must_use]
    pub fn known(&self, service: &str) -> Option<Known> {
        let arguments = ["inspect", service, "-o", "json"];
        let (code, out, _) = self.world.try_run(&arguments, Duration::from_secs(10));
        let answer: Value = serde_json::from_str(&out).ok().filter(|_| code == Some(0))?;
        Some(Known {
            owner: answer["node"].as_str().map(str::to_owned),
            epoch: answer["epoch"].as_u64()?,
            state: answer["state"].as_str()?.to_owned(),
            mac: answer["spec"]["mac"].as_str()?.to_owned(),
            instance_epoch: answer["instance"]["epoch"].as_u64(),
        })
    }

    /// All moves; `None` if the manager does not answer.
    #[must_use]
    pub fn moves(&self) -> Option<Vec<Value>> {
        let arguments = ["migration", "ls", "-o", "json"];
        let (code, out, _) = self.world.try_run(&arguments, Duration::from_secs(10));
        serde_json::from_str(&out).ok().filter(|_| code == Some(0))
    }

    /// Process ids by node, of the holders of nodes or of the daemons.
    #[must_use]
    pub fn pids(&self, what: &str) -> BTreeMap<String, i32> {
        let (_, out, _) =
            self.world.try_run(&["lab", "status", "-o", "json"], Duration::from_secs(10));
        let status: Value = serde_json::from_str(&out).unwrap_or_default();
        let name = if what == "daemons" { "node" } else { "name" };
        let all = status[what].as_array().into_iter().flatten();
        all.filter_map(|it| {
            Some((it[name].as_str()?.to_owned(), i32::try_from(it["pid"].as_i64()?).ok()?))
        })
        .collect()
    }

    /// Cuts what two nodes say to each other, or lets it pass again.
    pub fn between(&self, one: &str, other: &str, cut: bool) {
        // The last octet of a node's address is also the priority of the filters that lead there: several
        // pairs may be cut at once.
        let octet = |node: &str| self.octets.get(node).copied().expect("a node with an address");
        for (from, to) in [(one, other), (other, one)] {
            let (source, destination) = (octet(from), octet(to));
            let filter = format!("dev to-{from} ingress protocol ip prio {destination}");
            self.shell().run(&if cut {
                format!(
                    "tc filter add {filter} u32 match ip src 10.77.0.{source}/32 \
                     match ip dst 10.77.0.{destination}/32 action mirred egress redirect dev {VOID}"
                )
            } else {
                format!("tc filter del {filter}")
            });
        }
    }

    /// Pulls the cable of a node, or plugs it in again.
    pub fn cable(&self, node: &str, cut: bool) {
        let state = if cut { "down" } else { "up" };
        self.shell().run(&format!("ip link set to-{node} {state}"));
    }

    fn shell(&self) -> std::sync::MutexGuard<'_, Shell> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a manager, an agent or a member of etcd again.
    pub fn restart(&self, node: &str) {
        let (code, out, err) = self.world.try_run(&["lab", "restart", node], RESTART_LIMIT);
        assert!(code == Some(0), "lab restart {node}: exit code {code:?}\n{out}{err}");
    }
}

/// The QEMUs of a service in the namespace of a node's holder, by the guest's address on the wire.
#[must_use]
pub fn qemus(holder: i32, mac: &str) -> Vec<i32> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let here = namespace(&holder.to_string());
    let mac = format!("mac={mac}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten();
    processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|pid| {
            // The kernel keeps 15 bytes of a name.
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "qemu-system-x86")
        })
        .filter(|pid| here.is_some() && namespace(pid) == here)
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&mac))
        })
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// Sends a signal; false if there is no such process.
pub fn signal(pid: i32, signal: Signal) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

#[derive(Debug)]
struct Shell {
    child: Child,
    lines: Receiver<String>,
}

impl Shell {
    fn start(world: &World) -> Self {
        let mut command = world.in_node("switch", &["sh"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("no shell in the switch: {e}"));
        let output = child.stdout.take();
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// Runs a command; it must succeed.
    fn run(&mut self, command: &str) {
        let sent = self.child.stdin.as_mut().map(|input| {
            writeln!(input, "{command} >/dev/null; echo $?").and_then(|()| input.flush())
        });
        let code = self.lines.recv_timeout(SHELL_LIMIT);
        assert!(code.as_deref() == Ok("0"), "in the switch: `{command}`: {sent:?}, {code:?}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
