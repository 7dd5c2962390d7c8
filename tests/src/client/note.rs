//! Typing into a document of the service `notes`, as its page does: one WebSocket for the whole time, one
//! edit per keystroke, and after each a probe whose answer proves that the edit has arrived. A second
//! WebSocket is the reader: another person, who must see every letter.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Message as Frame};
use yrs::sync::{Message, SyncMessage};
use yrs::updates::decoder::{Decode, Decoder as _, DecoderV1};
use yrs::updates::encoder::Encode;
use yrs::{Doc, GetString, ReadTxn, Text, Transact, Update, encoding::read::Cursor};

use super::{Control, End, Failure, Order, Window, connect, patience, print_line};
use crate::gap::{Meter, Spread};

/// Tag of a probe (`services/notes/src/wire.rs`).
const PROBE: u8 = 100;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The service.
    pub to: SocketAddr,
    /// What is typed, over and over.
    pub text: String,
    /// Time between two keystrokes.
    pub interval: Duration,
}

struct Person {
    socket: WebSocketStream<TcpStream>,
    doc: Doc,
}

/// Types until `control` says stop; then compares what was typed, what the reader saw and what the
/// service has. When both connections are up, prints `{"ready":2}`.
pub async fn run(plan: &Plan, mut control: Control) -> End {
    let mut end = End::new("note", 2);
    let began = Instant::now();
    if let Err(failure) = session(plan, &mut control, &mut end).await {
        end.failed(&failure);
    }
    end.seconds = began.elapsed().as_secs_f64();
    end
}

async fn session(plan: &Plan, control: &mut Control, end: &mut End) -> Result<(), Failure> {
    let id = create(plan.to).await?;
    let mut writer = Person::open(plan.to, &id).await?;
    let mut reader = Person::open(plan.to, &id).await?;
    print_line(&serde_json::json!({ "ready": 2 }));

    let mut typed = String::new();
    let (mut meter, mut longest, mut in_window) = (Meter::default(), Duration::ZERO, 0);
    let (mut window_began, mut next) = (Instant::now(), Instant::now());
    let mut letters = plan.text.chars().cycle();
    loop {
        let order = tokio::select! {
            () = sleep_until(next.into()) => None,
            order = control.next() => Some(order),
        };
        match order {
            Some(Order::Stop) => break,
            Some(Order::Mark(mark)) => {
                let now = Instant::now();
                let gap = meter.take(now);
                longest = longest.max(gap);
                let gap_ms = Spread::of_durations([gap]);
                let ms = now.duration_since(window_began).as_secs_f64() * 1e3;
                let progress = std::mem::take(&mut in_window);
                print_line(&Window { mark, ms, progress, gap_ms, alive: 2 });
                window_began = now;
                continue;
            }
            None => {}
        }
        let Some(letter) = letters.next() else { break };
        meter.wait(Instant::now());
        writer.type_letter(letter).await?;
        typed.push(letter);
        writer.probe(end.round_trips).await?;
        meter.satisfied(Instant::now());
        end.round_trips += 1;
        in_window += 1;
        next = (next + plan.interval).max(Instant::now());
    }
    reader.read_until(&typed).await?;
    end.gap_ms = Spread::of_durations([longest.max(meter.take(Instant::now()))]);
    let kept = text_of(plan.to, &id).await?;
    for text in [&kept, &writer.text()] {
        if *text != typed {
            return Err(Failure::Length { wanted: typed.len() as u64, got: text.len() as u64 });
        }
    }
    end.bytes_sent = typed.len() as u64;
    end.bytes_received = end.bytes_sent;
    Ok(())
}

impl Person {
    /// Opens the document and takes in what is there.
    async fn open(to: SocketAddr, id: &str) -> Result<Self, Failure> {
        let stream = connect(to, None).await?;
        let url = format!("ws://{}/api/docs/{id}/live", to.ip());
        let opening = timeout(patience(), tokio_tungstenite::client_async(url, stream));
        let (socket, _) = opening.await.map_err(|_| late("open"))?.map_err(broken)?;
        let mut person = Self { socket, doc: Doc::new() };
        let vector = person.doc.transact().state_vector();
        person.send(Message::Sync(SyncMessage::SyncStep1(vector))).await?;
        person.probe(0).await?;
        Ok(person)
    }

    async fn send(&mut self, message: Message) -> Result<(), Failure> {
        let frame = Frame::Binary(Bytes::from(message.encode_v1()));
        match timeout(patience(), self.socket.send(frame)).await {
            Err(_) => Err(late("send an edit")),
            Ok(sent) => sent.map_err(broken),
        }
    }

    /// A keystroke at the end of the text.
    async fn type_letter(&mut self, letter: char) -> Result<(), Failure> {
        let text = self.doc.get_or_insert_text("text");
        let update = {
            let mut change = self.doc.transact_mut();
            let end = text.len(&change);
            text.insert(&mut change, end, letter.encode_utf8(&mut [0; 4]));
            change.encode_update_v1()
        };
        self.send(Message::Sync(SyncMessage::Update(update))).await
    }

    /// Sends a probe and takes in whatever comes until its answer.
    async fn probe(&mut self, token: u64) -> Result<(), Failure> {
        let token = token.to_le_bytes().to_vec();
        self.send(Message::Custom(PROBE, token.clone())).await?;
        loop {
            for message in self.next().await? {
                if matches!(&message, Message::Custom(PROBE, answer) if *answer == token) {
                    return Ok(());
                }
                self.take_in(message).await?;
            }
        }
    }

    /// Takes in what comes until the text is this.
    async fn read_until(&mut self, text: &str) -> Result<(), Failure> {
        while self.text() != text {
            for message in self.next().await? {
                self.take_in(message).await?;
            }
        }
        Ok(())
    }

    async fn take_in(&mut self, message: Message) -> Result<(), Failure> {
        match message {
            Message::Sync(SyncMessage::SyncStep1(vector)) => {
                let update = self.doc.transact().encode_diff_v1(&vector);
                self.send(Message::Sync(SyncMessage::SyncStep2(update))).await
            }
            Message::Sync(SyncMessage::SyncStep2(update) | SyncMessage::Update(update)) => {
                let update = Update::decode_v1(&update).map_err(protocol)?;
                self.doc.transact_mut().apply_update(update).map_err(protocol)
            }
            _ => Ok(()),
        }
    }

    /// The messages of the next WebSocket message that holds any.
    async fn next(&mut self) -> Result<Vec<Message>, Failure> {
        loop {
            let frame = timeout(patience(), self.socket.next()).await;
            match frame.map_err(|_| late("wait for the service"))? {
                None => return Err(Failure::Closed { doing: "wait for the service".into() }),
                Some(Err(error)) => return Err(broken(error)),
                Some(Ok(Frame::Binary(bytes))) => return messages(&bytes).map_err(protocol),
                Some(Ok(Frame::Close(reason))) => {
                    return Err(Failure::Protocol { what: format!("closed: {reason:?}") });
                }
                // Pings are answered by the WebSocket layer.
                Some(Ok(_)) => {}
            }
        }
    }

    fn text(&self) -> String {
        let text = self.doc.get_or_insert_text("text");
        text.get_string(&self.doc.transact())
    }
}

fn messages(mut rest: &[u8]) -> Result<Vec<Message>, yrs::encoding::read::Error> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let mut decoder = DecoderV1::new(Cursor::new(rest));
        all.push(Message::decode(&mut decoder)?);
        let unread = decoder.read_to_end()?.len();
        rest = &rest[rest.len() - unread..];
    }
    Ok(all)
}

/// Makes a document; its id.
async fn create(to: SocketAddr) -> Result<String, Failure> {
    let body = r#"{"title":"Typed by ferry-client"}"#;
    let answer = http(to, "POST /api/docs", body).await?;
    let made: serde_json::Value = serde_json::from_str(&answer).map_err(protocol)?;
    match made["id"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => Err(Failure::Protocol { what: answer }),
    }
}

async fn text_of(to: SocketAddr, id: &str) -> Result<String, Failure> {
    http(to, &format!("GET /api/docs/{id}/text"), "").await
}

/// One request on a connection of its own; the body of the answer.
async fn http(to: SocketAddr, what: &str, body: &str) -> Result<String, Failure> {
    let mut stream = connect(to, None).await?;
    let head = format!(
        "{what} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        to.ip(),
        body.len()
    );
    let mut answer = Vec::new();
    let exchange = async {
        stream.write_all(head.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    timeout(patience(), exchange)
        .await
        .map_err(|_| late("ask over HTTP"))?
        .map_err(|e| Failure::of(&e, "ask over HTTP"))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 20") => Ok(body.to_owned()),
        _ => Err(Failure::Protocol { what: answer.lines().next().unwrap_or_default().to_owned() }),
    }
}

fn late(doing: &str) -> Failure {
    Failure::Stalled { doing: doing.into() }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> Failure {
    match error {
        tokio_tungstenite::tungstenite::Error::Io(e) => Failure::of(&e, "use the WebSocket"),
        other => Failure::Protocol { what: other.to_string() },
    }
}

fn protocol(error: impl std::fmt::Display) -> Failure {
    Failure::Protocol { what: error.to_string() }
}
