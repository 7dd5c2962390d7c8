//! A QEMU process.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Child;
use tokio::sync::watch;

use super::command::CommandLine;
use super::qmp::{Qmp, QmpError};

/// Longest time from the start of QEMU to its three connections.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest time QEMU may take to end after it was killed.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Lines of QEMU's own messages that are kept for error messages.
const KEPT_MESSAGES: usize = 8;
/// Longest path of a unix socket (`sun_path`, with its zero byte).
const MAX_SOCKET_PATH: usize = 107;

/// Why a QEMU did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StartError {
    #[error("cannot run {program}: {source}")]
    Spawn { program: String, source: io::Error },
    #[error("socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error(
        "the path of socket {path} is longer than {MAX_SOCKET_PATH} bytes: use a shorter --state-dir"
    )]
    SocketPath { path: PathBuf },
    #[error("QEMU ended at once: {messages}")]
    Ended { messages: String },
    #[error("QEMU did not connect within {} s", CONNECT_LIMIT.as_secs())]
    Timeout,
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// How a QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What the system says of it, and QEMU's last messages.
    pub reason: String,
}

/// A running QEMU and its control connection. Dropping it kills the process.
#[derive(Debug)]
pub struct Vm {
    pid: u32,
    qmp: Qmp,
    ended: watch::Receiver<Option<Ended>>,
    kill: tokio::sync::mpsc::Sender<()>,
}

/// The guest's two serial ports, as connected.
#[derive(Debug)]
pub struct Ports {
    /// COM1: text.
    pub console: UnixStream,
    /// COM2: frames.
    pub control: UnixStream,
}

impl Vm {
    /// Starts `program` and waits until it has connected.
    ///
    /// # Errors
    /// It could not be started, ended at once (its messages say why), or did not connect in time.
    pub async fn start(program: &str, line: &CommandLine) -> Result<(Self, Ports), StartError> {
        let console = bind(&line.console)?;
        let control = bind(&line.control)?;
        let qmp = bind(&line.qmp)?;
        let mut child = tokio::process::Command::new(program)
            .args(line.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C at the agent's terminal is not meant for the guests.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| StartError::Spawn { program: program.to_owned(), source })?;
        let pid = child.id().unwrap_or(0);
        let messages = Arc::new(Mutex::new(VecDeque::new()));
        let messages_end = collect_messages(&mut child, Arc::clone(&messages));
        let (ended_sender, ended) = watch::channel(None);
        let (kill, kill_requests) = tokio::sync::mpsc::channel(1);
        tokio::spawn(watch_death(child, kill_requests, messages, messages_end, ended_sender));

        let (mut early, mut death) = (ended.clone(), ended.clone());
        let connect = async {
            let accept = async {
                let (console, control, qmp) =
                    tokio::try_join!(console.accept(), control.accept(), qmp.accept()).map_err(
                        |source| StartError::Socket { path: line.control.clone(), source },
                    )?;
                let qmp = Qmp::greet(qmp.0).await?;
                Ok((Ports { console: console.0, control: control.0 }, qmp))
            };
            let failed = tokio::select! {
                connected = accept => match connected {
                    // A QMP connection that breaks off means that QEMU is about to end and say why.
                    Err(StartError::Qmp(error)) => Some(error),
                    other => return other,
                },
                _ = early.wait_for(Option::is_some) => None,
            };
            let end = death.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
            match (end, failed) {
                (None, Some(error)) => Err(StartError::Qmp(error)),
                (end, _) => {
                    let messages = end.map(|end| end.reason).unwrap_or_default();
                    Err(StartError::Ended { messages })
                }
            }
        };
        let connected = tokio::time::timeout(CONNECT_LIMIT, connect).await;
        for path in [&line.console, &line.control, &line.qmp] {
            // The connections live on without the names.
            let _ = std::fs::remove_file(path);
        }
        let (ports, qmp) = connected.map_err(|_| StartError::Timeout)??;
        Ok((Self { pid, qmp, ended, kill }, ports))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Stops the guest's processor.
    ///
    /// # Errors
    /// QEMU refused or ended.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.qmp.execute("stop").await.map(drop)
    }

    /// Lets the guest's processor go on.
    ///
    /// # Errors
    /// QEMU refused or ended.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.qmp.execute("cont").await.map(drop)
    }

    /// Becomes `Some` when the process has ended.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    /// Ends the process and waits until it is gone. Returns false if it is still there in the end.
    pub async fn end(&self) -> bool {
        // A full channel means that somebody else has asked already.
        let _ = self.kill.try_send(());
        let mut ended = self.ended.clone();
        let gone = ended.wait_for(Option::is_some);
        tokio::time::timeout(END_LIMIT, gone).await.is_ok()
    }
}

fn bind(path: &Path) -> Result<UnixListener, StartError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(StartError::SocketPath { path: path.to_owned() });
    }
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).map_err(|source| StartError::Socket { path: path.to_owned(), source })
}

/// Keeps the last lines that QEMU writes to its standard error.
fn collect_messages(
    child: &mut Child,
    messages: Arc<Mutex<VecDeque<String>>>,
) -> tokio::task::JoinHandle<()> {
    let stderr = child.stderr.take();
    tokio::spawn(async move {
        let Some(stderr) = stderr else { return };
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(mut kept) = messages.lock() {
                if kept.len() == KEPT_MESSAGES {
                    kept.pop_front();
                }
                kept.push_back(line);
            }
        }
    })
}

/// Waits for the process to end, by itself or when asked to, and publishes how.
async fn watch_death(
    mut child: Child,
    mut kill_requests: tokio::sync::mpsc::Receiver<()>,
    messages: Arc<Mutex<VecDeque<String>>>,
    messages_end: tokio::task::JoinHandle<()>,
    ended: watch::Sender<Option<Ended>>,
) {
    let mut status = None;
    // A request, or the handle dropped: either way nobody wants the process any more.
    tokio::select! {
        end = child.wait() => status = Some(end),
        _ = kill_requests.recv() => {}
    }
    let status = match status {
        Some(status) => status,
        None => {
            let _ = child.start_kill();
            child.wait().await
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), messages_end).await;
    let messages = messages.lock().map(|kept| kept.iter().cloned().collect::<Vec<_>>().join("; "));
    let reason = match (status, messages.unwrap_or_default()) {
        (Ok(status), text) if text.is_empty() => format!("QEMU ended ({status})"),
        (Ok(status), text) => format!("QEMU ended ({status}): {text}"),
        (Err(error), _) => format!("QEMU cannot be waited for: {error}"),
    };
    ended.send_replace(Some(Ended { reason }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::{Accel, Machine};

    const QEMU: &str = "qemu-system-x86_64";

    fn line(dir: &Path) -> CommandLine {
        CommandLine {
            machine: Machine::Q35,
            accel: Accel::Tcg,
            memory_mib: 40,
            ram_file: dir.join("ram"),
            kernel: dir.join("kernel"),
            append: String::new(),
            tap: None,
            mac: String::new(),
            console: dir.join("log"),
            control: dir.join("ctl"),
            qmp: dir.join("qmp"),
        }
    }

    /// A PVH image that halts: `cli; hlt; jmp` at its entry.
    fn halting_image() -> Vec<u8> {
        let code_at = 0x20_0000_u32;
        let mut note = Vec::new();
        note.extend(4_u32.to_le_bytes());
        note.extend(4_u32.to_le_bytes());
        note.extend(18_u32.to_le_bytes());
        note.extend(b"Xen\0");
        note.extend(code_at.to_le_bytes());
        let mut file = crate::qemu::image::tests::elf(&note, (33 << 20) as u64);
        let code = file.len() as u64;
        file.extend([0xfa, 0xf4, 0xeb, 0xfd]);
        file[16..18].copy_from_slice(&2_u16.to_le_bytes());
        file[20..24].copy_from_slice(&1_u32.to_le_bytes());
        file[24..32].copy_from_slice(&u64::from(code_at).to_le_bytes());
        file[52..54].copy_from_slice(&64_u16.to_le_bytes());
        for (field, value) in
            [(8, code), (16, u64::from(code_at)), (24, u64::from(code_at)), (32, 4), (40, 4)]
        {
            file[64 + field..72 + field].copy_from_slice(&value.to_le_bytes());
        }
        file
    }

    #[tokio::test]
    async fn a_real_qemu_starts_stops_goes_on_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let line = line(dir.path());
        std::fs::write(&line.kernel, halting_image()).unwrap();
        let (vm, _ports) = Vm::start(QEMU, &line).await.unwrap();
        assert_eq!(std::fs::metadata(&line.ram_file).unwrap().len(), 40 << 20);
        vm.stop().await.unwrap();
        let status = vm.qmp.execute("query-status").await.unwrap();
        assert_eq!(status["status"], "paused");
        vm.cont().await.unwrap();
        assert_eq!(vm.qmp.execute("query-status").await.unwrap()["status"], "running");
        assert!(vm.death().borrow().is_none());
        assert!(vm.end().await);
        assert!(vm.death().borrow().is_some());
        assert!(matches!(vm.stop().await, Err(QmpError::Ended { .. })));
    }

    #[tokio::test]
    async fn qemus_own_words_say_why_it_did_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = Vm::start(QEMU, &line(dir.path())).await.unwrap_err();
        let StartError::Ended { messages } = error else { panic!("{error}") };
        assert!(messages.contains("kernel"), "{messages}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Vm::start("/nonexistent/qemu", &line(dir.path())).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot run /nonexistent/qemu"), "{error}");
    }
}
