//! Bringing a lab up.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::LabError;
use super::down::{lock, take_down};
use super::hold::READY;
use super::namespace::Mode;
use super::notify::{Listener, Outcome};
use super::plan::{self, Node, Role};
use super::state::{Daemon, HeldNode, State, make_run_dir, manager_socket_in, run_dir};
use crate::process::{Process, readable_within};
use crate::qemu::user;

/// How long a node may take to have its network.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
/// How long manager and agents may take to be ready.
const DAEMON_DEADLINE: Duration = Duration::from_secs(30);
/// How long a daemon that is to be started again may take to end by itself.
const DAEMON_GRACE: Duration = Duration::from_secs(3);

/// Of `lab up`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Number of QEMU hosts, named a, b, c …
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(plan::HOSTS_MAX)))]
    pub hosts: u8,
    /// Number of managers; several share an etcd of as many members
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(plan::MANAGERS_MAX)))]
    pub managers: u8,
    /// Make the network only; manager and agents are yours to start
    #[arg(long)]
    pub bare: bool,
}

/// `lab up`. If it fails, nothing is left behind.
pub fn run(args: &Args) -> Result<(), LabError> {
    let dir = run_dir();
    make_run_dir(&dir)?;
    let mut lock_file = lock(&dir)?;
    match State::load(&dir) {
        Ok(Some(state)) if state.alive() => {
            if state.hosts() == usize::from(args.hosts)
                && state.managers() == usize::from(args.managers)
                && state.daemons.is_empty() == args.bare
            {
                println!("the lab is already up in {}", dir.display());
                return Ok(());
            }
            return Err(LabError::OtherLab { running: state.hosts() });
        }
        Ok(None) => {}
        Ok(Some(_)) | Err(LabError::StateUnreadable { .. }) => {
            eprintln!("clearing away what is left of a lab that is not running any more");
            // Removes the directory too, and with it the name of the lock.
            take_down(&dir)?;
            make_run_dir(&dir)?;
            lock_file = lock(&dir)?;
        }
        Err(error) => return Err(error),
    }
    if !args.bare {
        check_taps()?;
    }
    let mut lab = Lab { state: State::new(Mode::of_this_process()), dir, children: Vec::new() };
    let result = lab.make(args);
    if result.is_err() {
        lab.reap_later();
        // The first error is the one to show; what could not be ended, `lab down` finds again.
        let _ = take_down(&lab.dir);
    }
    drop(lock_file);
    result
}

/// Of `lab restart`.
#[derive(Clone, Debug, clap::Args)]
pub struct RestartArgs {
    /// The node whose manager or agent it is: `manager`, `a`, `b` …
    pub node: String,
}

/// `lab restart`: ends the manager or the agent of a node, unless it has ended, and starts it again.
pub fn restart(args: &RestartArgs) -> Result<(), LabError> {
    let dir = run_dir();
    if State::load(&dir)?.is_none() {
        return Err(LabError::NotUp { dir });
    }
    let _lock = lock(&dir)?;
    let Some(state) = State::load(&dir)? else { return Err(LabError::NotUp { dir }) };
    let known: Vec<&str> = state.daemons.iter().map(|d| d.node.as_str()).collect();
    let no_such = LabError::NoSuchNode { name: args.node.clone(), known: known.join(", ") };
    let old = state.daemons.iter().find(|d| d.node == args.node).map(|d| d.process);
    let node = state.node(&args.node).map(|held| held.node.clone());
    let (Some(old), Some(node)) = (old, node) else { return Err(no_such) };
    old.end(DAEMON_GRACE).map_err(|source| LabError::End { pid: old.pid, source })?;
    let mut lab = Lab { state, dir, children: Vec::new() };
    let Some(program) = lab.daemon_of(&node)? else { return Err(no_such) };
    let deadline = Instant::now() + DAEMON_DEADLINE;
    let waiting = lab.start(&program, &node.name, None)?;
    lab.wait(program.what, &node.name, &waiting, deadline)?;
    println!("the {} of {} runs again", program.what, node.name);
    Ok(())
}

/// Agents make taps: better a clear word now than a failing `host-tools run` later.
fn check_taps() -> Result<(), LabError> {
    let device = PathBuf::from("/dev/net/tun");
    match File::options().read(true).write(true).open(&device) {
        Ok(_) => Ok(()),
        Err(source) => Err(LabError::Taps { path: device, source }),
    }
}

/// The manager whose keys the others get, and whose repository they share.
const FIRST_MANAGER: &str = "manager";

/// A daemon to be started.
struct Program {
    /// How people call it.
    what: &'static str,
    path: PathBuf,
    arguments: Vec<String>,
}

struct Lab {
    state: State,
    dir: PathBuf,
    children: Vec<Child>,
}

impl Lab {
    fn make(&mut self, args: &Args) -> Result<(), LabError> {
        for node in plan::nodes(args.hosts, args.managers) {
            self.hold(node)?;
        }
        if !args.bare {
            self.start_daemons()?;
        }
        self.state.complete = true;
        self.state.store(&self.dir)?;
        println!(
            "the lab is up: hosts {}; services get addresses from 10.77.0.50 on",
            self.state
                .nodes
                .iter()
                .filter(|n| n.node.role == Role::Host)
                .map(|n| n.node.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        );
        println!("try: host-tools lab exec client -- ip address");
        Ok(())
    }

    /// Starts a node's holder and waits until its network is there.
    fn hold(&mut self, node: Node) -> Result<(), LabError> {
        let wrong = |why: String| LabError::Holder { node: node.name.clone(), why };
        let spawn =
            |source| LabError::Spawn { what: format!("the holder of {}", node.name), source };
        let mut command = Command::new(own_program()?);
        command
            .args(["lab", "hold", "--dir"])
            .arg(&self.dir)
            .args(["--node", &serde_json::to_string(&node).map_err(|e| wrong(e.to_string()))?]);
        if self.state.mode == Mode::User {
            command.arg("--user-namespace");
        }
        if let Some(switch) = self.state.nodes.first() {
            command.args(["--switch", &switch.holder.pid.to_string()]);
        }
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(spawn)?;
        let pid = child.id().cast_signed();
        let answer = child.stdout.take();
        self.children.push(child);
        let said = answer.map(|out| first_line(out, NODE_DEADLINE)).transpose().map_err(spawn)?;
        match said.as_deref().map(str::trim) {
            Some(READY) => {}
            Some("") | None => return Err(wrong("it ended or did not answer".into())),
            Some(why) => return Err(wrong(why.to_owned())),
        }
        let holder = Process::now(pid).ok_or_else(|| wrong("it ended".into()))?;
        self.state.nodes.push(HeldNode { node, holder });
        self.state.store(&self.dir)
    }

    fn start_daemons(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + DAEMON_DEADLINE;
        let nodes: Vec<Node> = self.state.nodes.iter().map(|n| n.node.clone()).collect();
        let with = |role| nodes.iter().filter(move |node| node.role == role);
        if with(Role::Store).count() > 0 {
            super::etcd::make_certificates(&self.dir, &nodes)?;
        }
        // A member is ready when it has found most others.
        self.start_together(with(Role::Store), deadline)?;
        // Agents are not ready before a manager knows them. The keys of the cluster are the first one's.
        let first = with(Role::Manager).next();
        self.start_together(first.into_iter(), deadline)?;
        for other in with(Role::Manager).skip(1) {
            self.share_keys(other)?;
        }
        self.start_together(with(Role::Manager).skip(1), deadline)?;
        self.start_together(with(Role::Host), deadline)
    }

    fn start_together<'n>(
        &mut self,
        nodes: impl Iterator<Item = &'n Node>,
        deadline: Instant,
    ) -> Result<(), LabError> {
        let mut all = Vec::new();
        for node in nodes {
            let Some(program) = self.daemon_of(node)? else { continue };
            let token = match node.role {
                Role::Host => {
                    Some(super::tokens::for_agent(&own_program()?, &self.dir, &node.name)?)
                }
                _ => None,
            };
            let waiting = self.start(&program, &node.name, token)?;
            all.push((program.what, &node.name, waiting));
        }
        for (what, name, waiting) in all {
            self.wait(what, name, &waiting, deadline)?;
        }
        Ok(())
    }

    /// Gives a manager the keys of the first.
    fn share_keys(&self, other: &Node) -> Result<(), LabError> {
        let (from, to) = (self.dir.join(FIRST_MANAGER), self.dir.join(&other.name));
        for name in ["authority.json", "admin.json"] {
            // With the permissions.
            fs::copy(from.join(name), to.join(name))
                .map_err(|source| LabError::File { path: to.join(name), source })?;
        }
        Ok(())
    }

    /// What runs in a node.
    fn daemon_of(&self, node: &Node) -> Result<Option<Program>, LabError> {
        let nodes = || self.state.nodes.iter().map(|held| &held.node);
        let managers: Vec<String> = nodes()
            .filter(|node| node.role == Role::Manager)
            .filter_map(|node| Some(format!("{}:{}", node.ip?, plan::MANAGER_PORT)))
            .collect();
        let state_dir = self.dir.join(&node.name);
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (what, path, arguments) = match (node.role, node.ip) {
            (Role::Store, _) => {
                let arguments = super::etcd::member_arguments(&self.dir, node, nodes());
                ("member of etcd", "etcd".into(), arguments)
            }
            (Role::Manager, Some(ip)) => {
                let socket = text(&manager_socket_in(&self.dir, &node.name));
                let (listen, state_dir) =
                    (format!("{ip}:{}", plan::MANAGER_PORT), text(&state_dir));
                let repository = text(&self.dir.join(FIRST_MANAGER));
                let mut arguments: Vec<String> =
                    ["manager", "--listen", &listen, "--socket", &socket]
                        .into_iter()
                        .chain(["--state-dir", &state_dir, "--repository", &repository])
                        .map(str::to_owned)
                        .collect();
                arguments.extend(super::etcd::manager_arguments(&self.dir, &node.name, nodes()));
                ("manager", own_program()?, arguments)
            }
            (Role::Host, Some(ip)) => {
                // Hosts of a lab are one machine: their guests' users must not meet.
                let place = nodes().take_while(|other| other.name != node.name).count() as u32;
                let arguments = [
                    "agent",
                    "--name",
                    &node.name,
                    "--listen",
                    &format!("{ip}:{}", plan::AGENT_PORT),
                    "--manager",
                    &managers.join(","),
                    "--bridge",
                    plan::HOST_BRIDGE,
                    "--state-dir",
                    &text(&state_dir),
                    "--guest-users",
                    &(user::FIRST + place * user::COUNT).to_string(),
                ];
                ("agent", own_program()?, arguments.map(str::to_owned).to_vec())
            }
            _ => return Ok(None),
        };
        Ok(Some(Program { what, path, arguments }))
    }

    /// Starts a daemon inside a node.
    fn start(
        &mut self,
        program: &Program,
        node: &str,
        token: Option<String>,
    ) -> Result<Listener, LabError> {
        let what = program.what;
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::File { path, source }
        };
        let state_dir = self.dir.join(node);
        fs::create_dir_all(&state_dir).map_err(file(&state_dir))?;
        let notify = self.dir.join(format!("{node}.ready.sock"));
        let listener = Listener::bind(&notify).map_err(file(&notify))?;
        let log = self.dir.join(format!("{node}.log"));
        let log_file = File::options().create(true).append(true).open(&log).map_err(file(&log))?;
        let log_too = log_file.try_clone().map_err(file(&log))?;
        let child = Command::new(own_program()?)
            .args(["lab", "exec", "--daemon", node, "--"])
            .arg(&program.path)
            .args(&program.arguments)
            .env("FERRY_LAB_DIR", &self.dir)
            .env("NOTIFY_SOCKET", listener.path())
            // Not among the arguments, which all users of the machine can read.
            .envs(token.map(|token| ("FERRY_JOIN_TOKEN", token)))
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(log_too)
            .spawn()
            .map_err(|source| LabError::Spawn { what: format!("the {what} of {node}"), source })?;
        let pid = child.id().cast_signed();
        self.children.push(child);
        // A child that has ended already stays in the table until it is waited for, so it is found here
        // or it is reported by the wait for its readiness.
        let process = Process::now(pid).unwrap_or(Process { pid, start: 0 });
        let daemon = Daemon { node: node.to_owned(), process, log };
        match self.state.daemons.iter_mut().find(|known| known.node == node) {
            Some(known) => *known = daemon,
            None => self.state.daemons.push(daemon),
        }
        self.state.store(&self.dir)?;
        Ok(listener)
    }

    fn wait(
        &self,
        what: &'static str,
        node: &str,
        listener: &Listener,
        deadline: Instant,
    ) -> Result<(), LabError> {
        let Some(daemon) = self.state.daemons.iter().find(|d| d.node == node) else {
            return Ok(());
        };
        let outcome = listener.wait(daemon.process.pid, deadline);
        let why = match outcome {
            Ok(Outcome::Ready) => return Ok(()),
            Ok(Outcome::Ended) => "ended while starting".to_owned(),
            Ok(Outcome::Late) => format!("was not ready within {} s", DAEMON_DEADLINE.as_secs()),
            Err(e) => format!("cannot be watched: {e}"),
        };
        let log = daemon.log.clone();
        let tail = tail(&log, 20);
        Err(LabError::Daemon { what, node: node.to_owned(), why, log, tail })
    }

    /// Ended children stay visible until they are waited for; a thread does that while `take_down` ends
    /// them.
    fn reap_later(&mut self) {
        for mut child in self.children.drain(..) {
            std::thread::spawn(move || child.wait());
        }
    }
}

fn own_program() -> Result<PathBuf, LabError> {
    std::env::current_exe()
        .map_err(|source| LabError::Spawn { what: "this program again".into(), source })
}

/// The first line from a pipe, empty if it closes or the time is over before.
fn first_line(out: std::process::ChildStdout, within: Duration) -> io::Result<String> {
    let mut line = String::new();
    if readable_within(&out, within)? {
        BufReader::new(out).read_line(&mut line)?;
    }
    Ok(line)
}

/// The last lines of a file, for an error message.
fn tail(path: &Path, lines: usize) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|e| format!("(cannot be read: {e})"));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
