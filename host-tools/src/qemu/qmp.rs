//! QEMU's control protocol: one JSON object a line.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, mpsc};

/// Longest line that is read; QEMU's longest answers to our commands have a few hundred bytes.
const MAX_LINE: u64 = 64 << 10;
/// Longest time a command may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Why a QMP command did not work.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum QmpError {
    #[error("QEMU refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
    #[error("QEMU did not answer `{command}` within {} s", LIMIT.as_secs())]
    Timeout { command: String },
    #[error("QEMU ended before it answered `{command}`")]
    Ended { command: String },
    #[error("QMP socket: {source}")]
    Io {
        #[from]
        source: io::Error,
    },
    #[error("QMP greeting expected, got `{found}`")]
    Greeting { found: String },
}

/// A QMP connection. Commands are sent one after the other.
#[derive(Clone, Debug)]
pub struct Qmp {
    inner: Arc<Mutex<Inner>>,
    next_id: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Inner {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
}

impl Qmp {
    /// Greets QEMU on a connection it has made.
    ///
    /// # Errors
    /// The other side is no QEMU.
    pub async fn greet(stream: UnixStream) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = read_line(&mut reader).await?;
        if greeting.as_ref().is_none_or(|value| value.get("QMP").is_none()) {
            let found = greeting.map_or_else(|| "end of file".into(), |value| value.to_string());
            return Err(QmpError::Greeting { found });
        }
        let (sender, answers) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(value)) = read_line(&mut reader).await {
                // Events carry no id; the death watch and the guest's own words tell us more.
                if value.get("id").is_some() && sender.send(value).await.is_err() {
                    break;
                }
            }
        });
        let qmp = Self {
            inner: Arc::new(Mutex::new(Inner { writer, answers })),
            next_id: Arc::new(AtomicU64::new(1)),
        };
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Sends a command without arguments and waits for its answer.
    ///
    /// # Errors
    /// QEMU refused it, did not answer in time, or ended.
    pub async fn execute(&self, command: &str) -> Result<Value, QmpError> {
        let exchange = async {
            let mut inner = self.inner.lock().await;
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let mut line = json!({ "execute": command, "id": id }).to_string();
            line.push('\n');
            let ended = || QmpError::Ended { command: command.to_owned() };
            inner.writer.write_all(line.as_bytes()).await.map_err(|_| ended())?;
            // An answer to a command that was given up on may still be in the way.
            let mut answer = inner.answers.recv().await.ok_or_else(ended)?;
            while answer["id"] != id {
                answer = inner.answers.recv().await.ok_or_else(ended)?;
            }
            match answer.get("error") {
                Some(error) => Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: error["desc"].as_str().unwrap_or("no reason given").to_owned(),
                }),
                None => Ok(answer["return"].take()),
            }
        };
        tokio::time::timeout(LIMIT, exchange)
            .await
            .unwrap_or_else(|_| Err(QmpError::Timeout { command: command.to_owned() }))
    }
}

/// One line as JSON; `None` at the end of the stream.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Value>> {
    let mut line = Vec::new();
    let read = reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other end of a connection, played line by line.
    async fn play(mut stream: UnixStream, script: &[(&str, &str)]) {
        stream.write_all(b"{\"QMP\": {\"version\": {}}}\n").await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        for (command, answer) in script {
            let asked = read_line(&mut reader).await.unwrap().unwrap();
            assert_eq!(asked["execute"], *command);
            let answer = answer.replace("ID", &asked["id"].to_string());
            writer.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    const OK: &str = "{\"return\": {}, \"id\": ID}\n";

    #[tokio::test]
    async fn answers_are_told_from_events_and_late_answers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let script = [
            ("qmp_capabilities", OK),
            (
                "stop",
                "{\"event\": \"STOP\"}\n{\"return\": {}, \"id\": 77}\n{\"return\": {\"a\": 1}, \"id\": ID}\n",
            ),
            ("nonsense", "{\"error\": {\"desc\": \"not found\"}, \"id\": ID}\n"),
        ];
        let player = tokio::spawn(async move { play(theirs, &script).await });
        let qmp = Qmp::greet(ours).await.unwrap();
        assert_eq!(qmp.execute("stop").await.unwrap()["a"], 1);
        let error = qmp.execute("nonsense").await.unwrap_err().to_string();
        assert_eq!(error, "QEMU refused `nonsense`: not found");
        player.await.unwrap();
        let error = qmp.execute("cont").await.unwrap_err();
        assert!(matches!(error, QmpError::Ended { .. }), "{error}");
    }

    #[tokio::test]
    async fn something_else_is_no_qemu() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"hello\": 1}\n").await.unwrap();
        assert!(matches!(Qmp::greet(ours).await, Err(QmpError::Greeting { .. })));
    }
}
