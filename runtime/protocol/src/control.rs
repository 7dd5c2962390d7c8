//! Orders of an agent to its guest, and what the guest answers.
//!
//! Every order carries an id, and the guest answers each once, with the same id. What is large (dirty
//! bitmaps, connection lists) stays in guest RAM: the answer says where, the agent reads it from the
//! RAM file after checking the range.

use serde::{Deserialize, Serialize};

use crate::layout::BuildId;

/// A range of guest-physical memory. The reader checks it against the RAM it knows the guest to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
}

/// An order, agent → guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the answer.
    pub id: u32,
    /// What to do.
    pub order: Order,
}

/// What an agent can ask of a guest. The states in which each is allowed are those of [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Who are you? Allowed always. Answer: [`Answer::Hello`].
    Hello,
    /// Report the pages written since the last scan, and start counting anew.
    /// Allowed when running. Answer: [`Answer::Pages`].
    Scan {
        /// Report every page that holds state, written since or not: the first round of a move.
        full: bool,
    },
    /// Zero window to every peer that says nothing and is owed nothing, while the service runs for the others. Answer
    /// when all are told: [`Answer::Closed`]. Allowed when running. The windows open again by themselves if no
    /// drain follows within two seconds.
    CloseQuiet,
    /// Zero window to every peer, barrier, in-flight data in. Answer when drained or at the deadline:
    /// [`Answer::Drained`]. Allowed when running.
    Drain {
        /// Longest time the drain may take, in microseconds.
        timeout_us: u32,
    },
    /// Stop at the park line and report the pages written since the last scan.
    /// Answer: [`Answer::Pages`]. Allowed when running or draining; nothing runs after it.
    Freeze {
        /// As in [`Order::Scan`]: a checkpoint without precopy asks for everything.
        full: bool,
        /// When draining: frames are taken in up to the [mark](crate::mark) with this number first, or for
        /// [`MARK_LIMIT_US`]. 0: there is none.
        mark: u32,
    },
    /// Undo `CloseQuiet`, `Drain` and `Freeze`: windows reopen, the service goes on here.
    /// Answer: [`Answer::Resumed`].
    Thaw,
    /// The portable region has been filled by the agent: take it over and run.
    /// Answer: [`Answer::Resumed`]. Allowed in standby only.
    Resume {
        /// The ownership number that was committed for this instance.
        epoch: u64,
        /// The host's wall clock, in nanoseconds since the Unix epoch.
        wall_ns: u64,
    },
    /// List the connections. Answer: [`Answer::Connections`]. Allowed when running; and when frozen with
    /// `full`, for then the list was made at that very moment.
    Connections,
    /// End the guest. Answer: [`Answer::Done`], then QEMU exits.
    Shutdown,
    /// The orders that follow belong to this trace (W3C Trace Context, `trace-id`): the guest says on its
    /// console what came of them under it. Allowed always. Answer: [`Answer::Done`].
    Trace {
        /// 0: no command is behind them, and nothing is said.
        id: u128,
    },
}

/// Longest wait of a guest for a mark, in microseconds: it may be lost in a queue that is full, and what was
/// before it is then repaired by TCP.
pub const MARK_LIMIT_US: u32 = 20_000;

/// Where a guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Kernel and drivers up, NIC receiving but silent, portable region empty.
    Standby,
    /// The service runs.
    Running,
    /// The service runs no message; windows are closed.
    Draining,
    /// Nothing runs; the portable region does not change.
    Frozen,
}

/// A frame guest → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    /// Answer to the request with this id.
    Answer {
        /// The request's id.
        id: u32,
        /// What came of it.
        answer: Answer,
    },
    /// Sent once after boot, unasked.
    Ready(Hello),
    /// The service ended by itself with this exit code; the guest powers off.
    Exited {
        /// 0 is success.
        code: i32,
    },
}

/// Who a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The image it runs.
    pub build_id: BuildId,
    /// Where it stands.
    pub state: State,
    /// The portable region, [`crate::layout::PORTABLE_BASE`] to the end of usable RAM.
    pub portable: Range,
    /// Ownership number under which it runs, 0 in standby.
    pub epoch: u64,
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Order::Hello`].
    Hello(Hello),
    /// To [`Order::Scan`] and [`Order::Freeze`]: one bit per page of the portable region, least
    /// significant bit of the first byte = page 0.
    Pages {
        /// Pages that were written since the last scan and hold state. In a full report many of them
        /// may be all zero, or holes in the RAM file: the reader need not send those to a
        /// destination whose region is empty.
        dirty: Range,
        /// Pages that hold no state (free heap, stack below the stack pointer, empty buffers):
        /// they need not move and read as anything. Same shape as `dirty`; a page is in one at most.
        free: Range,
        /// Bits set in `dirty`.
        count: u32,
        /// Time the scan took in the guest, in microseconds.
        scan_us: u32,
    },
    /// To [`Order::CloseQuiet`].
    Closed {
        /// Connections whose peers were told.
        connections: u32,
    },
    /// To [`Order::Drain`].
    Drained(Drained),
    /// To [`Order::Thaw`] and [`Order::Resume`].
    Resumed {
        /// Connections whose windows were reopened.
        connections: u32,
        /// Frames that had been held during the switch and were processed first.
        held_frames: u32,
    },
    /// To [`Order::Connections`]: `count` entries of [`Connection`], postcard, back to back.
    Connections {
        /// Where they lie in guest RAM, valid until the next `Connections` order.
        at: Range,
        /// How many.
        count: u32,
    },
    /// To [`Order::Shutdown`] and [`Order::Trace`].
    Done,
    /// The order was not carried out; the guest's state has not changed.
    Refused(Refusal),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Connections in a synchronised state when it began.
    pub connections: u32,
    /// Those whose peer answered the barrier and acknowledged all we had sent, or was quiet.
    pub settled: u32,
    /// Time from the order to the end, in microseconds.
    pub elapsed_us: u32,
}

/// Why a guest did not carry out an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Not allowed in the state the guest is in.
    State(State),
    /// The portable region does not begin with a valid header.
    Header,
    /// The region was written by another image.
    BuildId,
    /// The region, a saved register or the end of the heap lies outside this guest's RAM.
    Range,
    /// The region's epoch is not older than the one committed for this instance.
    Epoch,
    /// The service did not come to its park line in time.
    Busy,
}

/// What a connection does right now, in the paper's words (§3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Nothing is in flight or queued.
    Idle,
    /// The service has unacknowledged or unsent bytes.
    Sending,
    /// The service has bytes it has not read.
    Receiving,
    /// Both.
    Both,
}

/// State of a TCP connection (RFC 9293 §3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names are RFC 9293's")]
pub enum TcpState {
    Listen,
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// One line of `conns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Local IPv4 address.
    pub local: [u8; 4],
    /// Local port.
    pub local_port: u16,
    /// Peer's IPv4 address, zero for a listener.
    pub remote: [u8; 4],
    /// Peer's port, zero for a listener.
    pub remote_port: u16,
    /// RFC 9293 state.
    pub state: TcpState,
    /// What it does right now.
    pub role: Role,
    /// Bytes received and not yet read by the service.
    pub recv_queue: u32,
    /// Bytes written by the service and not yet acknowledged.
    pub send_queue: u32,
    /// SND.NXT (RFC 9293 §3.3.1): one past the highest sequence number sent; zero for a listener.
    pub send_next: u32,
    /// RCV.NXT: all before it was received in order; zero for a listener.
    pub recv_next: u32,
}
