//! A lab, and the commands a user would type in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{need, output_within};

/// Longest time for a lab to come up or go down.
const LAB_LIMIT: Duration = Duration::from_secs(60);
/// Longest time for a command other than a move.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// Longest time for a move.
const MOVE_LIMIT: Duration = Duration::from_secs(90);

/// A lab of its own. Ends with this value, with all that runs in it.
#[derive(Debug)]
pub struct World {
    dir: PathBuf,
    host_tools: PathBuf,
    images: PathBuf,
    files: tempfile::TempDir,
    services: Mutex<Vec<String>>,
    /// The process that keeps each node's namespace.
    holders: BTreeMap<String, u64>,
}

impl World {
    /// Brings a lab up. `scratch` is the test program's `CARGO_TARGET_TMPDIR`; `name` tells labs apart.
    #[must_use]
    pub fn start(scratch: &str, name: &str, hosts: u8) -> Self {
        Self::up(scratch, name, &["--hosts", &hosts.to_string()])
    }

    /// The same with several managers, and as many members of the etcd that they share.
    #[must_use]
    pub fn with_managers(scratch: &str, name: &str, hosts: u8, managers: u8) -> Self {
        let (hosts, managers) = (hosts.to_string(), managers.to_string());
        Self::up(scratch, name, &["--hosts", &hosts, "--managers", &managers])
    }

    /// The same with these environment variables for its manager and its agents.
    #[must_use]
    pub fn with_environment(
        scratch: &str,
        name: &str,
        hosts: u8,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::made(scratch, name, &["--hosts", &hosts.to_string()], environment)
    }

    /// The node whose manager leads; waits for an election.
    ///
    /// # Panics
    /// Nobody is elected within a minute.
    #[must_use]
    pub fn leader(&self) -> String {
        let begun = std::time::Instant::now();
        while begun.elapsed() < COMMAND_LIMIT {
            let status = self.status();
            let nodes = status["nodes"].as_array().into_iter().flatten();
            let managers = nodes.filter(|node| node["role"] == "manager");
            for node in managers.filter_map(|node| node["name"].as_str()) {
                // One that does not lead says so.
                let mut command = self.command(&["ps"]);
                command
                    .env("FERRY_MANAGER", format!("unix:{}/{node}.sock", self.dir.display()))
                    .env("FERRY_CREDENTIALS", self.dir.join("manager/admin.json"));
                if output_within(&command, COMMAND_LIMIT).status.success() {
                    return node.to_owned();
                }
            }
        }
        panic!("no manager leads");
    }

    /// The same without manager and agents.
    #[must_use]
    pub fn bare(scratch: &str, name: &str, hosts: u8) -> Self {
        Self::up(scratch, name, &["--bare", "--hosts", &hosts.to_string()])
    }

    fn up(scratch: &str, name: &str, arguments: &[&str]) -> Self {
        Self::made(scratch, name, arguments, &[])
    }

    fn made(scratch: &str, name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        need(&["qemu-system-x86_64", "tcpdump", "ss", "ip", "timeout"]);
        // The lab's sockets must fit into 107 bytes with what the agents append.
        let dir = Path::new(scratch).join(format!("lab-{name}"));
        let dir = if dir.as_os_str().len() <= 60 {
            dir
        } else {
            std::env::temp_dir().join(format!("ferry-{}-{name}", std::process::id()))
        };
        let (host_tools, images) = (host_tools(), images(scratch));
        let files = tempfile::tempdir_in(scratch)
            .unwrap_or_else(|e| panic!("no temporary directory in {scratch}: {e}"));
        let (services, holders) = (Mutex::default(), BTreeMap::new());
        let mut world = Self { dir, host_tools, images, files, services, holders };
        // What an earlier run that was killed has left.
        let _ = output_within(&world.command(&["lab", "down"]), LAB_LIMIT);
        let mut up = world.command(&[&["lab", "up"], arguments].concat());
        up.envs(environment.iter().copied());
        let out = output_within(&up, LAB_LIMIT);
        assert!(
            out.status.success(),
            "no lab (root is needed, or user namespaces and /dev/net/tun for users):\n{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let status = world.status();
        let nodes = status["nodes"].as_array().into_iter().flatten();
        let holder =
            |node: &Value| Some((node["name"].as_str()?.to_owned(), node["pid"].as_u64()?));
        world.holders = nodes.filter_map(holder).collect();
        world
    }

    /// A command of `host-tools` in this lab.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.host_tools);
        command.args(arguments).env("FERRY_LAB_DIR", &self.dir);
        command.env_remove("FERRY_MANAGER").env_remove("FERRY_CREDENTIALS");
        command
    }

    /// Runs a command of `host-tools`: exit code, standard output, standard error.
    #[must_use]
    pub fn try_run(&self, arguments: &[&str], limit: Duration) -> (Option<i32>, String, String) {
        let out = output_within(&self.command(arguments), limit);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    }

    /// The same; it must succeed. Returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.try_run(arguments, COMMAND_LIMIT);
        assert!(
            code == Some(0),
            "host-tools {}: exit code {code:?}\n{out}{err}",
            arguments.join(" ")
        );
        out
    }

    /// The same with `-o json`, parsed. Where a command prints several lines of JSON: the last.
    pub fn json(&self, arguments: &[&str]) -> Value {
        parse(&self.run(&[arguments, &["-o", "json"]].concat()))
    }

    /// A command inside a node.
    #[must_use]
    pub fn in_node(&self, node: &str, command: &[&str]) -> Command {
        self.command(&[&["lab", "exec", node, "--"], command].concat())
    }

    /// Runs a program inside a node to its end; it must succeed. Returns its output.
    pub fn exec(&self, node: &str, command: &[&str]) -> String {
        let out = output_within(&self.in_node(node, command), COMMAND_LIMIT);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let error = text(&out.stderr);
        assert!(out.status.success(), "{command:?} in {node}: {}\n{error}", out.status);
        text(&out.stdout)
    }

    /// What the kernel shows of a node's network (`proc_pid_net(5)`), without a program in the node.
    #[must_use]
    pub fn network_files(&self, node: &str) -> PathBuf {
        let holder = self.holders.get(node).unwrap_or_else(|| panic!("no node {node}"));
        PathBuf::from(format!("/proc/{holder}/net"))
    }

    /// Where the lab keeps its files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory for the test's own files. It goes with this value.
    #[must_use]
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    /// What `lab status` tells, also when a daemon has ended.
    #[must_use]
    pub fn status(&self) -> Value {
        parse(&self.try_run(&["lab", "status", "-o", "json"], COMMAND_LIMIT).1)
    }

    /// The QEMU processes on a node.
    #[must_use]
    pub fn guests(&self, node: &str) -> Vec<i32> {
        // It fails where a daemon is down, and says what there is all the same.
        let (_, out, _) = self.try_run(&["lab", "status", "-o", "json"], COMMAND_LIMIT);
        let status = parse(&out);
        let holder = status["nodes"]
            .as_array()
            .and_then(|nodes| nodes.iter().find(|n| n["name"] == node)?["pid"].as_i64())
            .unwrap_or_else(|| panic!("no node {node} in {status}"));
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let here = namespace(&holder.to_string());
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|pid| here.is_some() && namespace(pid) == here)
            .filter(|pid| {
                // The kernel keeps 15 bytes of a name.
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() == "qemu-system-x86")
            })
            .filter_map(|pid| pid.parse().ok())
            .collect()
    }

    /// The image of a service.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        let path = self.images.join(name);
        assert!(
            path.is_file(),
            "there is no image {}: `cargo build --release --target x86_64-unknown-hermit -p {name}`",
            path.display()
        );
        path
    }

    /// Starts a service; it has answered its agent when this returns.
    pub fn service(
        &self,
        image: &str,
        name: &str,
        node: &str,
        ip: &str,
        more: &[&str],
    ) -> Service<'_> {
        let path = self.image(image);
        let run = ["run", &path.to_string_lossy(), "--name", name, "--on", node, "--ip", ip];
        self.names().push(name.to_owned());
        self.run(&[&run[..], more].concat());
        self.known(name, ip)
    }

    /// A service that was started in another way.
    pub fn known(&self, name: &str, ip: &str) -> Service<'_> {
        let mut services = self.names();
        if !services.iter().any(|s| s == name) {
            services.push(name.to_owned());
        }
        Service { world: self, name: name.to_owned(), ip: ip.to_owned() }
    }

    fn names(&self) -> MutexGuard<'_, Vec<String>> {
        // A test that panicked while it held them has left them whole.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Consoles of the guests and logs of the daemons, for a failure.
    fn show_logs(&self) {
        let names = self.names().clone();
        for name in &names {
            let (_, out, err) = self.try_run(&["logs", name], Duration::from_secs(10));
            eprintln!("--- console of {name}\n{}{err}", last_lines(&out, 40));
        }
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "log") {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                eprintln!("--- {}\n{}", path.display(), last_lines(&text, 40));
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.show_logs();
        }
        let out = output_within(&self.command(&["lab", "down"]), LAB_LIMIT);
        if !failed {
            assert!(out.status.success(), "lab down: {}", String::from_utf8_lossy(&out.stderr));
            assert!(!self.dir.exists(), "lab down left {}", self.dir.display());
        }
    }
}

/// A service in a [`World`].
#[derive(Debug)]
pub struct Service<'w> {
    world: &'w World,
    name: String,
    ip: String,
}

impl Service<'_> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn ip(&self) -> std::net::Ipv4Addr {
        self.ip.parse().unwrap_or_else(|e| panic!("{}: {e}", self.ip))
    }

    /// Its address with a port.
    #[must_use]
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.ip)
    }

    /// Moves it; the move must succeed. Returns what `migrate -o json` printed last.
    pub fn migrate(&self, to: &str) -> Value {
        let (code, out, err) = self.try_migrate(to);
        assert!(code == Some(0), "migrate {} --to {to}: exit code {code:?}\n{out}{err}", self.name);
        parse(&out)
    }

    /// Tries to move it.
    #[must_use]
    pub fn try_migrate(&self, to: &str) -> (Option<i32>, String, String) {
        self.world.try_run(&["migrate", &self.name, "--to", to, "-o", "json"], MOVE_LIMIT)
    }

    /// Moves it `moves` times, to host b first, then back to a, and so on; `after` is called after each
    /// with its number from 1.
    pub fn move_to_and_fro(&self, moves: usize, mut after: impl FnMut(usize, &Value)) {
        for number in 1..=moves {
            let summary = self.migrate(if number % 2 == 1 { "b" } else { "a" });
            after(number, &summary);
        }
    }

    /// The node it runs on, as the manager knows it.
    #[must_use]
    pub fn node(&self) -> String {
        let answer = self.world.json(&["inspect", &self.name]);
        let service = answer.as_array().and_then(|a| a.first()).unwrap_or(&answer);
        service["node"].as_str().unwrap_or_default().to_owned()
    }

    /// Ends it.
    pub fn stop(&self) {
        self.world.run(&["stop", &self.name]);
        self.world.names().retain(|s| *s != self.name);
    }
}

/// The last JSON value of an output: all of it, or its last line.
fn parse(text: &str) -> Value {
    let last = || text.lines().rev().find(|l| !l.trim().is_empty());
    serde_json::from_str(text)
        .ok()
        .or_else(|| serde_json::from_str(last()?).ok())
        .unwrap_or_else(|| panic!("no JSON in the output:\n{text}"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A program that was built beside this one. Not by cargo's variable for it: a shell between cargo and
/// the compiler drops variables with a `-` in their name.
pub(super) fn built(name: &str, how: &str) -> PathBuf {
    // target/PROFILE/deps/system-HASH, or target/PROFILE/ferry-bench
    let program = std::env::current_exe().unwrap_or_default();
    let beside = program.parent().unwrap_or(Path::new("."));
    let profile = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = profile.join(name);
    assert!(path.is_file(), "there is no {}: {how}", path.display());
    path
}

/// The binary that is tested: `$FERRY_HOST_TOOLS`, or the one built beside this test.
fn host_tools() -> PathBuf {
    match std::env::var_os("FERRY_HOST_TOOLS") {
        Some(path) => path.into(),
        None => built("host-tools", "`cargo build -p host-tools` with the same profile"),
    }
}

/// Where images lie: `$FERRY_IMAGES`, or the target directory that `scratch` (its `tmp`) is in.
fn images(scratch: &str) -> PathBuf {
    match std::env::var_os("FERRY_IMAGES") {
        Some(path) => path.into(),
        None => Path::new(scratch).join("../x86_64-unknown-hermit/release"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_json_of_an_output() {
        assert_eq!(parse("{\n \"a\": 1\n}\n")["a"], 1);
        assert_eq!(parse("{\"a\":1}\n{\"a\":2}\n\n")["a"], 2);
    }
}
