//! Figures of an agent for those who watch.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Json, Router};
use ferry_protocol::control::TcpState;

use super::host::Host;
use super::instance::Instance;
use crate::api::{ApiError, InstanceState};
use crate::metrics::{self, agent::Counted};

/// The routes.
pub fn routes() -> Router<Arc<Host>> {
    Router::new()
        .route("/v1/instances/{name}/connection-count", get(connection_count))
        .route("/metrics", get(metrics))
}

async fn connection_count(
    State(host): State<Arc<Host>>,
    Path(name): Path<String>,
) -> Result<Json<Option<u64>>, ApiError> {
    let instance = host.instance(&name)?;
    Ok(Json(count(&instance).await))
}

async fn metrics(State(host): State<Arc<Host>>) -> Result<Response, ApiError> {
    let mut counted = Vec::new();
    for instance in host.instances() {
        counted.push(Counted {
            service: instance.spec.name.clone(),
            state: instance.state(),
            connections: count(&instance).await,
            refused_frames: instance.guest.refused_frames(),
        });
    }
    Ok(metrics::answer(host.metrics.text(&host.report(), &counted)?))
}

/// The TCP connections of an instance, listening ports left out; `None` while it moves, when its guest has
/// better things to do, and if it does not serve.
pub async fn count(instance: &Instance) -> Option<u64> {
    if instance.state() != InstanceState::Running || instance.descriptor().migration.is_some() {
        return None;
    }
    let connections = instance.connections().await.ok()?;
    let open = connections.iter().filter(|connection| connection.state != TcpState::Listen);
    Some(open.count() as u64)
}
