//! Showing a lab.

use std::process::ExitCode;

use super::plan::Role;
use super::state::{State, manager_socket_in, run_dir};

/// Prints the state. Exit code 0: the lab is up; 1: it is not, or not all of it.
#[must_use]
pub fn run(as_json: bool) -> ExitCode {
    let dir = run_dir();
    let state = match State::load(&dir) {
        Ok(state) => state,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let up = state.as_ref().is_some_and(State::alive);
    match (&state, as_json) {
        (_, true) => println!("{}", json(&dir, state.as_ref(), up)),
        (None, false) => println!("no lab in {}", dir.display()),
        (Some(state), false) => print!("{}", text(state, up)),
    }
    if up { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn json(dir: &std::path::Path, state: Option<&State>, up: bool) -> String {
    let nodes: Vec<_> = state
        .iter()
        .flat_map(|s| &s.nodes)
        .map(|n| {
            serde_json::json!({
                "name": n.node.name, "role": n.node.role, "ip": n.node.ip,
                "pid": n.holder.pid, "up": n.holder.runs(),
            })
        })
        .collect();
    let daemons: Vec<_> = state
        .iter()
        .flat_map(|s| &s.daemons)
        .map(|d| {
            serde_json::json!({
                "node": d.node, "pid": d.process.pid, "up": d.process.runs(), "log": d.log,
            })
        })
        .collect();
    serde_json::json!({
        "dir": dir, "up": up, "manager": manager_socket_in(dir, "manager"), "nodes": nodes, "daemons": daemons,
    })
    .to_string()
}

fn text(state: &State, up: bool) -> String {
    let mut text = format!("{:<10} {:<14} {:<9} LOG\n", "NODE", "ADDRESS", "STATUS");
    for held in &state.nodes {
        let daemon = state.daemons.iter().find(|d| d.node == held.node.name);
        let status = match (held.holder.runs(), daemon.map(|d| d.process.runs())) {
            (false, _) => "gone",
            (true, Some(false)) => "failed",
            (true, Some(true)) => "running",
            (true, None) => "up",
        };
        let ip = held.node.ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let log = daemon.map_or_else(String::new, |d| d.log.display().to_string());
        text.push_str(format!("{:<10} {ip:<14} {status:<9} {log}", held.node.name).trim_end());
        text.push('\n');
    }
    if !up {
        text.push_str(
            "The lab is not complete; `host-tools lab restart NODE` starts a daemon again, \
             `host-tools lab down` removes what is left of the lab.\n",
        );
    } else if state.nodes.iter().any(|n| n.node.role == Role::Host) && state.daemons.is_empty() {
        text.push_str("Bare: manager and agents are yours to start.\n");
    }
    text
}
