//! The facade: what the runtime drives, what the service's sockets call, what the mover orders.
//!
//! * [`Stack::poll`] takes frames from the card, runs timers and sends, a bounded amount per call
//!   (`ingress`, `egress`); [`Stack::poll_at_work`] does so while the service is at work (`cold`).
//! * Sockets (`sockets`): listen, accept, connect, receive, send, close. They only touch queues; what
//!   they leave to be sent goes out with the next poll, so in a drain they send nothing.
//! * Before a move (`quiet`): [`Stack::close_quiet`], while the service runs.
//! * The move (`moving`): [`Stack::drain_begin`], [`Stack::drain_poll`], then [`Stack::thaw`] on the
//!   same host or [`Stack::resume`] on another; the network is told (`announce`).

mod announce;
mod cold;
mod egress;
mod errors;
mod ingress;
mod listing;
mod moving;
mod quiet;
mod reply;
mod sockets;

pub use errors::{ConnectError, ListenError, StreamError};
pub use moving::Resumed;

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Address, Ipv4Cidr};

use crate::device::{Output, Port, Window};
use crate::drain::Run;
use crate::hash::Key;
use crate::link::{Link, Nic};
use crate::table::bind::Bind;
use crate::table::connection::Buffers;
use crate::table::established::{ConnId, Established};
use crate::table::time_wait::TimeWaits;
use crate::table::timers::Timers;
use cold::Cold;
use quiet::Quiet;
use reply::Reply;

/// Frames taken from the card in one [`Stack::poll`].
const RECEIVE_BUDGET: u32 = 128;

/// A full ring is looked at again after this, should no interrupt tell before.
const RING_RETRY: Duration = Duration::from_micros(500);

/// Where the stack lives and what it is made with.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Hardware address of the card.
    pub mac: [u8; 6],
    /// Our address.
    pub ip: Ipv4Address,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// Next hop for addresses outside the network.
    pub gateway: Option<Ipv4Address>,
    /// Random bits nobody outside can know.
    pub seed: [u64; 4],
}

/// What one [`Stack::poll`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Frames taken from the card.
    pub frames: u32,
    /// Something happened that tasks may wait for.
    pub woke: bool,
    /// There is more to do at once: call again.
    pub more: bool,
}

/// What the stack is doing.
#[derive(Debug)]
enum Mode {
    Running,
    /// Windows are closed; also after the drain is done, until thaw or resume.
    Draining(Run),
    /// Frames held during the switch are taken; unknown ones are not answered.
    Resuming,
}

/// The network of one service. See the [module](self).
pub struct Stack {
    now: Instant,
    mode: Mode,
    link: Link,
    iface: Interface,
    /// Key and counter of what has to be unpredictable: sequence numbers, ports.
    secret: Key,
    drawn: u64,
    buffers: Box<dyn Buffers>,
    bind: Bind,
    established: Established,
    time_waits: TimeWaits,
    timers: Timers,
    /// Connections that may have something to send.
    ready: VecDeque<ConnId>,
    /// Connections with something outstanding and no timer, whose peers are to be asked.
    to_ask: Vec<ConnId>,
    /// Answer to the frame being taken.
    reply: Reply,
    /// SYNs that came in a drain.
    held_syns: Vec<Box<[u8]>>,
    /// Connections whose windows are to be reopened after a move.
    to_announce: VecDeque<ConnId>,
    /// When the gratuitous ARP is repeated, and how many times it has been sent.
    announced: Option<(Instant, u8)>,
    resumed_at: Instant,
    /// Window updates that wait until the service does.
    cold: Cold,
    /// Peers whose windows are closed before a drain.
    quiet: Option<Quiet>,
    /// The last mark that came in this drain.
    mark: Option<u32>,
    woke: bool,
    /// The ring was full when the last turn ended.
    blocked: bool,
}

impl core::fmt::Debug for Stack {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stack")
            .field("ip", &self.link.cidr())
            .field("mode", &self.mode)
            .field("connections", &self.established.len())
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// A stack without listeners or connections, at `now`.
    pub fn new(config: &Config, buffers: impl Buffers + 'static, now: Instant) -> Self {
        let [a, b, c, d] = config.seed;
        let key = Key::new(a, b);
        let cidr = Ipv4Cidr::new(config.ip, config.prefix);
        let link = Link::new(EthernetAddress(config.mac), cidr, config.gateway, key);
        Self {
            now,
            mode: Mode::Running,
            iface: interface(cidr, c ^ d, now),
            link,
            secret: Key::new(c, d),
            drawn: 0,
            buffers: Box::new(buffers),
            bind: Bind::new(key),
            established: Established::new(key),
            time_waits: TimeWaits::new(key),
            timers: Timers::default(),
            ready: VecDeque::new(),
            to_ask: Vec::new(),
            reply: Reply::new(),
            held_syns: Vec::new(),
            to_announce: VecDeque::new(),
            announced: None,
            resumed_at: now,
            cold: Cold::default(),
            quiet: None,
            mark: None,
            woke: false,
            blocked: false,
        }
    }

    /// Takes frames, runs timers, sends: a bounded amount. In a drain it does what
    /// [`drain_poll`](Self::drain_poll) does.
    pub fn poll(&mut self, now: Instant, nic: &mut impl Nic) -> Progress {
        self.release_updates();
        self.turn(now, nic)
    }

    fn turn(&mut self, now: Instant, nic: &mut impl Nic) -> Progress {
        self.now = now;
        let frames = self.receive(nic, RECEIVE_BUDGET);
        self.blocked = match self.mode {
            Mode::Draining(_) => self.drain_egress(nic, frames < RECEIVE_BUDGET),
            Mode::Running | Mode::Resuming => {
                self.time_waits.expire(now);
                self.run_timers();
                self.announce(nic) | self.ask_neglected(nic) | self.send(nic) | self.tell_quiet(nic)
            }
        };
        self.link.poll(nic, now);
        nic.flush();
        Progress {
            frames,
            woke: core::mem::take(&mut self.woke),
            // A full ring ends the turn; the card's interrupt begins the next.
            more: frames == RECEIVE_BUDGET || (!self.blocked && self.has_more() && self.running()),
        }
    }

    /// Something could be sent without anything happening first.
    fn has_more(&self) -> bool {
        !self.ready.is_empty()
            || !self.to_announce.is_empty()
            || self.quiet.as_ref().is_some_and(Quiet::tells)
    }

    /// When [`poll`](Self::poll) has to be called although no frame arrived and nothing was called.
    pub fn poll_at(&self) -> Option<Instant> {
        let link = self.link.poll_at();
        let earliest = |a: Option<Instant>, b: Option<Instant>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match &self.mode {
            _ if self.blocked => Some(self.now + RING_RETRY),
            Mode::Draining(run) => earliest(run.poll_at(self.now), link),
            _ if self.has_more() => Some(self.now),
            _ => {
                let announced = self.announced_at();
                let quiet = self.quiet.as_ref().map(|quiet| quiet.until());
                earliest(earliest(self.timers.next(), announced), earliest(quiet, link))
            }
        }
    }

    /// Our address.
    #[must_use]
    pub fn ip(&self) -> Ipv4Address {
        self.link.ip()
    }

    /// Connections of the established table, in all states.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.established.len()
    }

    /// The next unpredictable word.
    fn draw(&mut self) -> u64 {
        self.drawn = self.drawn.wrapping_add(1);
        self.secret.hash_words(&[self.drawn, self.now.total_micros() as u64])
    }

    /// A fresh interface: the next connection's initial sequence number comes from a generator that
    /// no sequence number seen on the wire tells anything about (RFC 6528 §3).
    fn renew_interface(&mut self) {
        let seed = self.draw();
        self.iface = interface(self.link.cidr(), seed, self.now);
    }

    fn mark_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.established.get_mut(id)
            && !connection.ready
        {
            connection.ready = true;
            self.ready.push_back(id);
        }
    }

    /// The window that segments show now.
    fn window(&self) -> Window {
        if matches!(self.mode, Mode::Draining(_)) { Window::Closed } else { Window::Open }
    }

    /// Neither draining nor resuming: segments of ours may leave, and one that belongs to nothing may
    /// be refused with RST or ICMP unreachable.
    fn running(&self) -> bool {
        matches!(self.mode, Mode::Running)
    }
}

fn interface(cidr: Ipv4Cidr, seed: u64, now: Instant) -> Interface {
    let mut config = smoltcp::iface::Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut nowhere = Port { packet: None, out: &mut Nowhere, flow: None, window: Window::Open };
    let mut iface = Interface::new(config, &mut nowhere, now);
    iface.update_ip_addrs(|addrs| {
        // The list has room for one address at least.
        let _ = addrs.push(IpCidr::Ipv4(cidr));
    });
    iface
}

/// The device an interface is made with; it only asks what the device can do.
struct Nowhere;

impl Output for Nowhere {
    fn ready(&mut self) -> bool {
        false
    }

    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; len])
    }
}

/// A set without sockets, for packets that concern no connection.
fn no_sockets() -> SocketSet<'static> {
    SocketSet::new(Vec::new())
}
