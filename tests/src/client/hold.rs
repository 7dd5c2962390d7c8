//! Holding connections open without saying anything. At each mark, and at the end, every connection
//! proves that it lives: one message to the echo service, and the right answer.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Control, End, Failure, Order, Window, connect, patience, print_line};
use crate::gap::Spread;
use crate::pattern;

/// Bytes of a proof of life.
const SIZE: usize = 16;

/// Holds `connections` open until `control` says stop. When they are open, prints `{"ready":N}`.
pub async fn run(to: SocketAddr, connections: usize, mut control: Control) -> End {
    let began = Instant::now();
    let mut end = End::new("hold", connections);
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        match connect(to, None).await {
            Ok(stream) => streams.push(stream),
            Err(failure) => end.failed(&failure),
        }
    }
    print_line(&serde_json::json!({ "ready": streams.len() }));
    let mut round = 0;
    let mut window_began = Instant::now();
    while let Order::Mark(mark) = control.next().await {
        let gaps = prove(&mut streams, round, &mut end).await;
        round += 1;
        let now = Instant::now();
        print_line(&Window {
            mark,
            ms: now.duration_since(window_began).as_secs_f64() * 1e3,
            progress: streams.len() as u64,
            gap_ms: gaps,
            alive: streams.len(),
        });
        window_began = now;
    }
    end.gap_ms = prove(&mut streams, round, &mut end).await;
    end.bytes_received = end.round_trips * SIZE as u64;
    end.bytes_sent = end.bytes_received;
    end.seconds = began.elapsed().as_secs_f64();
    end
}

/// One message and answer on every connection, all at once; those that fail are dropped. Returns the
/// spread of the answer times.
async fn prove(streams: &mut Vec<TcpStream>, round: u64, end: &mut End) -> Spread {
    let mut all = JoinSet::new();
    for (i, mut stream) in std::mem::take(streams).into_iter().enumerate() {
        all.spawn(async move {
            let began = Instant::now();
            let result = echo(&mut stream, (i as u64) << 20 | round).await;
            (stream, result, began.elapsed())
        });
    }
    let mut times = Vec::new();
    while let Some(done) = all.join_next().await {
        match done {
            Ok((stream, Ok(()), time)) => {
                streams.push(stream);
                times.push(time);
                end.round_trips += 1;
            }
            Ok((_, Err(failure), _)) => end.failed(&failure),
            Err(e) => end.failed(&Failure::Other { what: e.to_string(), doing: "run".into() }),
        }
    }
    Spread::of_durations(times)
}

async fn echo(stream: &mut TcpStream, seed: u64) -> Result<(), Failure> {
    let mut message = [0; SIZE];
    pattern::fill(seed, 0, &mut message);
    let mut answer = [0; SIZE];
    let talk = async {
        stream.write_all(&message).await?;
        stream.read_exact(&mut answer).await.map(drop)
    };
    match timeout(patience(), talk).await {
        Err(_) => Err(Failure::Stalled { doing: "prove that it lives".into() }),
        Ok(Err(e)) => Err(Failure::of(&e, "prove that it lives")),
        Ok(Ok(())) => match pattern::first_wrong(seed, 0, &answer) {
            Some(position) => Err(Failure::WrongByte { position }),
            None => Ok(()),
        },
    }
}
