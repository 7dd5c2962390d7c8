//! The daemon on each QEMU host.
//!
//! 1. [`control`]: the control port of a guest, which is not trusted.
//! 2. [`console`]: the service's log, which follows it across moves.
//! 3. [`network`]: the guests' ports on the host's switch.
//! 4. [`descriptor`]: what an agent that is started again has to know of an instance.
//! 5. [`instance`]: one QEMU with all that belongs to it, from start to end.
//! 6. [`host`]: all instances of this host, its images and its memory.
//! 7. [`source`] and [`destination`]: the two halves of a move.
//! 8. [`mirror`]: what peers send during a switch, copied from the one to the other.
//! 9. [`moves`]: the events of moves, kept so that they can be asked for again.
//! 10. [`recovery`]: taking up what a killed agent has left, and settling what is undecided.
//! 11. [`checkpoint`]: an instance into a snapshot, and one from it.
//! 12. [`check`]: what this host could say against a move.
//! 13. [`holders`]: the sleeping services that this host answers for.
//! 14. [`securing`]: its certificate, and how its connections are secured.
//! 15. [`epochs`]: what has run here, and will not again.
//! 16. [`lease`]: for how long guests run without a word from the manager.
//! 17. [`seeing`]: figures for those who watch.
//! 18. [`http`]: what the manager and other agents can ask.
//!
//! Guests outlive their agent: it may be killed, ended or replaced by a newer one at any instant, and the
//! next one takes them up. Holders do not: the manager has them begun again.

pub mod check;
pub mod checkpoint;
pub mod console;
pub mod control;
pub mod descriptor;
pub mod destination;
pub mod epochs;
pub mod holders;
pub mod host;
pub mod http;
pub mod instance;
pub mod lease;
pub mod mirror;
pub mod moves;
pub mod network;
pub mod recovery;
pub mod securing;
pub mod seeing;
pub mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use host::Host;
pub use network::{BridgeNetwork, Network};

use crate::api::{ApiError, Client, ReportAnswer};
use crate::qemu::{Accel, firmware};
use crate::wire::{self, Address, Addresses};

/// How often an agent tells the manager that it is there.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Longest wait for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How often it tries while the manager does not answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Silence after which the manager may have taken this node for gone, and a user may have said so.
const SILENCE: Duration = Duration::from_secs(2 * REPORT_INTERVAL.as_secs());

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub name: String,
    /// Where to listen, and where the manager and other agents find it.
    pub listen: Address,
    /// Where the manager listens, or several of which one leads.
    pub manager: Addresses,
    /// Directory for images, logs and sockets.
    pub state_dir: PathBuf,
    /// Directory for the guests' memory files, on a file system in memory.
    pub ram_dir: PathBuf,
    /// QEMU's program.
    pub qemu: String,
    /// The first of the users that guests run as, one each; `None` for the agent's own.
    pub guest_users: Option<u32>,
    /// Whether QEMU gives up the system calls that it does not need.
    pub sandbox: bool,
    /// Memory for guests in MiB; by default what the machine has available.
    pub memory_mib: Option<u64>,
    /// Time without a manager after which guests are frozen; `None`: never.
    pub lease: Option<Duration>,
    /// Token to get a certificate with, if there is none yet.
    pub join: Option<String>,
    /// Plain HTTP, which is spoken on addresses of this machine only.
    pub insecure_loopback: bool,
}

/// Runs an agent until `shutdown` resolves. Its guests go on, and the next agent with the same state
/// directory takes them up. `ready` is called once it listens and the manager knows it.
///
/// # Errors
/// It cannot listen, its directories cannot be made or are another agent's, or a guest that was left here
/// cannot be read.
pub async fn serve(
    config: Config,
    network: Box<dyn Network>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(),
) -> Result<(), ApiError> {
    if let Some(length) = config.lease
        && length < lease::LEAST
    {
        let least = lease::LEAST.as_secs();
        return Err(ApiError::invalid(format!("a lease has at least {least} s, or 0 for none")));
    }
    let gate = securing::gate(&config).await?;
    let accel = Accel::choose(&config.qemu).await.map_err(ApiError::failed)?;
    accel.settle_pages();
    let qboot = firmware::has_qboot(&config.qemu).await;
    let listener = wire::listen(&config.listen).await.map_err(ApiError::failed)?;
    let address = match listener.tcp_address() {
        Some(address) => address.to_string(),
        None => config.listen.to_string(),
    };
    let host =
        Arc::new(Host::new(config, address.clone(), accel, qboot, network, Arc::clone(&gate))?);
    // Before anybody is answered: what is here must not be said to be gone.
    recovery::take_up::all(&host)?;
    host.holders.clear(host.network())?;
    let server = gate.serve(listener, http::router(Arc::clone(&host)));
    let client = host.manager();
    let watcher = tokio::spawn(lease::watch(Arc::clone(&host)));
    let reporter = tokio::spawn(report_forever(Arc::clone(&host), client));
    host.known_to_manager().await;
    let renewer = tokio::spawn(securing::renew_forever(Arc::clone(&host)));
    tracing::info!("agent {} listens on {address}, accelerator {accel}", host.name());
    ready();
    shutdown.await;
    renewer.abort();
    reporter.abort();
    watcher.abort();
    server.abort();
    host.holders.end_all().await;
    Ok(())
}

/// Tells the manager every few seconds that this node is there; more often while it does not answer, so
/// that a manager that was started again knows its nodes soon, and when an answer came late and has left little of
/// the lease. After a silence, whoever caused it, what runs
/// here may belong to another node.
async fn report_forever(host: Arc<Host>, client: Client) {
    let mut reached = true;
    let (mut told_at, mut in_doubt) = (Instant::now(), false);
    loop {
        let report = host.report();
        let asked = lease::uptime();
        let told: Result<ReportAnswer, ApiError> =
            client.json(hyper::Method::POST, "/v1/nodes", &report, host.lease.answer_limit()).await;
        match told {
            Ok(answer) => {
                securing::revoke(&host, answer.revoked);
                if !reached {
                    tracing::info!("the manager answers again");
                }
                reached = true;
                host.lease.renew(asked);
                host.set_known();
                in_doubt |= told_at.elapsed() > SILENCE;
                in_doubt = in_doubt && !recovery::recheck::all(&host).await;
                told_at = Instant::now();
            }
            Err(error) if reached => {
                match host.lease.length() {
                    None => tracing::warn!("{error}; guests run on, trying again"),
                    Some(_) => {
                        let left = host.lease.left(lease::uptime()).as_secs();
                        tracing::warn!("{error}; guests run on for {left} s, trying again");
                    }
                }
                reached = false;
            }
            Err(_) => {}
        }
        let pause = if reached { host.lease.report_pause(lease::uptime()) } else { RETRY_INTERVAL };
        tokio::time::sleep(pause).await;
    }
}
