//! Running something inside a node: this process enters the node's namespaces and becomes the command.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::state::{State, run_dir};
use super::{LabError, namespace};

/// Tells in which node a process runs. Together with `FERRY_LAB_DIR` it marks what belongs to a lab.
pub const NODE_VARIABLE: &str = "FERRY_LAB_NODE";

/// Of `lab exec`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Node: client, manager, switch, or a host's letter
    pub node: String,
    /// Become a daemon first: a process group of its own, which Ctrl-C at the terminal is not for
    #[arg(long, hide = true)]
    pub daemon: bool,
    /// Command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<String>,
}

/// Becomes the command; returns only when that failed.
#[must_use]
pub fn run(args: Args) -> ExitCode {
    let dir = run_dir();
    if args.daemon {
        // No session: see `hold::run`.
        let _ = rustix::process::setpgid(None, None);
    }
    if let Err(error) = enter(&dir, &args.node) {
        eprintln!("error: {error}");
        return ExitCode::from(125);
    }
    let error = Command::new(&args.command[0])
        .args(&args.command[1..])
        .env("FERRY_LAB_DIR", &dir)
        .env(NODE_VARIABLE, &args.node)
        .exec();
    eprintln!("error: cannot run {}: {error}", args.command[0]);
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn enter(dir: &Path, name: &str) -> Result<(), LabError> {
    let not_up = || LabError::NotUp { dir: dir.to_owned() };
    let state = State::load(dir)?.ok_or_else(not_up)?;
    let node = state.node(name).ok_or_else(|| LabError::NoSuchNode {
        name: name.to_owned(),
        known: state.nodes.iter().map(|n| n.node.name.as_str()).collect::<Vec<_>>().join(", "),
    })?;
    if !node.holder.runs() {
        return Err(not_up());
    }
    namespace::enter(state.mode, node.holder.pid)
}
