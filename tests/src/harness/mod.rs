//! The harness of the system tests: real QEMUs, real taps, ordinary Linux clients.
//!
//! - [`World`]: a lab of its own, and the commands a user would type.
//! - [`Client`]: a `ferry-client` in the client's namespace, bracketed by marks.
//! - [`counters`]: what the client's kernel counts, and what it thinks of each connection.
//! - [`capture`]: a trace of the client's link.
//!
//! Everything here panics with a message that says what to do: it is the tests' own code. Every wait has
//! a deadline. What a test has started ends with its values, also when it panics; then the guests'
//! consoles and the daemons' logs are shown.

pub mod capture;
pub mod client;
pub mod counters;
mod world;

pub use client::Client;
pub use world::{Service, World};

use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Says which programs are missing, and how to get them.
pub fn need(programs: &[&str]) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian keeps programs of the administrator, which are not in every user's path.
    let dirs: Vec<_> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|p| !dirs.iter().any(|dir| dir.join(p).is_file()))
        .collect();
    assert!(
        missing.is_empty(),
        "this test needs {}: `sh qemu/setup.sh` installs what Ferry and its tests use",
        missing.join(", ")
    );
}

/// Runs a command to its end, at most this long; then it is ended (exit code 124).
#[must_use]
pub fn output_within(command: &Command, limit: Duration) -> Output {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=5", &format!("{:.3}", limit.as_secs_f64())]);
    bounded.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bounded.env(name, value),
            None => bounded.env_remove(name),
        };
    }
    bounded.output().unwrap_or_else(|e| panic!("cannot run `timeout` of coreutils: {e}"))
}
