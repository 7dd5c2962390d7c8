//! What can be typed, and the exit codes.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::daemons::{AgentArgs, ManagerArgs};
use super::files::{CheckpointArgs, ImageCommand, RestoreArgs};
use super::members::{AuditCommand, EnrolArgs, TokenCommand, UserCommand};
use super::moves::{MigrateArgs, MigrationCommand};
use super::nodes::{NodeCommand, RelocateArgs};
use super::sleep::{ResumeArgs, SuspendArgs};
use crate::api::Problem;
use crate::qemu::Machine;
use crate::wire::Addresses;

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
    /// Where the manager listens: HOST:PORT or unix:PATH; of several managers all, separated by commas
    /// [default: the running lab's, else the one that the user was enrolled by]
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
        /// Refused until its lease has ended: since then nothing runs there, unless its agent was killed. If in
        /// doubt, make sure that the machine is off before you start the service elsewhere. The node's agent, if
        /// it returns all the same, ends it.
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
    /// Get another certificate before the one there is ends (agents do so by themselves)
    Renew,
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

/// A size in MiB from `64M`, `1G` or a number of MiB.
pub fn memory(text: &str) -> Result<u32, String> {
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
    use crate::wire::Address;
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
