//! One document and the live connections to it.
//!
//! The document is a Yjs document with two texts, `title` and `text`. The service merges what pages
//! send, passes on what is new, and never edits as itself while others do: a client id that the
//! service kept could come to life twice, once in the running service and once in an older copy of
//! it, and two edits of one id and number would tear the copies apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::broadcast;
use yrs::sync::{AwarenessUpdate, Message, SyncMessage};
use yrs::updates::decoder::Decode;
use yrs::{Doc, GetString, OffsetKind, Options, ReadTxn, StateVector, Text, Transact, Update};

use crate::limits::Limits;
use crate::presence::Presence;
use crate::store::Budget;
use crate::wire;

/// Names a live connection, for as long as the service runs.
pub(crate) type ConnectionId = u64;

/// News that a connection may lie behind before it is sent the whole document instead.
const NEWS_KEPT: usize = 64;

/// Something that all connections but one have to hear.
#[derive(Clone)]
pub(crate) struct News {
    pub(crate) from: ConnectionId,
    pub(crate) message: Bytes,
}

/// Why a live connection is ended. The page shows these words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the message cannot be read")]
    Malformed,
    #[error("the message is longer than {limit_bytes} bytes")]
    MessageTooLong { limit_bytes: usize },
    #[error("this document has reached its limit of {limit_bytes} bytes with its history")]
    DocumentFull { limit_bytes: usize },
    #[error("the server's documents have reached their limit of {limit_bytes} bytes together")]
    ServerFull { limit_bytes: usize },
    #[error("the state of a person takes {len_bytes} bytes, the limit is {limit_bytes}")]
    PresenceTooLong { len_bytes: usize, limit_bytes: usize },
    #[error("the state of a person is not JSON")]
    PresenceNotJson,
    #[error("a connection speaks for one person only")]
    PresenceOfOthers,
    #[error("{limit} people are here already, no more can come in")]
    TooManyPeople { limit: usize },
}

/// What the list of documents tells about one.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) title: String,
    /// UTF-16 units, as pages count.
    pub(crate) characters: u32,
    pub(crate) people: usize,
    /// Seconds since the last edit.
    pub(crate) edited_s_ago: u64,
}

/// One document; see the module.
pub(crate) struct Room {
    id: String,
    limits: Limits,
    state: Mutex<State>,
    news: broadcast::Sender<News>,
    next_connection: AtomicU64,
}

struct State {
    doc: Doc,
    presence: Presence,
    /// What the document takes of the service's budget.
    budget: Budget,
    edited: Instant,
}

impl Room {
    /// An empty document whose size counts in `budget`.
    pub(crate) fn new(id: String, limits: Limits, budget: Budget) -> Self {
        let state = State {
            doc: new_doc(None),
            presence: Presence::default(),
            budget,
            edited: Instant::now(),
        };
        Self {
            id,
            limits,
            state: Mutex::new(state),
            news: broadcast::channel(NEWS_KEPT).0,
            next_connection: AtomicU64::new(1),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Poisoning cannot be: a panic ends the whole image.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A new live connection, or the reason why there is no room for it.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Member, Refusal> {
        let limit = self.limits.people;
        if self.people() >= limit {
            return Err(Refusal::TooManyPeople { limit });
        }
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        Ok(Member { id, news: self.news.subscribe(), room: Arc::clone(self) })
    }

    /// Live connections.
    pub(crate) fn people(&self) -> usize {
        self.news.receiver_count()
    }

    /// For the list of documents.
    pub(crate) fn summary(&self) -> Summary {
        let state = self.lock();
        let (title, text) =
            (state.doc.get_or_insert_text("title"), state.doc.get_or_insert_text("text"));
        let txn = state.doc.transact();
        Summary {
            id: self.id.clone(),
            title: title.get_string(&txn),
            characters: text.len(&txn),
            people: self.people(),
            edited_s_ago: state.edited.elapsed().as_secs(),
        }
    }

    /// The text as it stands.
    pub(crate) fn text(&self) -> String {
        let state = self.lock();
        let text = state.doc.get_or_insert_text("text");
        text.get_string(&state.doc.transact())
    }

    /// Appends to one of the document's texts, as a person of its own who is used once (see the
    /// module).
    pub(crate) fn append(&self, name: &str, addition: &str, client_id: u32) -> Result<(), Refusal> {
        if addition.is_empty() {
            return Ok(());
        }
        let (known, state) = {
            let state = self.lock();
            let txn = state.doc.transact();
            let vector = txn.state_vector();
            (vector, txn.encode_state_as_update_v1(&StateVector::default()))
        };
        let person = new_doc(Some(client_id));
        let text = person.get_or_insert_text(name);
        let edit = {
            let mut txn = person.transact_mut();
            let state = Update::decode_v1(&state).map_err(|_| Refusal::Malformed)?;
            txn.apply_update(state).map_err(|_| Refusal::Malformed)?;
            text.push(&mut txn, addition);
            txn.encode_state_as_update_v1(&known)
        };
        self.merge(0, &edit)
    }

    /// Merges an edit and passes on what is new in it.
    fn merge(&self, from: ConnectionId, update: &[u8]) -> Result<(), Refusal> {
        let mut state = self.lock();
        let State { doc, budget, edited, .. } = &mut *state;
        budget.reserve(update.len(), self.limits.document_bytes, || {
            doc.transact().encode_state_as_update_v1(&StateVector::default()).len()
        })?;
        let update = Update::decode_v1(update).map_err(|_| Refusal::Malformed)?;
        let mut txn = doc.transact_mut();
        txn.apply_update(update).map_err(|_| Refusal::Malformed)?;
        if txn.has_changes() {
            let mut writer = wire::Writer::default();
            writer.edit(txn.encode_update_v1());
            drop(txn);
            *edited = Instant::now();
            self.pass_on(from, writer);
        }
        Ok(())
    }

    fn pass_on(&self, from: ConnectionId, writer: wire::Writer) {
        let message = writer.finish();
        if !message.is_empty() {
            // An error means that nobody is here to hear it.
            let _ = self.news.send(News { from, message });
        }
    }
}

/// A document that counts in UTF-16 units, as the pages do.
fn new_doc(client_id: Option<u32>) -> Doc {
    let mut options = Options { offset_kind: OffsetKind::Utf16, ..Options::default() };
    if let Some(id) = client_id {
        options.client_id = yrs::block::ClientID::new(id.into());
    }
    Doc::with_options(options)
}

/// A live connection's place in a room. It leaves when dropped.
pub(crate) struct Member {
    id: ConnectionId,
    room: Arc<Room>,
    news: broadcast::Receiver<News>,
}

impl Member {
    pub(crate) fn limits(&self) -> &Limits {
        self.room.limits()
    }

    /// What one who comes in is told first: the server's state vector and who is here.
    pub(crate) fn welcome(&self) -> Bytes {
        let state = self.room.lock();
        let mut writer = wire::Writer::default();
        writer.have(state.doc.transact().state_vector());
        writer.presence(state.presence.all());
        writer.finish()
    }

    /// The whole document and everybody: for one who missed news.
    pub(crate) fn everything(&self) -> Bytes {
        let state = self.room.lock();
        let mut writer = wire::Writer::default();
        writer.missing(state.doc.transact().encode_state_as_update_v1(&StateVector::default()));
        writer.presence(state.presence.all());
        writer.finish()
    }

    /// Takes in one WebSocket message; returns the answer, empty if there is none.
    pub(crate) fn receive(&self, bytes: &[u8]) -> Result<Bytes, Refusal> {
        let mut answer = wire::Writer::default();
        for message in wire::read(bytes).map_err(|_| Refusal::Malformed)? {
            match message {
                Message::Sync(SyncMessage::SyncStep1(vector)) => {
                    let state = self.room.lock();
                    answer.missing(state.doc.transact().encode_state_as_update_v1(&vector));
                }
                Message::Sync(SyncMessage::SyncStep2(update) | SyncMessage::Update(update)) => {
                    self.room.merge(self.id, &update)?;
                }
                Message::Awareness(told) => self.tell(told)?,
                Message::AwarenessQuery => answer.presence(self.room.lock().presence.all()),
                Message::Custom(wire::PROBE, token) if token.len() <= wire::PROBE_TOKEN_BYTES => {
                    answer.probe(token);
                }
                Message::Custom(..) | Message::Auth(_) => return Err(Refusal::Malformed),
            }
        }
        Ok(answer.finish())
    }

    /// The next news from others. Ready at once if some were missed.
    pub(crate) async fn news(&mut self) -> Bytes {
        loop {
            match self.news.recv().await {
                Ok(news) if news.from == self.id => {}
                Ok(news) => return news.message,
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    // The whole document contains all the rest of the queue as well.
                    self.news = self.news.resubscribe();
                    return self.everything();
                }
                // The room holds the sender, and this member the room.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn tell(&self, told: AwarenessUpdate) -> Result<(), Refusal> {
        let limit_bytes = self.limits().presence_bytes;
        let news = self.room.lock().presence.tell(self.id, told, limit_bytes)?;
        let mut writer = wire::Writer::default();
        writer.presence(news);
        self.room.pass_on(self.id, writer);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut writer = wire::Writer::default();
        writer.presence(self.room.lock().presence.leave(self.id));
        self.room.pass_on(self.id, writer);
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
