//! Ping-pong: messages to an echo service, one on the way per connection, every byte of the echo checked
//! against the connection's own pattern.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::{Control, End, Failure, Order, Window, connect, patience, print_line};
use crate::gap::{Meter, Spread};
use crate::pattern;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The echo service.
    pub to: SocketAddr,
    /// How many connections.
    pub connections: usize,
    /// Bytes of a message.
    pub size: usize,
    /// Time from an answer to the next message of a connection; zero: at once.
    pub think: Duration,
}

#[derive(Default)]
struct Shared {
    meter: Meter,
    longest: Duration,
    round_trips: u64,
    in_window: u64,
    failure: Option<Failure>,
}

type Connection = Rc<RefCell<Shared>>;

/// Runs until `control` says stop. All connections are opened before the first message is sent; then
/// the line `{"ready":N}` is printed.
pub async fn run(plan: &Plan, mut control: Control) -> End {
    let local = LocalSet::new();
    local.run_until(run_local(plan, &mut control)).await
}

async fn run_local(plan: &Plan, control: &mut Control) -> End {
    let (stop, stopped) = watch::channel(false);
    let mut connections = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        let state = Connection::default();
        match connect(plan.to, None).await {
            Ok(stream) => streams.push((stream, state.clone())),
            Err(failure) => state.borrow_mut().failure = Some(failure),
        }
        connections.push(state);
    }
    print_line(&serde_json::json!({ "ready": streams.len() }));
    let began = Instant::now();
    let tasks: Vec<_> = streams
        .into_iter()
        .enumerate()
        .map(|(i, (stream, state))| {
            let (plan, stopped) = (plan.clone(), stopped.clone());
            tokio::task::spawn_local(async move {
                if let Err(failure) = converse(stream, i as u64, &plan, &state, stopped).await {
                    state.borrow_mut().failure = Some(failure);
                }
            })
        })
        .collect();

    let mut window_began = began;
    while let Order::Mark(mark) = control.next().await {
        let now = Instant::now();
        print_line(&window(mark, now.duration_since(window_began), now, &connections));
        window_began = now;
    }
    // Every connection finishes its message: that is the proof that it is alive.
    stop.send_replace(true);
    for task in tasks {
        if task.await.is_err() {
            print_line(&serde_json::json!({ "error": "a connection's task panicked" }));
        }
    }
    let now = Instant::now();
    let mut end = End::new("pingpong", plan.connections);
    let mut gaps = Vec::new();
    for connection in &connections {
        let mut c = connection.borrow_mut();
        let last = c.meter.take(now);
        gaps.push(c.longest.max(last));
        end.round_trips += c.round_trips;
        if let Some(failure) = &c.failure {
            end.failed(failure);
        }
    }
    end.bytes_sent = end.round_trips * plan.size as u64;
    end.bytes_received = end.bytes_sent;
    end.gap_ms = Spread::of_durations(gaps);
    end.seconds = began.elapsed().as_secs_f64();
    end
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

/// One connection's messages, until it is told to stop; then it has its last answer.
async fn converse(
    mut stream: TcpStream,
    seed: u64,
    plan: &Plan,
    state: &Connection,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let (mut message, mut answer) = (vec![0; plan.size], vec![0; plan.size]);
    let mut position = 0;
    // Spread over the time of a thought: else all would talk at once and then be silent at once, and a move in the
    // silence would go unnoticed.
    let offset = plan.think.mul_f64(seed as f64 / plan.connections as f64);
    if !offset.is_zero() {
        let _ = timeout(offset, stopped.changed()).await;
    }
    loop {
        pattern::fill(seed, position, &mut message);
        state.borrow_mut().meter.wait(Instant::now());
        round_trip(&mut stream, &message, &mut answer, state).await?;
        if let Some(at) = pattern::first_wrong(seed, position, &answer) {
            return Err(Failure::WrongByte { position: at });
        }
        position += plan.size as u64;
        {
            let mut c = state.borrow_mut();
            c.meter.satisfied(Instant::now());
            c.round_trips += 1;
            c.in_window += 1;
        }
        if *stopped.borrow() {
            break;
        }
        if plan.think.is_zero() {
            // On a busy machine the service may have answered before the read: this connection would then
            // go on alone for as long as the runtime lets it, and the others would see gaps of our making.
            tokio::task::yield_now().await;
        } else {
            // Whichever comes first; after the stop there is one more message.
            let _ = timeout(plan.think, stopped.changed()).await;
        }
    }
    // A byte too many would come now; closing first shows whether the service closes in turn.
    stream.shutdown().await.map_err(|e| Failure::of(&e, "close"))?;
    match timeout(patience(), stream.read(&mut answer)).await {
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(Failure::Length { wanted: position, got: position + 1 }),
        Ok(Err(e)) => Err(Failure::of(&e, "wait for the other end to close")),
        Err(_) => Err(Failure::Stalled { doing: "wait for the other end to close".into() }),
    }
}

async fn round_trip(
    stream: &mut TcpStream,
    message: &[u8],
    answer: &mut [u8],
    state: &Connection,
) -> Result<(), Failure> {
    let late = |doing: &str| Failure::Stalled { doing: doing.into() };
    match timeout(patience(), stream.write_all(message)).await {
        Err(_) => return Err(late("send a message")),
        Ok(sent) => sent.map_err(|e| Failure::of(&e, "send a message"))?,
    }
    let mut got = 0;
    while got < answer.len() {
        match timeout(patience(), stream.read(&mut answer[got..])).await {
            Err(_) => return Err(late("wait for an answer")),
            Ok(Err(e)) => return Err(Failure::of(&e, "wait for an answer")),
            Ok(Ok(0)) => return Err(Failure::Closed { doing: "wait for an answer".into() }),
            Ok(Ok(len)) => got += len,
        }
        if got < answer.len() {
            state.borrow_mut().meter.progress(Instant::now());
        }
    }
    Ok(())
}
