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
//! 9. [`standing`]: where a move stands, by the record alone; [`cancel`]: ending a move on a user's word.
//! 10. [`placement`]: which node a service goes to.
//! 11. [`relocate`]: many moves: draining a node, rebalancing.
//! 12. [`workspace`]: checkpoint and restore.
//! 13. [`sleep`]: suspend and resume, one at a time by [`turns`].
//! 14. [`tend`]: what is asleep or frozen is looked after, whoever dies.
//! 15. [`logs`]: a service's log across its moves.
//! 16. [`http`]: the routes.

pub mod address;
pub mod cancel;
pub mod check;
pub mod http;
pub mod logs;
pub mod migrations;
pub mod moves;
pub mod nodes;
pub mod placement;
pub mod recovery;
pub mod relocate;
pub mod services;
pub mod sleep;
mod standing;
pub mod state;
pub mod tend;
pub mod turns;
pub mod workspace;

use std::path::PathBuf;
use std::sync::Arc;

pub use address::Pool;
pub use state::Manager;

use crate::api::ApiError;
use crate::store::EmbeddedStore;
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
    std::fs::create_dir_all(&config.state_dir)
        .map_err(|error| ApiError::failed(format!("{}: {error}", config.state_dir.display())))?;
    let store = EmbeddedStore::open(&config.state_dir.join("store.redb"))?;
    let manager = Manager::open(Box::new(store), &config.state_dir, config.pool).await?;
    let manager = Arc::new(manager);
    manager.recover().await?;
    let router = http::router(manager);
    let socket = config.socket.map(Address::Unix);
    let mut servers = Vec::new();
    let mut tcp_address = None;
    for address in config.listen.iter().chain(&socket) {
        let listener = wire::listen(address).await.map_err(ApiError::failed)?;
        tcp_address = tcp_address.or(listener.tcp_address());
        let router = router.clone();
        servers.push(tokio::spawn(async move { axum::serve(listener, router).await }));
        println!("manager listens on {address}");
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
