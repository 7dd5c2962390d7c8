//! `manager` and `agent`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::Done;
use super::args::{AgentArgs, ManagerArgs};
use crate::agent::{self, BridgeNetwork};
use crate::api::ApiError;
use crate::api::spec::check_name;
use crate::manager::{self, Ended};
use crate::trace::begin_log;
use crate::wire::Addresses;

/// Resolves at Ctrl-C or when the process is asked to end.
fn shutdown() -> Result<impl Future<Output = ()> + Send + 'static, ApiError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ApiError::failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ApiError::failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn tell_ready() {
    if let Err(error) = crate::lab::tell_ready() {
        tracing::warn!("whoever waits for readiness cannot be told: {error}");
    }
}

/// Replaces this process by a new one of the same program with the same arguments: nothing of what it was
/// doing goes on, and it waits to be elected again.
fn begin_anew() -> ApiError {
    let failed = |error: std::io::Error| ApiError::failed(format!("cannot begin anew: {error}"));
    match std::env::current_exe() {
        Ok(program) => {
            failed(std::process::Command::new(program).args(std::env::args_os().skip(1)).exec())
        }
        Err(error) => failed(error),
    }
}

/// `host-tools manager`.
///
/// # Errors
/// It cannot listen, or its files cannot be opened.
pub async fn manager(args: ManagerArgs) -> Done {
    begin_log(args.log);
    let config = manager::Config {
        listen: args.listen,
        socket: args.socket,
        repository: args.repository.unwrap_or_else(|| args.state_dir.clone()),
        etcd: args.etcd.config(),
        state_dir: args.state_dir,
        pool: args.pool,
        keep_snapshots: args.keep_snapshots,
        insecure_loopback: args.insecure_loopback,
    };
    match manager::serve(config, shutdown()?, |_| tell_ready()).await? {
        Ended::Asked => Ok(ExitCode::SUCCESS),
        Ended::Deposed => Err(begin_anew()),
    }
}

/// `host-tools agent`.
///
/// # Errors
/// It cannot listen, or its directories cannot be made.
pub async fn agent(args: AgentArgs, manager: Option<Addresses>) -> Done {
    begin_log(args.log);
    check_name(&args.name).map_err(|error| ApiError::invalid(error.to_string()))?;
    let manager = manager
        .ok_or_else(|| ApiError::invalid("an agent needs --manager HOST:PORT or $FERRY_MANAGER"))?;
    let config = agent::Config {
        name: args.name,
        listen: args.listen,
        manager,
        state_dir: args.state_dir,
        ram_dir: args.ram_dir,
        qemu: args.qemu,
        guest_users: Some(args.guest_users).filter(|first| *first != 0),
        sandbox: !args.no_sandbox,
        memory_mib: args.memory.map(u64::from),
        join: args.join,
        insecure_loopback: args.insecure_loopback,
    };
    let network = Box::new(BridgeNetwork { bridge: args.bridge });
    agent::serve(config, network, shutdown()?, tell_ready).await?;
    Ok(ExitCode::SUCCESS)
}
