//! A client host: an ordinary smoltcp over Ethernet, and what its users do.

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::random::{octet, octets};

/// What a connection is for: the three roles of a service, and the paper's echo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The service sends.
    Download,
    /// The service receives.
    Upload,
    /// Both at one time: all that is sent comes back.
    Both,
    /// Message and answer in turn.
    PingPong,
    /// The service sends and closes, as HTTP/1.0 does; the client closes at the end of the stream.
    Fetch,
}

impl Role {
    /// Those whose connections stay open.
    pub const OPEN: [Self; 4] = [Self::Download, Self::Upload, Self::Both, Self::PingPong];
}

/// Octets of the request that begins a connection: role, stream, length.
pub const REQUEST_LEN: usize = 17;

/// Octets in one ping-pong message.
const MESSAGE: u64 = 64;

#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.received.pop_front()?), Tx(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// One connection and what its user has seen of it.
pub struct User {
    handle: SocketHandle,
    pub port: u16,
    pub role: Role,
    pub stream: u64,
    pub len: u64,
    request: usize,
    sent: u64,
    got: u64,
    pub closed: bool,
    /// It closes when it is done.
    pub closes: bool,
    /// Octets not acknowledged yet, and since when there are as many, in microseconds.
    waiting: (usize, u64),
}

/// A user whose octets are not acknowledged for so long asks the service where it stands.
const PERSIST: u64 = 2_000_000;

impl User {
    fn request(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[0] = self.role as u8;
        bytes[1..9].copy_from_slice(&self.stream.to_le_bytes());
        bytes[9..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// Octets it has to get.
    fn due(&self) -> u64 {
        if self.role == Role::Upload { 8 } else { self.len }
    }

    pub fn done(&self) -> bool {
        self.got == self.due()
    }

    /// How far it has come, to tell progress.
    pub fn position(&self) -> (u64, u64) {
        (self.sent, self.got)
    }

    fn step(&mut self, socket: &mut tcp::Socket<'_>) {
        if !socket.may_send() || self.closed {
            return;
        }
        if self.request < REQUEST_LEN {
            self.request += socket.send_slice(&self.request()[self.request..]).unwrap_or(0);
        }
        let may_send_until = match self.role {
            _ if self.request < REQUEST_LEN => 0,
            Role::Download | Role::Fetch => 0,
            Role::Upload | Role::Both => self.len,
            Role::PingPong if self.got.is_multiple_of(MESSAGE) => {
                (self.got + MESSAGE).min(self.len)
            }
            Role::PingPong => self.sent,
        };
        while self.sent < may_send_until && socket.can_send() {
            let len = (may_send_until - self.sent).min(2048) as usize;
            let chunk = octets(self.stream, self.sent, len);
            self.sent += socket.send_slice(&chunk).unwrap_or(0) as u64;
        }
        let mut buf = [0; 2048];
        while let Ok(len @ 1..) = socket.recv_slice(&mut buf) {
            for &byte in &buf[..len] {
                let expected = match self.role {
                    Role::Upload => self.len.to_le_bytes()[self.got as usize],
                    _ => octet(self.stream, self.got),
                };
                assert!(self.got < self.due(), "{:?}: more than was asked for", self.role);
                assert_eq!(byte, expected, "{:?}: octet {}", self.role, self.got);
                self.got += 1;
            }
        }
        let ended = !socket.may_recv() && self.request == REQUEST_LEN;
        if self.closes && (self.done() && (self.role != Role::Fetch || ended)) {
            self.closed = true;
            socket.close();
        }
        assert!(!ended || self.done(), "{:?} ended at {} of {}", self.role, self.got, self.len);
    }
}

pub struct Client {
    iface: Interface,
    sockets: SocketSet<'static>,
    wire: Wire,
    pub users: Vec<User>,
}

impl Client {
    pub fn new(mac: [u8; 6], ip: [u8; 4], seed: u64) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = seed;
        let mut wire = Wire::default();
        let mut iface = Interface::new(config, &mut wire, Instant::ZERO);
        let [a, b, c, d] = ip;
        iface.update_ip_addrs(|addrs| {
            addrs.push(IpCidr::new(IpAddress::v4(a, b, c, d), 24)).expect("room for one address");
        });
        Self { iface, sockets: SocketSet::new(Vec::new()), wire, users: Vec::new() }
    }

    pub fn connect(
        &mut self,
        to: (IpAddress, u16),
        from: u16,
        work: (Role, u64, u64),
        buffer: usize,
    ) {
        let (role, stream, len) = work;
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        socket.set_nagle_enabled(false);
        socket.connect(self.iface.context(), to, from).expect("a fresh socket connects");
        let handle = self.sockets.add(socket);
        let (closed, closes) = (false, false);
        let (request, sent, got, port) = (0, 0, 0, from);
        self.users.push(User {
            handle,
            port,
            role,
            stream,
            len,
            request,
            sent,
            got,
            closed,
            closes,
            waiting: (0, 0),
        });
    }

    pub fn receive(&mut self, frame: Vec<u8>) {
        self.wire.received.push_back(frame);
    }

    /// Lets the host run; what it sends.
    pub fn poll(&mut self, now: Instant) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        for user in &mut self.users {
            user.step(self.sockets.get_mut(user.handle));
        }
        self.iface.poll(now, &mut self.wire, &mut self.sockets);
        self.wire.sent.drain(..)
    }

    pub fn poll_at(&mut self, now: Instant) -> Option<Instant> {
        let persist = self
            .users
            .iter()
            .filter(|user| user.waiting.0 > 0)
            .map(|user| Instant::from_micros((user.waiting.1 + PERSIST) as i64))
            .min();
        [self.iface.poll_at(now, &self.sockets), persist].into_iter().flatten().min()
    }

    /// The ports of users whose persist timer has run out, and whether it is their FIN that waits.
    /// smoltcp 0.14 forgets to probe a window that closes before a retransmission timeout, to
    /// retransmit what was lost before a window that closed opens again, and to retransmit a FIN after
    /// three duplicate ACKs; the test does it in its place.
    pub fn persist(&mut self, now: u64) -> Vec<(u16, bool)> {
        use tcp::State::{CloseWait, Closing, Established, FinWait1, LastAck};
        let mut ports = Vec::new();
        for user in &mut self.users {
            let socket = self.sockets.get::<tcp::Socket<'_>>(user.handle);
            let fin = matches!(socket.state(), FinWait1 | Closing | LastAck);
            let open = fin || matches!(socket.state(), Established | CloseWait);
            let waiting = if open { socket.send_queue() + usize::from(fin) } else { 0 };
            if waiting != user.waiting.0 {
                user.waiting = (waiting, now);
            } else if waiting > 0 && now >= user.waiting.1 + PERSIST {
                user.waiting.1 = now;
                ports.push((user.port, fin && socket.send_queue() == 0));
            }
        }
        ports
    }

    /// Closes the connection of user `index` from this side.
    pub fn close(&mut self, index: usize) {
        self.users[index].closed = true;
        self.sockets.get_mut::<tcp::Socket<'_>>(self.users[index].handle).close();
    }

    pub fn state(&self, index: usize) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(self.users[index].handle).state()
    }
}
