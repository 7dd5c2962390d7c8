//! What anybody may ask of a manager: method, path and body of one request after the other.

use std::sync::{Arc, LazyLock};

use axum::Extension;
use axum::body::Body;
use axum::http::{Method, Request, Uri};
use host_tools::manager::members::Members;
use host_tools::manager::{Manager, Pool, http};
use host_tools::security::{Peer, Security, Who};
use host_tools::store::{EmbeddedStore, Store};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;

/// Requests of one input.
const REQUESTS: usize = 4;

/// One manager for all inputs: making its store takes longer than a hundred requests.
struct World {
    runtime: Runtime,
    manager: Arc<Manager>,
    _state: TempDir,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    // Nobody else is there, so a wait can only end at its deadline: time is skipped.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let state = tempfile::tempdir().expect("a temporary directory");
    let manager = runtime.block_on(async {
        let store = EmbeddedStore::open(&state.path().join("store")).expect("a new store");
        let store: Arc<dyn Store> = Arc::new(store);
        let members =
            Members::open(Arc::clone(&store), state.path(), state.path()).expect("a new authority");
        let pool: Pool = "10.77.0.50-10.77.0.99/24".parse().expect("a pool");
        let opened = Manager::open(store, members, Security::Plain, state.path(), pool).await;
        opened.expect("an empty manager")
    });
    World { runtime, manager: Arc::new(manager), _state: state }
});

/// A request: its method by one byte, its path up to the first line feed, then its body.
fn request(input: &[u8]) -> Option<Request<Body>> {
    let (&method, rest) = input.split_first()?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let path: Uri = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let method =
        [Method::GET, Method::POST, Method::PUT, Method::DELETE][usize::from(method % 4)].clone();
    let builder = Request::builder().method(method).uri(path);
    builder
        .header("content-type", "application/json")
        .body(Body::from(rest[end + 1..].to_vec()))
        .ok()
}

pub fn run(input: &[u8]) {
    // A report would make the manager connect to wherever it says.
    if input.windows(9).any(|part| part == b"/v1/nodes")
        && input.windows(7).any(|part| part == b"address")
    {
        return;
    }
    let world = &*WORLD;
    // Whoever has come through the gate.
    let peer = Peer { who: Who::Local, from: "here".into() };
    let router = http::router(Arc::clone(&world.manager)).layer(Extension(peer));
    for part in input.split(|&byte| byte == 0).take(REQUESTS) {
        let Some(request) = request(part) else { continue };
        let answer = world.runtime.block_on(router.clone().oneshot(request));
        let status = answer.expect("a router always answers").status();
        assert!(!status.is_redirection() && !status.is_informational(), "{status}");
    }
}
