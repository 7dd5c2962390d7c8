//! The daemon on each QEMU host.
//!
//! 1. [`control`]: the control port of a guest, which is not trusted.
//! 2. [`console`]: the service's log, which follows it across moves.
//! 3. [`network`]: the guests' ports on the host's switch.
//! 4. [`instance`]: one QEMU with all that belongs to it, from start to end.
//! 5. [`host`]: all instances of this host, its images and its memory.
//! 6. [`source`] and [`destination`]: the two halves of a move.
//! 7. [`checkpoint`]: an instance into a snapshot, and one from it.
//! 8. [`holders`]: the sleeping services that this host answers for.
//! 9. [`http`]: what the manager and other agents can ask.

pub mod checkpoint;
pub mod console;
pub mod control;
pub mod destination;
pub mod holders;
pub mod host;
pub mod http;
pub mod instance;
pub mod network;
pub mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use host::Host;
pub use network::{BridgeNetwork, Network};

use crate::api::{ApiError, Client};
use crate::qemu::Accel;
use crate::wire::{self, Address};

/// How often an agent tells the manager that it is there.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// How an agent is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the node.
    pub name: String,
    /// Where to listen, and where the manager and other agents find it.
    pub listen: Address,
    /// Where the manager listens.
    pub manager: Address,
    /// Directory for images, logs and sockets.
    pub state_dir: PathBuf,
    /// Directory for the guests' memory files, on a file system in memory.
    pub ram_dir: PathBuf,
    /// QEMU's program.
    pub qemu: String,
    /// Memory for guests in MiB; by default what the machine has available.
    pub memory_mib: Option<u64>,
}

/// Runs an agent until `shutdown` resolves, then ends its guests. `ready` is called once it listens
/// and the manager knows it.
///
/// # Errors
/// It cannot listen, or its directories cannot be made.
pub async fn serve(
    config: Config,
    network: Box<dyn Network>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(),
) -> Result<(), ApiError> {
    let accel = Accel::choose(&config.qemu).await.map_err(ApiError::failed)?;
    let listener = wire::listen(&config.listen).await.map_err(ApiError::failed)?;
    let address = match listener.tcp_address() {
        Some(address) => address.to_string(),
        None => config.listen.to_string(),
    };
    let manager = config.manager.clone();
    let host = Arc::new(Host::new(config, address.clone(), accel, network)?);
    let server = tokio::spawn({
        let router = http::router(Arc::clone(&host));
        async move { axum::serve(listener, router).await }
    });
    let client = Client::new(manager, "the manager");
    let reporter = tokio::spawn(report_forever(Arc::clone(&host), client));
    host.known_to_manager().await;
    println!("agent {} listens on {address}, accelerator {accel}", host.name());
    ready();
    shutdown.await;
    reporter.abort();
    server.abort();
    host.holders.end_all().await;
    host.end_all().await;
    Ok(())
}

/// Tells the manager every few seconds that this node is there.
async fn report_forever(host: Arc<Host>, client: Client) {
    let mut interval = tokio::time::interval(REPORT_INTERVAL);
    let mut reached = true;
    loop {
        interval.tick().await;
        let report = host.report();
        let told: Result<(), ApiError> =
            client.json(hyper::Method::POST, "/v1/nodes", &report, Duration::from_secs(5)).await;
        match told {
            Ok(()) => {
                if !reached {
                    eprintln!("the manager answers again");
                }
                reached = true;
                host.set_known();
            }
            Err(error) if reached => {
                eprintln!("{error}; guests run on, trying again");
                reached = false;
            }
            Err(_) => {}
        }
    }
}
