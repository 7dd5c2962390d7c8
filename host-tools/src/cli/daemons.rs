//! `manager` and `agent`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::Done;
use super::args::memory;
use crate::agent::{self, BridgeNetwork};
use crate::api::ApiError;
use crate::api::spec::check_name;
use crate::manager::{self, Ended, Pool};
use crate::store::EtcdConfig;
use crate::store::etcd::Endpoints;
use crate::trace::begin_log;
use crate::wire::{Address, Addresses};

/// Help of `--insecure-loopback`.
const INSECURE: &str =
    "Plain HTTP without certificates; refused for addresses that other machines can reach";

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
        help = "How long snapshots are kept that no service lies in, at least an hour"
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
        env = "FERRY_LEASE",
        value_name = "TIME",
        default_value = "60s",
        value_parser = humantime::parse_duration,
        help = "Time without a manager after which what runs here is frozen until one answers; 0s: never"
    )]
    pub lease: Duration,
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
        lease: Some(args.lease).filter(|length| !length.is_zero()),
        join: args.join,
        insecure_loopback: args.insecure_loopback,
    };
    let network = Box::new(BridgeNetwork { bridge: args.bridge });
    agent::serve(config, network, shutdown()?, tell_ready).await?;
    Ok(ExitCode::SUCCESS)
}
