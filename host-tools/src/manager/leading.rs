//! Several managers: one leads, the others wait.
//!
//! A manager that waits answers every request with the word who leads. One that is elected reads the store and
//! takes up every open move, as a manager that was killed does when it is started again: nothing else passes
//! from one leader to the next. One that is deposed ends all that it was doing and
//! begins anew, as a new process in its place.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use time::OffsetDateTime;

use super::Config;
use super::securing::{open_audit, own_security};
use crate::api::{ApiError, Problem};
use crate::security::access::MANAGER;
use crate::security::{Authority, Gate};
use crate::store::etcd::{EtcdConfig, Term};
use crate::store::{EtcdStore, StoreError};
use crate::wire;

/// Opens the store of several managers and waits until this one leads. `waits` is called once, when another leads and
/// this one answers with its name.
///
/// # Errors
/// The configuration makes no sense, or the keys here are not those of the cluster.
pub(super) async fn lead(
    config: &Config,
    etcd: &EtcdConfig,
    waits: impl FnOnce(),
) -> Result<(Arc<EtcdStore>, Term), ApiError> {
    let listen = config.listen.as_ref().ok_or_else(|| {
        ApiError::invalid(
            "one of several managers needs --listen: agents and users look for it there",
        )
    })?;
    if !etcd.endpoints.are_secured() {
        return Err(ApiError::invalid(format!(
            "etcd at {} is asked without TLS, and not on this machine: whoever can reach it owns every service",
            etcd.endpoints
        ))
        .hint("use https:// with --etcd-ca, --etcd-cert and --etcd-key"));
    }
    let store = EtcdStore::open(etcd).await?;
    let keys = config.state_dir.join("authority.json");
    let known = first_answer(&store).await?;
    if let Some(known) = &known
        && !keys.exists()
    {
        return Err(ApiError::denied(format!(
            "the managers of this etcd are of cluster {known}, and its keys are not in {}",
            keys.display()
        ))
        .hint("copy authority.json from another manager's state directory, readable by its owner only"));
    }
    let authority = Authority::open(&keys, OffsetDateTime::now_utc()).map_err(ApiError::failed)?;
    check_cluster(&authority, known.as_deref())?;

    let gate = Arc::new(Gate::new(
        MANAGER,
        own_security(config, &authority)?,
        Arc::new(open_audit(&config.state_dir)?),
    ));
    let mut servers = Vec::new();
    for address in config.addresses() {
        let listener = wire::listen(&address).await.map_err(ApiError::failed)?;
        servers.push(gate.serve(listener, waiting(Arc::clone(&store))));
    }
    let (own, lease) = (listen.to_string(), config.state_dir.join("etcd-lease"));
    let term = {
        let mut elected = pin!(store.campaign(&own, &lease));
        tokio::select! {
            term = &mut elected => term,
            leader = store.other_leader(&own) => {
                tracing::info!("the manager at {leader} leads; this one waits");
                waits();
                elected.await
            }
        }
    };
    for server in servers {
        server.abort();
        // Its address is free again once it has ended.
        let _ = server.await;
    }
    let now = store.cluster().await?;
    check_cluster(&authority, now.as_deref())?;
    if now.is_none() {
        store.set_cluster(authority.cluster()).await?;
    }
    tracing::info!("this manager leads");
    Ok((store, term))
}

/// Whose store it is. etcd may come up later than we do.
async fn first_answer(store: &EtcdStore) -> Result<Option<String>, StoreError> {
    loop {
        match store.cluster().await {
            Err(StoreError::Silent { reason }) => tracing::warn!("waiting for etcd: {reason}"),
            answer => return answer,
        }
    }
}

fn check_cluster(authority: &Authority, known: Option<&str>) -> Result<(), ApiError> {
    match known {
        Some(known) if known != authority.cluster() => Err(ApiError::denied(format!(
            "the managers of this etcd are of cluster {known}; the keys here are of cluster {}",
            authority.cluster()
        ))
        .hint(
            "copy authority.json from another manager's state directory, or choose another --etcd-prefix",
        )),
        _ => Ok(()),
    }
}

/// All routes of a manager, of which each says who leads.
fn waiting(store: Arc<EtcdStore>) -> Router {
    let paths: BTreeSet<&str> = MANAGER.iter().map(|rule| rule.path).collect();
    let refer = move || {
        let store = Arc::clone(&store);
        async move { refer(store.leader().await.ok().flatten()) }
    };
    paths.into_iter().fold(Router::new(), |router, path| router.route(path, any(refer.clone())))
}

fn refer(leader: Option<String>) -> ApiError {
    let message = match leader {
        Some(leader) => format!("this manager does not lead; the one at {leader} does"),
        None => "this manager does not lead, and nobody does just now".into(),
    };
    ApiError::new(Problem::NotLeading, message)
        .hint("name all managers: --manager HOST:PORT,HOST:PORT,... or $FERRY_MANAGER")
}
