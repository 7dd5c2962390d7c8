//! Headless Chromium and the pipe to it (Chrome DevTools protocol, `--remote-debugging-pipe`):
//! JSON messages, each ended by a zero byte, on file descriptors 3 (to it) and 4 (from it).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::BrowserError;

/// What is started unless something else is named.
pub const CHROMIUM: &str = "chromium";

/// The longest that a call may take: the machine may be busy with much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long the browser may take to close.
const CLOSING: Duration = Duration::from_secs(10);

/// No sandbox, because tests run as root; nothing that calls home.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];

/// Moves the pipe from standard input and output to where Chromium expects it.
const TO_PIPE: &str = r#"exec 3<&0 4>&1 </dev/null >/dev/null; exec "$@""#;

/// A running browser. It is closed when dropped.
pub struct Browser {
    link: Arc<Link>,
    child: Child,
    reader: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    // Removed with all that the browser wrote, after it has ended.
    _profile: TempDir,
}

/// What pages and the reading thread share.
pub(crate) struct Link {
    to_browser: Mutex<Option<ChildStdin>>,
    next_id: AtomicU64,
    calls: Mutex<Option<HashMap<u64, Sender<Value>>>>,
    events: Mutex<Vec<Value>>,
    log: std::path::PathBuf,
}

impl Browser {
    /// Starts `program` with a fresh profile.
    ///
    /// # Errors
    /// If there is no such program, or it ends at once.
    pub fn start(program: &str) -> Result<Self, BrowserError> {
        let failed = |source| BrowserError::Start { program: program.to_owned(), source };
        let profile = TempDir::new().map_err(failed)?;
        let log = profile.path().join("browser.log");
        let mut child = Command::new("sh")
            .args(["-c", TO_PIPE, "sh", program])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(failed)?)
            .spawn()
            .map_err(failed)?;
        let (to_browser, from_browser) = (child.stdin.take(), child.stdout.take());
        let link = Arc::new(Link {
            to_browser: Mutex::new(to_browser),
            next_id: AtomicU64::new(1),
            calls: Mutex::new(Some(HashMap::new())),
            events: Mutex::default(),
            log,
        });
        let (tell_end, ended) = mpsc::channel();
        let reader = from_browser.map(|from_browser| {
            let link = Arc::clone(&link);
            std::thread::spawn(move || {
                link.read(from_browser);
                // Nobody may be waiting for the end any more.
                let _ = tell_end.send(());
            })
        });
        let browser = Self { link, child, reader, ended, _profile: profile };
        browser.link.call(None, "Browser.getVersion", json!({}))?;
        Ok(browser)
    }

    /// The browser's name and version.
    ///
    /// # Errors
    /// If it is gone.
    pub fn version(&self) -> Result<String, BrowserError> {
        let version = self.link.call(None, "Browser.getVersion", json!({}))?;
        Ok(version["product"].as_str().unwrap_or_default().to_owned())
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may be gone already. The pipe's end tells it to go, too.
        let _ = self.link.send(&json!({ "id": 0, "method": "Browser.close" }));
        *lock(&self.link.to_browser) = None;
        if self.ended.recv_timeout(CLOSING).is_err() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Link {
    /// Calls a DevTools method, of a page (`session`) or of the browser, and waits for its result.
    pub(crate) fn call(
        &self,
        session: Option<&str>,
        method: &str,
        params: Value,
    ) -> Result<Value, BrowserError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = mpsc::channel();
        match &mut *lock(&self.calls) {
            Some(calls) => calls.insert(id, answer),
            None => return Err(self.gone()),
        };
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.send(&message)?;
        let mut answer = match answered.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                return Err(BrowserError::Silent { method: method.to_owned(), waited: PATIENCE });
            }
            Err(RecvTimeoutError::Disconnected) => return Err(self.gone()),
        };
        if let Some(error) = answer.get("error") {
            let reason = error["message"].as_str().unwrap_or_default().to_owned();
            return Err(BrowserError::Refused { method: method.to_owned(), reason });
        }
        Ok(answer["result"].take())
    }

    /// The events of a page so far whose method is `method`.
    pub(crate) fn events(&self, session: &str, method: &str) -> Vec<Value> {
        let events = lock(&self.events);
        let wanted = |event: &&Value| event["sessionId"] == session && event["method"] == method;
        events.iter().filter(wanted).map(|event| event["params"].clone()).collect()
    }

    fn send(&self, message: &Value) -> Result<(), BrowserError> {
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        match &mut *lock(&self.to_browser) {
            Some(pipe) => pipe.write_all(&bytes).map_err(|_| self.gone()),
            None => Err(self.gone()),
        }
    }

    /// Hands answers to their callers and keeps events, until the browser closes the pipe.
    fn read(&self, from_browser: ChildStdout) {
        for message in BufReader::new(from_browser).split(0) {
            let Ok(message) = message else { break };
            let Ok(message) = serde_json::from_slice::<Value>(&message) else { continue };
            match message["id"].as_u64() {
                Some(id) => {
                    let caller = lock(&self.calls).as_mut().and_then(|calls| calls.remove(&id));
                    if let Some(caller) = caller {
                        // The caller may have lost its patience.
                        let _ = caller.send(message);
                    }
                }
                None => lock(&self.events).push(message),
            }
        }
        // Whoever still waits learns that nothing will come.
        *lock(&self.calls) = None;
    }

    fn gone(&self) -> BrowserError {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let last_words = lines[lines.len().saturating_sub(10)..].join("\n");
        BrowserError::Gone { last_words }
    }
}

/// A poisoned lock is that of a thread that failed, which the test reports by itself.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
