//! A laboratory on one machine: QEMU hosts and a client, each a network namespace with an address of its
//! own on one switched segment, with a manager and an agent on every host.
//!
//! ```text
//!  manager .2    client .100         a .11                  b .12
//!     eth0          eth0        br0 ── guests' taps    br0 ── guests' taps
//!      │             │           │ up0                  │ up0
//!      └─────────────┴─ switch: bridge sw0 ─────────────┘        10.77.0.0/24
//! ```
//!
//! With several managers each is on a node of its own, and so are as many members of the etcd that they share.
//!
//! Root needs nothing else. For other users, where the kernel lets them make user namespaces, the whole
//! lab lies in one; in it they are root.
//!
//! A node is kept alive by a holder, a process that does nothing ([`hold`]); when holder and all others
//! inside have ended, the kernel removes the namespace with every bridge, veth and tap in it. So taking
//! a lab down is ending processes ([`down`]), and there is nothing else that a crash could leave behind.
//! What is needed to find them is in `state.json` ([`state`]); all that [`exec`] starts also carries the
//! lab's directory in its environment.

pub mod down;
mod etcd;
pub mod exec;
pub mod hold;
pub mod namespace;
pub mod notify;
pub mod plan;
pub mod state;
pub mod status;
pub mod tokens;
pub mod up;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

pub use crate::process;
pub use notify::tell_ready;
pub use state::{managers, run_dir};

/// `host-tools lab …`.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Make the lab and start manager and agents in it
    #[command(after_help = "Needs root, or a kernel that lets users make user namespaces.\n\
                      $FERRY_LAB_DIR chooses where the lab's state is kept; labs with different \
                      directories run side by side.")]
    Up(up::Args),
    /// End everything in the lab and remove it, also after a crash
    Down,
    /// Show the nodes, their addresses, and what runs
    Status,
    /// Start the manager or an agent again, also after a crash; guests and moves go on
    Restart(up::RestartArgs),
    /// Run a command inside a node, e.g. `lab exec client -- curl http://10.77.0.50/`
    #[command(
        after_help = "The command takes this process's place: its input, output, signals and exit code \
                      are the caller's. Exit code 125: no such lab or node; 126: the command cannot be \
                      run; 127: it was not found."
    )]
    Exec(exec::Args),
    /// Keep a node's namespaces alive
    #[command(hide = true)]
    Hold(hold::Args),
}

/// Carries out a lab command; `json` is for `status`. Must be called while the process has one thread: for users other than
/// root, `up`, `exec` and `hold` change the user namespace.
#[must_use]
pub fn run(command: Command, json: bool) -> ExitCode {
    let result = match command {
        Command::Up(args) => up::run(&args),
        Command::Down => down::run(),
        Command::Status => return status::run(json),
        Command::Restart(args) => up::restart(&args),
        Command::Exec(args) => return exec::run(args),
        Command::Hold(args) => return hold::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why a lab command failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Nothing is running.
    #[error("no lab is running in {} (start one with `host-tools lab up`)", dir.display())]
    NotUp {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// Another lab is in the way.
    #[error("a lab with {running} hosts is already running; `host-tools lab down` ends it")]
    OtherLab {
        /// How many hosts it has.
        running: usize,
    },
    /// Two commands at once.
    #[error("another `host-tools lab up` or `down` is at work in {}", dir.display())]
    Busy {
        /// The lab's directory.
        dir: PathBuf,
    },
    /// A node that is not in the lab.
    #[error("the lab has no node \"{name}\"; it has {known}")]
    NoSuchNode {
        /// What was asked for.
        name: String,
        /// The names it has.
        known: String,
    },
    /// The kernel does not let this user make a user namespace.
    #[error(
        "cannot make a user namespace: {source}\nRun this as root, or let users make user namespaces \
         (sysctl user.max_user_namespaces > 0; on Debian also kernel.unprivileged_userns_clone = 1; in a \
         container, allow unshare)"
    )]
    UserNamespace {
        /// What the kernel said.
        source: io::Error,
    },
    /// No network namespace could be made.
    #[error("cannot make a network namespace: {source}")]
    NetworkNamespace {
        /// What the kernel said.
        source: io::Error,
    },
    /// A node's namespaces could not be entered.
    #[error("cannot enter the namespaces of process {pid}: {source}")]
    Enter {
        /// The holder.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The network of a node could not be made.
    #[error("cannot set up the network of node \"{node}\": {source}")]
    Wire {
        /// The node.
        node: String,
        /// What failed.
        source: crate::hostnet::HostNetError,
    },
    /// A node's holder did not come up.
    #[error("node \"{node}\" did not come up: {why}")]
    Holder {
        /// The node.
        node: String,
        /// What it said last.
        why: String,
    },
    /// A manager or an agent did not come up.
    #[error("the {what} in node \"{node}\" {why}\n--- end of {} ---\n{tail}", log.display())]
    Daemon {
        /// "manager" or "agent".
        what: &'static str,
        /// The node.
        node: String,
        /// "ended with …" or "was not ready within …".
        why: String,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// No certificates for the lab's etcd.
    #[error("cannot make certificates for etcd: {why}")]
    Certificates {
        /// What failed.
        why: String,
    },
    /// The manager gave no token.
    #[error("the manager gives no token for the agent of node \"{node}\": {why}")]
    Token {
        /// The node.
        node: String,
        /// What it said.
        why: String,
    },
    /// A process could not be started.
    #[error("cannot start {what}: {source}")]
    Spawn {
        /// Which.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A process could not be ended.
    #[error("cannot end process {pid}: {source}; run `host-tools lab down` again")]
    End {
        /// Which.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the lab could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Guests cannot have a network.
    #[error(
        "{}: {source}\nGuests need taps. Load the module tun, or as root let users have them: \
         chmod 0666 /dev/net/tun", path.display()
    )]
    Taps {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lab was made by another version.
    #[error("{} has format {found}, which this version does not know; take the lab down with the version that made it", path.display())]
    StateVersion {
        /// The state file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The state file makes no sense.
    #[error("{} cannot be read: {why}; `host-tools lab down` cleans up all the same", path.display())]
    StateUnreadable {
        /// The state file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Sockets cannot live so deep.
    #[error("{} is too long for Unix sockets; set FERRY_LAB_DIR to a shorter path", dir.display())]
    DirTooLong {
        /// The lab's directory.
        dir: PathBuf,
    },
    /// Somebody else's directory.
    #[error("{} belongs to another user; set FERRY_LAB_DIR", dir.display())]
    DirOwner {
        /// The lab's directory.
        dir: PathBuf,
    },
}
