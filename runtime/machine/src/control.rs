//! The guest's end of the control port: which order is allowed when, and what comes of it.
//!
//! ```text
//!            Drain              Freeze
//!  Running ────────▶ Draining ────────▶ Frozen        (Freeze also from Running)
//!     ▲  ▲──────────────┴──── Thaw ───────┘
//!     └── Resume ── Standby
//! ```
//!
//! What only the portable side can do (drain, list, reopen) is given to it as a [`Task`]; its
//! [`Report`] completes the order. One order is in work at a time.

use ferry_abi::{Listing, Report, Task, Wake};
use ferry_protocol::control::{
    Answer, Drained, FromGuest, Hello, Order, Range, Refusal, Request, State,
};
use ferry_protocol::frame::{self, Decoder, MAX_FRAME};
use ferry_protocol::layout::PORTABLE_BASE;

use crate::boot::boot;
use crate::capture;
use crate::cell::Local;
use crate::entry::build_id;
use crate::{clock, exports, side, uart};

/// Where this guest stands, and the order in work.
pub struct Control {
    decoder: Decoder,
    state: State,
    epoch: u64,
    work: Option<(u32, Order)>,
    task: Option<Wake>,
    report: Option<Report>,
    /// The connections at the freeze, where they were listed.
    frozen: Option<Listing>,
    /// Whose orders these are; 0 if nobody said.
    trace: u128,
    /// What came of them, to be said when there is nothing else to do.
    ended: Option<Ended>,
    /// The last thing on the port was no frame; said once, however long the garbage.
    garbage: bool,
}

static CONTROL: Local<Control> = Local::new(Control {
    decoder: Decoder::new(),
    state: State::Standby,
    epoch: 0,
    work: None,
    task: None,
    report: None,
    frozen: None,
    trace: 0,
    ended: None,
    garbage: false,
});

/// How a drain, a freeze or a move ended for this guest.
#[derive(Clone, Copy)]
struct Ended {
    trace: u128,
    taken_over: bool,
    connections: u32,
    held_frames: u32,
}

/// Announces the guest to its agent.
pub fn ready(state: State, epoch: u64) {
    let mut control = CONTROL.borrow();
    control.state = state;
    control.epoch = epoch;
    send(&FromGuest::Ready(control.hello()));
}

/// Where the guest stands.
pub fn state() -> State {
    CONTROL.borrow().state
}

/// Reads what the agent has sent and starts or carries out its orders.
pub fn poll() {
    let mut control = CONTROL.borrow();
    while let Some(byte) = uart::receive() {
        match control.decoder.push::<Request>(byte) {
            None => {}
            Some(Ok(request)) => {
                control.garbage = false;
                control.begin(request);
            }
            Some(Err(_)) if control.garbage => {}
            Some(Err(error)) => {
                control.garbage = true;
                log::warn!("control port: {error}; ignored up to the next frame");
            }
        }
    }
}

/// What the portable side is to do next, once.
pub fn take_task() -> Option<Wake> {
    CONTROL.borrow().task.take()
}

/// Whether the portable side has something to do.
pub fn has_task() -> bool {
    CONTROL.borrow().task.is_some()
}

/// The portable side's answer; completed when it has parked.
pub fn report(report: Report) {
    CONTROL.borrow().report = Some(report);
}

/// Completes the order in work if the portable side has reported. The portable side is parked.
pub fn complete() {
    CONTROL.borrow().complete();
}

/// Says what came of the last orders under a trace. The console takes a microsecond a byte and more: not while
/// peers wait.
pub fn tell() {
    let Some(ended) = CONTROL.borrow().ended.take() else { return };
    let Ended { trace, taken_over, connections, held_frames } = ended;
    let what = if taken_over { "was taken over" } else { "goes on" };
    uart::early_print(format_args!(
        "ferry: trace {trace:032x}: the service {what} with {connections} connections, {held_frames} frames \
         were held\n"
    ));
}

/// Tells the agent that the service has ended.
pub fn exited(code: i32) {
    send(&FromGuest::Exited { code });
}

fn send(message: &FromGuest) {
    let mut buf = [0; MAX_FRAME];
    match frame::encode(message, &mut buf) {
        Ok(bytes) => uart::send_all(bytes),
        Err(error) => log::error!("control port: cannot send {message:?}: {error}"),
    }
}

fn answer(id: u32, answer: Answer) {
    send(&FromGuest::Answer { id, answer });
}

impl Control {
    fn hello(&self) -> Hello {
        Hello {
            build_id: build_id(),
            state: self.state,
            portable: Range { addr: PORTABLE_BASE, len: boot().portable_end - PORTABLE_BASE },
            epoch: self.epoch,
        }
    }

    /// Carries `request` out, or sets the portable side to it, or refuses it.
    fn begin(&mut self, Request { id, order }: Request) {
        match order {
            Order::Hello => return answer(id, Answer::Hello(self.hello())),
            Order::Trace { id: trace } => {
                self.trace = trace;
                let state = match self.state {
                    State::Standby => "in standby",
                    State::Running => "running",
                    State::Draining => "drained",
                    State::Frozen => "frozen",
                };
                if trace != 0 {
                    uart::early_print(format_args!(
                        "ferry: trace {trace:032x}: its orders begin, the guest is {state}\n"
                    ));
                }
                return answer(id, Answer::Done);
            }
            Order::Shutdown if self.state != State::Running => {
                answer(id, Answer::Done);
                exports::power_off()
            }
            _ if self.work.is_some() => return answer(id, Answer::Refused(Refusal::Busy)),
            Order::Connections if self.state == State::Frozen => {
                let refused = Answer::Refused(Refusal::State(State::Frozen));
                return answer(id, self.frozen.map_or(refused, connections));
            }
            _ => {}
        }
        let (task, argument) = match (&order, self.state) {
            (Order::Scan { .. }, State::Running) => (Task::Prepare, 0),
            // A full freeze makes a checkpoint, whose connections somebody may have to hold; a move has
            // no use for the list, and no time.
            (Order::Freeze { full: false, mark: mark @ 1.. }, State::Draining) => {
                (Task::CatchUp, *mark)
            }
            (Order::Freeze { full, .. }, State::Running | State::Draining) => {
                (Task::Prepare, u32::from(*full))
            }
            (Order::CloseQuiet, State::Running) => (Task::CloseQuiet, 0),
            (Order::Drain { timeout_us }, State::Running) => (Task::Drain, *timeout_us),
            // The argument says whether the service clock has stood still.
            (Order::Thaw, State::Running | State::Draining) => (Task::Reopen, 0),
            (Order::Thaw, State::Frozen) => (Task::Reopen, 1),
            (Order::Connections, State::Running) => (Task::Connections, 0),
            (Order::Shutdown, _) => (Task::End, 0),
            (Order::Resume { epoch, wall_ns }, State::Standby) => {
                match capture::check_header(*epoch) {
                    Ok(header) => {
                        // SAFETY: the header belongs to this image and its stack and thread pointer
                        // lie in the region, which the agent has filled from the same capture.
                        unsafe { side::adopt(header.saved_sp, header.fs_base) };
                        clock::set_wall(*wall_ns);
                        self.epoch = *epoch;
                        (Task::Resume, 0)
                    }
                    Err(refusal) => return answer(id, Answer::Refused(refusal)),
                }
            }
            (_, state) => return answer(id, Answer::Refused(Refusal::State(state))),
        };
        if matches!(task, Task::Resume | Task::Reopen) {
            self.state = State::Running;
        }
        self.task = Some(Wake { task, argument });
        self.work = Some((id, order));
    }

    fn complete(&mut self) {
        let Some(report) = self.report.take() else { return };
        let Some((id, order)) = self.work.take() else {
            log::error!("the portable side reported {report:?} without an order");
            return;
        };
        let result = match (order, report) {
            (Order::CloseQuiet, Report::Closed { connections }) => Answer::Closed { connections },
            (Order::Drain { .. }, Report::Drained { connections, settled, elapsed_us }) => {
                self.state = State::Draining;
                Answer::Drained(Drained { connections, settled, elapsed_us })
            }
            (
                order @ (Order::Thaw | Order::Resume { .. }),
                Report::Resumed { connections, held_frames },
            ) => {
                let taken_over = matches!(order, Order::Resume { .. });
                self.ended = (self.trace != 0).then_some(Ended {
                    trace: self.trace,
                    taken_over,
                    connections,
                    held_frames,
                });
                self.trace = 0;
                Answer::Resumed { connections, held_frames }
            }
            (Order::Connections, Report::Connections(listing)) => connections(listing),
            (Order::Shutdown, Report::Ended) => {
                answer(id, Answer::Done);
                exports::power_off()
            }
            (Order::Scan { full }, Report::Prepared { addr, len, .. }) => pages(full, addr, len),
            (
                Order::Freeze { full, .. },
                Report::Prepared { addr, len, monotonic_ns, connections },
            ) => {
                self.state = State::Frozen;
                self.frozen = full.then_some(connections);
                capture::write_header(self.epoch, monotonic_ns);
                pages(full, addr, len)
            }
            (order, report) => {
                log::error!("the portable side answered {order:?} with {report:?}");
                Answer::Refused(Refusal::Busy)
            }
        };
        answer(id, result);
    }
}

fn connections(Listing { addr, len, count }: Listing) -> Answer {
    Answer::Connections { at: Range { addr, len }, count }
}

fn pages(full: bool, addr: u64, len: u64) -> Answer {
    // SAFETY: the portable side is parked and its report names a bitmap of its own that lives until
    // it runs again.
    let free = unsafe { core::slice::from_raw_parts(addr as *const u8, len as usize) };
    let capture::Scan { dirty, free, count, scan_us } = capture::scan(full, free);
    Answer::Pages { dirty, free, count, scan_us }
}
