//! One service, some clients, a link, and a clock that only this file moves.

use ferry_net::{Config, DrainStatus, Drained, Instant, Resumed, Stack, Storage};
use ferry_protocol::control::TcpState;
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetFrame, IpAddress, Ipv4Address};

use crate::client::{Client, Role};
use crate::link::{Link, Weather};
use crate::nic::Card;
use crate::random::Random;
use crate::service::{PORT, Service};
use crate::watch::Watch;

const SERVICE: [u8; 4] = [10, 77, 0, 50];
const SERVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 50];
/// No run takes longer than this of virtual time, in microseconds.
const PATIENCE: u64 = 600_000_000;

/// What becomes of frames that arrive while nothing runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The destination's ring holds them.
    Held,
    /// They are lost.
    Lost,
}

/// One move.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// The windows of quiet peers are closed so long before the drain, in microseconds.
    pub quiet: Option<u64>,
    /// Longest drain, in microseconds.
    pub drain: u64,
    /// From the freeze to the resume, in microseconds.
    pub pause: u64,
    pub switch: Switch,
    /// Back on the same host instead: the move failed before its commit point.
    pub thawed: bool,
}

/// The service's side of a run: what it is made with.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub clients: usize,
    pub users: usize,
    /// Octets of each connection's stream.
    pub len: u64,
    pub service_buffer: usize,
    pub client_buffer: usize,
    /// Places in the service's transmit ring.
    pub ring: usize,
}

pub struct World {
    now: u64,
    /// Time the service's clock has stood still.
    stopped: u64,
    frozen: Option<Switch>,
    draining: bool,
    pub link: Link,
    card: Card,
    ring: usize,
    pub stack: Stack,
    pub service: Service,
    pub clients: Vec<Client>,
    pub watch: Watch,
    random: Random,
    /// FERRY_SIM_TRACE is set: every frame is shown.
    traced: bool,
}

fn client_mac(index: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, index as u8]
}

fn client_ip(index: usize) -> [u8; 4] {
    [10, 77, 0, 100 + index as u8]
}

impl World {
    pub fn new(shape: &Shape, roles: &[Role], weather: Weather, mut random: Random) -> Self {
        let macs = std::iter::once(SERVICE_MAC).chain((0..shape.clients).map(client_mac)).collect();
        let config = Config {
            mac: SERVICE_MAC,
            ip: Ipv4Address::from_octets(SERVICE),
            prefix: 24,
            gateway: None,
            seed: [random.next(), random.next(), random.next(), random.next()],
        };
        let buffer = shape.service_buffer;
        let storage = move |_| Some(Storage { rx: vec![0; buffer], tx: vec![0; buffer] });
        let mut stack = Stack::new(&config, storage, Instant::ZERO);
        stack.listen(PORT, 64).expect("nobody else listens");
        let [a, b, c, d] = SERVICE;
        let clients = (0..shape.clients)
            .map(|index| {
                let mut client = Client::new(client_mac(index), client_ip(index), random.next());
                for user in 0..shape.users {
                    let work = (roles[user % roles.len()], random.next(), shape.len);
                    let from = 40000 + user as u16;
                    let to = (IpAddress::v4(a, b, c, d), PORT);
                    client.connect(to, from, work, shape.client_buffer);
                }
                client
            })
            .collect();
        Self {
            now: 0,
            stopped: 0,
            frozen: None,
            draining: false,
            link: Link::new(weather, macs, Random::new(random.next())),
            card: Card::new(shape.ring),
            ring: shape.ring,
            stack,
            service: Service::default(),
            clients,
            watch: Watch::default(),
            random,
            traced: std::env::var_os("FERRY_SIM_TRACE").is_some(),
        }
    }

    pub fn now(&self) -> u64 {
        self.now
    }

    /// The service's monotonic clock: it stands still while nothing runs.
    fn service_now(&self) -> Instant {
        Instant::from_micros((self.now - self.stopped) as i64)
    }

    /// Lets virtual time pass until `until`, or until `done`.
    pub fn run(&mut self, until: u64, mut done: impl FnMut(&mut Self) -> bool) {
        loop {
            self.settle();
            if done(self) {
                return;
            }
            let Some(next) = self.next().filter(|&next| next <= until) else {
                assert!(until < u64::MAX, "nothing will ever happen: {}", self.describe());
                self.now = self.now.max(until);
                return;
            };
            self.now = next.max(self.now);
            assert!(self.now < PATIENCE, "still not done: {}", self.describe());
        }
    }

    /// The next moment at which something happens.
    fn next(&mut self) -> Option<u64> {
        let now = Instant::from_micros(self.now as i64);
        let clients = self.clients.iter_mut().filter_map(|client| client.poll_at(now)).min();
        let clients = clients.map(|at| at.total_micros() as u64);
        let service = match self.frozen {
            Some(_) => None,
            None => self.stack.poll_at().map(|at| at.total_micros() as u64 + self.stopped),
        };
        let next = [self.link.next(), clients, service].into_iter().flatten().min()?;
        Some(if next <= self.now { self.now + 1 } else { next })
    }

    /// Everything that happens at this moment.
    fn settle(&mut self) {
        while let Some((to, frame)) = self.link.arrived(self.now) {
            match (to, self.frozen) {
                (0, Some(Switch::Lost)) => {}
                (0, _) => {
                    self.trace(">", &frame);
                    self.card.received.push_back(frame);
                }
                (client, _) => self.clients[client - 1].receive(frame),
            }
        }
        let now = Instant::from_micros(self.now as i64);
        for (index, client) in self.clients.iter_mut().enumerate() {
            for frame in client.poll(now) {
                self.watch.client_sent(&frame);
                self.link.send(index + 1, &frame, self.now);
            }
            for (port, fin) in client.persist(self.now) {
                let probe = self.watch.probe((client_ip(index), port), (SERVICE, PORT), fin);
                if let Some(packet) = probe {
                    let header = [&SERVICE_MAC[..], &client_mac(index), &[8, 0]].concat();
                    self.link.send(index + 1, &[header, packet].concat(), self.now);
                }
            }
        }
        if self.frozen.is_none() {
            self.poll_service();
        }
    }

    fn poll_service(&mut self) {
        for _ in 0..1000 {
            let progress = self.stack.poll(self.service_now(), &mut self.card);
            self.send_out();
            if !self.draining {
                self.service.run(&mut self.stack);
                // As a service that reads and writes does in between.
                self.stack.poll_at_work(self.service_now(), &mut self.card);
                self.send_out();
            }
            let due = self.stack.poll_at().is_some_and(|at| at <= self.service_now());
            if !progress.more && !due {
                return;
            }
        }
        let at = (self.service_now(), self.stack.poll_at());
        panic!("the stack is never done: {:?} {at:?} {}", self.stack, self.describe());
    }

    fn send_out(&mut self) {
        for frame in std::mem::take(&mut self.card.sent) {
            self.trace("<", &frame);
            self.watch.service_sent(&frame);
            self.link.send(0, &frame, self.now);
        }
    }

    /// Moves the service: drain, freeze, and resume on another card. What both ends reported.
    pub fn migrate(&mut self, how: &Move) -> (Drained, Resumed) {
        if let Some(before) = how.quiet {
            self.stack.close_quiet(self.service_now());
            self.watch.quiet_closes();
            self.poll_service();
            self.run(self.now + before, |_| false);
        }
        let drained = self.drain(how.drain);
        self.frozen = Some(how.switch);
        if how.switch == Switch::Lost {
            self.card.received.clear();
        }
        let began = self.now;
        self.run(began + how.pause, |_| false);
        self.stopped += self.now - began;
        self.frozen = None;
        self.draining = false;
        let announcements = self.watch.announcements;
        self.watch.drain_ends();
        if !how.thawed {
            // Another host: only what the standby's ring held is there.
            let held = std::mem::take(&mut self.card.received);
            self.card = Card { received: held, ..Card::new(self.ring) };
        }
        let synchronised = self.synchronised();
        let resumed = if how.thawed {
            self.stack.thaw(self.service_now(), &mut self.card)
        } else {
            let seed = [(); 4].map(|()| self.random.next());
            self.stack.resume(self.service_now(), seed, &mut self.card)
        };
        self.send_out();
        self.poll_service();
        // A ring of few places takes several turns.
        let told = |world: &mut Self| {
            let open = world.synchronised();
            let told = |&peer| world.watch.open_windows(peer) > 0 || !open.contains(&peer);
            synchronised.iter().all(told)
        };
        self.run(self.now + 20_000, told);
        assert!(self.watch.announcements > announcements, "no gratuitous ARP");
        assert!(told(self), "no window update to one of {synchronised:?}");
        (drained, resumed)
    }

    fn drain(&mut self, longest: u64) -> Drained {
        let deadline = self.service_now() + ferry_net::Duration::from_micros(longest);
        let synchronised = self.synchronised();
        self.stack.drain_begin(self.service_now(), deadline);
        self.draining = true;
        self.watch.drain_begins();
        let mut end = None;
        let mut poll = |world: &mut Self| {
            match world.stack.drain_poll(world.service_now(), &mut world.card) {
                DrainStatus::Done(drained) => end = Some(drained),
                DrainStatus::Pending(at) => assert!(at <= deadline, "waits past its deadline"),
            }
            world.send_out();
            end.is_some()
        };
        self.run(self.now + longest, &mut poll);
        poll(self);
        let drained = end.expect("a drain ends at its deadline");
        for peer in self.synchronised().into_iter().filter(|peer| synchronised.contains(peer)) {
            assert!(
                self.watch.zero_windows(peer) > 0 || drained.timed_out,
                "{peer:?} not told: {drained:?} {}",
                self.describe()
            );
        }
        drained
    }

    fn synchronised(&self) -> Vec<([u8; 4], u16)> {
        use TcpState::{CloseWait, Closing, Established, FinWait1, FinWait2, LastAck};
        self.stack
            .connections()
            .filter(|line| {
                matches!(
                    line.state,
                    Established | FinWait1 | FinWait2 | CloseWait | Closing | LastAck
                )
            })
            .map(|line| (line.remote, line.remote_port))
            .collect()
    }

    /// All streams have arrived whole.
    pub fn all_done(&self) -> bool {
        self.clients.iter().all(|client| client.users.iter().all(|user| user.done()))
    }

    /// Every client's every connection is open.
    pub fn all_alive(&self) -> bool {
        self.clients.iter().all(|client| {
            (0..client.users.len()).all(|user| client.state(user) == tcp::State::Established)
        })
    }

    /// Closes all connections from the clients' side.
    pub fn close_all(&mut self) {
        for client in &mut self.clients {
            (0..client.users.len()).for_each(|user| client.close(user));
        }
    }

    /// Nothing is left of any connection, except TIME-WAIT.
    pub fn all_closed(&self) -> bool {
        let ended = |state| matches!(state, tcp::State::Closed | tcp::State::TimeWait);
        let clients = self
            .clients
            .iter()
            .all(|client| (0..client.users.len()).all(|user| ended(client.state(user))));
        clients && self.service.sessions() == 0 && self.stack.connection_count() == 0
    }

    /// Shows a frame as it leaves (<) or reaches (>) the service.
    fn trace(&self, direction: &str, frame: &[u8]) {
        if self.traced {
            let shown = smoltcp::wire::PrettyPrinter::<EthernetFrame<&[u8]>>::new("", &frame);
            let shown = shown.to_string().replace('\n', "").replace("\\", "|");
            println!("{:>11} {direction} {shown}", self.now);
        }
    }

    pub fn describe(&self) -> String {
        let users: Vec<_> = self
            .clients
            .iter()
            .enumerate()
            .flat_map(|(at, client)| {
                client.users.iter().enumerate().map(move |(index, user)| {
                    let state = client.state(index);
                    (at, user.port, user.role, state, user.position(), user.len)
                })
            })
            .collect();
        let service: Vec<_> = self.stack.connections().collect();
        format!("at {} us\n{users:?}\n{service:?}", self.now)
    }
}
