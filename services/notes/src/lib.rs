//! A text editor for several people at once, served with its page by one image.
//!
//! Documents live in memory. Everybody at a document types into the same text; edits are those of
//! a CRDT (Yjs in the page, yrs here), so they merge in any order and after any interruption. In
//! the order in which an edit meets them:
//!
//! - `page`: the page itself, built from `web/`.
//! - `live`: the WebSocket between a page and its document.
//! - `wire`: the messages on it, the y-sync protocol.
//! - `room`: one document: merges edits and passes them on; `presence`: who is there.
//! - `store`: all documents, and the memory they may take; `limits`: how much that is.
//! - `api`: documents over plain HTTP, for the page's list and for scripts.

mod api;
mod limits;
mod live;
mod page;
mod presence;
mod room;
mod store;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::get;

pub use limits::Limits;
use store::Store;

/// The port the service listens on.
pub const PORT: u16 = 80;

/// The service, with no documents yet.
pub fn router(limits: Limits) -> Router {
    let body_bytes = limits.message_bytes;
    let api = Router::new()
        .route("/docs", get(api::list).post(api::create))
        .route("/docs/{id}", get(api::show).delete(api::remove))
        .route("/docs/{id}/text", get(api::text).post(api::append))
        .route("/docs/{id}/live", get(live::upgrade))
        .layer(DefaultBodyLimit::max(body_bytes))
        .with_state(Arc::new(Store::new(limits)));
    Router::new()
        .nest("/api", api)
        .route("/", page::INDEX.route())
        .route("/d/{id}", page::INDEX.route())
        .route("/notes.js", page::SCRIPT.route())
        .route("/style.css", page::STYLE.route())
        .route("/icon.svg", page::ICON.route())
        .fallback(async || (StatusCode::NOT_FOUND, "no such page; the documents are at /\n"))
}
