//! What can be typed, and the exit codes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::members::{AuditCommand, EnrolArgs, TokenCommand, UserCommand};
use crate::api::Problem;
use crate::holder::OnSyn;
use crate::manager::Pool;
use crate::migration::precopy::{Limits, OnTimeout};
use crate::qemu::Machine;
use crate::store::EtcdConfig;
use crate::store::etcd::Endpoints;
use crate::wire::{Address, Addresses};

/// Exit codes, as `--help` shows them.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  it was tried and did not work; the message says what still runs where
  2  the command line is wrong
  3  there is no such service, node, image or move
  4  refused, nothing was changed: a name, an address or a service is in use
  5  the request makes no sense as it is (bad file, too little memory, …)
  6  the manager or a node cannot be reached
  7  the move failed; the service runs on at the source
  8  not allowed: no certificate, a refused one, or a role that is too low";

/// Help of `--insecure-loopback`.
const INSECURE: &str =
    "Plain HTTP without certificates; refused for addresses that other machines can reach";

/// Exit code of a move that failed before its commit.
pub const EXIT_KEPT: u8 = 7;

/// The exit code for a kind of failure.
#[must_use]
pub fn exit_code(problem: Problem) -> ExitCode {
    ExitCode::from(match problem {
        Problem::Failed => 1,
        Problem::NotFound => 3,
        Problem::Conflict => 4,
        Problem::Invalid => 5,
        Problem::Unreachable | Problem::NotLeading => 6,
        Problem::Denied => 8,
    })
}

/// Run web services as unikernels and move them between hosts with their TCP connections open
#[derive(Debug, Parser)]
#[command(name = "host-tools", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Where the manager listens: HOST:PORT or unix:PATH; several managers, separated by commas [default: the running lab's, else the one
    /// that the user was enrolled by]
    #[arg(long, global = true, env = "FERRY_MANAGER", value_name = "URL")]
    pub manager: Option<Addresses>,
    /// Credentials to ask the manager with [default: the running lab's admin's, else
    /// ~/.config/ferry/credentials.json]
    #[arg(long, global = true, env = "FERRY_CREDENTIALS", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// How to print results
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Output,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON document, or one a line while something is under way
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a service
    Run(RunArgs),
    /// List services
    Ps,
    /// Show all that is known of a service
    Inspect {
        /// Name of the service
        name: String,
    },
    /// Print a service's console, across all its moves
    Logs {
        /// Name of the service
        name: String,
        /// Go on printing, also when the service moves
        #[arg(short, long)]
        follow: bool,
    },
    /// End a service
    Stop {
        /// Name of the service
        name: String,
        /// Its node is silent and never comes back: forget what runs there
        ///
        /// The node's agent, if it returns all the same, ends it. Until then it may still answer clients: make
        /// sure that the machine is off before you start the service elsewhere.
        #[arg(long, value_name = "NODE")]
        host_is_gone: Option<String>,
    },
    /// List a service's TCP connections
    Conns {
        /// Name of the service
        name: String,
    },
    /// Say what would be in the way of a move; nothing is touched
    #[command(after_help = EXIT_CODES)]
    Check(CheckArgs),
    /// Move a running service to another node, its connections open
    #[command(after_help = EXIT_CODES)]
    Migrate(MigrateArgs),
    /// Put a service to sleep, its connections open: it uses no memory, and no client gives up
    #[command(after_help = EXIT_CODES)]
    Suspend(SuspendArgs),
    /// Let a suspended service go on, on any node
    #[command(after_help = EXIT_CODES)]
    Resume(ResumeArgs),
    /// Write a service's state to a file; the service ends unless --leave-running
    Checkpoint(CheckpointArgs),
    /// Let a service go on from a file
    Restore(RestoreArgs),
    /// Images in the service repository
    Image {
        /// What to do
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// QEMU hosts
    Node {
        /// What to do
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Move services until no node is used more than it need be
    #[command(after_help = EXIT_CODES)]
    Rebalance(RelocateArgs),
    /// Moves, past and under way
    Migration {
        /// What to do
        #[command(subcommand)]
        command: MigrationCommand,
    },
    /// One-time tokens, with which users and agents get certificates
    Token {
        /// What to do
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Get a certificate for a token; the key is made here and stays here
    Enrol(EnrolArgs),
    /// Users and agents that have certificates
    User {
        /// What to do
        #[command(subcommand)]
        command: UserCommand,
    },
    /// The log of changes and refusals
    Audit {
        /// What to do
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Show hosts, services and moves in the terminal, as they change
    Top(super::top::TopArgs),
    /// Open the manager's page to a browser on this machine
    Web(super::web::WebArgs),
    /// A laboratory on this machine: hosts and a client as network namespaces
    Lab {
        /// What to do
        #[command(subcommand)]
        command: crate::lab::Command,
    },
    /// Run the information manager (a daemon)
    #[command(
        after_help = "It may be ended or killed at any time, also during a move: started again \
                      with the same --state-dir it brings every move to its end."
    )]
    Manager(ManagerArgs),
    /// Run the agent of a QEMU host (a daemon)
    #[command(
        after_help = "Guests go on when the agent ends, however it ends: the next one with the \
                      same --state-dir takes them up. `host-tools stop` ends a service."
    )]
    Agent(AgentArgs),
}

/// `run`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct RunArgs {
    #[arg(help = "An image file, or the name of an image in the repository")]
    pub image: String,
    #[arg(long, help = "Name of the service")]
    pub name: String,
    #[arg(long, value_name = "NODE", help = "Node to start it on [default: the one used least]")]
    pub on: Option<String>,
    #[arg(long, value_name = "ADDRESS", help = "Its IPv4 address [default: the next free one]")]
    pub ip: Option<Ipv4Addr>,
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = memory,
        help = "Guest RAM, as in 64M or 1G [default: 64M]"
    )]
    pub memory: Option<u32>,
    #[arg(long, value_enum, default_value_t, help = "QEMU's machine type")]
    pub machine: Machine,
    #[arg(last = true, help = "Arguments of the service")]
    pub args: Vec<String>,
}

/// `check`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct CheckArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(long, value_name = "NODE", help = "Node to move it to")]
    pub to: String,
}

/// `migrate`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct MigrateArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(long, value_name = "NODE", help = "Node to move it to")]
    pub to: String,
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        help = "Copy pages until the service would stand still no longer than this, as in 20ms"
    )]
    pub max_downtime: Option<Duration>,
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        help = "Time until the service has to be ready to be moved, as in 30s"
    )]
    pub timeout: Option<Duration>,
    #[arg(long, value_enum, default_value_t, requires = "timeout", help = "What happens then")]
    pub on_timeout: OnTimeout,
    #[arg(
        long,
        conflicts_with = "timeline",
        help = "Return once the move has begun, with its id; the move goes on"
    )]
    pub detach: bool,
    #[arg(long, help = "Only say what would be in the way, as `check` does")]
    pub dry_run: bool,
    #[arg(long, value_name = "FILE.svg", help = "Draw the phases of the move")]
    pub timeline: Option<PathBuf>,
}

impl MigrateArgs {
    /// What the user allows the move.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Limits {
            max_downtime_us: self.max_downtime.map(micros),
            timeout_us: self.timeout.map(micros),
            on_timeout: self.on_timeout,
        }
    }
}

/// `suspend`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct SuspendArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(long, value_enum, default_value_t, help = "What becomes of new connections meanwhile")]
    pub on_syn: OnSyn,
    #[arg(
        long,
        value_name = "NODE",
        help = "Node that answers for it meanwhile [default: where it runs]"
    )]
    pub on: Option<String>,
}

/// `resume`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct ResumeArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(
        long,
        value_name = "NODE",
        help = "Node to go on at [default: the one that answers for it]"
    )]
    pub on: Option<String>,
}

/// `checkpoint`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct CheckpointArgs {
    #[arg(help = "Name of the service")]
    pub name: String,
    #[arg(short, long, value_name = "FILE", help = "File to write the snapshot to")]
    pub export: PathBuf,
    #[arg(short = 'R', long, help = "Let the service go on afterwards")]
    pub leave_running: bool,
}

/// `restore`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct RestoreArgs {
    #[arg(short, long, value_name = "FILE", help = "Snapshot file to read")]
    pub import: PathBuf,
    #[arg(long, value_name = "NODE", help = "Node to restore it on")]
    pub on: String,
    #[arg(long, help = "Name of the service [default: the one it had]")]
    pub name: Option<String>,
}

/// `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Store an image file under a name
    Push {
        /// Image file
        file: PathBuf,
        /// `NAME[:TAG]` [default: the file's name]
        name: Option<String>,
    },
    /// List images
    Ls,
    /// Take a name away; the file goes with its last name
    Rm {
        /// `NAME[:TAG]`
        name: String,
    },
}

/// `node`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    Ls,
    /// Move every service off a node, which takes no more until it is undrained
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// Name of the node
        node: String,
        #[command(flatten)]
        #[expect(missing_docs, reason = "flattened: it has texts of its own")]
        how: RelocateArgs,
    },
    /// Let a drained node take services again
    Undrain {
        /// Name of the node
        node: String,
    },
}

/// How many services are moved.
#[derive(Clone, Copy, Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct RelocateArgs {
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=64),
        help = "Most moves at one time [default: 2]"
    )]
    pub parallel: Option<u32>,
    #[arg(long, help = "Only say what would be moved where")]
    pub dry_run: bool,
}

/// `migration`.
#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List moves
    Ls,
    /// Show a move
    Show {
        /// Id of the move
        id: String,
        /// Draw the phases of the move
        #[arg(long, value_name = "FILE.svg")]
        timeline: Option<PathBuf>,
    },
    /// Follow a move to its end
    #[command(after_help = EXIT_CODES)]
    Watch {
        /// Id of the move
        id: String,
    },
    /// End a move that has not committed; the service stays where it is, its connections open
    #[command(
        after_help = "Exit code 0: the service serves on its source. 4: the move is over or has \
                      committed, nothing was changed."
    )]
    Cancel {
        /// Id of the move
        id: String,
        /// This node of the move is silent and never comes back: decide without it
        ///
        /// After the commit, the source's copy goes on in place of a destination that is gone; clients may see
        /// an older state of their connections if the destination has spoken to them. A service on a source
        /// that is gone is lost until that returns. The node's agent, if it returns all the same, ends what
        /// no longer belongs to it. Until then it may still answer clients: make sure that the machine is off.
        #[arg(long, value_name = "NODE")]
        host_is_gone: Option<String>,
    },
}

/// `manager`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct ManagerArgs {
    #[arg(long, value_name = "HOST:PORT", help = "TCP address to listen on")]
    pub listen: Option<Address>,
    #[arg(long, value_name = "PATH", help = "Unix socket to listen on")]
    pub socket: Option<PathBuf>,
    #[arg(long, value_name = "DIR", help = "Directory for the keys, the audit log and the store")]
    pub state_dir: PathBuf,
    #[arg(
        long,
        value_name = "DIR",
        help = "Directory for images and snapshots; several managers share it [default: the state directory]"
    )]
    pub repository: Option<PathBuf>,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    #[arg(
        long,
        value_name = "TIME",
        default_value = "7days",
        value_parser = humantime::parse_duration,
        help = "How long snapshots are kept that no service lies in, at least a minute"
    )]
    pub keep_snapshots: Duration,
    #[arg(
        long,
        value_name = "FIRST-LAST/PREFIX[,ROUTER]",
        default_value = "10.77.0.50-10.77.0.99/24",
        help = "Addresses for services"
    )]
    pub pool: Pool,
    #[arg(long, help = INSECURE)]
    pub insecure_loopback: bool,
    #[command(flatten)]
    pub log: crate::trace::LogArgs,
}

/// The store of several managers.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct EtcdArgs {
    #[arg(
        long = "etcd",
        value_name = "URL,URL...",
        requires = "listen",
        help = "Members of the etcd that several managers share [default: a store of its own]"
    )]
    pub endpoints: Option<Endpoints>,
    #[arg(
        long = "etcd-prefix",
        value_name = "KEY",
        default_value = "/ferry",
        requires = "endpoints",
        help = "What all keys in etcd begin with"
    )]
    pub prefix: String,
    #[arg(
        long = "etcd-ca",
        value_name = "FILE",
        requires = "endpoints",
        help = "Authority of etcd's certificates, PEM"
    )]
    pub ca: Option<PathBuf>,
    #[arg(
        long = "etcd-cert",
        value_name = "FILE",
        requires = "key",
        help = "Certificate to ask etcd with, PEM"
    )]
    pub certificate: Option<PathBuf>,
    #[arg(long = "etcd-key", value_name = "FILE", requires = "certificate", help = "Its key, PEM")]
    pub key: Option<PathBuf>,
}

impl EtcdArgs {
    /// The configuration; `None` without an etcd.
    #[must_use]
    pub fn config(self) -> Option<EtcdConfig> {
        let Self { endpoints, prefix, ca, certificate, key } = self;
        endpoints.map(|endpoints| EtcdConfig {
            endpoints,
            prefix,
            ca,
            identity: certificate.zip(key),
        })
    }
}

/// `agent`.
#[derive(Debug, Args)]
#[expect(missing_docs, reason = "the texts are clap's help")]
pub struct AgentArgs {
    #[arg(long, help = "Name of this node")]
    pub name: String,
    #[arg(long, value_name = "HOST:PORT", help = "TCP address to listen on")]
    pub listen: Address,
    #[arg(long, help = "Bridge that the guests' taps are plugged into")]
    pub bridge: String,
    #[arg(long, value_name = "DIR", help = "Directory for images, logs and sockets")]
    pub state_dir: PathBuf,
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/dev/shm",
        help = "Directory for the guests' memory, on a file system in memory"
    )]
    pub ram_dir: PathBuf,
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = memory,
        help = "Memory for guests [default: what is available]"
    )]
    pub memory: Option<u32>,
    #[arg(
        long,
        env = "FERRY_QEMU",
        value_name = "PROGRAM",
        default_value = "qemu-system-x86_64",
        help = "QEMU's program"
    )]
    pub qemu: String,
    #[arg(
        long,
        value_name = "FIRST",
        default_value_t = crate::qemu::user::FIRST,
        help = "First of 65,536 user ids that guests run as, one each, where the agent is root; 0: as the agent"
    )]
    pub guest_users: u32,
    #[arg(long, help = "For a QEMU that was built without -sandbox")]
    pub no_sandbox: bool,
    #[arg(
        long,
        env = "FERRY_JOIN_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help = "One-time token to get a certificate with; not needed once there is one"
    )]
    pub join: Option<String>,
    #[arg(long, help = INSECURE)]
    pub insecure_loopback: bool,
    #[command(flatten)]
    pub log: crate::trace::LogArgs,
}

/// A size in MiB from `64M`, `1G` or a number of MiB.
fn memory(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.trim_end_matches(['i', 'B', 'b']) {
        text if text.ends_with(['G', 'g']) => (&text[..text.len() - 1], 1024),
        text if text.ends_with(['M', 'm']) => (&text[..text.len() - 1], 1),
        text => (text, 1),
    };
    let number: Option<u32> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .filter(|mib| *mib > 0)
        .ok_or_else(|| format!("`{text}` is no size: write 64M or 1G"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(memory("64M"), Ok(64));
        assert_eq!(memory("1GiB"), Ok(1024));
        assert_eq!(memory("96"), Ok(96));
        for bad in ["", "0", "M", "-1M", "9999999G", "6x"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn service_arguments_follow_the_dashes() {
        let line =
            "host-tools run img --name n --on a --memory 1G --machine microvm -- -v --name x";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        let Command::Run(run) = cli.command else { panic!() };
        assert_eq!((run.memory, run.machine), (Some(1024), Machine::Microvm));
        assert_eq!(run.args, ["-v", "--name", "x"]);
    }

    #[test]
    fn output_and_manager_go_anywhere() {
        let line = "host-tools ps -o json --manager unix:/s";
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(cli.output, Output::Json);
        assert_eq!(cli.manager, Some(Address::Unix("/s".into()).into()));
    }
}
