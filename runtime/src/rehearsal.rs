//! What a standby does while it waits: it runs once through all that a switch and the time after it will
//! ask of this side (handshakes, requests, drain, capture, resume) with a peer of its own. No frame leaves
//! the machine. When the clients wait, the code lies in the caches, and under TCG it has been translated,
//! which takes longer than everything else in a switch.
//!
//! It works in the portable region before the agent empties that for the service's memory: nothing of it
//! remains but warm code. No code of the service runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_abi::{Frame, Task, Wake};
use ferry_net::understudy::Peer;
use ferry_protocol::mark;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::engine;
use crate::net::{TcpListener, TcpStream};
use crate::single::Single;

/// Ports of the services on the stage.
const ECHO: u16 = 7;
const HTTP: u16 = 80;
/// Largest frame.
const FRAME: usize = 2048;
/// Turns after which a rehearsal that does not come to its end is left as it is.
const MAX_TURNS: u32 = 4096;

/// One line of the script. The next one comes when everything has been answered.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// A peer connects to a port.
    Connect(u16),
    /// The peers of a port say this.
    Say(u16, &'static [u8]),
    /// The machine has something to be done.
    Order(Task, u32),
    /// The same, with frames of the echo's peers held until then.
    OrderWithHeld(Task, &'static [u8]),
    /// The order to catch up with this mark, and the mark.
    Mark(u32),
}

const MESSAGE: &[u8] = &[7; 64];
const LONG: &[u8] = &[7; 6000];
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: stage\r\n\r\n";
#[cfg(feature = "http")]
const BODY: &str = "Nobody will ever read this.";

static SCRIPT: &[Act] = {
    use Act::{Connect, Mark, Order, OrderWithHeld, Say};
    &[
        Connect(ECHO),
        Connect(ECHO),
        Connect(ECHO),
        Connect(HTTP),
        Connect(HTTP),
        Say(ECHO, MESSAGE),
        Say(ECHO, LONG),
        Say(HTTP, REQUEST),
        Say(ECHO, MESSAGE),
        Say(HTTP, REQUEST),
        Order(Task::Prepare, 0),
        Order(Task::Drain, 500_000),
        Mark(1),
        OrderWithHeld(Task::Resume, MESSAGE),
        Say(ECHO, MESSAGE),
        Say(ECHO, LONG),
        Say(HTTP, REQUEST),
        Order(Task::Drain, 500_000),
        Order(Task::Prepare, 0),
        Order(Task::Reopen, 1),
        Say(ECHO, MESSAGE),
        Say(HTTP, REQUEST),
    ]
};

struct Stage {
    peer: Peer,
    script: std::slice::Iter<'static, Act>,
    to_service: VecDeque<Vec<u8>>,
    to_peer: VecDeque<Vec<u8>>,
    /// The frame that the service is reading.
    reading: Vec<u8>,
    turns: u32,
}

static ANNOUNCED: AtomicBool = AtomicBool::new(false);
static ON: AtomicBool = AtomicBool::new(false);
static STAGE: Single<RefCell<Option<Stage>>> = Single::new(RefCell::new(None));

/// std's start will find [`announced`] where it would call the service's `main`.
pub fn announce() {
    ANNOUNCED.store(true, Ordering::Relaxed);
}

/// Whether this start is for a rehearsal.
pub fn announced() -> bool {
    ANNOUNCED.load(Ordering::Relaxed)
}

/// Whether the rehearsal is under way.
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

fn with_stage<R>(f: impl FnOnce(&mut Stage) -> R) -> Option<R> {
    STAGE.borrow_mut().as_mut().map(f)
}

/// As `host_receive`: the frame is valid until the next call.
pub fn receive() -> Frame {
    let nothing = Frame { data: null(), len: 0 };
    with_stage(|stage| match stage.to_service.pop_front() {
        Some(frame) => {
            stage.reading = frame;
            Frame { data: stage.reading.as_ptr(), len: stage.reading.len() as u64 }
        }
        None => nothing,
    })
    .unwrap_or(nothing)
}

/// As `host_transmit`: the buffer is valid until the next call.
pub fn transmit(len: usize) -> *mut u8 {
    if len > FRAME {
        return null_mut();
    }
    with_stage(|stage| {
        stage.to_peer.push_back(vec![0; len]);
        stage.to_peer.back_mut().map_or(null_mut(), |frame| frame.as_mut_ptr())
    })
    .unwrap_or(null_mut())
}

/// As `host_park`: lets the peers answer, then goes on in the script. After its last line the machine
/// goes on, and never comes back here.
pub fn park() -> Wake {
    if let Some(wake) = with_stage(Stage::turn).flatten() {
        return wake;
    }
    loop {
        ferry_abi::host_park(u64::MAX);
    }
}

impl Stage {
    fn turn(&mut self) -> Option<Wake> {
        self.turns += 1;
        let nothing = Wake { task: Task::None, argument: 0 };
        for frame in std::mem::take(&mut self.to_peer) {
            self.peer.answer(&frame, &mut self.to_service);
        }
        while self.to_service.is_empty() && self.turns < MAX_TURNS {
            match *self.script.next()? {
                Act::Connect(port) => self.peer.connect(port, &mut self.to_service),
                Act::Say(port, text) => self.peer.say(port, text, &mut self.to_service),
                Act::Order(task, argument) => return Some(Wake { task, argument }),
                Act::Mark(number) => {
                    self.to_service.push_back(mark::frame([0; 6], number).to_vec());
                    return Some(Wake { task: Task::CatchUp, argument: number });
                }
                Act::OrderWithHeld(task, text) => {
                    self.peer.say(ECHO, text, &mut self.to_service);
                    return Some(Wake { task, argument: 0 });
                }
            }
        }
        (self.turns < MAX_TURNS).then_some(nothing)
    }
}

/// Runs the rehearsal to its end, where the machine leaves it.
pub fn run() -> ! {
    let machine = ferry_abi::host_machine();
    if machine.ip != [0; 4] {
        *STAGE.borrow_mut() = Some(Stage {
            peer: Peer::new(machine.mac, machine.ip),
            script: SCRIPT.iter(),
            to_service: VecDeque::new(),
            to_peer: VecDeque::new(),
            reading: Vec::new(),
            turns: 0,
        });
        ON.store(true, Ordering::Relaxed);
        engine::run(play());
    }
    loop {
        ferry_abi::host_park(u64::MAX);
    }
}

/// The services on the stage.
async fn play() -> io::Result<()> {
    #[cfg(feature = "http")]
    tokio::spawn(crate::http::serve(
        HTTP,
        axum::Router::new().route("/", axum::routing::get(|| async { BODY })),
    ));
    let listener = TcpListener::bind(ECHO).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            len => stream.write_all(&buffer[..len]).await?,
        }
    }
}
