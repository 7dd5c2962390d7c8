//! The live connection over real sockets, with pages that speak the y-sync protocol by hand.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use notes::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use yrs::sync::{Message as YMessage, SyncMessage};
use yrs::updates::decoder::{Decode, DecoderV1};
use yrs::updates::encoder::Encode;
use yrs::{Doc, GetString, ReadTxn, Text, Transact, Update};

const PATIENCE: Duration = Duration::from_secs(30);

async fn serve(limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, notes::router(limits)).await });
    address
}

/// One HTTP request over a connection of its own; returns status and body.
async fn http(address: SocketAddr, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("no answer").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

async fn new_document(address: SocketAddr, text: &str) -> String {
    let body = serde_json::json!({ "text": text }).to_string();
    let (status, body) = http(address, "POST", "/api/docs", &body).await;
    assert_eq!(status, 201, "{body}");
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    body["id"].as_str().unwrap().to_owned()
}

/// A page at a document.
struct Page {
    doc: Doc,
    socket: WebSocketStream<TcpStream>,
    answered_probes: Vec<Vec<u8>>,
}

impl Page {
    async fn open(address: SocketAddr, id: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let url = format!("ws://{address}/api/docs/{id}/live");
        let (socket, _) = client_async(url, stream).await.unwrap();
        let mut page = Self { doc: Doc::new(), socket, answered_probes: Vec::new() };
        let hello = SyncMessage::SyncStep1(page.doc.transact().state_vector());
        page.send(YMessage::Sync(hello)).await;
        page
    }

    async fn send(&mut self, message: YMessage) {
        self.socket.send(Message::Binary(message.encode_v1().into())).await.unwrap();
    }

    async fn type_and_probe(&mut self, typed: &str, token: u8) {
        let edit = {
            let text = self.doc.get_or_insert_text("text");
            let mut txn = self.doc.transact_mut();
            text.push(&mut txn, typed);
            txn.encode_update_v1()
        };
        self.send(YMessage::Sync(SyncMessage::Update(edit))).await;
        self.send(YMessage::Custom(100, vec![token])).await;
    }

    /// Hears messages until `enough` says so.
    async fn hear_until(&mut self, enough: impl Fn(&Self) -> bool) {
        while !enough(self) {
            let next = timeout(PATIENCE, self.socket.next()).await.expect("the server is silent");
            let Message::Binary(bytes) = next.unwrap().unwrap() else { continue };
            let mut decoder = DecoderV1::from(&bytes[..]);
            for message in yrs::sync::MessageReader::new(&mut decoder) {
                match message.unwrap() {
                    YMessage::Sync(SyncMessage::SyncStep1(vector)) => {
                        let missing = self.doc.transact().encode_state_as_update_v1(&vector);
                        self.send(YMessage::Sync(SyncMessage::SyncStep2(missing))).await;
                    }
                    YMessage::Sync(SyncMessage::SyncStep2(u) | SyncMessage::Update(u)) => {
                        let update = Update::decode_v1(&u).unwrap();
                        self.doc.transact_mut().apply_update(update).unwrap();
                    }
                    YMessage::Custom(100, token) => self.answered_probes.push(token),
                    _ => {}
                }
            }
        }
    }

    fn text(&self) -> String {
        let text = self.doc.get_or_insert_text("text");
        text.get_string(&self.doc.transact())
    }

    /// How the server ends the connection.
    async fn farewell(&mut self) -> CloseFrame {
        loop {
            let next = timeout(PATIENCE, self.socket.next()).await.expect("the server is silent");
            if let Message::Close(frame) = next.unwrap().unwrap() {
                return frame.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn two_pages_and_a_script_write_one_text() {
    let address = serve(Limits::default()).await;
    let id = new_document(address, "start ").await;
    let (mut ada, mut bo) = (Page::open(address, &id).await, Page::open(address, &id).await);
    for i in 0..20 {
        ada.type_and_probe("a", i).await;
        bo.type_and_probe("b", i).await;
    }
    let (status, _) = http(address, "POST", &format!("/api/docs/{id}/text"), "script").await;
    assert_eq!(status, 200);
    let all = |page: &Page| {
        let text = page.text();
        page.answered_probes.len() == 20
            && text.contains("start ")
            && text.contains("script")
            && text.matches('b').count() == 20
            && text.len() == 6 + 20 + 20 + 6
    };
    ada.hear_until(all).await;
    bo.hear_until(all).await;
    assert_eq!(ada.answered_probes, (0..20).map(|i| vec![i]).collect::<Vec<_>>());
    assert_eq!(ada.text(), bo.text());
    assert_eq!(http(address, "GET", &format!("/api/docs/{id}/text"), "").await.1, ada.text());
}

#[tokio::test]
async fn a_page_that_comes_back_brings_what_it_typed_meanwhile() {
    let address = serve(Limits::default()).await;
    let id = new_document(address, "").await;
    let mut page = Page::open(address, &id).await;
    page.type_and_probe("online ", 1).await;
    page.hear_until(|page| page.answered_probes.len() == 1).await;
    let Page { doc, socket, .. } = page;
    drop(socket);
    let text = doc.get_or_insert_text("text");
    text.push(&mut doc.transact_mut(), "offline");
    let mut page = Page { doc, ..Page::open(address, &id).await };
    page.hear_until(|page| page.answered_probes.is_empty() && page.text() == "online offline")
        .await;
    // The answer to the server's first message carries the edit; a probe shows that it arrived.
    let mut witness = Page::open(address, &id).await;
    page.socket.flush().await.unwrap();
    let both = async {
        tokio::select! {
            () = page.hear_until(|_| false) => {}
            () = witness.hear_until(|page| page.text() == "online offline") => {}
        }
    };
    timeout(PATIENCE, both).await.unwrap();
}

#[tokio::test]
async fn a_refusal_says_why() {
    let limits = Limits { document_bytes: 1000, people: 1, ..Limits::default() };
    let address = serve(limits).await;

    let farewell = Page::open(address, "nowhere").await.farewell().await;
    assert_eq!(u16::from(farewell.code), 4404);
    assert!(farewell.reason.contains("no document \"nowhere\""), "{}", farewell.reason);

    let id = new_document(address, "").await;
    let mut page = Page::open(address, &id).await;
    page.type_and_probe("x", 1).await;
    page.hear_until(|page| page.answered_probes.len() == 1).await;
    let farewell = Page::open(address, &id).await.farewell().await;
    assert_eq!(u16::from(farewell.code), 4429);

    page.type_and_probe(&"x".repeat(1200), 2).await;
    let farewell = page.farewell().await;
    assert_eq!(u16::from(farewell.code), 4413);
    assert!(farewell.reason.contains("limit of 1000 bytes"), "{}", farewell.reason);
}

#[tokio::test]
async fn a_message_that_cannot_be_read_ends_only_its_own_connection() {
    let address = serve(Limits::default()).await;
    let id = new_document(address, "").await;
    let mut good = Page::open(address, &id).await;
    let mut bad = Page::open(address, &id).await;
    bad.socket.send(Message::Binary(Bytes::from_static(&[0, 2, 200, 1]))).await.unwrap();
    assert_eq!(u16::from(bad.farewell().await.code), 4400);
    good.type_and_probe("still here", 1).await;
    good.hear_until(|page| page.answered_probes.len() == 1).await;
}

#[tokio::test]
async fn a_dead_peer_goes_away_and_a_living_one_stays() {
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        silence: Duration::from_millis(400),
        ..Limits::default()
    };
    let address = serve(limits).await;
    let id = new_document(address, "").await;
    // The dead one never reads, so no ping is answered.
    let dead = Page::open(address, &id).await;
    let mut living = Page::open(address, &id).await;
    let people = async || {
        let (_, body) = http(address, "GET", &format!("/api/docs/{id}"), "").await;
        serde_json::from_str::<serde_json::Value>(&body).unwrap()["people"].as_u64().unwrap()
    };
    assert_eq!(people().await, 2);
    let gone = async {
        while people().await == 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = living.hear_until(|_| false) => {}
        gone = timeout(PATIENCE, gone) => gone.expect("the dead peer is still here"),
    }
    assert_eq!(people().await, 1);
    drop(dead);
}
