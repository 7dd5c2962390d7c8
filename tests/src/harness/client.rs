//! A `ferry-client` that runs while the service moves.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::World;
use super::world::built;
use crate::client::{End, Window};

/// How long a client may take to open its connections.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to answer a mark: holders have every connection prove that it lives.
const MARK_LIMIT: Duration = Duration::from_secs(70);

/// A running client. It is ended when this is dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Client {
    /// Starts `ferry-client` in the client's namespace and waits until its connections are open.
    #[must_use]
    pub fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command = Self::command(world, arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start a client: {e}"));
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|out| BufReader::new(out).lines()) {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let name = arguments.first().copied().unwrap_or("client").to_owned();
        let mut client = Self { child, input, lines, name };
        let ready = client.line(READY_LIMIT);
        assert!(ready.get("ready").is_some(), "{}: not ready but {ready}", client.name);
        client
    }

    /// `ferry-client` in the client's namespace, not yet started.
    #[must_use]
    pub fn command(world: &World, arguments: &[&str]) -> Command {
        let program = built("ferry-client", "`cargo build -p ferry-tests` with the same profile");
        world.in_node("client", &[&[&*program.to_string_lossy()], arguments].concat())
    }

    fn line(&mut self, limit: Duration) -> Value {
        match self.lines.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line)
                .unwrap_or_else(|e| panic!("{}: {e} in `{line}`", self.name)),
            Err(RecvTimeoutError::Timeout) => panic!("{}: nothing for {limit:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => panic!("{} has ended early", self.name),
        }
    }

    /// Ends the window and returns what the client saw in it.
    pub fn mark(&mut self, name: &str) -> Window {
        let input = self.input.as_mut();
        let sent = input.map(|i| writeln!(i, "{name}").and_then(|()| i.flush()));
        assert!(matches!(sent, Some(Ok(()))), "{} takes no mark {name}: {sent:?}", self.name);
        let line = self.line(MARK_LIMIT);
        let window: Window = serde_json::from_value(line.clone())
            .unwrap_or_else(|e| panic!("{}: {e} in {line}", self.name));
        assert_eq!(window.mark, name);
        window
    }

    /// What it has printed last, of what nobody has read yet.
    pub fn last_words(&mut self) -> Option<String> {
        self.lines.try_iter().last()
    }

    /// Whether it has ended, so that no mark can be set any more: a client with a fixed amount to move.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Tells it to end, and returns its report.
    #[must_use]
    pub fn end(mut self, limit: Duration) -> End {
        drop(self.input.take());
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.line(left);
            // Windows that nobody asked for any more.
            if line.get("mark").is_none() {
                return serde_json::from_value(line.clone())
                    .unwrap_or_else(|e| panic!("{}: {e} in {line}", self.name));
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // After its report it ends by itself; killing what has ended does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
