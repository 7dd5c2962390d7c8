//! The live connection: a WebSocket from a page to its document, for as long as the page is open.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use crate::limits::Limits;
use crate::room::{Member, Refusal};
use crate::store::{Store, StoreError};

/// Why a connection that was up ended.
enum End {
    /// The page closed it, or it broke.
    Gone,
    /// Nothing arrived, or nothing could be sent, for [`Limits::silence`].
    Silent,
    /// The page did what is not taken.
    Refused(Refusal),
}

/// `GET /api/docs/{id}/live`: becomes a WebSocket. Whether the document exists is told over the
/// WebSocket (close code 4404), because pages do not get to see the status of a refused upgrade.
pub(crate) async fn upgrade(
    State(store): State<Arc<Store>>,
    Path(id): Path<String>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let request = axum::http::Request::from_parts(parts, ());
    let Ok(response) = create_response(&request) else {
        return (StatusCode::UPGRADE_REQUIRED, "this path takes WebSocket connections only\n")
            .into_response();
    };
    let Some(upgrade) = upgrade else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the server cannot upgrade connections\n")
            .into_response();
    };
    let entered = store.enter(&id);
    let config = websocket_config(store.limits());
    tokio::spawn(async move {
        // The page may be gone before the upgrade is through.
        let Ok(stream) = upgrade.await else { return };
        let stream = TokioIo::new(stream);
        let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
        let farewell = match entered {
            Ok(mut member) => match converse(&mut socket, &mut member).await {
                End::Gone | End::Silent => return,
                End::Refused(refusal) => farewell(&StoreError::Document(refusal)),
            },
            Err(error) => farewell(&error),
        };
        // Told if it can be told; the connection ends in any case.
        let patience = std::time::Duration::from_secs(5);
        let _ = timeout(patience, async {
            socket.close(Some(farewell)).await?;
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
            Ok::<_, Error>(())
        })
        .await;
    });
    response.map(|()| axum::body::Body::empty())
}

/// Small buffers: most connections are idle most of the time.
fn websocket_config(limits: &Limits) -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.read_buffer_size = 2048;
    config.write_buffer_size = 0;
    config.max_write_buffer_size = 2 * limits.document_bytes + limits.message_bytes;
    config.max_message_size = Some(limits.message_bytes);
    config.max_frame_size = Some(limits.message_bytes);
    config
}

/// Passes messages both ways until the connection ends.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    member: &mut Member,
) -> End {
    let (ping_every, silence) = (member.limits().ping_every, member.limits().silence);
    let mut pings = interval_at(Instant::now() + ping_every, ping_every);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut next = Message::Binary(member.welcome());
    loop {
        match timeout(silence, socket.send(next)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return End::Gone,
            Err(_) => return End::Silent,
        }
        next = loop {
            // One busy page must not keep the others waiting.
            tokio::task::coop::consume_budget().await;
            tokio::select! {
                message = socket.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Binary(bytes))) => match member.receive(&bytes) {
                            Ok(answer) if answer.is_empty() => {}
                            Ok(answer) => break Message::Binary(answer),
                            Err(refusal) => return End::Refused(refusal),
                        },
                        Some(Ok(Message::Text(_))) => return End::Refused(Refusal::Malformed),
                        // Pings are answered and a close confirmed by the WebSocket layer.
                        Some(Ok(_)) => {}
                        Some(Err(Error::Capacity(_))) => return End::Refused(Refusal::MessageTooLong {
                            limit_bytes: member.limits().message_bytes,
                        }),
                        Some(Err(_)) | None => return End::Gone,
                    }
                }
                news = member.news() => break Message::Binary(news),
                _ = pings.tick() => break Message::Ping(Bytes::new()),
                () = sleep_until(heard + silence) => return End::Silent,
            }
        };
    }
}

/// Close codes 4000 to 4999 are the application's (RFC 6455 section 7.4.2); the page knows ours.
fn farewell(error: &StoreError) -> CloseFrame {
    let code = match error {
        StoreError::NoSuchDocument { .. } => 4404,
        StoreError::Document(Refusal::DocumentFull { .. } | Refusal::ServerFull { .. }) => 4413,
        StoreError::TooManyPeople { .. } | StoreError::Document(Refusal::TooManyPeople { .. }) => {
            4429
        }
        _ => 4400,
    };
    let mut reason = error.to_string();
    // A control frame holds 125 bytes, two of them the code (RFC 6455 section 5.5).
    while reason.len() > 123 {
        reason.pop();
    }
    CloseFrame { code: CloseCode::from(code), reason: reason.into() }
}
