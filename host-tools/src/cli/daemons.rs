//! `manager` and `agent`.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::Done;
use super::args::{AgentArgs, ManagerArgs};
use crate::agent::{self, BridgeNetwork};
use crate::api::ApiError;
use crate::api::spec::check_name;
use crate::manager;
use crate::trace::begin_log;
use crate::wire::Address;

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

/// `host-tools manager`.
///
/// # Errors
/// It cannot listen, or its files cannot be opened.
pub async fn manager(args: ManagerArgs) -> Done {
    begin_log(args.log);
    let config = manager::Config {
        listen: args.listen,
        socket: args.socket,
        state_dir: args.state_dir,
        pool: args.pool,
        insecure_loopback: args.insecure_loopback,
    };
    manager::serve(config, shutdown()?, |_| tell_ready()).await?;
    Ok(ExitCode::SUCCESS)
}

/// `host-tools agent`.
///
/// # Errors
/// It cannot listen, or its directories cannot be made.
pub async fn agent(args: AgentArgs, manager: Option<Address>) -> Done {
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
        memory_mib: args.memory.map(u64::from),
        join: args.join,
        insecure_loopback: args.insecure_loopback,
    };
    let network = Box::new(BridgeNetwork { bridge: args.bridge });
    agent::serve(config, network, shutdown()?, tell_ready).await?;
    Ok(ExitCode::SUCCESS)
}
