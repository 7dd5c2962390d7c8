//! Figures of an agent for those who watch.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use ferry_protocol::control::TcpState;

use super::host::Host;
use super::instance::Instance;
use crate::api::{ApiError, InstanceState};

/// The routes.
pub fn routes() -> Router<Arc<Host>> {
    Router::new().route("/v1/instances/{name}/connection-count", get(connection_count))
}

async fn connection_count(
    State(host): State<Arc<Host>>,
    Path(name): Path<String>,
) -> Result<Json<Option<u64>>, ApiError> {
    Ok(Json(count(&*host.instance(&name)?).await))
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
