//! The few calls that join the two sides of a guest.
//!
//! A guest is two link units in one address space. The **host-bound** side (kernel, drivers, control
//! port) is booted anew on every host; the **portable** side (std, runtime, smoltcp, service) moves.
//! The portable side calls the `host_*` functions below, and nothing else of the other side but the
//! kernel's `sys_*`. Only one of them, [`host_park`], switches stacks: at every freeze the portable
//! side stands in that call.
//!
//! Both sides are linked into one image, so the layouts here need no versions.
#![no_std]

/// What the portable side is asked to do when [`host_park`] returns.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Nothing: a frame may have arrived, or the deadline has passed.
    None = 0,
    /// Drain the channel, then report [`Report::Drained`]. Argument: longest time in microseconds.
    Drain = 1,
    /// The service was frozen or drained and stays here: reopen the windows, report
    /// [`Report::Resumed`]. Argument: 1 if it was frozen, so that its clock goes on from there.
    Reopen = 2,
    /// The service woke on another machine: mend clock, entropy and interface, process the frames that
    /// were held, announce, reopen the windows, report [`Report::Resumed`].
    Resume = 3,
    /// List the connections, report [`Report::Connections`].
    Connections = 4,
    /// Write the map of pages without state, report [`Report::Prepared`] and park at once: the next
    /// [`host_park`] may be the one in which the service is captured. Argument: 1 if the connections are
    /// to be listed too.
    Prepare = 5,
    /// The service is to end: close every connection in order, report [`Report::Ended`].
    End = 6,
    /// Take in frames up to the mark (`ferry_protocol::mark`) with the number that is the argument, then as
    /// [`Task::Prepare`] with argument 0. Given only after a drain.
    CatchUp = 7,
    /// Close the windows of quiet peers while the service runs on, then report [`Report::Closed`].
    CloseQuiet = 8,
}

/// Where a list of connections lies: postcard-encoded `ferry_protocol::control::Connection`s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Listing {
    /// Address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Entries.
    pub count: u32,
}

/// What the portable side answers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub enum Report {
    /// To [`Task::Drain`].
    Drained {
        /// Connections in a synchronised state when the drain began.
        connections: u32,
        /// Those that settled.
        settled: u32,
        /// Microseconds it took.
        elapsed_us: u32,
    },
    /// To [`Task::CloseQuiet`].
    Closed {
        /// Connections whose peers were told.
        connections: u32,
    },
    /// To [`Task::Reopen`] and [`Task::Resume`].
    Resumed {
        /// Connections whose windows were reopened.
        connections: u32,
        /// Frames that had been held.
        held_frames: u32,
    },
    /// To [`Task::Connections`].
    Connections(Listing),
    /// To [`Task::Prepare`] and [`Task::CatchUp`]: one bit per page of the portable region, set where a page holds no state.
    Prepared {
        /// Address of the bitmap.
        addr: u64,
        /// Bytes of the bitmap.
        len: u64,
        /// Service-monotonic clock, in nanoseconds.
        monotonic_ns: u64,
        /// The connections as in [`Report::Connections`]; all zero if they were not asked for.
        connections: Listing,
    },
    /// To [`Task::End`].
    Ended,
}

/// Why and with what [`host_park`] returned.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wake {
    /// What to do.
    pub task: Task,
    /// Argument of the task, where it has one, else 0.
    pub argument: u32,
}

/// What the machine tells the portable side at its first start and after each move.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Own IPv4 address, all zero if none was given.
    pub ip: [u8; 4],
    /// IPv4 address of the gateway, all zero if there is none.
    pub gateway: [u8; 4],
    /// Length of the network prefix in bits.
    pub prefix: u8,
    /// Highest level of log lines that are printed, as a number of `log::Level` (0 = off … 5 = trace).
    pub log_level: u8,
    /// The NIC's MAC address.
    pub mac: [u8; 6],
    /// First byte of the heap (page aligned).
    pub heap_start: u64,
    /// End of the portable region.
    pub portable_end: u64,
    /// Lowest address of the portable stack.
    pub stack_start: u64,
    /// The service's arguments: NUL-terminated strings, back to back.
    pub args: *const u8,
    /// Bytes of `args`.
    pub args_len: u64,
}

/// A received frame, valid until [`host_receive_done`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// First byte of the Ethernet header.
    pub data: *const u8,
    /// Bytes, without frame check sequence.
    pub len: u64,
}

unsafe extern "C" {
    /// Leaves the CPU until a frame arrives, an order comes, or `deadline_ns` (machine clock) has
    /// passed. A deadline of 0 only looks for orders. The one call in which a service can be captured.
    pub safe fn host_park(deadline_ns: u64) -> Wake;
    /// Whether an order or a frame is waiting; costs a few loads.
    pub safe fn host_pending() -> bool;
    /// Answers a [`Task`].
    pub safe fn host_report(report: Report);
    /// The machine's facts; the reference is valid until the next [`host_park`].
    pub safe fn host_machine() -> &'static Machine;
    /// The oldest received frame, or a null `data`.
    pub safe fn host_receive() -> Frame;
    /// Gives the buffer of the frame from [`host_receive`] back to the NIC.
    pub safe fn host_receive_done();
    /// A buffer for a frame of `len` bytes, or null if the ring is full.
    pub safe fn host_transmit(len: u64) -> *mut u8;
    /// Queues the frame written into the buffer from [`host_transmit`].
    pub safe fn host_transmit_done();
    /// Tells the NIC of the frames queued since the last flush.
    pub safe fn host_flush();
    /// Nanoseconds since this machine started; jumps at a move.
    pub safe fn host_monotonic_ns() -> u64;
    /// Nanoseconds since the Unix epoch.
    pub safe fn host_wall_ns() -> u64;
    /// 64 bits from the machine's random source.
    pub safe fn host_random() -> u64;
    /// Ends the guest with this exit code.
    pub safe fn host_exit(code: i32) -> !;
}
