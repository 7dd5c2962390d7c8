//! QEMU's control protocol, as far as a migration needs it: one JSON object a line, one command at a time.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long QEMU may take to answer a command.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a QEMU that starts is tried.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Read, and not yet a whole line.
    rest: Vec<u8>,
    /// Events that came while an answer was awaited.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to a QEMU that has just been started, as soon as it listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, String> {
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("QEMU does not listen at {}: {error}", path.display()));
                }
                Err(_) => std::thread::sleep(TRY_EVERY),
            }
        };
        let mut qmp = Self { stream, rest: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.line(deadline, "a greeting")?;
        if greeting.get("QMP").is_none() {
            return Err(format!("no QEMU: {greeting}"));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Sends a command and returns its answer.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.stream.write_all(line.as_bytes()).map_err(|e| format!("QMP {command}: {e}"))?;
        let deadline = Instant::now() + LIMIT;
        loop {
            let mut answer = self.line(deadline, command)?;
            if let Some(error) = answer.get("error") {
                return Err(format!("QEMU refuses {command}: {}", error["desc"]));
            }
            match answer.get_mut("return") {
                Some(value) => return Ok(value.take()),
                None => self.events.push_back(answer),
            }
        }
    }

    /// Forgets the events that came before the last answer: they are of another migration.
    pub fn forget(&mut self) {
        self.events.clear();
    }

    /// Waits for an event whose data are `wanted`; others before it are forgotten.
    pub fn event(
        &mut self,
        name: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let deadline = Instant::now() + limit;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line(deadline, name)?,
            };
            if event["event"] == name && wanted(&event["data"]) {
                return Ok(event);
            }
        }
    }

    /// The next line. `what` is waited for.
    fn line(&mut self, deadline: Instant, what: &str) -> Result<Value, String> {
        let fail = |why: String| format!("QMP, waiting for {what}: {why}");
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(|e| fail(e.to_string()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(fail("nothing in time".into()));
            }
            self.stream.set_read_timeout(Some(left)).map_err(|e| fail(e.to_string()))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(fail("QEMU has ended".into())),
                Ok(len) => self.rest.extend_from_slice(&chunk[..len]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(fail(e.to_string())),
            }
        }
    }
}
