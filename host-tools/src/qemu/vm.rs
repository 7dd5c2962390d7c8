//! A QEMU process. It outlives whoever started it: another agent can take it up again.
//!
//! QEMU gets its two sockets listening and accepts one connection after the other on each. What a guest
//! says on its control port while nobody is connected is dropped by QEMU; it never waits for a reader that
//! is not there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use super::command::{CONSOLE_FD, CommandLine, KERNEL_FD, RAM_FD, TAP_FD};
use super::qmp::{Qmp, QmpError};
use super::user::User;
use crate::priority::{self, Priority};
use crate::process::Process;
use crate::wire::readable;

/// Longest time from the start of QEMU to its greeting.
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
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the path of socket {path} is longer than {MAX_SOCKET_PATH} bytes: use a shorter --state-dir"
    )]
    SocketPath { path: PathBuf },
    #[error("QEMU cannot be given its files: {source}")]
    Descriptors { source: FdMappingCollision },
    #[error("the new QEMU cannot be noted, and was ended: {source}")]
    Note { source: io::Error },
    #[error("QEMU ended at once: {messages}")]
    Ended { messages: String },
    #[error("QEMU did not greet within {} s", CONNECT_LIMIT.as_secs())]
    Timeout,
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// Why a QEMU that another process started was not taken up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum AdoptError {
    #[error("QEMU process {pid} has ended")]
    Ended { pid: i32 },
    #[error("QEMU process {pid} cannot be watched: {source}")]
    Watch { pid: i32, source: io::Error },
    #[error("socket {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("QEMU process {pid} did not greet within {} s", CONNECT_LIMIT.as_secs())]
    Timeout { pid: i32 },
    #[error(transparent)]
    Qmp(#[from] QmpError),
}

/// How a QEMU ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What the system says of it, and QEMU's last messages.
    pub reason: String,
}

/// A running QEMU and its control connection. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    qmp: Qmp,
    ended: watch::Receiver<Option<Ended>>,
    kill: mpsc::Sender<()>,
}

impl Vm {
    /// Starts `program` as `user`, by default as ours, with this priority, and waits for its greeting; also
    /// returns the guest's control port. `tap` is where its NIC is plugged in. `note` hears of the process before
    /// its guest can say a word.
    ///
    /// # Errors
    /// It could not be started, ended at once (its messages say why), or did not greet in time. No
    /// process is left then.
    pub async fn start(
        program: &str,
        line: &CommandLine,
        tap: Option<File>,
        user: Option<User>,
        priority: Priority,
        note: impl FnOnce(Process) -> io::Result<()>,
    ) -> Result<(Self, UnixStream), StartError> {
        let (control_listener, control) = listening(&line.control).await?;
        let (qmp_listener, qmp) = listening(&line.qmp).await?;
        let messages = File::options().append(true).create(true).open(&line.messages);
        let messages =
            messages.map_err(|source| StartError::File { path: line.messages.clone(), source })?;
        let mut command = tokio::process::Command::new(program);
        if let Some(User { uid, gid }) = user {
            // Other groups are given up with root.
            command.uid(uid).gid(gid);
        }
        command
            .fd_mappings(inherited(line, tap, user)?)
            .map_err(|error| StartError::Descriptors { source: error })?
            .args(line.arguments())
            .stdin(Stdio::from(control_listener))
            .stdout(Stdio::from(qmp_listener))
            .stderr(Stdio::from(messages))
            // A Ctrl-C at the agent's terminal is not meant for the guests.
            .process_group(0);
        // From its first instruction on: starting a program costs milliseconds, too.
        let runtime = tokio::runtime::Handle::current();
        let spawned = priority::at(priority, || {
            let _context = runtime.enter();
            command.spawn()
        });
        // Only QEMU may hold the listening sockets: when it ends, the connections break.
        drop(command);
        let child =
            spawned.map_err(|source| StartError::Spawn { program: program.to_owned(), source })?;
        let pid = child.id().unwrap_or(0).cast_signed();
        // A child that has ended already is found out by waiting for it.
        let process = Process::now(pid).unwrap_or(Process { pid, start: 0 });
        let (kill, ended) = watched(Life::Child(child), &line.messages);
        let begun = match note(process) {
            Ok(()) => greeted(qmp, ended.clone()).await,
            Err(source) => Err(StartError::Note { source }),
        };
        match begun {
            Ok(qmp) => Ok((Self { process, qmp, ended, kill }, control)),
            Err(error) => {
                end(&kill, ended).await;
                Err(error)
            }
        }
    }

    /// Takes up a QEMU that another process has started; also returns the guest's control port.
    ///
    /// # Errors
    /// It has ended, or does not answer.
    pub async fn adopt(
        process: Process,
        control: &Path,
        qmp: &Path,
        messages: &Path,
    ) -> Result<(Self, UnixStream), AdoptError> {
        let pid = process.pid;
        let handle = process.handle().map_err(|source| AdoptError::Watch { pid, source })?;
        let handle = handle.ok_or(AdoptError::Ended { pid })?;
        let handle = readable(handle).map_err(|source| AdoptError::Watch { pid, source })?;
        let connect = async |path: &Path| {
            let path = path.to_owned();
            UnixStream::connect(&path).await.map_err(|source| AdoptError::Socket { path, source })
        };
        let (control, qmp) = (connect(control).await?, connect(qmp).await?);
        let (kill, ended) = watched(Life::Stranger(handle), messages);
        let greeted = tokio::time::timeout(CONNECT_LIMIT, Qmp::greet(qmp)).await;
        let qmp = greeted.map_err(|_| AdoptError::Timeout { pid })??;
        Ok((Self { process, qmp, ended, kill }, control))
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> Process {
        self.process
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid.cast_unsigned()
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

    /// Whether the guest's processor runs.
    ///
    /// # Errors
    /// QEMU does not answer or has ended.
    pub async fn runs(&self) -> Result<bool, QmpError> {
        Ok(self.qmp.execute("query-status").await?["running"] == true)
    }

    /// Becomes `Some` when the process has ended.
    #[must_use]
    pub fn death(&self) -> watch::Receiver<Option<Ended>> {
        self.ended.clone()
    }

    /// Ends the process and waits until it is gone. Returns false if it is still there in the end.
    pub async fn end(&self) -> bool {
        end(&self.kill, self.ended.clone()).await
    }
}

async fn end(kill: &mpsc::Sender<()>, mut ended: watch::Receiver<Option<Ended>>) -> bool {
    // A full channel means that somebody else has asked already.
    let _ = kill.try_send(());
    let gone = ended.wait_for(Option::is_some);
    tokio::time::timeout(END_LIMIT, gone).await.is_ok()
}

/// A socket that listens, and the first connection to it, which waits until QEMU accepts it.
async fn listening(path: &Path) -> Result<(OwnedFd, UnixStream), StartError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(StartError::SocketPath { path: path.to_owned() });
    }
    let failed = |source| StartError::File { path: path.to_owned(), source };
    let _ = std::fs::remove_file(path);
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    let stream = UnixStream::connect(path).await.map_err(failed)?;
    Ok((listener.into(), stream))
}

/// Opens what QEMU gets open. What it writes belongs to its user, and the image can be read by all.
fn inherited(
    line: &CommandLine,
    tap: Option<File>,
    user: Option<User>,
) -> Result<Vec<FdMapping>, StartError> {
    let open = |path: &Path, options: &OpenOptions| {
        options.open(path).map_err(|source| StartError::File { path: path.to_owned(), source })
    };
    let named = |path: &Path, done: io::Result<()>| {
        done.map_err(|source| StartError::File { path: path.to_owned(), source })
    };
    let kernel = open(&line.kernel, OpenOptions::new().read(true))?;
    let console = open(&line.console, OpenOptions::new().append(true).create(true).mode(0o600))?;
    // Never somebody else's file: the directory may belong to all.
    let _ = std::fs::remove_file(&line.ram_file);
    let ram = open(
        &line.ram_file,
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600),
    )?;
    if let Some(User { uid, gid }) = user {
        let readable = std::fs::Permissions::from_mode(0o644);
        named(&line.kernel, kernel.set_permissions(readable))?;
        named(&line.console, fchown(&console, Some(uid), Some(gid)))?;
        named(&line.ram_file, fchown(&ram, Some(uid), Some(gid)))?;
    }
    let files = [(Some(kernel), KERNEL_FD), (Some(console), CONSOLE_FD), (Some(ram), RAM_FD)];
    let files = files.into_iter().chain([(tap, TAP_FD)]);
    Ok(files
        .filter_map(|(file, child_fd)| Some(FdMapping { parent_fd: file?.into(), child_fd }))
        .collect())
}

/// Waits for the greeting of a QEMU that has just been started.
async fn greeted(
    qmp: UnixStream,
    mut ended: watch::Receiver<Option<Ended>>,
) -> Result<Qmp, StartError> {
    let mut early = ended.clone();
    let connect = async {
        let failed = tokio::select! {
            greeted = Qmp::greet(qmp) => match greeted {
                Ok(qmp) => return Ok(qmp),
                // A QMP connection that breaks off means that QEMU is about to end and say why.
                Err(error) => Some(error),
            },
            _ = early.wait_for(Option::is_some) => None,
        };
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        match (end, failed) {
            (None, Some(error)) => Err(StartError::Qmp(error)),
            (end, _) => {
                let messages = end.map(|end| end.reason).unwrap_or_default();
                Err(StartError::Ended { messages })
            }
        }
    };
    tokio::time::timeout(CONNECT_LIMIT, connect).await.unwrap_or(Err(StartError::Timeout))
}

/// The process behind a [`Vm`].
enum Life {
    /// Our child: it has to be waited for.
    Child(Child),
    /// Somebody else's child, by a handle that is readable once it has ended.
    Stranger(AsyncFd<OwnedFd>),
}

impl Life {
    async fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Child(child) => child.wait().await.map(Some),
            Self::Stranger(handle) => handle.readable().await.map(|_| None),
        }
    }

    fn kill(&mut self) {
        // What cannot be killed has ended.
        match self {
            Self::Child(child) => drop(child.start_kill()),
            Self::Stranger(handle) => drop(pidfd_send_signal(handle.get_ref(), Signal::KILL)),
        }
    }
}

fn watched(life: Life, messages: &Path) -> (mpsc::Sender<()>, watch::Receiver<Option<Ended>>) {
    let (ended_sender, ended) = watch::channel(None);
    let (kill, kill_requests) = mpsc::channel(1);
    tokio::spawn(watch_death(life, kill_requests, messages.to_owned(), ended_sender));
    (kill, ended)
}

/// Waits for the process to end, by itself or when asked to, and publishes how.
async fn watch_death(
    mut life: Life,
    mut kill_requests: mpsc::Receiver<()>,
    messages: PathBuf,
    ended: watch::Sender<Option<Ended>>,
) {
    let mut status = None;
    tokio::select! {
        end = life.wait() => status = Some(end),
        // `None` is nobody's wish: the handle was dropped, the process goes on.
        asked = kill_requests.recv() => if asked.is_some() { life.kill() },
    }
    let status = match status {
        Some(status) => status,
        None => life.wait().await,
    };
    let text = last_lines(&messages);
    let how = match status {
        Ok(Some(status)) => format!("QEMU ended ({status})"),
        Ok(None) => "QEMU ended".into(),
        Err(error) => format!("QEMU cannot be waited for: {error}"),
    };
    let reason = if text.is_empty() { how } else { format!("{how}: {text}") };
    ended.send_replace(Some(Ended { reason }));
}

/// The last lines that QEMU wrote to its standard error, but for those in which it says, at every start,
/// that it waits for its connections.
fn last_lines(messages: &Path) -> String {
    let text = std::fs::read(messages).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": info: ")).collect();
    lines[lines.len().saturating_sub(KEPT_MESSAGES)..].join("; ")
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
            qboot: false,
            memory_mib: 40,
            ram_file: dir.join("ram"),
            kernel: dir.join("kernel"),
            append: String::new(),
            nic: false,
            mac: String::new(),
            sandbox: true,
            console: dir.join("log"),
            control: dir.join("ctl"),
            qmp: dir.join("qmp"),
            messages: dir.join("messages"),
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
        let mut noted = None;
        let note = |process| {
            noted = Some(process);
            Ok(())
        };
        let (vm, _control) = Vm::start(QEMU, &line, None, None, Priority::Low, note).await.unwrap();
        assert_eq!(noted, Some(vm.process()));
        assert_eq!(std::fs::metadata(&line.ram_file).unwrap().len(), 40 << 20);
        vm.stop().await.unwrap();
        assert!(!vm.runs().await.unwrap());
        vm.cont().await.unwrap();
        assert!(vm.runs().await.unwrap());
        assert!(vm.death().borrow().is_none());
        assert!(vm.end().await);
        let end = vm.death().borrow().clone();
        assert_eq!(end.unwrap().reason, "QEMU ended (signal: 9 (SIGKILL))");
        assert!(matches!(vm.stop().await, Err(QmpError::Ended { .. })));
    }

    #[tokio::test]
    async fn a_real_qemu_is_left_alone_and_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let line = line(dir.path());
        std::fs::write(&line.kernel, halting_image()).unwrap();
        let (vm, control) =
            Vm::start(QEMU, &line, None, None, Priority::Low, |_| Ok(())).await.unwrap();
        vm.stop().await.unwrap();
        let process = vm.process();
        drop((vm, control));
        let adopt = || Vm::adopt(process, &line.control, &line.qmp, &line.messages);
        let (vm, _control) = adopt().await.unwrap();
        assert!(!vm.runs().await.unwrap(), "it is as it was");
        std::fs::remove_file(&line.ram_file).unwrap();
        let len = 40 << 20;
        assert!(crate::qemu::RamFile::open(&line.ram_file, len).is_err());
        crate::qemu::RamFile::of_process(process.pid, &line.ram_file, len).unwrap();
        assert!(vm.end().await);
        assert!(matches!(adopt().await, Err(AdoptError::Ended { .. })));
    }

    /// Lines of `/proc/PID/status` by their names.
    fn status(pid: u32, name: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[tokio::test]
    async fn a_real_qemu_has_no_privileges_and_no_way_to_its_files() {
        use crate::qemu::user::{FIRST, GuestUsers};
        let Ok(users) = GuestUsers::of_this_process(FIRST) else {
            // Then it is this user, and there is nothing to give up.
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        // Nobody else can look into it.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let line = line(dir.path());
        std::fs::write(&line.kernel, halting_image()).unwrap();
        let user = users.of(3, None);
        let started = Vm::start(QEMU, &line, None, Some(user), Priority::Low, |_| Ok(())).await;
        let (vm, _control) = started.unwrap();
        let id = user.uid;
        assert_eq!(status(vm.pid(), "Uid"), format!("{id} {id} {id} {id}"));
        assert_eq!(status(vm.pid(), "Gid"), format!("{id} {id} {id} {id}"));
        assert_eq!(status(vm.pid(), "Groups"), "");
        assert_eq!(status(vm.pid(), "CapEff"), "0000000000000000");
        assert_eq!(status(vm.pid(), "Seccomp"), "2");
        let len = 40 << 20;
        crate::qemu::RamFile::open(&line.ram_file, len).unwrap();
        assert!(vm.runs().await.unwrap());
        assert!(vm.end().await);
    }

    #[tokio::test]
    async fn qemus_own_words_say_why_it_did_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let line = line(dir.path());
        std::fs::write(&line.kernel, "no image").unwrap();
        let error =
            Vm::start(QEMU, &line, None, None, Priority::Low, |_| Ok(())).await.unwrap_err();
        let StartError::Ended { messages } = error else { panic!("{error}") };
        assert!(messages.contains("kernel"), "{messages}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let line = line(dir.path());
        std::fs::write(&line.kernel, halting_image()).unwrap();
        let error = Vm::start("/nonexistent/qemu", &line, None, None, Priority::Low, |_| Ok(()))
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with("cannot run /nonexistent/qemu"), "{error}");
    }
}
