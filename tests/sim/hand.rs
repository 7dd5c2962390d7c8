//! Peers written by hand after what Linux and others were seen to do, to pin the drain down where
//! smoltcp peers behave alike.

use std::task::{Context, Poll, Waker};

use ferry_net::{Config, ConnId, DrainStatus, Drained, Duration, Instant, Resumed, Stack, Storage};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl,
    TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::link::{Link, Weather};
use crate::nic::Card;
use crate::random::{Random, octets};

pub const SERVICE: Ipv4Address = Ipv4Address::new(10, 77, 0, 50);
pub const SERVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 50];
pub const PEER: Ipv4Address = Ipv4Address::new(10, 77, 0, 100);
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 100];
pub const PORT: u16 = 7;
const STREAM: u64 = 99;

/// How a peer behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Its SYN permits SACK.
    pub sack: bool,
    /// It reports octets it already has (RFC 2883).
    pub duplicate_sack: bool,
    /// It answers what does not advance its stream.
    pub answers: bool,
    /// It stops sending at a zero window. Linux before 6.6 does not, when it has been idle.
    pub heeds_zero_window: bool,
}

pub const LINUX: Manners =
    Manners { sack: true, duplicate_sack: true, answers: true, heeds_zero_window: true };

/// One end of a connection.
pub struct Peer {
    pub manners: Manners,
    pub port: u16,
    pub una: TcpSeqNumber,
    pub nxt: TcpSeqNumber,
    pub rcv_nxt: TcpSeqNumber,
    /// End of what it may send.
    pub edge: TcpSeqNumber,
    pub zero_windows: u32,
    pub open_windows: u32,
    /// Octets of the service that repeated what it had: barriers, probes.
    pub repeats: u32,
    pub resets: u32,
    /// ARP packets heard.
    pub arps: u32,
    first: TcpSeqNumber,
    pub got: Vec<u8>,
    open: bool,
    out: Vec<Vec<u8>>,
}

impl Peer {
    pub fn new(manners: Manners, port: u16, isn: i32) -> Self {
        let isn = TcpSeqNumber(isn);
        let mut peer = Self {
            manners,
            port,
            una: isn,
            nxt: isn,
            rcv_nxt: TcpSeqNumber(0),
            edge: isn + 1,
            zero_windows: 0,
            open_windows: 0,
            repeats: 0,
            resets: 0,
            arps: 0,
            first: isn + 1,
            got: Vec::new(),
            open: false,
            out: Vec::new(),
        };
        peer.syn();
        peer
    }

    fn syn(&mut self) {
        let repr = TcpRepr {
            control: TcpControl::Syn,
            ack_number: None,
            max_seg_size: Some(1460),
            sack_permitted: self.manners.sack,
            ..self.segment(self.nxt, &[])
        };
        self.emit(&repr);
        self.nxt += 1;
    }

    fn segment<'a>(&self, seq: TcpSeqNumber, payload: &'a [u8]) -> TcpRepr<'a> {
        TcpRepr {
            src_port: self.port,
            dst_port: PORT,
            control: TcpControl::None,
            seq_number: seq,
            ack_number: Some(self.rcv_nxt),
            window_len: 60_000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        }
    }

    fn emit(&mut self, tcp: &TcpRepr<'_>) {
        self.out.push(frame(tcp));
    }

    pub fn ack(&mut self) {
        // Linux: SEQ stays inside the window, tcp_acceptable_seq().
        let repr = self.segment(self.nxt.min(self.edge), &[]);
        self.emit(&repr);
    }

    /// Sends an octet that is acknowledged already, as Linux asks after a closed window.
    pub fn probe(&mut self) {
        let repr = self.segment(self.una - 1, &[]);
        self.emit(&repr);
    }

    /// Sends `len` octets of its stream, as far as the window lets it.
    pub fn send(&mut self, len: usize) -> usize {
        let room = if self.edge > self.nxt { self.edge - self.nxt } else { 0 };
        let len = if self.manners.heeds_zero_window { len.min(room) } else { len };
        for at in (0..len).step_by(1460) {
            let chunk = octets(STREAM, (self.nxt - self.first) as u64, (len - at).min(1460));
            let repr = self.segment(self.nxt, &chunk);
            self.out.push(frame(&repr));
            self.nxt += chunk.len();
        }
        len
    }

    /// Sends FIN.
    pub fn finish(&mut self) {
        let repr = TcpRepr { control: TcpControl::Fin, ..self.segment(self.nxt, &[]) };
        self.emit(&repr);
        self.nxt += 1;
    }

    pub fn reset(&mut self) {
        let repr = TcpRepr { control: TcpControl::Rst, ..self.segment(self.nxt, &[]) };
        self.emit(&repr);
    }

    /// Takes back what it was about to send first.
    pub fn drop_first(&mut self) {
        self.out.remove(0);
    }

    pub fn take(&mut self, frame: &[u8]) {
        let ethernet = EthernetFrame::new_checked(frame).expect("a frame");
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            self.arps += 1;
            return;
        }
        let ip = Ipv4Packet::new_checked(ethernet.payload()).expect("IPv4");
        let tcp = TcpPacket::new_checked(ip.payload()).expect("TCP");
        if tcp.dst_port() != self.port {
            return;
        }
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        if tcp.rst() {
            self.resets += 1;
            return;
        }
        if tcp.syn() {
            if !self.open {
                self.rcv_nxt = tcp.seq_number() + 1;
                self.open = true;
            }
            self.acknowledged(&tcp);
            return self.ack();
        }
        self.acknowledged(&tcp);
        let len = tcp.payload().len();
        if tcp.fin() && tcp.seq_number() + len == self.rcv_nxt {
            self.rcv_nxt += 1;
            return self.ack();
        }
        if len == 0 {
            return;
        }
        let (seq, end) = (tcp.seq_number(), tcp.seq_number() + len);
        if seq == self.rcv_nxt {
            self.got.extend_from_slice(tcp.payload());
            self.rcv_nxt = end;
            self.ack();
        } else if end <= self.rcv_nxt {
            self.repeats += 1;
            if self.manners.answers {
                let mut repr = self.segment(self.nxt.min(self.edge), &[]);
                if self.manners.sack && self.manners.duplicate_sack {
                    repr.sack_ranges[0] = Some((seq.0 as u32, end.0 as u32));
                }
                self.emit(&repr);
            }
        } else {
            self.ack();
        }
    }

    fn acknowledged(&mut self, tcp: &TcpPacket<&[u8]>) {
        if tcp.ack_number() >= self.una && tcp.ack_number() <= self.nxt {
            self.una = tcp.ack_number();
            self.edge = self.una + usize::from(tcp.window_len());
            self.zero_windows += u32::from(tcp.window_len() == 0);
            self.open_windows += u32::from(tcp.window_len() != 0);
        }
    }
}

/// A segment of the peer's, as a frame.
pub fn frame(tcp: &TcpRepr<'_>) -> Vec<u8> {
    frame_from(PEER, tcp)
}

/// A segment from `src` that the peer hands on.
pub fn frame_from(src: Ipv4Address, tcp: &TcpRepr<'_>) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: src,
        dst_addr: SERVICE,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; 14 + ip.buffer_len() + tcp.buffer_len()];
    bytes[..6].copy_from_slice(&SERVICE_MAC);
    bytes[6..12].copy_from_slice(&PEER_MAC);
    bytes[12..14].copy_from_slice(&[8, 0]);
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &checksums);
    let segment = &mut TcpPacket::new_unchecked(&mut bytes[14 + ip.buffer_len()..]);
    tcp.emit(segment, &src.into(), &SERVICE.into(), &checksums);
    bytes
}

/// A service and some hand-written peers on a link with a delay.
pub struct Bench {
    pub now: u64,
    pub link: Link,
    pub card: Card,
    pub stack: Stack,
    pub peers: Vec<Peer>,
    pub sessions: Vec<ConnId>,
    /// Frames to the service that are lost from now on.
    pub deaf: bool,
}

impl Bench {
    pub fn new(manners: &[Manners], delay: u64) -> Self {
        let weather = Weather { delay, ..Weather::CLEAR };
        let config =
            Config { mac: SERVICE_MAC, ip: SERVICE, prefix: 24, gateway: None, seed: [1, 2, 3, 4] };
        let storage = |_| Some(Storage { rx: vec![0; 65_535], tx: vec![0; 65_535] });
        let mut stack = Stack::new(&config, storage, Instant::ZERO);
        stack.listen(PORT, 64).expect("nobody else listens");
        let peers = manners
            .iter()
            .enumerate()
            .map(|(at, &manners)| Peer::new(manners, 40_000 + at as u16, at as i32 * 77_777 - 9))
            .collect();
        let link = Link::new(weather, vec![SERVICE_MAC, PEER_MAC], Random::new(1));
        let mut bench = Self {
            now: 0,
            link,
            card: Card::new(256),
            stack,
            peers,
            sessions: Vec::new(),
            deaf: false,
        };
        bench.run(6 * delay + 20_000, |_| false);
        let cx = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(id) = bench.stack.poll_accept(cx, PORT) {
            bench.sessions.push(id.expect("bound"));
        }
        let port = |id: &ConnId| bench.stack.remote_endpoint(*id).expect("open").port;
        bench.sessions.sort_by_key(port);
        assert_eq!(bench.sessions.len(), bench.peers.len());
        bench
    }

    pub fn instant(&self) -> Instant {
        Instant::from_micros(self.now as i64)
    }

    /// Lets `time` pass, or less if `done` says so after a moment at which something happened.
    pub fn run(&mut self, time: u64, mut done: impl FnMut(&mut Self) -> bool) {
        let until = self.now + time;
        loop {
            self.settle();
            if done(self) {
                return;
            }
            let stack = self.stack.poll_at().map(|at| at.total_micros() as u64);
            let next = [self.link.next(), stack].into_iter().flatten().min();
            match next {
                Some(next) if next <= until => self.now = next.max(self.now + 1),
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
    }

    fn settle(&mut self) {
        self.arrive();
        self.stack.poll(self.instant(), &mut self.card);
        self.service_sends();
    }

    fn arrive(&mut self) {
        while let Some((to, frame)) = self.link.arrived(self.now) {
            match to {
                0 if self.deaf => {}
                0 => self.card.received.push_back(frame),
                _ => self.peers.iter_mut().for_each(|peer| peer.take(&frame)),
            }
        }
        self.peers_send();
    }

    /// Lets `time` pass on the link and for the peers; the service is at work and does not see it.
    pub fn link_time(&mut self, time: u64) {
        self.arrive();
        self.now += time;
        self.arrive();
    }

    pub fn peers_send(&mut self) {
        for frame in self.peers.iter_mut().flat_map(|peer| peer.out.drain(..)) {
            self.link.send(1, &frame, self.now);
        }
    }

    pub fn service_sends(&mut self) {
        for frame in std::mem::take(&mut self.card.sent) {
            self.link.send(0, &frame, self.now);
        }
    }

    /// Drains; how it ended and, in microseconds, when.
    pub fn drain(&mut self, longest: u64) -> Drained {
        let deadline = self.instant() + Duration::from_micros(longest);
        self.stack.drain_begin(self.instant(), deadline);
        let mut end = None;
        let mut poll = |bench: &mut Self| {
            if let DrainStatus::Done(drained) =
                bench.stack.drain_poll(bench.instant(), &mut bench.card)
            {
                end = Some(drained);
            }
            bench.service_sends();
            end.is_some()
        };
        self.run(longest, &mut poll);
        poll(self);
        end.expect("a drain ends at its deadline")
    }

    pub fn resume(&mut self) -> Resumed {
        self.card = Card { received: std::mem::take(&mut self.card.received), ..Card::new(256) };
        let resumed = self.stack.resume(self.instant(), [9, 8, 7, 6], &mut self.card);
        self.service_sends();
        resumed
    }

    /// The service writes `len` octets of the stream, from `at` on.
    pub fn write(&mut self, session: usize, at: u64, len: usize) {
        let cx = &mut Context::from_waker(Waker::noop());
        let id = self.sessions[session];
        let written = self.stack.poll_send(cx, id, &octets(STREAM, at, len));
        assert_eq!(written, Poll::Ready(Ok(len)));
    }

    /// The service reads all there is and finds the stream's octets from `at` on; how many.
    pub fn read(&mut self, session: usize, mut at: u64) -> u64 {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut buf = [0; 4096];
        let begin = at;
        while let Poll::Ready(Ok(len @ 1..)) =
            self.stack.poll_recv(cx, self.sessions[session], &mut buf)
        {
            assert!(buf[..len] == octets(STREAM, at, len), "octets from {at}");
            at += len as u64;
        }
        at - begin
    }

    /// Octets the peer got are the stream's.
    pub fn check_got(&self, peer: usize) {
        let got = &self.peers[peer].got;
        assert!(*got == octets(STREAM, 0, got.len()));
    }
}
