//! Tokens for a lab's agents. The manager's first admin makes them, as on real hosts.

use std::path::Path;
use std::process::{Command, Stdio};

use super::LabError;

/// A token for the agent of this node.
///
/// # Errors
/// The manager does not give one.
pub fn for_agent(program: &Path, dir: &Path, node: &str) -> Result<String, LabError> {
    let what = || format!("the agent of {node}");
    let made = Command::new(program)
        .args(["token", "create", "--role", "agent", "--ttl", "5m", "--name", node])
        .env("FERRY_LAB_DIR", dir)
        .env_remove("FERRY_MANAGER")
        .env_remove("FERRY_CREDENTIALS")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::Spawn { what: what(), source })?;
    if made.status.success() {
        return Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned());
    }
    let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    Err(LabError::Token { node: node.to_owned(), why })
}
