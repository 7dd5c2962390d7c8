//! A service that keeps state in every place where Rust code keeps it, and shows it on request. It knows
//! nothing of being moved; a test moves it and looks whether anything has changed that should not.
//!
//! Lines on TCP port 7000, each answered with one line of JSON:
//!
//! - `tick`: every counter plus one; the answer holds them all.
//! - `state`: the same without counting.
//! - `random`: 32 bytes of the machine's entropy.
//! - `sleep MS`: answers when the timer has fired, with the time that a clock saw.
//! - `fill MIB`: so many MiB more of memory that is written once, now, and kept; the answer says how many there are.
//!
//! In the guest it also echoes on port 7, as `pingpong` does: for clients that measure how long it stands still.

mod state;

use std::io;
use std::time::{Duration, Instant};

use state::{Places, Question};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Longest line that is taken.
const LINE_MAX: u64 = 256;
const PORT: u16 = 7000;

type Asked = (Question, oneshot::Sender<String>);

/// Speaks with one client until it closes.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ask: mpsc::Sender<Asked>,
) -> io::Result<()> {
    let (read, mut write) = tokio::io::split(stream);
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        let limited = &mut tokio::io::AsyncReadExt::take(&mut read, LINE_MAX);
        if limited.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut answer = match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("tick", "") => asked(&ask, Question::Tick).await?,
            ("state", "") => asked(&ask, Question::Look).await?,
            ("random", "") => state::random(),
            ("fill", mib) => match mib.parse() {
                Ok(mib) => asked(&ask, Question::Fill { mib }).await?,
                Err(_) => r#"{"error":"fill how many MiB?"}"#.into(),
            },
            ("sleep", ms) => match ms.parse() {
                Ok(ms) => sleep(ms).await,
                Err(_) => r#"{"error":"sleep how long?"}"#.into(),
            },
            _ => r#"{"error":"tick, state, random, sleep MS or fill MIB"}"#.into(),
        };
        answer.push('\n');
        write.write_all(answer.as_bytes()).await?;
        write.flush().await?;
    }
}

async fn asked(ask: &mpsc::Sender<Asked>, question: Question) -> io::Result<String> {
    let (answer, answered) = oneshot::channel();
    let gone = |_| io::Error::other("the keeper of the state has ended");
    ask.send((question, answer)).await.map_err(|_| gone(()))?;
    answered.await.map_err(|_| gone(()))
}

async fn sleep(ms: u64) -> String {
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!(r#"{{"asked_ms":{ms},"slept_us":{}}}"#, began.elapsed().as_micros())
}

/// The root future: tokio polls it where it lies on the stack, so `places` lives there.
async fn keep(mut questions: mpsc::Receiver<Asked>) -> io::Result<()> {
    let mut places = Places::new();
    while let Some((question, answer)) = questions.recv().await {
        let text = places.answer(question);
        // Whoever asked may have gone meanwhile.
        let _ = answer.send(text);
    }
    Ok(())
}

/// In the guest.
#[cfg(target_os = "hermit")]
fn main() -> std::process::ExitCode {
    runtime::run(async {
        let (ask, questions) = mpsc::channel(16);
        let listener = runtime::net::TcpListener::bind(PORT).await?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, ask.clone()));
            }
        });
        let echoing = runtime::net::TcpListener::bind(pingpong::PORT).await?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = echoing.accept().await {
                // An error is the peer's: reset or gone.
                tokio::spawn(async move { pingpong::echo(stream).await.ok() });
            }
        });
        keep(questions).await
    })
}

/// On the machine at hand, to try it out: `cargo run -p stateful [ADDRESS:PORT]`.
#[cfg(not(target_os = "hermit"))]
fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| format!("127.0.0.1:{PORT}"));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (ask, questions) = mpsc::channel(16);
        let listener = tokio::net::TcpListener::bind(&address).await?;
        println!("stateful: {}", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, ask.clone()));
            }
        });
        keep(questions).await
    })
}
