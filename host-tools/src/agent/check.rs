//! What this host could say against a move, before anything is touched.

use std::process::Stdio;
use std::time::Duration;

use super::host::Host;
use crate::api::check::{
    DestinationFacts, DestinationQuestion, HostFacts, SourceFacts, SourceQuestion,
};
use crate::api::{Client, NodeReport, now_us};
use crate::wire::Address;

/// Longest time for reaching the other node's agent.
const REACH_LIMIT: Duration = Duration::from_secs(5);
/// Longest time QEMU may take to say which version it is.
const VERSION_LIMIT: Duration = Duration::from_secs(5);

/// As the node that runs a service.
pub async fn source(host: &Host, question: &SourceQuestion) -> SourceFacts {
    let instance = host.instance(&question.name).ok();
    SourceFacts {
        state: instance.as_ref().map(|instance| instance.state()),
        busy: instance.is_some_and(|instance| instance.busy.try_lock().is_err()),
        unreachable: reach(host, question).await.err(),
        host: facts(host).await,
    }
}

/// As the node that is to get it.
pub async fn destination(host: &Host, question: &DestinationQuestion) -> DestinationFacts {
    DestinationFacts {
        free_mib: host.report().free_mib,
        occupied: host.has(&question.spec.name),
        image_held: host.holds_image(&question.spec.image.digest),
        host: facts(host).await,
    }
}

/// Asks the other node's agent who it is, the way a move would.
async fn reach(host: &Host, question: &SourceQuestion) -> Result<(), String> {
    let address = question.destination.parse::<Address>().map_err(|error| error.to_string())?;
    who_are_you(&host.agent(address, &question.destination_name)).await
}

async fn who_are_you(agent: &Client) -> Result<(), String> {
    let asked = tokio::time::timeout(REACH_LIMIT, agent.get::<NodeReport>("/v1/node")).await;
    match asked {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.message),
        Err(_) => Err(format!("no answer within {} s", REACH_LIMIT.as_secs())),
    }
}

async fn facts(host: &Host) -> HostFacts {
    HostFacts { qemu: version(host.qemu()).await, accel: host.accel(), now_us: now_us() }
}

/// The first line of `qemu --version`.
async fn version(program: &str) -> Result<String, String> {
    let mut command = tokio::process::Command::new(program);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_LIMIT, command.output())
        .await
        .map_err(|_| {
            format!("{program} did not say its version within {} s", VERSION_LIMIT.as_secs())
        })?
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => Err(format!("{program} --version ended with {}", output.status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn qemu_says_its_version_or_why_not() {
        let found = version("qemu-system-x86_64").await.unwrap();
        assert!(found.starts_with("QEMU emulator version"), "{found}");
        let missing = version("/nonexistent/qemu").await.unwrap_err();
        assert!(missing.starts_with("cannot run /nonexistent/qemu"), "{missing}");
        let other = version("false").await.unwrap_err();
        assert!(other.contains("exit status: 1"), "{other}");
    }

    #[tokio::test]
    async fn nobody_listens() {
        // Bound and not listening: nobody else gets the port, and nobody answers.
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap().to_string();
        drop(held);
        let agent = Client::new(address.parse::<Address>().unwrap(), "its agent");
        let error = who_are_you(&agent).await.unwrap_err();
        assert!(error.contains("its agent"), "{error}");
    }
}
