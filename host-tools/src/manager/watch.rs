//! The stream of what happens: the present state first, then every change, until nobody listens any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::channel::Channel;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::state::Manager;
use crate::api::{Migration, Overview, SeenMove, WatchEvent};

/// How often hosts and services are looked at while somebody watches.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Changes of the store within this time are shown together.
const GATHER: Duration = Duration::from_millis(20);
/// How often the state is told although nothing has changed, so that both ends know of each other.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Ended moves that a stream begins with.
const PAST_MOVES: usize = 100;
/// Events that may wait for a slow listener.
const BACKLOG: usize = 64;
/// When a browser shall try again, in milliseconds.
const RETRY_MS: u32 = 1000;

/// Everything from now on.
pub fn follow(manager: &Arc<Manager>) -> Receiver<WatchEvent> {
    let (events, told) = mpsc::channel(BACKLOG);
    // Hosts that do not answer must not hold up what is told of moves.
    tokio::spawn(follow_moves(Arc::clone(manager), events.clone()));
    tokio::spawn(follow_state(Arc::clone(manager), events));
    told
}

async fn follow_moves(manager: Arc<Manager>, events: Sender<WatchEvent>) {
    if events.send(WatchEvent::hello()).await.is_err() {
        return;
    }
    loop {
        let (moves, mut feed) = manager.moves.watch();
        let moves = latest(moves);
        if events.send(WatchEvent::Moves { moves }).await.is_err() {
            return;
        }
        loop {
            let update = tokio::select! {
                update = feed.recv() => update,
                () = events.closed() => return,
            };
            match update {
                Ok(update) => {
                    if events.send(WatchEvent::Move(update)).await.is_err() {
                        return;
                    }
                }
                // Too slow for single changes: all of it again.
                Err(RecvError::Lagged(_)) => break,
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// The moves under way and the latest that have ended.
fn latest(moves: Vec<Migration>) -> Vec<SeenMove> {
    let ended = moves.iter().filter(|migration| migration.result.is_some()).count();
    let mut skip = ended.saturating_sub(PAST_MOVES);
    let kept = moves.into_iter().filter(|migration| {
        let old = skip > 0 && migration.result.is_some();
        skip -= usize::from(old);
        !old
    });
    kept.map(|migration| SeenMove { migration, waiting: None }).collect()
}

async fn follow_state(manager: Arc<Manager>, events: Sender<WatchEvent>) {
    let mut changes = manager.store.watch();
    let mut told: Option<(Instant, Arc<Overview>)> = None;
    let mut since = Instant::now().checked_sub(LOOK_INTERVAL).unwrap_or_else(Instant::now);
    loop {
        // A store that does not answer is asked again at the next turn.
        if let Ok(overview) = manager.overview(since).await {
            let news = told
                .as_ref()
                .is_none_or(|(at, last)| at.elapsed() >= HEARTBEAT || !same(last, &overview));
            if news {
                let event = WatchEvent::Overview(Overview::clone(&overview));
                if events.send(event).await.is_err() {
                    return;
                }
                told = Some((Instant::now(), overview));
            }
        }
        let changed = tokio::select! {
            () = tokio::time::sleep(LOOK_INTERVAL) => false,
            change = changes.recv() => !matches!(change, Err(RecvError::Closed)),
            () = events.closed() => return,
        };
        since = Instant::now();
        if changed {
            tokio::time::sleep(GATHER).await;
        } else {
            // Others who watch may have looked a moment ago.
            since = since.checked_sub(LOOK_INTERVAL / 2).unwrap_or(since);
        }
    }
}

/// Whether two looks show the same, but for the clock.
fn same(a: &Overview, b: &Overview) -> bool {
    let nodes = |overview: &Overview| -> Vec<_> {
        let node = |node: &crate::api::Node| {
            (node.ready, node.drained, serde_json::to_value(&node.report).unwrap_or_default())
        };
        overview.nodes.iter().map(node).collect()
    };
    a.services == b.services && nodes(a) == nodes(b)
}

/// How a stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines of JSON, as all other streams.
    Lines,
    /// Server-sent events, for browsers.
    Sse,
}

/// The stream as an answer.
pub fn answer(mut events: Receiver<WatchEvent>, form: Form) -> Response {
    let (mut sender, body) = Channel::<Bytes>::new(4);
    tokio::spawn(async move {
        let mut first = true;
        while let Some(event) = events.recv().await {
            let Ok(json) = serde_json::to_string(&event) else { return };
            let text = match (form, first) {
                (Form::Sse, true) => {
                    format!("retry: {RETRY_MS}\n{}", sse_event(event.name(), &json))
                }
                (Form::Sse, false) => sse_event(event.name(), &json),
                (Form::Lines, _) => json + "\n",
            };
            first = false;
            if sender.send_data(text.into()).await.is_err() {
                return;
            }
        }
    });
    let mut response = Body::new(body).into_response();
    let kind = match form {
        Form::Lines => "application/x-ndjson",
        Form::Sse => "text/event-stream",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// JSON in one line needs one `data` field.
fn sse_event(name: &str, json: &str) -> String {
    format!("event: {name}\ndata: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::Outcome;

    fn migration(number: usize, ended: bool) -> Migration {
        Migration {
            id: format!("m{number}"),
            service: "p".into(),
            source: "a".into(),
            destination: "b".into(),
            began_us: 0,
            phases: vec![],
            phase: None,
            result: ended.then_some(Outcome::Moved { epoch: 2 }),
            summary: None,
        }
    }

    #[test]
    fn a_stream_begins_with_what_is_under_way_and_the_latest_past() {
        let all: Vec<_> = (0..PAST_MOVES + 7).map(|n| migration(n, n != 3)).collect();
        let kept = latest(all);
        assert_eq!(kept.len(), PAST_MOVES + 1);
        assert_eq!(
            (kept[0].migration.id.as_str(), kept[0].migration.result.is_some()),
            ("m3", false)
        );
        assert_eq!(kept[1].migration.id, "m7");
        assert_eq!(latest(vec![]), []);
    }

    #[test]
    fn events_for_browsers_are_one_line_of_data() {
        let text = serde_json::to_string(&WatchEvent::hello()).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(sse_event("x", "{}"), "event: x\ndata: {}\n\n");
    }
}
