//! Manager and agents as processes that can be killed, and the real `host-tools` command.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use host_tools::agent;
use host_tools::api::{Client, Instance, Problem, Service};
use host_tools::process::with_argument_containing;
use host_tools::security::{Credentials, Party, Security, Tls};
use host_tools::trace::{LogArgs, LogFormat};
use host_tools::wire::Address;

use super::qemu::{ARGUMENTS, Deed, SCRIPT_DIR, VIOLATIONS, write_script};
use super::switch::{Journal, PaperSwitch};

/// Holds the directory of the node, in the process that is an agent.
pub const AGENT: &str = "FERRY_SCRIPTED_AGENT";
/// File in a node's directory with its agent's token, in worlds with certificates.
const TOKEN: &str = "token";
/// File in a node's directory with its lease in seconds, where it has one.
pub const LEASE: &str = "lease-seconds";
/// Memory of a node, in MiB.
const MEMORY_MIB: u64 = 1000;

/// Runs the agent of the node whose directory this is, until it is killed. Its name is the directory's;
/// its address is in a file there.
pub fn run_agent(dir: &str) {
    let dir = PathBuf::from(dir);
    let (name, world) = (file_name(&dir), dir.parent().unwrap().to_owned());
    let listen = std::fs::read_to_string(dir.join("address")).unwrap();
    let config = agent::Config {
        name: name.clone(),
        listen: listen.parse().unwrap(),
        manager: Address::Unix(world.join("manager.sock")).into(),
        state_dir: dir.clone(),
        ram_dir: dir.join("ram"),
        // A script in a directory of ours, which other users cannot run.
        guest_users: None,
        sandbox: true,
        qemu: dir.join("qemu").to_str().unwrap().into(),
        memory_mib: Some(MEMORY_MIB),
        lease: std::fs::read_to_string(dir.join(LEASE))
            .ok()
            .map(|seconds| Duration::from_secs(seconds.parse().unwrap())),
        insecure_loopback: !dir.join(TOKEN).exists(),
        join: std::fs::read_to_string(dir.join(TOKEN)).ok(),
    };
    host_tools::trace::begin_log(LogArgs { log_format: LogFormat::Text });
    let network = PaperSwitch::new(name, dir.join("taps"), Journal::of(&world));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let served = agent::serve(config, Box::new(network), std::future::pending(), || {});
    runtime.block_on(served).unwrap();
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// A loopback address that nobody else has: the agent listens there however often it is started, and
/// meanwhile no connection of another test can be given its port.
fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let pid = std::process::id();
    let node = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("127.{}.{}.{node}:7701", 1 + (pid >> 8 & 0x7f), pid & 0xff)
}

/// A daemon and how it is started.
struct Daemon {
    name: String,
    child: Child,
}

/// All of it; ends with its value.
pub struct World {
    pub journal: Journal,
    daemons: Vec<Daemon>,
    dir: tempfile::TempDir,
    /// Whether connections need certificates.
    secured: bool,
    /// What a test has seen last of what it waits for.
    pub seen: std::sync::Mutex<String>,
}

const LIMIT: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

impl World {
    /// A manager and nodes `a` and `b` with 1000 MiB each, and an image `svc` in the repository.
    pub async fn new() -> Self {
        Self::made(false).await
    }

    /// The same, with certificates: agents have joined by tokens, the command has the first admin's.
    pub async fn secured() -> Self {
        Self::made(true).await
    }

    async fn made(secured: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("fw").tempdir().unwrap();
        let journal = Journal::of(dir.path());
        let mut world =
            Self { journal, daemons: Vec::new(), dir, secured, seen: Default::default() };
        world.start("manager");
        for name in ["a", "b"] {
            world.make_node(name);
            if secured {
                world
                    .until("the manager listens", async |world: &Self| world.manager().exists())
                    .await;
                let token = ["token", "create", "--role", "agent", "--name", name];
                std::fs::write(world.path(name).join(TOKEN), world.good(&token).await).unwrap();
            }
            world.start(name);
        }
        world
            .until("both agents have reported", async |world: &Self| {
                let nodes: Vec<host_tools::api::Node> =
                    world.client().get("/v1/nodes").await.unwrap_or_default();
                nodes.len() == 2
            })
            .await;
        let image = world.dir.path().join("svc");
        std::fs::write(&image, image_file(7)).unwrap();
        world.good(&["image", "push", image.to_str().unwrap()]).await;
        world
    }

    fn make_node(&self, name: &str) {
        let dir = self.path(name);
        for part in ["ram", "taps"] {
            std::fs::create_dir_all(dir.join(part)).unwrap();
        }
        std::fs::write(dir.join("address"), own_address()).unwrap();
        let script = dir.join("qemu");
        let text = format!(
            "#!/bin/sh\nexec 3<&0 4>&1 </dev/null >/dev/null\n\
             {SCRIPT_DIR}='{}' {ARGUMENTS}=\"$(printf '%s\\n' \"$@\")\" \\\n\
             exec '{}' --exact scripted_guest --nocapture --skip \"$*\"\n",
            dir.display(),
            std::env::current_exe().unwrap().display()
        );
        std::fs::write(&script, text).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts the manager or an agent that does not run.
    pub fn start(&mut self, name: &str) {
        let log = OpenOptions::new().create(true).append(true).open(self.log(name)).unwrap();
        let mut command = match name {
            "manager" => {
                let mut command = Command::new(host_tools_program());
                command.args(["manager", "--socket"]).arg(self.manager());
                if !self.secured {
                    command.arg("--insecure-loopback");
                }
                command.arg("--state-dir").arg(self.path("manager"));
                command
            }
            _ => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["--exact", "scripted_agent", "--nocapture"]);
                command.env(AGENT, self.path(name));
                command
            }
        };
        let both: [File; 2] = [log.try_clone().unwrap(), log];
        let [out, err] = both.map(Stdio::from);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap();
        std::fs::write(self.daemon_pid_file(name), child.id().to_string()).unwrap();
        self.daemons.push(Daemon { name: name.into(), child });
    }

    /// Kills the manager or an agent, unless a guest has done so already. Guests go on.
    pub fn kill(&mut self, name: &str) {
        let at = self.daemons.iter().position(|daemon| daemon.name == name).unwrap();
        let mut daemon = self.daemons.remove(at);
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
    }

    /// Waits until somebody has killed the manager or an agent.
    pub async fn until_dead(&mut self, name: &str) {
        let at = self.daemons.iter().position(|daemon| daemon.name == name).unwrap();
        let dead = async {
            while self.daemons[at].child.try_wait().unwrap().is_none() {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(LIMIT, dead).await.is_err() {
            panic!("{name} is not killed\n{}", self.story());
        }
    }

    /// File with the process id of the manager or an agent.
    pub fn daemon_pid_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pid"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    pub fn manager(&self) -> PathBuf {
        self.dir.path().join("manager.sock")
    }

    /// Waits until something is true.
    pub async fn until(&self, what: &str, is_true: impl AsyncFn(&Self) -> bool) {
        let wait = async {
            while !is_true(self).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            let seen = self.seen.lock().unwrap();
            panic!("waited in vain: {what}\n{seen}\n{}", self.story());
        }
    }

    /// What the daemons have said.
    pub fn story(&self) -> String {
        ["manager", "a", "b"]
            .map(|name| {
                let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
                format!("--- {name}\n{log}")
            })
            .concat()
    }

    /// No two guests of one service ever ran at once.
    pub fn assert_one_at_a_time(&self) {
        assert!(!self.path(VIOLATIONS).exists(), "two instances ran at once\n{}", self.story());
    }

    pub fn client(&self) -> Client {
        let client = Client::new(Address::Unix(self.manager()), "the manager");
        match self.secured.then(|| Credentials::load(&self.admin())) {
            Some(Ok(admin)) => client.secured(&security(admin), Party::Manager),
            _ => client,
        }
    }

    /// Credentials of the first admin.
    pub fn admin(&self) -> PathBuf {
        self.path("manager").join("admin.json")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What guests on a node do when orders come.
    pub fn script(&self, node: &str, deeds: &[(&str, Deed)]) {
        write_script(&self.path(node), deeds);
    }

    /// File with the id of the node's newest guest process.
    pub fn pid_file(&self, node: &str) -> PathBuf {
        self.path(node).join("pid")
    }

    /// The command with these arguments, for this manager.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(host_tools_program());
        command.args(arguments).env("FERRY_MANAGER", format!("unix:{}", self.manager().display()));
        if self.secured {
            command.env("FERRY_CREDENTIALS", self.admin());
        }
        command
    }

    /// Runs the command.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        let run = tokio::task::spawn_blocking(move || command.output().unwrap());
        tokio::time::timeout(2 * LIMIT, run).await.unwrap().unwrap()
    }

    /// Runs the command, which must succeed; returns what it printed.
    pub async fn good(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let said = |bytes| String::from_utf8_lossy(bytes);
        let (out, errors) = (said(&output.stdout), said(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{errors}");
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

    /// How to ask a node.
    pub fn agent(&self, node: &str) -> Client {
        let address = std::fs::read_to_string(self.path(node).join("address")).unwrap();
        Client::new(address.parse::<Address>().unwrap(), "the node")
    }

    /// The instance a node has, if it has one.
    pub async fn instance(&self, node: &str, name: &str) -> Option<Instance> {
        match self.agent(node).get(&format!("/v1/instances/{name}")).await {
            Ok(instance) => Some(instance),
            Err(error) => {
                assert_eq!(error.problem, Problem::NotFound, "{error}\n{}", self.story());
                None
            }
        }
    }

    /// As [`World::instance`], while the node may be down or starting.
    pub async fn try_instance(&self, node: &str, name: &str) -> Result<Option<Instance>, ()> {
        match self.agent(node).get(&format!("/v1/instances/{name}")).await {
            Ok(instance) => Ok(Some(instance)),
            Err(error) if error.problem == Problem::NotFound => Ok(None),
            Err(_) => Err(()),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have been killed already.
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
        // Guests outlive their agents; all name their memory's file, which lies in our directory.
        for guest in with_argument_containing(&format!("{}/", self.dir.path().display())) {
            guest.end(Duration::ZERO).unwrap();
        }
    }
}

/// How whoever has these credentials speaks to others.
pub fn security(credentials: Credentials) -> Security {
    Security::Tls(Arc::new(Tls::new(credentials).unwrap()))
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
