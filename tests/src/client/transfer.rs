//! Down- and uploads of the service `transfer`, over HTTP/1.1 spoken here in a few lines: what matters
//! is every byte and the time between them, and a client library would hide both.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::{Control, End, Failure, Order, Window, connect, patience, print_line};
use crate::gap::{Meter, Spread};
use crate::pattern;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// `GET /bytes/{n}?seed={s}`.
    Download,
    /// `PUT /sink`.
    Upload,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The service.
    pub to: SocketAddr,
    /// Which way.
    pub direction: Direction,
    /// Connections side by side.
    pub connections: usize,
    /// Bytes of each transfer.
    pub bytes: u64,
    /// Begin another transfer when one has ended, until told to stop; the last one is finished.
    pub again: bool,
    /// Longest rate of one connection in bytes per second; for slow, long transfers.
    pub rate: Option<u64>,
}

/// Written, or read, at once.
const PIECE: usize = 64 * 1024;
/// What waits in the client's kernel at most: so small that writing follows the acknowledgements, and a
/// gap in them shows; large enough for full speed over a millisecond.
const SEND_BUFFER: u32 = 128 * 1024;
/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;

#[derive(Default)]
struct Shared {
    meter: Meter,
    longest: Duration,
    bytes: u64,
    in_window: u64,
    transfers: u64,
    failure: Option<Failure>,
    sha256: Vec<String>,
    stop: bool,
}

type Connection = Rc<RefCell<Shared>>;

/// Runs until all transfers have ended and, with `again`, `control` said stop. When all connections are
/// open, prints `{"ready":N}`.
pub async fn run(plan: &Plan, mut control: Control) -> End {
    LocalSet::new().run_until(run_local(plan, &mut control)).await
}

async fn run_local(plan: &Plan, control: &mut Control) -> End {
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        let state = Connection::default();
        let buffer = (plan.direction == Direction::Upload).then_some(SEND_BUFFER);
        match connect(plan.to, buffer).await {
            Ok(stream) => streams.push((stream, state.clone())),
            Err(failure) => state.borrow_mut().failure = Some(failure),
        }
        connections.push(state);
    }
    print_line(&serde_json::json!({ "ready": streams.len() }));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (i, (stream, state)) in streams.into_iter().enumerate() {
        let plan = plan.clone();
        tasks.spawn_local(async move {
            if let Err(failure) = transfers(stream, i as u64, &plan, &state).await {
                state.borrow_mut().failure = Some(failure);
            }
            // What has ended waits for nothing.
            state.borrow_mut().meter = Meter::default();
        });
    }
    let mut window_began = began;
    let mut listening = true;
    loop {
        tokio::select! {
            done = tasks.join_next() => if done.is_none() { break },
            order = control.next(), if listening => match order {
                Order::Mark(mark) => {
                    let now = Instant::now();
                    print_line(&window(mark, now.duration_since(window_began), now, &connections));
                    window_began = now;
                }
                Order::Stop => {
                    listening = false;
                    connections.iter().for_each(|c| c.borrow_mut().stop = true);
                }
            },
        }
    }
    end(plan, began, &connections)
}

fn window(mark: String, length: Duration, now: Instant, connections: &[Connection]) -> Window {
    let mut gaps = Vec::with_capacity(connections.len());
    let (mut progress, mut alive) = (0, 0);
    for connection in connections {
        let mut c = connection.borrow_mut();
        let gap = c.meter.take(now);
        c.longest = c.longest.max(gap);
        gaps.push(gap);
        progress += std::mem::take(&mut c.in_window);
        alive += usize::from(c.failure.is_none());
    }
    let gap_ms = Spread::of_durations(gaps);
    Window { mark, ms: length.as_secs_f64() * 1e3, progress, gap_ms, alive }
}

fn end(plan: &Plan, began: Instant, connections: &[Connection]) -> End {
    let name = if plan.direction == Direction::Download { "download" } else { "upload" };
    let mut end = End::new(name, plan.connections);
    let mut bytes = 0;
    for connection in connections {
        let mut c = connection.borrow_mut();
        bytes += c.bytes;
        end.round_trips += c.transfers;
        end.sha256.append(&mut c.sha256);
        if let Some(failure) = &c.failure {
            end.failed(failure);
        }
    }
    match plan.direction {
        Direction::Download => end.bytes_received = bytes,
        Direction::Upload => end.bytes_sent = bytes,
    }
    end.gap_ms = Spread::of_durations(connections.iter().map(|c| c.borrow().longest));
    end.seconds = began.elapsed().as_secs_f64();
    end
}

async fn transfers(
    mut stream: TcpStream,
    number: u64,
    plan: &Plan,
    state: &Connection,
) -> Result<(), Failure> {
    for round in 0.. {
        let seed = number << 32 | round;
        state.borrow_mut().meter.wait(Instant::now());
        let digest = match plan.direction {
            Direction::Download => download(&mut stream, seed, plan, state).await?,
            Direction::Upload => upload(&mut stream, seed, plan, state).await?,
        };
        let mut c = state.borrow_mut();
        // The window goes on with the next transfer.
        c.longest = c.longest.max(c.meter.longest(Instant::now()));
        c.transfers += 1;
        c.sha256.push(digest);
        if !plan.again || c.stop {
            break;
        }
    }
    Ok(())
}

fn progress(state: &Connection, bytes: usize) {
    let mut c = state.borrow_mut();
    c.meter.progress(Instant::now());
    c.bytes += bytes as u64;
    c.in_window += bytes as u64;
}

async fn within<T>(
    doing: &'static str,
    what: impl Future<Output = std::io::Result<T>>,
) -> Result<T, Failure> {
    match timeout(patience(), what).await {
        Err(_) => Err(Failure::Stalled { doing: doing.into() }),
        Ok(result) => result.map_err(|e| Failure::of(&e, doing)),
    }
}

/// Waits as long as `done` bytes are too many for the plan's rate. Not a gap: the client wants it so.
async fn pace(plan: &Plan, began: Instant, done: u64, state: &Connection) {
    let Some(rate) = plan.rate else { return };
    let due = began + Duration::from_secs_f64(done as f64 / rate as f64);
    if due > Instant::now() {
        state.borrow_mut().meter.satisfied(Instant::now());
        tokio::time::sleep_until(due.into()).await;
        state.borrow_mut().meter.wait(Instant::now());
    }
}

async fn download(
    stream: &mut TcpStream,
    seed: u64,
    plan: &Plan,
    state: &Connection,
) -> Result<String, Failure> {
    let request =
        format!("GET /bytes/{}?seed={seed} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.bytes, plan.to.ip());
    within("send a request", stream.write_all(request.as_bytes())).await?;
    let mut buffer = vec![0; PIECE];
    let (head, mut have) = read_head(stream, &mut buffer).await?;
    expect(&head, plan.bytes)?;
    let began = Instant::now();
    let (mut position, mut hasher) = (0, Sha256::new());
    loop {
        let body = &buffer[..have];
        if position + have as u64 > plan.bytes {
            return Err(Failure::Length { wanted: plan.bytes, got: position + have as u64 });
        }
        progress(state, have);
        if let Some(at) = pattern::first_wrong(seed, position, body) {
            return Err(Failure::WrongByte { position: at });
        }
        hasher.update(body);
        position += have as u64;
        if position == plan.bytes {
            return Ok(hex(&hasher.finalize()));
        }
        pace(plan, began, position, state).await;
        have = within("read the body", stream.read(&mut buffer)).await?;
        if have == 0 {
            return Err(Failure::Length { wanted: plan.bytes, got: position });
        }
    }
}

async fn upload(
    stream: &mut TcpStream,
    seed: u64,
    plan: &Plan,
    state: &Connection,
) -> Result<String, Failure> {
    let request = format!(
        "PUT /sink HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
        plan.to.ip(),
        plan.bytes
    );
    within("send a request", stream.write_all(request.as_bytes())).await?;
    let began = Instant::now();
    let (mut position, mut hasher, mut piece) = (0, Sha256::new(), vec![0; PIECE]);
    while position < plan.bytes {
        let len = usize::try_from(plan.bytes - position).map_or(PIECE, |left| left.min(PIECE));
        pattern::fill(seed, position, &mut piece[..len]);
        hasher.update(&piece[..len]);
        let mut sent = 0;
        while sent < len {
            let written = within("send the body", stream.write(&piece[sent..len])).await?;
            progress(state, written);
            sent += written;
        }
        position += len as u64;
        pace(plan, began, position, state).await;
    }
    let wanted = hex(&hasher.finalize());
    let mut buffer = vec![0; PIECE];
    let (head, mut have) = read_head(stream, &mut buffer).await?;
    let length = content_length(&head)?;
    while (have as u64) < length {
        match within("read the answer", stream.read(&mut buffer[have..])).await? {
            0 => return Err(Failure::Closed { doing: "read the answer".into() }),
            len => have += len,
        }
    }
    let answer: serde_json::Value = serde_json::from_slice(&buffer[..have])
        .map_err(|e| Failure::Protocol { what: format!("no JSON: {e}") })?;
    let got = answer["bytes"].as_u64().unwrap_or(0);
    if got != plan.bytes {
        return Err(Failure::Length { wanted: plan.bytes, got });
    }
    let got = answer["sha256"].as_str().unwrap_or_default().to_owned();
    if got == wanted { Ok(wanted) } else { Err(Failure::Digest { wanted, got }) }
}

/// Reads the head of an answer; what follows it stays at the front of `buffer`, that many bytes.
async fn read_head(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<(String, usize), Failure> {
    let mut have = 0;
    loop {
        match within("read the answer", stream.read(&mut buffer[have..])).await? {
            0 => return Err(Failure::Closed { doing: "read the answer".into() }),
            len => have += len,
        }
        if let Some(at) = buffer[..have].windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..at]).to_ascii_lowercase();
            buffer.copy_within(at + 4..have, 0);
            return Ok((head, have - at - 4));
        }
        if have > HEAD_MAX {
            return Err(Failure::Protocol { what: "a head without an end".into() });
        }
    }
}

fn content_length(head: &str) -> Result<u64, Failure> {
    let first = head.lines().next().unwrap_or_default();
    let field = head.lines().find_map(|l| l.strip_prefix("content-length:"));
    let length = field.and_then(|v| v.trim().parse().ok());
    match (first.split(' ').nth(1), length) {
        (Some("200"), Some(length)) => Ok(length),
        _ => Err(Failure::Protocol { what: first.to_owned() }),
    }
}

fn expect(head: &str, wanted: u64) -> Result<(), Failure> {
    match content_length(head)? {
        got if got == wanted => Ok(()),
        got => Err(Failure::Length { wanted, got }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads() {
        let head = "http/1.1 200 ok\r\ncontent-length: 17\r\nx: y";
        assert_eq!(content_length(head), Ok(17));
        assert_eq!(expect(head, 18), Err(Failure::Length { wanted: 18, got: 17 }));
        assert!(content_length("http/1.1 404 not found\r\ncontent-length: 0").is_err());
        assert!(content_length("http/1.1 200 ok").is_err());
    }
}
