//! Clients that check every byte and measure gaps. They run on an ordinary Linux TCP stack, on one
//! thread, and print one JSON line per mark and one at the end.
//!
//! A *mark* is a line on standard input. It ends a window of measurement: the client answers with what
//! it saw since the mark before. So a test brackets each move with two marks and reads the gap of just
//! that move. The end of standard input, or the end of the time that was given, ends the client.

pub mod first;
pub mod hold;
pub mod note;
pub mod pingpong;
pub mod report;
pub mod transfer;

use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

pub use report::{End, Failure, Window};

/// How long a connection may take to be established.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);
/// How clients of this process treat their connections.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// How long a client waits for any progress before it gives a connection up.
    pub patience: Duration,
    /// TCP keep-alive: after so much silence, and again after as much; three without an answer end the
    /// connection.
    pub keep_alive: Option<Duration>,
}

impl Default for Manners {
    /// Longer than any gap a test accepts, shorter than a person's patience.
    fn default() -> Self {
        Self { patience: Duration::from_secs(60), keep_alive: None }
    }
}

static MANNERS: OnceLock<Manners> = OnceLock::new();

/// Sets the manners of this process; before its first connection, once.
pub fn set_manners(manners: Manners) {
    let _ = MANNERS.set(manners);
}

fn manners() -> Manners {
    MANNERS.get().copied().unwrap_or_default()
}

/// How long a client waits for any progress before it gives a connection up.
#[must_use]
pub fn patience() -> Duration {
    manners().patience
}

/// What ends a client, and what it is asked on the way.
#[derive(Debug)]
pub struct Control {
    lines: mpsc::UnboundedReceiver<String>,
    until: Option<Instant>,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// End the window, name it, report it.
    Mark(String),
    /// End.
    Stop,
}

impl Control {
    /// Reads marks from standard input until it ends. With `duration` the end of standard input means
    /// nothing and the client ends after that time.
    #[must_use]
    pub fn new(duration: Option<Duration>) -> Self {
        let (send, lines) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in io::stdin().lock().lines() {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { lines, until: duration.map(|d| Instant::now() + d) }
    }

    /// The next order. Safe to cancel.
    pub async fn next(&mut self) -> Order {
        let Some(until) = self.until else {
            return self.lines.recv().await.map_or(Order::Stop, Order::Mark);
        };
        match tokio::time::timeout_at(until, self.lines.recv()).await {
            Err(_) => Order::Stop,
            Ok(Some(mark)) => Order::Mark(mark),
            Ok(None) => {
                tokio::time::sleep_until(until).await;
                Order::Stop
            }
        }
    }
}

/// Opens a connection with Nagle's algorithm off. With `send_buffer`, that many bytes at most wait in
/// the kernel (it doubles the figure), so that what can be written follows what is acknowledged.
pub async fn connect(to: SocketAddr, send_buffer: Option<u32>) -> Result<TcpStream, Failure> {
    let open = async {
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(idle) = manners().keep_alive {
            socket.set_keepalive(true)?;
            sockopt::set_tcp_keepidle(&socket, idle)?;
            sockopt::set_tcp_keepintvl(&socket, idle)?;
            sockopt::set_tcp_keepcnt(&socket, 3)?;
        }
        socket.connect(to).await
    };
    match timeout(CONNECT_DEADLINE, open).await {
        Ok(Ok(stream)) => {
            stream.set_nodelay(true).map_err(|e| Failure::of(&e, "set TCP_NODELAY"))?;
            Ok(stream)
        }
        Ok(Err(e)) => Err(Failure::of(&e, "connect")),
        Err(_) => Err(Failure::Stalled { doing: "connect".into() }),
    }
}

/// Prints one JSON line at once.
pub fn print_line(value: &impl serde::Serialize) {
    let text = serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"));
    let mut out = io::stdout().lock();
    // A reader that has gone does not matter to what is measured; the exit code tells the result.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
