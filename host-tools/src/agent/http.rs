//! What the manager and other agents can ask of an agent.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use ferry_protocol::control::{Connection, Order};
use http_body_util::channel::Channel;
use hyper::Method;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::host::Host;
use super::recovery::{self, Settled};
use super::{check, checkpoint, destination, mirror, source};
use crate::api::check::{DestinationFacts, DestinationQuestion, SourceFacts, SourceQuestion};
use crate::api::{
    ApiError, Checkpoint, CheckpointRequest, ConnectionLine, Digest32, HoldRequest, HolderView,
    Instance, InstanceState, Knock, MoveRequest, NodeReport, ReleaseRequest, ResumeRequest,
    Resumed, StartRequest,
};
use crate::manager::members_http::AuditQuery;
use crate::security::{Entry, Peer};
use crate::snapshot::MAX_META;
use crate::trace;

/// Name of the page stream's protocol in the HTTP upgrade.
pub const TRANSFER_PROTOCOL: &str = "ferry-transfer/1";
/// How long a service may take to end by itself before its QEMU is killed.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// Longest body of a request, in bytes: a table of connections is the largest.
const MAX_BODY: usize = 2 * MAX_META as usize;
/// Longest time a manager may take to hear that a client asks for a sleeping service.
const KNOCK_LIMIT: Duration = Duration::from_secs(5);
/// Clients ask again after a second (RFC 6298 §2.1), and a service wakes about as fast.
const KNOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a log in one chunk.
const LOG_CHUNK: usize = 64 << 10;

type Shared = State<Arc<Host>>;
type Result<T> = std::result::Result<T, ApiError>;

/// The agent's routes.
pub fn router(host: Arc<Host>) -> Router {
    Router::new()
        .route("/v1/node", get(node))
        .route("/v1/audit", get(audit))
        .route("/v1/check/source", post(check_source))
        .route("/v1/check/destination", post(check_destination))
        .route("/v1/instances", get(list).post(start))
        .route("/v1/instances/{name}", get(show).delete(stop))
        .route("/v1/instances/{name}/connections", get(connections))
        .route("/v1/instances/{name}/log", get(log))
        .route("/v1/instances/{name}/move", post(move_away))
        .route("/v1/instances/{name}/checkpoint", post(make_checkpoint))
        .route("/v1/instances/{name}/abort", post(abort))
        .route("/v1/instances/{name}/settle", post(settle))
        .route("/v1/instances/{name}/resume", post(resume))
        .route("/v1/instances/{name}/resolve", post(resolve))
        .route("/v1/moves/{id}", delete(cancel_move))
        .route("/v1/moves/{id}/events", get(move_events))
        .route("/v1/holders", get(holders).post(hold))
        .route("/v1/holders/{name}", delete(release))
        .route("/v1/snapshots/{digest}", get(snapshot).delete(forget_snapshot))
        .route("/v1/transfer", get(transfer))
        .route("/v1/transfer/{id}/mirror", get(mirror_of))
        .merge(super::seeing::routes())
        .layer(axum::middleware::from_fn(crate::api::request::to_the_end))
        .layer(axum::middleware::from_fn(trace::serve))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(host)
}

async fn node(State(host): Shared) -> Json<NodeReport> {
    Json(host.report())
}

async fn audit(State(host): Shared, Query(query): Query<AuditQuery>) -> Result<Json<Vec<Entry>>> {
    let log = Arc::clone(&host.gate.audit);
    let last = tokio::task::spawn_blocking(move || log.last(query.last)).await;
    Ok(Json(last.map_err(ApiError::failed)?.map_err(ApiError::failed)?))
}

async fn check_source(
    State(host): Shared,
    Json(question): Json<SourceQuestion>,
) -> Json<SourceFacts> {
    Json(check::source(&host, &question).await)
}

async fn check_destination(
    State(host): Shared,
    Json(question): Json<DestinationQuestion>,
) -> Json<DestinationFacts> {
    Json(check::destination(&host, &question).await)
}

async fn list(State(host): Shared) -> Json<Vec<Instance>> {
    Json(host.instances().iter().map(|instance| instance.view()).collect())
}

async fn show(State(host): Shared, Path(name): Path<String>) -> Result<Json<Instance>> {
    Ok(Json(host.instance(&name)?.view()))
}

async fn start(State(host): Shared, Json(request): Json<StartRequest>) -> Result<Json<Instance>> {
    let instance = match request.snapshot {
        Some(digest) => checkpoint::prepare(&host, &request, digest).await?,
        None => {
            let StartRequest { spec, epoch, .. } = &request;
            host.epochs.admit(&spec.name, &spec.id, 0, *epoch)?;
            let reservation = host.reserve(spec)?;
            let kernel = host.ensure_image(spec).await?;
            host.start(reservation, spec, kernel, false, *epoch, None).await?
        }
    };
    Ok(Json(instance.view()))
}

async fn stop(State(host): Shared, Path(name): Path<String>) -> Result<Json<()>> {
    let instance = host.instance(&name)?;
    let _busy = instance.busy.try_lock().map_err(|_| {
        ApiError::conflict(format!("a move or checkpoint of `{name}` is under way"))
    })?;
    if instance.state() == InstanceState::Running {
        // A service that does not end by itself is ended.
        let _ = instance.guest.order(Order::Shutdown, SHUTDOWN_LIMIT).await;
    }
    host.end(&instance).await?;
    Ok(Json(()))
}

async fn connections(
    State(host): Shared,
    Path(name): Path<String>,
) -> Result<Json<Vec<ConnectionLine>>> {
    let connections = host.instance(&name)?.connections().await?;
    Ok(Json(connections.iter().map(line).collect()))
}

fn line(connection: &Connection) -> ConnectionLine {
    let end = |ip: [u8; 4], port: u16| {
        let ip = std::net::Ipv4Addr::from(ip);
        if port == 0 { format!("{ip}:*") } else { format!("{ip}:{port}") }
    };
    ConnectionLine {
        local: end(connection.local, connection.local_port),
        remote: end(connection.remote, connection.remote_port),
        state: state_name(connection.state).into(),
        role: format!("{:?}", connection.role).to_lowercase(),
        recv_queue: connection.recv_queue,
        send_queue: connection.send_queue,
    }
}

/// RFC 9293's name of a state.
fn state_name(state: ferry_protocol::control::TcpState) -> &'static str {
    use ferry_protocol::control::TcpState as S;
    match state {
        S::Listen => "LISTEN",
        S::SynSent => "SYN-SENT",
        S::SynReceived => "SYN-RECEIVED",
        S::Established => "ESTABLISHED",
        S::FinWait1 => "FIN-WAIT-1",
        S::FinWait2 => "FIN-WAIT-2",
        S::CloseWait => "CLOSE-WAIT",
        S::Closing => "CLOSING",
        S::LastAck => "LAST-ACK",
        S::TimeWait => "TIME-WAIT",
        S::Closed => "CLOSED",
    }
}

/// What part of a log is wanted.
#[derive(Debug, Deserialize)]
struct LogQuery {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    follow: bool,
}

/// Streams the log. Every chunk is preceded by nothing: the header says at which offset the first
/// byte lies.
async fn log(
    State(host): Shared,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response> {
    let console = Arc::clone(&host.instance(&name)?.console);
    let mut extent = console.extent();
    // After a move the history arrives within moments.
    let known = extent.wait_for(|extent| extent.own.is_some() || extent.ended);
    let _ = tokio::time::timeout(Duration::from_secs(5), known).await;
    let start = query.from.max(extent.borrow().start);
    let (mut sender, body) = Channel::<Bytes>::new(4);
    tokio::spawn(async move {
        let mut offset = start;
        loop {
            let seen = *extent.borrow_and_update();
            let Ok((_, bytes)) = console.read(offset, LOG_CHUNK) else { return };
            if !bytes.is_empty() {
                offset += bytes.len() as u64;
                if sender.send_data(bytes.into()).await.is_err() {
                    return;
                }
                continue;
            }
            if !query.follow || seen.ended || extent.changed().await.is_err() {
                return;
            }
        }
    });
    let mut response = Body::new(body).into_response();
    response.headers_mut().insert("x-log-offset", HeaderValue::from(start));
    Ok(response)
}

async fn move_away(
    State(host): Shared,
    Path(name): Path<String>,
    Json(request): Json<MoveRequest>,
) -> Result<Response> {
    if let Some(known) = host.moves.get(&request.migration) {
        return Ok(event_stream(known.follow()));
    }
    let instance = host.instance(&name)?;
    if let Some(log) = host.moves.begin(&request.migration) {
        // The move goes on even if the manager's connection breaks.
        let run = source::run(Arc::clone(&host), instance, request.clone(), log);
        tokio::spawn(trace::carry(run));
    }
    move_events(State(host), Path(request.migration)).await
}

async fn move_events(State(host): Shared, Path(id): Path<String>) -> Result<Response> {
    let log = host.moves.get(&id).ok_or_else(|| {
        ApiError::not_found(format!("no move `{id}` since this agent was started"))
    })?;
    Ok(event_stream(log.follow()))
}

/// The store has said that the move does not commit any more: there is nothing left to do it for.
async fn cancel_move(State(host): Shared, Path(id): Path<String>) -> Result<Json<()>> {
    host.moves
        .get(&id)
        .ok_or_else(|| ApiError::not_found(format!("no move `{id}` since this agent was started")))?
        .cancel("it was cancelled");
    Ok(Json(()))
}

/// Events as lines of JSON.
pub(crate) fn event_stream<E: serde::Serialize + Send + 'static>(
    mut events: mpsc::UnboundedReceiver<E>,
) -> Response {
    let (mut sender, body) = Channel::<Bytes>::new(16);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            let Ok(mut json) = serde_json::to_vec(&event) else { return };
            json.push(b'\n');
            if sender.send_data(json.into()).await.is_err() {
                return;
            }
        }
    });
    let mut response = Body::new(body).into_response();
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn make_checkpoint(
    State(host): Shared,
    Path(name): Path<String>,
    Json(request): Json<CheckpointRequest>,
) -> Result<Json<Checkpoint>> {
    let instance = host.instance(&name)?;
    Ok(Json(checkpoint::checkpoint(&host, &instance, &request).await?))
}

/// The manager did not keep the snapshot: the service goes on here, if the store has not given it away.
async fn abort(State(host): Shared, Path(name): Path<String>) -> Result<Json<()>> {
    let instance = host.instance(&name)?;
    let _busy = instance.busy.lock().await;
    match recovery::attempt(&host, &instance).await? {
        Settled::Runs => Ok(Json(())),
        Settled::Ended => {
            Err(ApiError::conflict(format!("`{name}` belongs to a snapshot already")))
        }
        Settled::Waits => Err(ApiError::conflict(format!(
            "it is not decided whether `{name}` or its snapshot goes on; it stays frozen until then"
        ))),
    }
}

/// Decides what becomes of an instance that is frozen or stands by while nobody is at work on it.
async fn settle(State(host): Shared, Path(name): Path<String>) -> Result<Json<()>> {
    let instance = host.instance(&name)?;
    if instance.parked().is_some()
        && let Ok(_busy) = instance.busy.try_lock()
    {
        recovery::attempt(&host, &instance).await?;
    }
    Ok(Json(()))
}

async fn resume(
    State(host): Shared,
    Path(name): Path<String>,
    Json(request): Json<ResumeRequest>,
) -> Result<Json<Resumed>> {
    let instance = host.instance(&name)?;
    let epoch = request.epoch;
    // A manager that did not hear the answer asks again.
    if instance.state() != InstanceState::Running || instance.epoch() != epoch {
        host.epochs.admit(&name, &instance.spec.id, instance.epoch(), epoch)?;
    }
    // The manager has ended whoever answered for it; here it is made sure of.
    let id = instance.spec.id.clone();
    host.holders.release(&ReleaseRequest { id, below: epoch }).await;
    destination::resume_filled(&host, &instance, epoch).await.map(Json)
}

async fn resolve(
    State(host): Shared,
    Path(name): Path<String>,
    Json(request): Json<ResumeRequest>,
) -> Result<Json<bool>> {
    Ok(Json(host.resolve(&name, request.epoch).await?))
}

async fn holders(State(host): Shared) -> Json<Vec<HolderView>> {
    Json(host.holders.list())
}

async fn hold(State(host): Shared, Json(request): Json<HoldRequest>) -> Result<Json<HolderView>> {
    let spec = &request.spec;
    if let Ok(instance) = host.instance(&spec.name)
        && instance.spec.id == spec.id
        && instance.state() == InstanceState::Running
    {
        return Err(ApiError::conflict(format!("`{}` runs here: it answers itself", spec.name)));
    }
    host.must_be_leased()?;
    let (knocks, knocked) = mpsc::channel(1);
    let view = host.holders.begin(host.network(), &request, knocks).await?;
    tokio::spawn(pass_on(Arc::clone(&host), knocked));
    Ok(Json(view))
}

/// Tells the manager of clients that ask for a service, until its holder ends.
async fn pass_on(host: Arc<Host>, mut knocked: mpsc::Receiver<(String, Knock)>) {
    while let Some((name, knock)) = knocked.recv().await {
        let path = format!("/v1/services/{name}/wake");
        let told = host.manager().json::<()>(Method::POST, &path, &knock, KNOCK_LIMIT).await;
        if let Err(error) = told {
            tracing::warn!("{name}: a client asks for it, and it cannot be woken: {error}");
        }
        tokio::time::sleep(KNOCK_INTERVAL).await;
    }
}

/// When this is answered, nobody answers for the service under a lower ownership number here.
async fn release(State(host): Shared, Json(request): Json<ReleaseRequest>) -> Json<bool> {
    Json(host.holders.release(&request).await)
}

async fn snapshot(State(host): Shared, Path(digest): Path<String>) -> Result<Vec<u8>> {
    Ok(host.snapshots.get(&parse(&digest)?)?)
}

async fn forget_snapshot(State(host): Shared, Path(digest): Path<String>) -> Result<Json<()>> {
    host.snapshots.remove(&parse(&digest)?)?;
    Ok(Json(()))
}

/// A digest in a path.
pub(crate) fn parse(digest: &str) -> Result<Digest32> {
    digest
        .parse()
        .map_err(|error: crate::api::spec::DigestError| ApiError::invalid(error.to_string()))
}

async fn transfer(
    State(host): Shared,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Response {
    upgraded(&mut request, TRANSFER_PROTOCOL, move |stream| destination::serve(host, stream, peer))
}

async fn mirror_of(
    State(host): Shared,
    Extension(peer): Extension<Peer>,
    Path(id): Path<String>,
    mut request: Request,
) -> Response {
    if !host.mirrors.expects(&id, &peer) {
        return ApiError::not_found(format!("no standby waits for a mirror of move {id} by you"))
            .into_response();
    }
    upgraded(&mut request, mirror::PROTOCOL, move |stream| async move {
        host.mirrors.arrived(&id, stream);
    })
}

/// Answers that the connection is `protocol`'s from now on, and goes on with it there.
fn upgraded<F>(
    request: &mut Request,
    protocol: &'static str,
    serve: impl FnOnce(TokioIo<hyper::upgrade::Upgraded>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let asked = request.headers().get(header::UPGRADE);
    if asked.is_none_or(|asked| asked != protocol) {
        return ApiError::invalid(format!("{protocol} is spoken here")).into_response();
    }
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(trace::carry(async move {
        match upgrade.await {
            Ok(stream) => serve(TokioIo::new(stream)).await,
            Err(error) => tracing::warn!("a connection of {protocol} broke off at once: {error}"),
        }
    }));
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)],
    )
        .into_response()
}
