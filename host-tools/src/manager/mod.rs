//! The daemon that everything a user types goes through.
//!
//! 1. [`address`]: which addresses services get.
//! 2. [`nodes`]: the agents it knows.
//! 3. [`state`]: all that the requests share.
//! 4. [`services`]: run, show, stop.
//! 5. [`moves`]: the moves as objects, and what of them is durable.
//! 6. [`migrations`]: beginning and ending a move, and the commit between.
//! 7. [`recovery`]: every move comes to an end, whoever dies.
//! 8. [`check`]: whether a service could be moved.
//! 9. [`cancel`], by what `standing` reads off the record: ending a move on a user's word.
//! 10. [`placement`]: which node a service goes to.
//! 11. [`relocate`]: many moves: draining a node, rebalancing.
//! 12. [`workspace`]: checkpoint and restore.
//! 13. [`sleep`]: suspend and resume, one at a time by [`turns`].
//! 14. [`tend`]: what is asleep or frozen is looked after, whoever dies.
//! 15. [`logs`]: a service's log across its moves.
//! 16. [`members`]: who has a certificate, and who may get one.
//! 17. [`securing`]: how connections are secured.
//! 18. [`overview`] and [`watch`]: the present state and its changes, for those who look.
//! 19. [`web`]: the page.
//! 20. [`http`] and [`members_http`]: the routes.

pub mod address;
pub mod cancel;
pub mod check;
pub mod http;
pub mod logs;
pub mod members;
pub mod members_http;
pub mod migrations;
pub mod moves;
pub mod nodes;
pub mod overview;
pub mod placement;
pub mod recovery;
pub mod relocate;
pub mod securing;
pub mod services;
pub mod sleep;
mod standing;
pub mod state;
pub mod tend;
pub mod turns;
pub mod watch;
pub mod web;
pub mod workspace;

use std::path::PathBuf;
use std::sync::Arc;

pub use address::Pool;
pub use members::Members;
pub use state::Manager;

use crate::api::ApiError;
use crate::security::secret::make_directory;
use crate::store::{EmbeddedStore, Store};
use crate::wire::{self, Address};

/// How a manager is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where agents and users find it over TCP.
    pub listen: Option<Address>,
    /// Where users on this machine find it.
    pub socket: Option<PathBuf>,
    /// Directory for the store and the repositories.
    pub state_dir: PathBuf,
    /// Addresses for services.
    pub pool: Pool,
    /// Plain HTTP, which is spoken on addresses of this machine only.
    pub insecure_loopback: bool,
}

/// Runs a manager until `shutdown` resolves. `ready` gets its TCP address once it listens.
///
/// # Errors
/// It cannot listen, or its files cannot be opened.
pub async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(Option<std::net::SocketAddr>),
) -> Result<(), ApiError> {
    make_directory(&config.state_dir)
        .map_err(|error| ApiError::failed(format!("{}: {error}", config.state_dir.display())))?;
    let store: Arc<dyn Store> =
        Arc::new(EmbeddedStore::open(&config.state_dir.join("store.redb"))?);
    let members = Members::open(Arc::clone(&store), &config.state_dir)?;
    let gate = securing::gate(&config, &members).await?;
    let security = gate.security().clone();
    let manager = Manager::open(store, members, security, &config.state_dir, config.pool).await?;
    let manager = Arc::new(manager);
    manager.recover().await?;
    let router =
        http::router(Arc::clone(&manager)).merge(members_http::router(manager, Arc::clone(&gate)));
    let socket = config.socket.map(Address::Unix);
    let mut servers = Vec::new();
    let mut tcp_address = None;
    for address in config.listen.iter().chain(&socket) {
        let listener = wire::listen(address).await.map_err(ApiError::failed)?;
        tcp_address = tcp_address.or(listener.tcp_address());
        servers.push(gate.serve(listener, router.clone()));
        tracing::info!("manager listens on {address}");
    }
    if servers.is_empty() {
        return Err(ApiError::invalid("the manager needs --listen or --socket"));
    }
    ready(tcp_address);
    shutdown.await;
    servers.iter().for_each(tokio::task::JoinHandle::abort);
    if let Some(Address::Unix(path)) = socket {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
