//! The portable side's heart: one network stack, one idle line, and what the machine orders there.
//!
//! ```text
//! tokio: run tasks ──none ready──▶ futex wait (syscalls) ──▶ idle():  serve frames and timers
//!    ▲                                                          │     nothing woke? park
//!    └────────────────── a task was woken ◀─────────────────────┘
//! ```
//!
//! The machine's tasks arrive as what `host_park` returns with. All of a drain, the capture and the
//! resume happen inside [`idle`], so no code of the service runs between a drain's begin and its end.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::task::Waker;
use std::time::Duration;

use ferry_abi::{Listing, Report, Task, Wake};
use ferry_net::{Config, ConnId, DrainStatus, Instant, Nic, Progress, Stack};
use ferry_protocol::control::MARK_LIMIT_US;
use ferry_protocol::layout::{PAGE_SIZE, PORTABLE_BASE};

use crate::card::{self, Card};
use crate::single::Single;
use crate::{admission, clock, heap};

/// How often, in task polls, a busy runtime looks at network and orders.
const EVENT_INTERVAL: u32 = 31;
/// How long a service that reads may leave the network unserved. Peers send a tail loss probe after two
/// round trips and a few milliseconds without an answer (RFC 8985 §7.2).
const LATE_NS: u64 = 500_000;
/// Bytes read at once that make room worth telling the peer, although the network was served just now: it can
/// send while the service works on them.
const ROOM: usize = 16 << 10;
/// A time in which something else happens.
const FAR: Duration = Duration::from_secs(24 * 3600);

static STACK: Single<RefCell<Option<Stack>>> = Single::new(RefCell::new(None));
/// Waker of the root future, in which a busy runtime serves network and orders.
static ROOT: Single<RefCell<Option<Waker>>> = Single::new(RefCell::new(None));
/// Answers that the agent reads from RAM, kept until the next of their kind.
static FREE_MAP: Single<RefCell<Vec<u8>>> = Single::new(RefCell::new(Vec::new()));
static LISTING: Single<RefCell<Vec<u8>>> = Single::new(RefCell::new(Vec::new()));
/// Connections dropped while the stack was at work, to be closed when it has finished.
static DROPPED: Single<RefCell<Vec<ConnId>>> = Single::new(RefCell::new(Vec::new()));
/// When [`serve`] last ended, by the monotonic clock.
static SERVED_NS: Single<Cell<u64>> = Single::new(Cell::new(0));
/// [`serve`] is on the call stack: wakers that read the clock must not enter it again.
static SERVING: Single<Cell<bool>> = Single::new(Cell::new(false));

/// The service clock as the stack counts it.
fn now() -> Instant {
    Instant::from_micros((clock::monotonic_ns() / 1_000) as i64)
}

fn seed() -> [u64; 4] {
    std::array::from_fn(|_| ferry_abi::host_random())
}

/// Runs `f` with the network stack.
pub fn with_stack<R>(f: impl FnOnce(&mut Stack) -> R) -> R {
    f(STACK.borrow_mut().get_or_insert_with(new_stack))
}

fn new_stack() -> Stack {
    let machine = ferry_abi::host_machine();
    let gateway = (machine.gateway != [0; 4]).then(|| machine.gateway.into());
    let config = Config {
        mac: machine.mac,
        ip: machine.ip.into(),
        prefix: machine.prefix,
        gateway,
        seed: seed(),
    };
    Stack::new(&config, admission::buffers, now())
}

/// Takes frames and runs timers until there is no more to do. Returns whether a task may have been
/// woken.
fn serve() -> bool {
    serve_by(Stack::poll)
}

fn serve_by(poll: impl Fn(&mut Stack, Instant, &mut Card) -> Progress) -> bool {
    let mut woke = false;
    for id in DROPPED.take() {
        with_stack(|stack| stack.close(id));
    }
    loop {
        let progress = with_stack(|stack| poll(stack, now(), &mut Card));
        woke |= progress.woke;
        if !progress.more || woke {
            SERVED_NS.set(clock::monotonic_ns());
            return woke;
        }
    }
}

/// Called after the service has read `bytes`, as other systems serve the network in system calls: a task that
/// works on all it can get, or several that take turns, must not keep peers waiting.
pub fn keep_up(bytes: usize) {
    if bytes >= ROOM || clock::monotonic_ns().saturating_sub(SERVED_NS.get()) >= LATE_NS {
        SERVING.set(true);
        serve_by(Stack::poll_at_work);
        SERVING.set(false);
    }
}

/// Closes a connection that the service has dropped. A waker that the stack calls may be the last to
/// hold a task, and drop its stream in the middle of the stack's work.
pub fn close(id: ConnId) {
    match STACK.try_borrow_mut() {
        Ok(mut stack) => stack.get_or_insert_with(new_stack).close(id),
        Err(_) => DROPPED.borrow_mut().push(id),
    }
}

/// Makes tokio poll the root future when it next chooses a task.
fn wake_root() {
    if let Some(waker) = ROOT.borrow().as_ref() {
        waker.wake_by_ref();
    }
}

/// Called whenever the service reads the clock, which a busy tokio does every few task polls: looks,
/// with a load or two, whether frames or orders wait, so that they are served although no task yields
/// to the idle line.
pub fn look() {
    if !SERVING.get() && card::pending() {
        wake_root();
    }
}

/// One turn of the idle line: serves the network, then leaves the CPU until something happens, but no
/// longer than `deadline` (service clock, nanoseconds). Returns whether a task may have been woken, in
/// which case whoever waits has to return: tokio takes a wake-up on its own thread for one that finds
/// it awake, and will not end the wait itself.
pub fn idle(deadline: Option<u64>) -> bool {
    SERVING.set(true);
    let mut woke = serve() | admission::wake() | say_closed();
    if !woke {
        // With the ring full there is nothing to do before the card's interrupt says otherwise.
        let can_send = Card.transmit_ready();
        let network = with_stack(|stack| stack.poll_at()).filter(|_| can_send);
        let network = network.map(|at| at.total_micros().max(0).cast_unsigned() * 1_000);
        let memory = admission::next_ns();
        let until = deadline
            .into_iter()
            .chain(network)
            .chain(memory)
            .min()
            .map_or(u64::MAX, clock::machine_ns);
        woke = perform(park(until));
    }
    SERVING.set(false);
    woke
}

/// Serves network and orders from within the busy runtime.
fn attend() {
    SERVING.set(true);
    serve_by(Stack::poll_at_work);
    admission::wake();
    say_closed();
    if card::pending() {
        perform(park(0));
    }
    SERVING.set(false);
}

/// Tells the machine once that all quiet peers have read a window of zero. Returns whether what it orders
/// then has woken a task.
fn say_closed() -> bool {
    let Some(connections) = with_stack(Stack::quiet_closed) else { return false };
    card::report(Report::Closed { connections });
    // What was reported leaves the machine in a park.
    perform(park(0))
}

/// Parks until there is something to do other than to prepare for a capture. Between the preparation
/// and the park in which the service is captured nothing runs: what was reported is what is captured, and a
/// frame taken then could lie in a page that was reported to hold nothing.
fn park(until: u64) -> Wake {
    let mut wake = card::park(until);
    loop {
        match wake.task {
            Task::Prepare => prepare(wake.argument != 0),
            Task::CatchUp => {
                catch_up(wake.argument);
                prepare(false);
            }
            _ => return wake,
        }
        wake = card::park(0);
    }
}

/// Takes frames in up to the agent's mark: whatever comes behind it is kept for the service elsewhere.
fn catch_up(mark: u32) {
    let deadline = clock::monotonic_ns() + u64::from(MARK_LIMIT_US) * 1_000;
    loop {
        with_stack(|stack| stack.drain_poll(now(), &mut Card));
        if with_stack(|stack| stack.marked(mark)) || clock::monotonic_ns() >= deadline {
            return;
        }
        // The machine has given its order, and gives no other before it is answered.
        card::park(clock::machine_ns(deadline));
    }
}

/// Does what the machine asks, and whatever it asks next, until the service may run again. Returns
/// whether a task may have been woken.
fn perform(mut wake: Wake) -> bool {
    let mut woke = false;
    loop {
        match wake.task {
            // `park` has prepared whatever was to be captured.
            Task::None | Task::Prepare | Task::CatchUp => return woke,
            Task::Drain => drain(u64::from(wake.argument)),
            Task::End => end(),
            Task::CloseQuiet => with_stack(|stack| stack.close_quiet(now())),
            Task::Connections => card::report(Report::Connections(list())),
            // Without a drain before it: frozen and thawed, or captured while the windows were open.
            Task::Reopen | Task::Resume => reopen(wake),
        }
        woke |= matches!(wake.task, Task::Drain | Task::Reopen | Task::Resume);
        // What was reported leaves the machine when this side parks, which a busy service may not do for long.
        wake = park(0);
    }
}

/// Closes all windows and waits for what is in flight; from then on serves only acknowledgements
/// until the windows are reopened, here or on another machine.
fn drain(timeout_us: u64) {
    let deadline = now() + ferry_net::Duration::from_micros(timeout_us);
    with_stack(|stack| stack.drain_begin(now(), deadline));
    let mut reported = false;
    loop {
        let status = with_stack(|stack| stack.drain_poll(now(), &mut Card));
        let until = match status {
            DrainStatus::Pending(at) => {
                clock::machine_ns(at.total_micros().max(0).cast_unsigned() * 1_000)
            }
            DrainStatus::Done(drained) => {
                if !reported {
                    reported = true;
                    card::report(Report::Drained {
                        connections: drained.connections,
                        settled: drained.settled,
                        elapsed_us: drained.elapsed_us,
                    });
                }
                u64::MAX
            }
        };
        let wake = park(until);
        match wake.task {
            Task::Reopen | Task::Resume => return reopen(wake),
            _ => {
                perform(wake);
            }
        }
    }
}

/// Reopens the windows after a drain or a freeze.
fn reopen(wake: Wake) {
    let resumed = with_stack(|stack| {
        if wake.task == Task::Resume {
            clock::resume();
            stack.resume(now(), seed(), &mut Card)
        } else {
            if wake.argument != 0 {
                clock::resume();
            }
            stack.thaw(now(), &mut Card)
        }
    });
    card::report(Report::Resumed {
        connections: resumed.connections,
        held_frames: resumed.held_frames,
    });
}

/// Tells which pages hold no state, and if asked to, which connections there are. The service may be
/// captured in the next park.
fn prepare(with_connections: bool) {
    // Before the map, for the same reason: the list needs memory.
    let connections = if with_connections { list() } else { Listing::default() };
    let mut map = FREE_MAP.borrow_mut();
    let end = ferry_abi::host_machine().portable_end;
    // Sized first: the allocation must not come after the map is drawn.
    map.resize(((end - PORTABLE_BASE) as usize / PAGE_SIZE).div_ceil(8), 0);
    heap::free_map(&mut map);
    with_stack(|stack| {
        stack.discardable(|start, len| mark_free(&mut map, start, len));
    });
    card::report(Report::Prepared {
        addr: map.as_ptr() as u64,
        len: map.len() as u64,
        monotonic_ns: clock::prepare(),
        connections,
    });
}

/// Sets the bits of the pages that lie wholly in `start..start + len`.
fn mark_free(map: &mut [u8], start: usize, len: usize) {
    let base = PORTABLE_BASE as usize;
    let first = start.saturating_sub(base).div_ceil(PAGE_SIZE);
    let end = (start + len).saturating_sub(base) / PAGE_SIZE;
    heap::spans::set_bits(map, first, end.saturating_sub(first));
}

/// Writes the list of connections where the agent can read it.
fn list() -> Listing {
    let mut out = LISTING.borrow_mut();
    out.clear();
    let mut count = 0;
    with_stack(|stack| {
        for connection in stack.connections() {
            match postcard::to_extend(&connection, std::mem::take(&mut *out)) {
                Ok(bytes) => {
                    *out = bytes;
                    count += 1;
                }
                Err(error) => log::error!("connection {connection:?} cannot be listed: {error}"),
            }
        }
    });
    Listing { addr: out.as_ptr() as u64, len: out.len() as u64, count }
}

/// Runs a service's main future to its end, with all that it spawns, on this one thread. An error is
/// printed and makes the exit code a failure.
pub fn run(main: impl Future<Output = io::Result<()>>) -> ExitCode {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .event_interval(EVENT_INTERVAL)
        .build()
        .expect("a current-thread runtime needs nothing from the system");
    let result = tokio.block_on(async {
        let mut main = pin!(main);
        // With a timer pending, tokio waits with a timeout, and such a wait ends when `idle` says so;
        // one without would go on until another thread ends it.
        let mut timer = pin!(tokio::time::sleep(FAR));
        std::future::poll_fn(|cx| {
            *ROOT.borrow_mut() = Some(cx.waker().clone());
            if timer.as_mut().poll(cx).is_ready() {
                timer.as_mut().reset(tokio::time::Instant::now() + FAR);
                let _ = timer.as_mut().poll(cx);
            }
            attend();
            main.as_mut().poll(cx)
        })
        .await
    });
    // What the service has written goes out before the machine ends.
    finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("service failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Longest time the last segments of a service that ends may take.
const FINISH: Duration = Duration::from_millis(200);

/// Lets TCP finish what the service has closed, for a moment.
fn finish() {
    let deadline = clock::monotonic_ns() + FINISH.as_nanos() as u64;
    while clock::monotonic_ns() < deadline && with_stack(|stack| stack.connection_count() > 0) {
        serve();
        card::park(clock::machine_ns(deadline).min(next_timer()));
    }
}

/// When the stack wants to be polled, on the machine's clock.
fn next_timer() -> u64 {
    with_stack(|stack| stack.poll_at())
        .map_or(u64::MAX, |at| clock::machine_ns(at.total_micros().max(0).cast_unsigned() * 1_000))
}

/// Ends the service from outside: its peers are told as if a process had ended.
fn end() {
    with_stack(Stack::close_all);
    finish();
    card::report(Report::Ended);
}
