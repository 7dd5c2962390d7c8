//! A program that looks like QEMU with a guest in it.
//!
//! The memory of its service: page 0 of the portable region holds the region's magic, the version of
//! the state and the number of pages; every other page is filled from version and number. A resume
//! checks all of it, so that a page that was lost or stale is noticed where it matters.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ferry_protocol::control::{
    Answer, Connection, Drained, FromGuest, Hello, Order, Range, Refusal, Request, Role, State,
    TcpState,
};
use ferry_protocol::frame::{Decoder, MAX_FRAME, encode};
use ferry_protocol::layout::{PORTABLE_BASE, PORTABLE_MAGIC};
use host_tools::qemu::ImageInfo;
use rustix::fs::{FlockOperation, flock};

/// Holds the arguments, one a line, in the process that plays a guest.
pub const ARGUMENTS: &str = "FERRY_SCRIPTED_ARGUMENTS";
/// File in the world's directory that is there if two guests of one service ran at once.
pub const VIOLATIONS: &str = "violations";
/// Directory with the script of a node's guests.
pub const SCRIPT_DIR: &str = "FERRY_SCRIPT_DIR";

/// Where the script that starts this process moves standard input and output, which the test harness
/// would write to.
const SOCKETS: [i32; 2] = [3, 4];

const PAGE: u64 = 4096;
const BITMAP: u64 = 16 << 20;
const CONNECTIONS: u64 = 17 << 20;
/// Pages of the service's state, spread over the region.
const STATE_PAGES: u32 = 300;

/// What a guest does when it gets an order (or `ready`, when it boots), and a switch at a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Ends.
    Die,
    /// Kills the processes whose ids are in a file, then goes on.
    Kill(PathBuf),
    /// Answers, and then kills them.
    KillAfter(PathBuf),
    /// Kills them, and ends.
    KillAllAndDie(PathBuf),
    /// Does not answer.
    Silence,
    /// Sends bytes that are no frame, and an absurdly long one, then goes on.
    Garbage,
    /// Names memory that it does not have.
    BadRange,
    /// Refuses.
    Refuse,
}

/// Writes a script: order name → deed.
pub fn write_script(dir: &Path, deeds: &[(&str, Deed)]) {
    let line = |(order, deed): &(&str, Deed)| match deed {
        Deed::Die => format!("{order} die\n"),
        Deed::Kill(file) => format!("{order} kill {}\n", file.display()),
        Deed::KillAfter(file) => format!("{order} kill-after {}\n", file.display()),
        Deed::KillAllAndDie(file) => format!("{order} kill-all-and-die {}\n", file.display()),
        Deed::Silence => format!("{order} silence\n"),
        Deed::Garbage => format!("{order} garbage\n"),
        Deed::BadRange => format!("{order} bad-range\n"),
        Deed::Refuse => format!("{order} refuse\n"),
    };
    std::fs::write(dir.join("script"), deeds.iter().map(line).collect::<String>()).unwrap();
}

/// Read anew at every order, so that a test can change it while a guest runs.
pub fn deed(dir: &Path, order: &str) -> Option<Deed> {
    let text = std::fs::read_to_string(dir.join("script")).unwrap_or_default();
    let line = text.lines().find(|line| line.split(' ').next() == Some(order))?;
    let mut words = line.split(' ').skip(1);
    Some(match words.next()? {
        "die" => Deed::Die,
        "kill" => Deed::Kill(words.next()?.into()),
        "kill-after" => Deed::KillAfter(words.next()?.into()),
        "kill-all-and-die" => Deed::KillAllAndDie(words.next()?.into()),
        "silence" => Deed::Silence,
        "garbage" => Deed::Garbage,
        "bad-range" => Deed::BadRange,
        _ => Deed::Refuse,
    })
}

/// Kills the processes whose ids are in a file.
pub fn kill(pid_file: &Path) {
    for pid in std::fs::read_to_string(pid_file).unwrap().split_whitespace() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        // It may be gone already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Plays a guest to its end.
pub fn play(arguments: &str) {
    let arguments: Vec<&str> = arguments.lines().collect();
    let after = |name: &str| {
        let at = arguments.iter().position(|argument| *argument == name);
        at.and_then(|at| arguments.get(at + 1)).copied().unwrap_or_default()
    };
    // Asked what it can do, and where its files lie.
    if after("-machine") == "none" || after("-L") == "help" {
        return;
    }
    let dir = PathBuf::from(std::env::var(SCRIPT_DIR).unwrap());
    std::fs::write(dir.join("pid"), std::process::id().to_string()).unwrap();
    let log = arguments.iter().find_map(|argument| argument.strip_prefix("file,id=log,path="));
    let log = log.unwrap().trim_end_matches(",append=on");
    // The first connections, for which QEMU waits; it comes back here when they have broken off.
    let [control, qmp] = SOCKETS.map(|fd| {
        // SAFETY: the script that starts this process has put the two sockets there, and nothing closes
        // them.
        Port::new(unsafe { BorrowedFd::borrow_raw(fd) })
    });
    let object: HashMap<&str, &str> =
        after("-object").split(',').filter_map(|part| part.split_once('=')).collect();
    let memory_mib: u64 = object["size"].trim_end_matches('M').parse().unwrap();
    let ram = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(object["mem-path"])
        .unwrap();
    ram.set_len(memory_mib << 20).unwrap();
    let image = std::fs::read(after("-kernel")).unwrap();
    let append = after("-append");
    let epoch = append.split(' ').find_map(|word| word.strip_prefix("epoch="));
    let guest = Guest {
        dir: dir.clone(),
        console: OpenOptions::new().append(true).open(log).unwrap(),
        control,
        ram,
        build_id: ImageInfo::read(&image).unwrap().build_id,
        pages: ((memory_mib << 20) - PORTABLE_BASE) / PAGE,
        state: if append.contains("standby") { State::Standby } else { State::Running },
        epoch: epoch.map_or(0, |epoch| epoch.parse().unwrap()),
        version: 0,
        turn: Turn::of(&dir, append.split(' ').next().unwrap()),
    };
    std::thread::spawn(move || speak_qmp(qmp, &dir));
    guest.run();
}

/// A server socket of QEMU: one connection after the other.
struct Port {
    listener: UnixListener,
    stream: UnixStream,
}

impl Port {
    fn new(fd: BorrowedFd<'_>) -> Self {
        let listener = UnixListener::from(fd.try_clone_to_owned().unwrap());
        let stream = listener.accept().unwrap().0;
        Self { listener, stream }
    }

    /// Waits for the next connection.
    fn reopen(&mut self) {
        self.stream = self.listener.accept().unwrap().0;
    }
}

fn speak_qmp(mut port: Port, dir: &Path) {
    let mut running = true;
    loop {
        let _ = port.stream.write_all(b"{\"QMP\": {}}\n");
        let reader = BufReader::new(port.stream.try_clone().unwrap());
        for line in reader.lines().map_while(Result::ok) {
            let command: serde_json::Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap();
            let mut after = None;
            match deed(dir, name) {
                Some(Deed::Die) => std::process::exit(1),
                Some(Deed::Kill(file)) => kill(&file),
                Some(Deed::KillAfter(file)) => after = Some(file),
                _ => {}
            }
            running = match name {
                "stop" => false,
                "cont" => true,
                _ => running,
            };
            let result = serde_json::json!({ "running": running });
            let answer = serde_json::json!({ "return": result, "id": command["id"] });
            let written = port.stream.write_all(format!("{answer}\n").as_bytes());
            if let Some(file) = after {
                kill(&file);
            }
            if written.is_err() {
                break;
            }
        }
        port.reopen();
    }
}

/// The right to run: a lock that all guests with one address share. Whoever runs without it breaks the one
/// promise that all others rest on.
struct Turn {
    lock: File,
    violations: PathBuf,
}

impl Turn {
    fn of(node_dir: &Path, address: &str) -> Self {
        let world = node_dir.parent().unwrap();
        let path = world.join(format!("{}.turn", address.replace('/', "-")));
        let lock = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Self { lock, violations: world.join(VIOLATIONS) }
    }

    fn take(&self) {
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            std::fs::write(&self.violations, "two instances of a service run\n").unwrap();
        }
    }

    fn give(&self) {
        flock(&self.lock, FlockOperation::Unlock).unwrap();
    }
}

struct Guest {
    turn: Turn,
    dir: PathBuf,
    console: File,
    control: Port,
    ram: File,
    build_id: [u8; 32],
    pages: u64,
    state: State,
    epoch: u64,
    version: u64,
}

/// Number of the region's page that holds page `index` of the state.
fn place(index: u32) -> u64 {
    u64::from(index) * 7
}

fn content(version: u64, index: u32) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&version.to_le_bytes()).update(&index.to_le_bytes());
    hasher.finalize_xof().fill(&mut page);
    page
}

impl Guest {
    fn run(mut self) {
        if self.state == State::Running {
            self.turn.take();
            self.work();
        }
        writeln!(self.console, "scripted guest up, {:?}", self.state).unwrap();
        if self.prelude("ready").is_none() {
            let hello = self.hello();
            self.send(&FromGuest::Ready(hello));
        }
        let mut decoder = Decoder::new();
        let mut byte = [0];
        loop {
            while self.control.stream.read(&mut byte).is_ok_and(|read| read == 1) {
                // Half a frame of an agent that was killed may be in front of the next agent's first.
                if let Some(Ok(request)) = decoder.push::<Request>(byte[0]) {
                    self.answer(request);
                }
            }
            self.control.reopen();
        }
    }

    /// Does the script's deed; returns what concerns the answer.
    fn prelude(&mut self, order: &str) -> Option<Deed> {
        match deed(&self.dir, order) {
            Some(Deed::Die) => std::process::exit(1),
            Some(Deed::Kill(file)) => {
                kill(&file);
                None
            }
            Some(Deed::KillAllAndDie(file)) => {
                kill(&file);
                std::process::exit(1)
            }
            Some(Deed::Garbage) => {
                let port = &mut self.control.stream;
                port.write_all(&[0x46; 5000]).unwrap();
                port.write_all(b"FY\x01\x00\xff\xff\xff\x7f").unwrap();
                port.write_all(&[0xa5; 3000]).unwrap();
                None
            }
            other => other,
        }
    }

    fn hello(&self) -> Hello {
        let portable = Range { addr: PORTABLE_BASE, len: self.pages * PAGE };
        Hello { build_id: self.build_id, state: self.state, portable, epoch: self.epoch }
    }

    fn send(&mut self, message: &FromGuest) {
        let _ = self.control.stream.write_all(encode(message, &mut [0; MAX_FRAME]).unwrap());
    }

    /// Writes every page of the state anew.
    fn work(&mut self) {
        self.version += 1;
        let mut head = content(self.version, 0);
        head[..8].copy_from_slice(&PORTABLE_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&self.version.to_le_bytes());
        self.put(0, &head);
        (1..STATE_PAGES).for_each(|index| self.put(index, &content(self.version, index)));
    }

    fn put(&self, index: u32, page: &[u8]) {
        self.ram.write_all_at(page, PORTABLE_BASE + place(index) * PAGE).unwrap();
    }

    /// Whether the memory holds a whole state; returns its version.
    fn check(&self) -> Option<u64> {
        let mut page = vec![0; PAGE as usize];
        self.ram.read_exact_at(&mut page, PORTABLE_BASE).unwrap();
        let magic = u64::from_le_bytes(page[..8].try_into().unwrap());
        let version = u64::from_le_bytes(page[8..16].try_into().unwrap());
        let whole = (1..STATE_PAGES).all(|index| {
            self.ram.read_exact_at(&mut page, PORTABLE_BASE + place(index) * PAGE).unwrap();
            page == content(version, index)
        });
        (magic == PORTABLE_MAGIC && whole).then_some(version)
    }

    fn report(&self, full: bool) -> Answer {
        let mut bits = vec![0_u8; self.pages.div_ceil(8) as usize];
        let mut count = 0;
        let mut set = |page: u64| {
            bits[(page / 8) as usize] |= 1 << (page % 8);
            count += 1;
        };
        if full {
            (0..self.pages).for_each(&mut set);
        } else {
            (0..STATE_PAGES).for_each(|index| set(place(index)));
        }
        self.ram.write_all_at(&bits, BITMAP).unwrap();
        let dirty = Range { addr: BITMAP, len: bits.len() as u64 };
        Answer::Pages { dirty, free: Range { addr: 0, len: 0 }, count, scan_us: 5 }
    }

    fn connections(&self) -> Answer {
        let connection = |port| Connection {
            local: [10, 77, 0, 50],
            local_port: 7,
            remote: [10, 77, 0, 100],
            remote_port: port,
            state: TcpState::Established,
            role: Role::Sending,
            recv_queue: 0,
            send_queue: 64,
            send_next: 5_000,
            recv_next: 9_000,
        };
        let mut bytes = Vec::new();
        for port in [4001, 4002] {
            bytes.extend(postcard::to_stdvec(&connection(port)).unwrap());
        }
        self.ram.write_all_at(&bytes, CONNECTIONS).unwrap();
        let at = Range { addr: CONNECTIONS, len: bytes.len() as u64 };
        Answer::Connections { at, count: 2 }
    }

    fn answer(&mut self, request: Request) {
        let order = host_tools::agent::control::name(&request.order);
        let deed = self.prelude(order);
        if deed == Some(Deed::Silence) {
            return;
        }
        let refused = Answer::Refused(Refusal::State(self.state));
        let answer = match (request.order, self.state) {
            _ if deed == Some(Deed::Refuse) => Answer::Refused(Refusal::Busy),
            (Order::Scan { .. } | Order::Freeze { .. } | Order::Connections, _)
                if deed == Some(Deed::BadRange) =>
            {
                let absurd = Range { addr: u64::MAX - 5, len: self.pages / 8 };
                Answer::Pages { dirty: absurd, free: absurd, count: u32::MAX, scan_us: 0 }
            }
            (Order::Hello, _) => Answer::Hello(self.hello()),
            (Order::Scan { full }, State::Running) => {
                let report = self.report(full);
                self.work();
                report
            }
            (Order::CloseQuiet, State::Running) => Answer::Closed { connections: 1 },
            (Order::Drain { .. }, State::Running) => {
                self.state = State::Draining;
                Answer::Drained(Drained { connections: 2, settled: 2, elapsed_us: 9 })
            }
            (Order::Freeze { full, .. }, State::Running | State::Draining) => {
                self.state = State::Frozen;
                self.turn.give();
                self.report(full)
            }
            (Order::Thaw, State::Running | State::Draining | State::Frozen) => {
                if self.state == State::Frozen {
                    self.turn.take();
                }
                self.state = State::Running;
                Answer::Resumed { connections: 2, held_frames: 0 }
            }
            (Order::Resume { epoch, .. }, State::Standby) => match self.check() {
                Some(version) => {
                    self.turn.take();
                    self.version = version;
                    self.epoch = epoch;
                    self.state = State::Running;
                    writeln!(self.console, "scripted guest resumed, epoch {epoch}").unwrap();
                    Answer::Resumed { connections: 2, held_frames: 3 }
                }
                None => Answer::Refused(Refusal::Header),
            },
            (Order::Connections, State::Running | State::Frozen) => self.connections(),
            (Order::Shutdown, _) => {
                self.send(&FromGuest::Answer { id: request.id, answer: Answer::Done });
                std::process::exit(0);
            }
            _ => refused,
        };
        self.send(&FromGuest::Answer { id: request.id, answer });
        if let Some(Deed::KillAfter(file)) = deed {
            kill(&file);
        }
    }
}
