//! The manager's routes.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::Deserialize;

use super::logs;
use super::state::Manager;
use crate::agent::checkpoint::MAX_SNAPSHOT;
use crate::agent::http::{event_stream, parse};
use crate::api::check::{CheckRequest, Finding};
use crate::api::{
    ApiError, CancelRequest, Checkpoint, CheckpointRequest, CommitAnswer, CommitRequest,
    ConnectionLine, Image, Knock, MigrateRequest, Migration, Node, NodeReport, OwnershipAnswer,
    OwnershipRequest, Problem, RelocateRequest, ReportAnswer, Resumed, RunRequest, Service,
    SuspendRequest, Suspended, WakeRequest,
};
use crate::repository::ImageName;
use crate::security::{Peer, Reason};

type Shared = State<Arc<Manager>>;
type Result<T> = std::result::Result<T, ApiError>;

/// The manager's routes.
pub fn router(manager: Arc<Manager>) -> Router {
    Router::new()
        // Managers that do not lead answer it with an error, as everything.
        .route("/v1/leader", get(async || Json(true)))
        .route("/v1/nodes", get(nodes).post(report))
        .route("/v1/nodes/{name}/drain", post(drain))
        .route("/v1/nodes/{name}/undrain", post(undrain))
        .route("/v1/rebalance", post(rebalance))
        .route("/v1/services", get(services).post(run))
        .route("/v1/services/{name}", get(service).delete(stop))
        .route("/v1/services/{name}/connections", get(connections))
        .route("/v1/services/{name}/log", get(log))
        .route("/v1/services/{name}/check", post(check))
        .route("/v1/services/{name}/migrate", post(migrate))
        .route("/v1/services/{name}/ownership", post(ownership))
        .route("/v1/services/{name}/checkpoint", post(checkpoint))
        .route("/v1/services/{name}/suspend", post(suspend))
        .route("/v1/services/{name}/resume", post(resume))
        .route("/v1/services/{name}/wake", post(wake))
        .route("/v1/restore", post(restore))
        .route("/v1/snapshots/{digest}", get(snapshot))
        .route("/v1/migrations", get(migrations))
        .route("/v1/migrations/{id}", get(migration))
        .route("/v1/migrations/{id}/events", get(events))
        .route("/v1/migrations/{id}/cancel", post(cancel))
        .route("/v1/migrations/{id}/ready", post(ready))
        .route("/v1/migrations/{id}/commit", post(commit))
        .route("/v1/migrations/{id}/settle", post(settle))
        .route("/v1/migrations/{id}/take-back", post(take_back))
        .route("/v1/images", get(images))
        .route("/v1/images/{name}", put(push).delete(remove))
        .route("/v1/images/{name}/file", get(image_file))
        .merge(super::web::routes())
        .layer(axum::middleware::from_fn(crate::api::request::to_the_end))
        .layer(axum::middleware::from_fn(crate::trace::serve))
        .layer(DefaultBodyLimit::max(MAX_SNAPSHOT))
        .with_state(manager)
}

async fn nodes(State(manager): Shared) -> Json<Vec<Node>> {
    Json(manager.nodes.list())
}

async fn report(
    State(manager): Shared,
    Extension(peer): Extension<Peer>,
    Json(report): Json<NodeReport>,
) -> Result<Json<ReportAnswer>> {
    peer.speaks_for(&report.name)?;
    manager.report(report.clone()).await?;
    let revoked = manager.members.revoked().await?;
    // The answer renews a lease.
    if !manager.store.leads() {
        return Err(ApiError::new(Problem::NotLeading, "this manager may not lead any more"));
    }
    tokio::spawn(manager.tend(report));
    Ok(Json(ReportAnswer { revoked }))
}

async fn drain(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<RelocateRequest>,
) -> Result<Response> {
    Ok(event_stream(manager.drain(&name, request).await?))
}

async fn undrain(State(manager): Shared, Path(name): Path<String>) -> Result<Json<()>> {
    manager.set_drained(&name, false).await?;
    Ok(Json(()))
}

async fn rebalance(
    State(manager): Shared,
    Json(request): Json<RelocateRequest>,
) -> Result<Response> {
    Ok(event_stream(manager.rebalance(request).await?))
}

async fn services(State(manager): Shared) -> Result<Json<Vec<Service>>> {
    Ok(Json(manager.services().await?))
}

async fn run(State(manager): Shared, Json(request): Json<RunRequest>) -> Result<Json<Service>> {
    Ok(Json(manager.run(request).await?))
}

async fn service(State(manager): Shared, Path(name): Path<String>) -> Result<Json<Service>> {
    Ok(Json(manager.service(&name).await?))
}

#[derive(Debug, Deserialize)]
struct StopQuery {
    host_is_gone: Option<String>,
}

async fn stop(
    State(manager): Shared,
    Path(name): Path<String>,
    Query(query): Query<StopQuery>,
) -> Result<Json<()>> {
    manager.stop(&name, query.host_is_gone.as_deref()).await?;
    Ok(Json(()))
}

async fn connections(
    State(manager): Shared,
    Path(name): Path<String>,
) -> Result<Json<Vec<ConnectionLine>>> {
    Ok(Json(manager.connections(&name).await?))
}

#[derive(Debug, Deserialize)]
struct LogQuery {
    #[serde(default)]
    follow: bool,
}

async fn log(
    State(manager): Shared,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response> {
    logs::stream(manager, name, query.follow).await
}

async fn check(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<CheckRequest>,
) -> Result<Json<Vec<Finding>>> {
    Ok(Json(manager.check(&name, &request.to).await?))
}

async fn migrate(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<MigrateRequest>,
) -> Result<Response> {
    let id = manager.migrate(&name, &request.to, request.limits).await?;
    Ok(event_stream(manager.moves.follow(&id)?))
}

async fn ownership(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<OwnershipRequest>,
) -> Result<Json<OwnershipAnswer>> {
    Ok(Json(manager.ownership(&name, request).await?))
}

async fn checkpoint(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<CheckpointRequest>,
) -> Result<Json<Checkpoint>> {
    Ok(Json(manager.checkpoint(&name, request).await?))
}

async fn suspend(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<SuspendRequest>,
) -> Result<Json<Suspended>> {
    Ok(Json(manager.suspend(&name, request).await?))
}

async fn resume(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(request): Json<WakeRequest>,
) -> Result<Json<(Service, Resumed)>> {
    Ok(Json(manager.wake_up(&name, request).await?))
}

async fn wake(
    State(manager): Shared,
    Path(name): Path<String>,
    Json(knock): Json<Knock>,
) -> Result<Json<()>> {
    manager.knock(&name, knock).await?;
    Ok(Json(()))
}

#[derive(Debug, Deserialize)]
struct RestoreQuery {
    on: String,
    name: Option<String>,
}

async fn restore(
    State(manager): Shared,
    Query(query): Query<RestoreQuery>,
    body: Bytes,
) -> Result<Json<(Service, Resumed)>> {
    Ok(Json(manager.restore(&body, &query.on, query.name).await?))
}

async fn snapshot(State(manager): Shared, Path(digest): Path<String>) -> Result<Vec<u8>> {
    Ok(manager.workspace.get(&parse(&digest)?)?)
}

async fn migrations(State(manager): Shared) -> Json<Vec<Migration>> {
    Json(manager.moves.list())
}

async fn migration(State(manager): Shared, Path(id): Path<String>) -> Result<Json<Migration>> {
    Ok(Json(manager.moves.get(&id)?.0))
}

async fn events(State(manager): Shared, Path(id): Path<String>) -> Result<Response> {
    Ok(event_stream(manager.moves.follow(&id)?))
}

async fn ready(
    State(manager): Shared,
    Path(id): Path<String>,
    Json(request): Json<CommitRequest>,
) -> Result<Json<()>> {
    Ok(Json(manager.ready(&id, request).await?))
}

async fn cancel(
    State(manager): Shared,
    Path(id): Path<String>,
    Json(request): Json<CancelRequest>,
) -> Result<Json<()>> {
    Ok(Json(manager.cancel(&id, request).await?))
}

/// Only the source's agent asks for the ownership.
fn speaks_for_source(manager: &Manager, peer: &Peer, id: &str) -> Result<()> {
    peer.speaks_for(&manager.moves.get(id)?.0.source)
}

/// The store's answer; that it refused is also for the audit log.
fn told(answer: CommitAnswer) -> Response {
    match &answer {
        CommitAnswer::Committed { .. } => Json(answer).into_response(),
        CommitAnswer::Refused { reason } => {
            (Extension(Reason(reason.clone())), Json(answer)).into_response()
        }
    }
}

async fn commit(
    State(manager): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    Json(request): Json<CommitRequest>,
) -> Result<Response> {
    speaks_for_source(&manager, &peer, &id)?;
    Ok(told(manager.commit(&id, request).await?))
}

async fn settle(
    State(manager): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    Json(request): Json<CommitRequest>,
) -> Result<Response> {
    speaks_for_source(&manager, &peer, &id)?;
    Ok(told(manager.settle(&id, request).await?))
}

async fn take_back(
    State(manager): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    Json(request): Json<CommitRequest>,
) -> Result<Response> {
    speaks_for_source(&manager, &peer, &id)?;
    Ok(told(manager.take_back(&id, request).await?))
}

async fn images(State(manager): Shared) -> Json<Vec<Image>> {
    Json(manager.images.list())
}

fn image_name(name: &str) -> Result<ImageName> {
    name.parse().map_err(|error: crate::api::spec::NameError| ApiError::invalid(error.to_string()))
}

async fn push(
    State(manager): Shared,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Image>> {
    let name = image_name(&name)?;
    let pushed = tokio::task::spawn_blocking(move || {
        let image = manager.images.push(&name, &body)?;
        manager.members.sign(&image.image)?;
        Ok::<_, ApiError>(image)
    });
    Ok(Json(pushed.await.map_err(ApiError::failed)??))
}

async fn remove(State(manager): Shared, Path(name): Path<String>) -> Result<Json<Image>> {
    let name = image_name(&name)?;
    let in_use = manager.images_in_use().await?;
    Ok(Json(manager.images.remove(&name, |digest| in_use.contains(digest))?))
}

async fn image_file(State(manager): Shared, Path(digest): Path<String>) -> Result<Vec<u8>> {
    manager.images.file(&parse(&digest)?)
}
