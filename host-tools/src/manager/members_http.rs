//! The routes about members, and the audit log.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};

use super::members::{Certificate, TokenAnswer, TokenRequest};
use super::state::Manager;
use crate::agent::http::parse;
use crate::api::{ApiError, now_us};
use crate::security::access::Who;
use crate::security::enrol::{EnrolRequest, Enrolled, RenewRequest};
use crate::security::{Entry, Gate, Peer};

/// What these routes need.
#[derive(Clone)]
struct Desk {
    manager: Arc<Manager>,
    gate: Arc<Gate>,
}

type Shared = State<Desk>;
type Result<T> = std::result::Result<T, ApiError>;

/// Which part of the audit log is wanted.
#[derive(Debug, Serialize, Deserialize)]
pub struct AuditQuery {
    /// How many lines from its end.
    pub last: usize,
}

/// The routes.
pub fn router(manager: Arc<Manager>, gate: Arc<Gate>) -> Router {
    Router::new()
        .route("/v1/enrol", post(enrol))
        .route("/v1/renew", post(renew))
        .route("/v1/tokens", post(create_token))
        .route("/v1/users", get(users))
        .route("/v1/users/{name}/revoke", post(revoke))
        .route("/v1/audit", get(audit))
        .route("/v1/nodes/{name}/audit", get(node_audit))
        .route("/v1/images/{name}/signature", get(signature))
        .with_state(Desk { manager, gate })
}

async fn enrol(State(desk): Shared, Json(request): Json<EnrolRequest>) -> Result<Json<Enrolled>> {
    Ok(Json(desk.manager.members.enrol(request, now_us()).await?))
}

async fn renew(
    State(desk): Shared,
    Extension(peer): Extension<Peer>,
    Json(request): Json<RenewRequest>,
) -> Result<Json<Enrolled>> {
    let Who::Member(member) = &peer.who else {
        return Err(ApiError::invalid("without TLS there is no certificate to be renewed"));
    };
    Ok(Json(desk.manager.members.renew(&member.identity, &request, now_us()).await?))
}

async fn create_token(
    State(desk): Shared,
    Json(request): Json<TokenRequest>,
) -> Result<Json<TokenAnswer>> {
    Ok(Json(desk.manager.members.create_token(request, now_us()).await?))
}

async fn users(State(desk): Shared) -> Result<Json<Vec<Certificate>>> {
    Ok(Json(desk.manager.members.certificates().await?))
}

async fn revoke(State(desk): Shared, Path(name): Path<String>) -> Result<Json<usize>> {
    let revoked = desk.manager.members.revoke(&name, now_us()).await?;
    desk.gate.revoke(desk.manager.members.revoked().await?);
    Ok(Json(revoked))
}

async fn audit(State(desk): Shared, Query(query): Query<AuditQuery>) -> Result<Json<Vec<Entry>>> {
    let audit = Arc::clone(&desk.gate.audit);
    let last = tokio::task::spawn_blocking(move || audit.last(query.last)).await;
    Ok(Json(last.map_err(ApiError::failed)?.map_err(ApiError::failed)?))
}

async fn node_audit(
    State(desk): Shared,
    Path(name): Path<String>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<Entry>>> {
    let agent = desk.manager.nodes.client(&name)?;
    Ok(Json(agent.get(&format!("/v1/audit?last={}", query.last)).await?))
}

async fn signature(State(desk): Shared, Path(digest): Path<String>) -> Result<Json<String>> {
    Ok(Json(desk.manager.members.signature(&parse(&digest)?)?))
}
