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
//! 10. [`placement`]: which node a service goes to, by what is given out and in [`promises`].
//! 11. [`relocate`]: many moves: draining a node, rebalancing.
//! 12. [`workspace`]: checkpoint and restore.
//! 13. [`sleep`]: suspend and resume, one at a time by [`turns`].
//! 14. [`tend`]: what is asleep or frozen is looked after, whoever dies.
//! 15. [`expiry`]: old snapshots go.
//! 16. [`logs`]: a service's log across its moves.
//! 17. [`members`]: who has a certificate, and who may get one.
//! 18. [`securing`]: how connections are secured.
//! 19. [`overview`] and [`watch`]: the present state and its changes, for those who look.
//! 20. [`web`]: the page.
//! 21. [`leading`]: several managers, of which one leads.
//! 22. [`http`] and [`members_http`]: the routes.

pub mod address;
pub mod cancel;
pub mod check;
pub mod expiry;
pub mod http;
pub mod leading;
pub mod logs;
pub mod members;
pub mod members_http;
pub mod migrations;
pub mod moves;
pub mod nodes;
pub mod overview;
pub mod placement;
pub mod promises;
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
use std::time::Duration;

pub use address::Pool;
pub use members::Members;
pub use state::Manager;

use crate::api::ApiError;
use crate::security::secret::make_directory;
use crate::store::{EmbeddedStore, EtcdConfig, Store};
use crate::wire::{self, Address};

/// How a manager is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where agents and users find it over TCP.
    pub listen: Option<Address>,
    /// Where users on this machine find it.
    pub socket: Option<PathBuf>,
    /// Directory for the keys, the audit log and, of a single manager, the store.
    pub state_dir: PathBuf,
    /// Directory for images and snapshots; several managers share it.
    pub repository: PathBuf,
    /// The store of several managers; without it this is the only one.
    pub etcd: Option<EtcdConfig>,
    /// Addresses for services.
    pub pool: Pool,
    /// How long snapshots are kept that no service lies in.
    pub keep_snapshots: Duration,
    /// Plain HTTP, which is spoken on addresses of this machine only.
    pub insecure_loopback: bool,
}

impl Config {
    /// All addresses to listen on.
    fn addresses(&self) -> impl Iterator<Item = Address> + use<> {
        self.listen.clone().into_iter().chain(self.socket.clone().map(Address::Unix))
    }
}

/// Why a manager has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to.
    Asked,
    /// Another manager leads, or will in a moment. Work of this one may still be under way: the process has to
    /// end, or to be replaced by a new one.
    Deposed,
}

/// Runs a manager until `shutdown` resolves or it leads no more. `ready` gets its TCP address once it listens;
/// a manager that waits for another to end is ready too.
///
/// # Errors
/// It cannot listen, or its files cannot be opened.
pub async fn serve(
    config: Config,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(Option<std::net::SocketAddr>),
) -> Result<Ended, ApiError> {
    expiry::check(config.keep_snapshots)?;
    for directory in [&config.state_dir, &config.repository] {
        make_directory(directory)
            .map_err(|error| ApiError::failed(format!("{}: {error}", directory.display())))?;
    }
    if config.addresses().next().is_none() {
        return Err(ApiError::invalid("the manager needs --listen or --socket"));
    }
    let mut shutdown = std::pin::pin!(shutdown);
    let mut ready = Some(ready);
    let mut term = None;
    let store: Arc<dyn Store> = match &config.etcd {
        None => Arc::new(EmbeddedStore::open(&config.state_dir.join("store.redb"))?),
        Some(etcd) => {
            let waits = || {
                if let Some(ready) = ready.take() {
                    ready(None);
                }
            };
            let (store, won) = tokio::select! {
                led = leading::lead(&config, etcd, waits) => led?,
                () = &mut shutdown => return Ok(Ended::Asked),
            };
            term = Some(won);
            store
        }
    };
    let (servers, tcp_address) = begin(&config, store).await?;
    if let Some(ready) = ready {
        ready(tcp_address);
    }
    let deposed = async {
        match &mut term {
            Some(term) => term.over().await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        () = shutdown => Ended::Asked,
        () = deposed => Ended::Deposed,
    };
    servers.iter().for_each(tokio::task::JoinHandle::abort);
    if let Some(path) = &config.socket {
        let _ = std::fs::remove_file(path);
    }
    match (ended, term) {
        (Ended::Asked, Some(term)) => term.resign().await,
        (Ended::Deposed, _) => tracing::warn!("this manager leads no more"),
        _ => {}
    }
    Ok(ended)
}

type Server = tokio::task::JoinHandle<std::io::Result<()>>;

/// Reads the store, takes up what is open, and listens.
async fn begin(
    config: &Config,
    store: Arc<dyn Store>,
) -> Result<(Vec<Server>, Option<std::net::SocketAddr>), ApiError> {
    let members = Members::open(Arc::clone(&store), &config.state_dir, &config.repository)?;
    let gate = securing::gate(config, &members).await?;
    let security = gate.security().clone();
    let pool = config.pool;
    let manager = Manager::open(store, members, security, &config.repository, pool).await?;
    let manager = Arc::new(manager);
    manager.recover().await?;
    tokio::spawn(Arc::clone(&manager).expire_forever(config.keep_snapshots));
    let router =
        http::router(Arc::clone(&manager)).merge(members_http::router(manager, Arc::clone(&gate)));
    let mut servers = Vec::new();
    let mut tcp_address = None;
    for address in config.addresses() {
        let listener = wire::listen(&address).await.map_err(ApiError::failed)?;
        tcp_address = tcp_address.or(listener.tcp_address());
        servers.push(gate.serve(listener, router.clone()));
        tracing::info!("manager listens on {address}");
    }
    Ok((servers, tcp_address))
}
