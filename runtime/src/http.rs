//! HTTP for an axum `Router`: hyper's HTTP/1.1, with upgrades (WebSocket).

use std::io;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;

use crate::net::TcpListener;

/// A client must have sent its request's head within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes that a connection's read and write buffers hold, each: what a socket's queue can give or take at
/// once (`crate::buffers::MAX`). A request's head must fit.
const MAX_BUFFER: usize = 64 << 10;

/// Serves `router` on `port` for ever.
///
/// # Errors
/// If the port cannot be bound.
pub async fn serve(port: u16, router: axum::Router) -> io::Result<()> {
    let listener = TcpListener::bind(port).await?;
    loop {
        // An error here is one connection's: its peer had gone before it was accepted.
        let Ok((stream, peer)) = listener.accept().await else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                log::debug!("connection of {peer}: {error}");
            }
        });
    }
}
