//! A service's log across its moves.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::Method;

use super::state::Manager;
use crate::api::ApiError;

/// Streams a service's log. While it is followed, each agent's stream ends when its instance leaves;
/// it goes on at the next owner, at the offset where it stopped.
///
/// # Errors
/// There is no such service, or its node does not answer.
pub async fn stream(
    manager: Arc<Manager>,
    name: String,
    follow: bool,
) -> Result<Response, ApiError> {
    let record = manager.record(&name).await?;
    let node = manager.owner(&record)?.to_owned();
    let mut part = Part::open(&manager, &node, &name, 0, follow).await?;
    let (mut sender, body) = Channel::<Bytes>::new(4);
    tokio::spawn(async move {
        let id = record.spec.id;
        let mut epoch = record.epoch;
        let mut changes = manager.store.watch();
        loop {
            let Some(offset) = part.forward(&mut sender).await else { return };
            if !follow {
                return;
            }
            // The instance ended: it was moved, or it is over. A move's commit comes before the end
            // of its source, so the record already tells which.
            let next = loop {
                match manager.store.get(&name).await {
                    Ok(Some(record)) if record.spec.id == id && record.epoch > epoch => {
                        break record;
                    }
                    Ok(Some(record)) if record.spec.id == id && record.migration.is_some() => {}
                    _ => return,
                }
                if changes.recv().await.is_err() {
                    return;
                }
            };
            epoch = next.epoch;
            let Some(node) = next.owner.node() else { return };
            match Part::open(&manager, node, &name, offset, follow).await {
                Ok(next) => part = next,
                Err(_) => return,
            }
        }
    });
    Ok(Body::new(body).into_response())
}

/// The log at one agent.
struct Part {
    body: hyper::body::Incoming,
    offset: u64,
}

impl Part {
    async fn open(
        manager: &Manager,
        node: &str,
        name: &str,
        from: u64,
        follow: bool,
    ) -> Result<Self, ApiError> {
        let agent = manager.nodes.client(node)?;
        let path = format!("/v1/instances/{name}/log?from={from}&follow={follow}");
        let answer = agent.send(Method::GET, &path, Body::empty()).await?;
        let header = answer.headers().get("x-log-offset");
        let offset = header.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(from);
        Ok(Self { body: answer.into_body(), offset })
    }

    /// Passes everything on; returns the offset of the end, `None` if nobody listens any more.
    async fn forward(&mut self, sender: &mut Sender<Bytes>) -> Option<u64> {
        while let Some(Ok(frame)) = self.body.frame().await {
            if let Ok(data) = frame.into_data() {
                self.offset += data.len() as u64;
                sender.send_data(data).await.ok()?;
            }
        }
        Some(self.offset)
    }
}
