//! All documents of the service, and the memory they may take together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::limits::Limits;
use crate::room::{Member, Refusal, Room, Summary};

/// The documents by id. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub(crate) struct Store {
    limits: Limits,
    rooms: Arc<Mutex<HashMap<String, Arc<Room>>>>,
    used_bytes: Arc<AtomicUsize>,
}

/// Why a request about a document is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("there is no document {id:?}; documents live in the server's memory only")]
    NoSuchDocument { id: String },
    #[error("{limit} documents is the limit; delete one first")]
    TooManyDocuments { limit: usize },
    #[error("{people} people have the document open; it can be deleted when they have left")]
    InUse { people: usize },
    #[error("{limit} people are connected to this server already, no more can come in")]
    TooManyPeople { limit: usize },
    #[error(transparent)]
    Document(#[from] Refusal),
    #[error("the machine has no random numbers to give: {0}")]
    NoEntropy(#[from] getrandom::Error),
}

impl Store {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, rooms: Arc::default(), used_bytes: Arc::default() }
    }

    fn rooms(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Room>>> {
        // Poisoning cannot be: a panic ends the whole image.
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// All documents, the one edited last first.
    pub(crate) fn list(&self) -> Vec<Summary> {
        let mut list: Vec<_> = self.rooms().values().map(|room| room.summary()).collect();
        list.sort_by(|a, b| (a.edited_s_ago, &a.id).cmp(&(b.edited_s_ago, &b.id)));
        list
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Room>, StoreError> {
        let found = self.rooms().get(id).cloned();
        found.ok_or_else(|| StoreError::NoSuchDocument { id: id.into() })
    }

    /// Makes a document. It exists only if title and text fit.
    pub(crate) fn create(&self, title: &str, text: &str) -> Result<Arc<Room>, StoreError> {
        let limit = self.limits.documents;
        if self.rooms().len() >= limit {
            return Err(StoreError::TooManyDocuments { limit });
        }
        let id = format!("{:08x}{:08x}", getrandom::u32()?, getrandom::u32()?);
        let budget = Budget {
            document_bytes: 0,
            used_bytes: Arc::clone(&self.used_bytes),
            limit_bytes: self.limits.total_bytes,
        };
        let room = Arc::new(Room::new(id.clone(), self.limits.clone(), budget));
        self.append(&room, "title", title)?;
        self.append(&room, "text", text)?;
        self.rooms().insert(id, Arc::clone(&room));
        Ok(room)
    }

    /// Appends to a document's `title` or `text`.
    pub(crate) fn append(&self, room: &Room, name: &str, addition: &str) -> Result<(), StoreError> {
        // Line ends as text areas have them: positions would differ from page to page otherwise.
        let addition = addition.replace("\r\n", "\n").replace('\r', "\n");
        Ok(room.append(name, &addition, getrandom::u32()?)?)
    }

    /// Removes a document that nobody has open.
    pub(crate) fn remove(&self, id: &str) -> Result<(), StoreError> {
        let people = self.find(id)?.people();
        if people > 0 {
            return Err(StoreError::InUse { people });
        }
        self.rooms().remove(id);
        Ok(())
    }

    /// A place at a document for a live connection.
    pub(crate) fn enter(&self, id: &str) -> Result<Member, StoreError> {
        let room = self.find(id)?;
        let limit = self.limits.total_people;
        if self.rooms().values().map(|room| room.people()).sum::<usize>() >= limit {
            return Err(StoreError::TooManyPeople { limit });
        }
        Ok(room.enter()?)
    }
}

/// One document's part of the service's memory. Given back when dropped.
///
/// An update is counted at its full length when it comes, although most of it may be known already
/// or merge with what is there. Only when that count meets a limit is the document measured.
pub(crate) struct Budget {
    document_bytes: usize,
    used_bytes: Arc<AtomicUsize>,
    limit_bytes: usize,
}

impl Budget {
    /// Counts `len_bytes` more, or says which limit is in the way. `measure` tells the document's
    /// real size.
    pub(crate) fn reserve(
        &mut self,
        len_bytes: usize,
        document_limit_bytes: usize,
        measure: impl FnOnce() -> usize,
    ) -> Result<(), Refusal> {
        if self.check(len_bytes, document_limit_bytes).is_err() {
            self.set(measure());
            self.check(len_bytes, document_limit_bytes)?;
        }
        self.set(self.document_bytes + len_bytes);
        Ok(())
    }

    fn check(&self, len_bytes: usize, document_limit_bytes: usize) -> Result<(), Refusal> {
        if self.document_bytes + len_bytes > document_limit_bytes {
            return Err(Refusal::DocumentFull { limit_bytes: document_limit_bytes });
        }
        if self.used_bytes.load(Ordering::Relaxed) + len_bytes > self.limit_bytes {
            return Err(Refusal::ServerFull { limit_bytes: self.limit_bytes });
        }
        Ok(())
    }

    fn set(&mut self, document_bytes: usize) {
        self.used_bytes.fetch_sub(self.document_bytes, Ordering::Relaxed);
        self.used_bytes.fetch_add(document_bytes, Ordering::Relaxed);
        self.document_bytes = document_bytes;
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Store {
        Store::new(Limits {
            documents: 3,
            document_bytes: 400,
            total_bytes: 900,
            ..Limits::default()
        })
    }

    #[test]
    fn a_document_keeps_its_title_and_text() {
        let store = small();
        let room = store.create("Plan", "one\r\ntwo\rthree").unwrap();
        assert_eq!(room.text(), "one\ntwo\nthree");
        store.append(&room, "text", "\n🦀").unwrap();
        let list = store.list();
        assert_eq!((list.len(), list[0].title.as_str(), list[0].characters), (1, "Plan", 16));
        assert_eq!(store.find(&list[0].id).unwrap().text(), "one\ntwo\nthree\n🦀");
    }

    #[test]
    fn each_limit_is_named() {
        let store = small();
        let text = "x".repeat(300);
        let error = store.create("", &"x".repeat(401)).err().unwrap();
        assert!(matches!(error, StoreError::Document(Refusal::DocumentFull { limit_bytes: 400 })));
        store.create("", &text).unwrap();
        store.create("", &text).unwrap();
        let error = store.create("", &text).err().unwrap();
        assert!(matches!(error, StoreError::Document(Refusal::ServerFull { limit_bytes: 900 })));
        store.create("", "").unwrap();
        let error = store.create("", "").err().unwrap();
        assert!(matches!(error, StoreError::TooManyDocuments { limit: 3 }));
    }

    #[test]
    fn a_removed_document_gives_its_memory_back() {
        let store = small();
        for _ in 0..20 {
            store.create("", &"x".repeat(350)).unwrap();
            let id = store.list()[0].id.clone();
            store.remove(&id).unwrap();
            assert!(matches!(store.find(&id), Err(StoreError::NoSuchDocument { .. })));
        }
        assert_eq!(store.used_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_document_in_use_stays() {
        let store = small();
        store.create("", "x").unwrap();
        let id = store.list()[0].id.clone();
        let member = store.enter(&id).unwrap();
        assert!(matches!(store.remove(&id), Err(StoreError::InUse { people: 1 })));
        drop(member);
        store.remove(&id).unwrap();
    }

    #[test]
    fn known_edits_do_not_fill_a_document() {
        let mut budget =
            Budget { document_bytes: 0, used_bytes: Arc::default(), limit_bytes: 1000 };
        for _ in 0..100 {
            budget.reserve(90, 200, || 100).unwrap();
        }
        assert_eq!(
            budget.reserve(90, 200, || 150).unwrap_err(),
            Refusal::DocumentFull { limit_bytes: 200 }
        );
    }
}
