//! What becomes of a request whose sender has gone away.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::ApiError;
use crate::trace;

/// Serves a request that changes something to its end, also when whoever asked has gone away. A connection that
/// ends drops what it serves, at any `await`: half started or half ended, an instance would be nobody's, and a guest
/// that goes on while nobody notes it would be taken for a standby.
pub async fn to_the_end(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let served = tokio::spawn(trace::carry(next.run(request))).await;
    served.unwrap_or_else(|error| ApiError::failed(error).into_response())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::State;
    use axum::routing::get;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;
    use crate::wire::listen;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A request that is at work, waits for a word, and says when it is done.
    type Work = (oneshot::Sender<()>, oneshot::Receiver<()>, oneshot::Sender<()>);

    async fn work(State(work): State<Arc<Mutex<Option<Work>>>>) {
        let Some((begun, word, done)) = work.lock().unwrap().take() else { return };
        let _ = begun.send(());
        let _ = word.await;
        let _ = done.send(());
    }

    /// Whether a request is served to its end whose sender goes away in the middle of it.
    async fn ends(method: &str) -> bool {
        let (begun, has_begun) = oneshot::channel();
        let (mut word, heard) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let router = Router::new()
            .route("/", get(work).post(work).delete(work))
            .layer(axum::middleware::from_fn(to_the_end))
            .with_state(Arc::new(Mutex::new(Some((begun, heard, done)))));
        let listener = listen(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.tcp_address().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let mut sender = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
        sender.write_all(request.as_bytes()).await.unwrap();
        timeout(LIMIT, has_begun).await.unwrap().unwrap();
        drop(sender);
        // It is dropped when the server hears of that, or never.
        let dropped = timeout(Duration::from_millis(300), word.closed()).await.is_ok();
        let _ = word.send(());
        let ended = timeout(LIMIT, is_done).await.unwrap().is_ok();
        server.abort();
        assert_ne!(dropped, ended);
        ended
    }

    #[tokio::test]
    async fn what_changes_something_is_served_to_its_end_and_the_rest_is_not() {
        assert!(ends("DELETE").await);
        assert!(ends("POST").await);
        assert!(!ends("GET").await, "or this test shows nothing");
    }
}
