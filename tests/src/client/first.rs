//! The first answer of an HTTP service that is only being started: one attempt after the other, each soon given up,
//! because a SYN that nobody was there to hear is repeated after a second only.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{End, Failure, patience, print_line};

/// How long an attempt to connect may take: the measurement is as exact as that.
const ATTEMPT: Duration = Duration::from_millis(10);
/// What every answer begins with.
const BEGINNING: &[u8] = b"HTTP/1.1 200";

/// Prints `{"ready":1}`, then asks until there is an answer. Its time is the report's `seconds`.
pub async fn run(to: SocketAddr) -> End {
    let began = Instant::now();
    let mut end = End::new("first", 1);
    print_line(&serde_json::json!({ "ready": 1 }));
    while began.elapsed() < patience() {
        if ask(to).await {
            end.round_trips = 1;
            end.seconds = began.elapsed().as_secs_f64();
            return end;
        }
    }
    end.failed(&Failure::Stalled { doing: "wait for the first answer".into() });
    end.seconds = began.elapsed().as_secs_f64();
    end
}

/// Whether it answers.
async fn ask(to: SocketAddr) -> bool {
    let began = Instant::now();
    let Ok(Ok(mut stream)) = timeout(ATTEMPT, TcpStream::connect(to)).await else {
        // Refused, or unreachable, at once: the same pause.
        tokio::time::sleep(ATTEMPT.saturating_sub(began.elapsed())).await;
        return false;
    };
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", to.ip());
    let mut answer = [0; BEGINNING.len()];
    let talk = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_exact(&mut answer).await
    };
    matches!(timeout(patience(), talk).await, Ok(Ok(_))) && answer == BEGINNING
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_server_that_starts_late_and_refuses_first_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        assert!(!ask("127.0.0.1:1".parse().unwrap()).await);
        let server = async {
            for answer in ["HTTP/1.1 503 not yet", "HTTP/1.1 200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let (end, ()) = tokio::join!(run(to), server);
        assert!(end.flawless() && end.round_trips == 1, "{end:?}");
    }
}
