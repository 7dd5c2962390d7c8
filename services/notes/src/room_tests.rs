use super::*;
use crate::store::Store;
use yrs::updates::encoder::Encode;

fn room(text: &str) -> (Store, String) {
    let store = Store::new(Limits::default());
    store.create("", text).unwrap();
    let id = store.list()[0].id.clone();
    (store, id)
}

/// A page: a document of its own, and its place in the room.
struct Page {
    doc: Doc,
    member: Member,
}

impl Page {
    fn open(store: &Store, id: &str, client_id: u32) -> Self {
        let mut page = Self { doc: new_doc(Some(client_id)), member: store.enter(id).unwrap() };
        let welcome = page.member.welcome();
        page.hear(&welcome);
        let mut hello = wire::Writer::default();
        hello.have(page.doc.transact().state_vector());
        let answer = page.member.receive(&hello.finish()).unwrap();
        page.hear(&answer);
        page
    }

    fn hear(&mut self, bytes: &[u8]) {
        for message in wire::read(bytes).unwrap() {
            if let Message::Sync(SyncMessage::SyncStep2(update) | SyncMessage::Update(update)) =
                message
            {
                let update = Update::decode_v1(&update).unwrap();
                self.doc.transact_mut().apply_update(update).unwrap();
            }
        }
    }

    /// Types without telling the room; returns the edit.
    fn type_at(&self, index: u32, typed: &str) -> Vec<u8> {
        let text = self.doc.get_or_insert_text("text");
        let mut txn = self.doc.transact_mut();
        text.insert(&mut txn, index, typed);
        txn.encode_update_v1()
    }

    fn send(&self, edit: Vec<u8>) -> Result<Bytes, Refusal> {
        let mut writer = wire::Writer::default();
        writer.edit(edit);
        writer.probe(vec![1]);
        self.member.receive(&writer.finish())
    }

    fn text(&self) -> String {
        let text = self.doc.get_or_insert_text("text");
        text.get_string(&self.doc.transact())
    }

    /// Hears what lies in the queue; returns how many messages that were.
    fn hear_all(&mut self) -> usize {
        let mut heard = 0;
        while let Some(news) = futures_util::FutureExt::now_or_never(self.member.news()) {
            self.hear(&news);
            heard += 1;
        }
        heard
    }
}

#[test]
fn what_one_types_the_others_read_and_nobody_hears_an_echo() {
    let (store, id) = room("Hello");
    let mut ada = Page::open(&store, &id, 1);
    let mut bo = Page::open(&store, &id, 2);
    assert_eq!((ada.text(), bo.text()), ("Hello".into(), "Hello".into()));

    let answer = ada.send(ada.type_at(5, " world")).unwrap();
    assert_eq!(&answer[..], [100, 1, 1], "the probe behind an edit is answered");
    assert_eq!((ada.hear_all(), bo.hear_all()), (0, 1));
    assert_eq!(bo.text(), "Hello world");
    assert_eq!(store.find(&id).unwrap().text(), "Hello world");
}

#[test]
fn typing_at_the_same_place_at_the_same_time_loses_nothing() {
    let (store, id) = room("");
    let mut ada = Page::open(&store, &id, 1);
    let mut bo = Page::open(&store, &id, 2);
    for i in 0..50 {
        let (one, other) = (ada.type_at(i, "a"), bo.type_at(0, "b"));
        ada.send(one).unwrap();
        bo.send(other).unwrap();
        if i % 7 == 0 {
            ada.hear_all();
            bo.hear_all();
        }
    }
    ada.hear_all();
    bo.hear_all();
    assert_eq!(ada.text(), bo.text());
    assert_eq!(ada.text(), store.find(&id).unwrap().text());
    let count = |letter| ada.text().matches(letter).count();
    assert_eq!((count('a'), count('b')), (50, 50));
}

#[test]
fn an_edit_that_is_known_is_not_passed_on() {
    let (store, id) = room("");
    let ada = Page::open(&store, &id, 1);
    let mut bo = Page::open(&store, &id, 2);
    let edit = ada.type_at(0, "x");
    ada.send(edit.clone()).unwrap();
    ada.send(edit).unwrap();
    assert_eq!(bo.hear_all(), 1);
}

#[test]
fn edits_in_the_wrong_order_wait_for_each_other() {
    let (store, id) = room("");
    let ada = Page::open(&store, &id, 1);
    let mut bo = Page::open(&store, &id, 2);
    let (first, second) = (ada.type_at(0, "1"), ada.type_at(1, "2"));
    ada.send(second).unwrap();
    assert_eq!((bo.hear_all(), bo.text()), (0, String::new()));
    ada.send(first).unwrap();
    bo.hear_all();
    assert_eq!(bo.text(), "12");
}

#[test]
fn one_who_missed_news_is_sent_everything_once() {
    let (store, id) = room("");
    let ada = Page::open(&store, &id, 1);
    let mut bo = Page::open(&store, &id, 2);
    let edits = 3 * NEWS_KEPT as u32;
    for i in 0..edits {
        ada.send(ada.type_at(i, "z")).unwrap();
    }
    assert_eq!(bo.hear_all(), 1);
    assert_eq!(bo.text(), "z".repeat(edits as usize));
    ada.send(ada.type_at(0, "A")).unwrap();
    assert_eq!(bo.hear_all(), 1);
    assert!(bo.text().starts_with("Az"));
}

#[test]
fn scripts_append_as_somebody_else_each_time() {
    let (store, id) = room("a");
    let mut page = Page::open(&store, &id, 7);
    let room = store.find(&id).unwrap();
    for word in ["b", "c🦀", "d"] {
        store.append(&room, "text", word).unwrap();
    }
    page.hear_all();
    assert_eq!((page.text().as_str(), room.text().as_str()), ("abc🦀d", "abc🦀d"));
    let state = room.lock();
    let txn = state.doc.transact();
    assert_eq!(txn.state_vector().len(), 4, "one client id per append");
}

#[test]
fn there_is_room_for_so_many() {
    let store = Store::new(Limits { people: 2, ..Limits::default() });
    store.create("", "").unwrap();
    let id = store.list()[0].id.clone();
    let room = store.find(&id).unwrap();
    let (one, _two) = (room.enter().unwrap(), room.enter().unwrap());
    assert_eq!(room.enter().err(), Some(Refusal::TooManyPeople { limit: 2 }));
    drop(one);
    assert!(room.enter().is_ok());
}

#[test]
fn a_full_document_refuses_and_keeps_what_it_has() {
    let store = Store::new(Limits { document_bytes: 2000, ..Limits::default() });
    store.create("", "").unwrap();
    let id = store.list()[0].id.clone();
    let ada = Page::open(&store, &id, 1);
    ada.send(ada.type_at(0, &"x".repeat(1500))).unwrap();
    let refusal = ada.send(ada.type_at(0, &"y".repeat(1500))).unwrap_err();
    assert_eq!(refusal, Refusal::DocumentFull { limit_bytes: 2000 });
    assert_eq!(store.find(&id).unwrap().text(), "x".repeat(1500));
}

#[test]
fn broken_messages_are_refused_or_harmless() {
    let (store, id) = room("some text that stands here");
    let page = Page::open(&store, &id, 1);
    let mut whole = wire::Writer::default();
    whole.have(page.doc.transact().state_vector());
    whole.edit(page.type_at(4, "typed"));
    whole.missing(page.doc.transact().encode_state_as_update_v1(&StateVector::default()));
    let whole = whole.finish();
    for byte in 0..whole.len() {
        let _ = page.member.receive(&whole[..byte]);
        for bit in 0..8 {
            let mut broken = whole.to_vec();
            broken[byte] ^= 1 << bit;
            // Whatever it says now: no panic, and the document can still be read and sent.
            let _ = page.member.receive(&broken);
            store.find(&id).unwrap().text();
        }
    }
    let state = store.find(&id).unwrap();
    let state = state.lock();
    let update = state.doc.transact().encode_state_as_update_v1(&StateVector::default());
    assert!(Update::decode_v1(&update).unwrap().encode_v1().len() > 20);
}
