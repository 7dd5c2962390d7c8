//! What anybody on the network may send to a service: frames, in any order, at any time, also in a drain.

use std::collections::VecDeque;
use std::task::{Context, Waker};

use ferry_net::{Config, Duration, Instant, Nic, Stack, Storage};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

const SERVICE: Ipv4Address = Ipv4Address::new(10, 77, 0, 50);
const SERVICE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 50];
const PEER: Ipv4Address = Ipv4Address::new(10, 77, 0, 100);
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 100];
const PORT: u16 = 7;
const BUFFER: usize = 4096;
/// Frames that one frame may cause: nobody shall use a service to flood others.
const MOST_ANSWERS: usize = 64;

#[derive(Default)]
struct Card {
    received: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

impl Nic for Card {
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        Some(f(&self.received.pop_front()?))
    }

    fn transmit_ready(&mut self) -> bool {
        true
    }

    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let mut frame = vec![0xA5; len];
        fill(&mut frame);
        self.sent.push(frame);
        true
    }

    fn flush(&mut self) {}
}

/// The service, and what its peer knows.
struct World {
    now: Instant,
    stack: Stack,
    card: Card,
    open: Vec<ferry_net::ConnId>,
    /// What the service last said: its SEQ behind the segment, its ACK.
    next: TcpSeqNumber,
    acknowledged: TcpSeqNumber,
}

impl World {
    fn new() -> Self {
        let config =
            Config { mac: SERVICE_MAC, ip: SERVICE, prefix: 24, gateway: None, seed: [1, 2, 3, 4] };
        let storage = |_| Some(Storage { rx: vec![0; BUFFER], tx: vec![0; BUFFER] });
        let mut stack = Stack::new(&config, storage, Instant::ZERO);
        stack.listen(PORT, 16).expect("nobody else listens");
        Self {
            now: Instant::ZERO,
            stack,
            card: Card::default(),
            open: Vec::new(),
            next: TcpSeqNumber(0),
            acknowledged: TcpSeqNumber(0),
        }
    }

    /// Lets the service take what has arrived, and hears what it says.
    fn turn(&mut self) {
        let arrived = self.card.received.len();
        for _ in 0..=arrived {
            if !self.stack.poll(self.now, &mut self.card).more {
                break;
            }
        }
        // Also what the service has closed sends what is left.
        let causes = arrived + self.stack.connection_count() + 1;
        assert!(self.card.sent.len() <= causes * MOST_ANSWERS, "a flood");
        for frame in self.card.sent.drain(..) {
            let Ok(ip) = Ipv4Packet::new_checked(frame.get(14..).unwrap_or_default()) else {
                continue;
            };
            if ip.next_header() != IpProtocol::Tcp {
                continue;
            }
            let tcp = TcpPacket::new_checked(ip.payload()).expect("it writes whole segments");
            assert!(
                tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()),
                "a wrong checksum"
            );
            self.next = tcp.seq_number() + tcp.segment_len();
            self.acknowledged = tcp.ack_number();
        }
    }

    /// One step, as `op` and its two arguments say; `rest` is the input behind it.
    fn step(&mut self, op: u8, a: u8, b: u8, rest: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        match op % 8 {
            // A frame as it stands.
            0 => self.card.received.push_back(rest[..rest.len().min(usize::from(a) * 8)].to_vec()),
            // A segment near what the service expects.
            1..=3 => {
                let control = [
                    TcpControl::None,
                    TcpControl::Syn,
                    TcpControl::Fin,
                    TcpControl::Psh,
                    TcpControl::Rst,
                ];
                let offset = i32::from(b as i8) * if a & 0x80 == 0 { 1 } else { 1 << 20 };
                let payload = &rest[..rest.len().min(usize::from(a & 0x0f) * 100)];
                let repr = TcpRepr {
                    src_port: 40_000 + u16::from(a >> 6),
                    dst_port: PORT,
                    control: control[usize::from(op >> 3) % control.len()],
                    seq_number: TcpSeqNumber(self.acknowledged.0.wrapping_add(offset)),
                    ack_number: (op & 0x40 == 0)
                        .then_some(TcpSeqNumber(self.next.0.wrapping_add(offset / 8))),
                    window_len: u16::from(b) << 8,
                    window_scale: (a & 0x20 != 0).then_some(b % 20),
                    max_seg_size: (a & 0x10 != 0).then_some(u16::from(b) * 8),
                    sack_permitted: a & 0x10 != 0,
                    sack_ranges: [None; 3],
                    timestamp: None,
                    payload,
                };
                self.card.received.push_back(frame(&repr));
            }
            4 => self.now += Duration::from_micros(1 << (a % 28)),
            // The service does something.
            5 => {
                if let std::task::Poll::Ready(Ok(id)) = self.stack.poll_accept(&mut cx, PORT) {
                    self.open.push(id);
                }
                if b % 2 == 1 {
                    let _ = self.stack.poll_at_work(self.now, &mut self.card);
                }
            }
            6 => {
                if self.open.is_empty() {
                    return;
                }
                let index = usize::from(a) % self.open.len();
                let id = self.open[index];
                match b % 4 {
                    0 => drop(self.stack.poll_recv(&mut cx, id, &mut [0; 512])),
                    1 => drop(self.stack.poll_send(&mut cx, id, &[0x5A; 512])),
                    2 => self.stack.shutdown_send(id),
                    _ => {
                        self.stack.close(id);
                        self.open.swap_remove(index);
                    }
                }
            }
            // A move begins, goes on, is over or is undone.
            _ => match a % 3 {
                0 => self.stack.drain_begin(self.now, self.now + Duration::from_millis(500)),
                1 => drop(self.stack.drain_poll(self.now, &mut self.card)),
                _ if b % 2 == 1 => {
                    let _ = self.stack.resume(self.now, [u64::from(b); 4], &mut self.card);
                }
                _ => drop(self.stack.thaw(self.now, &mut self.card)),
            },
        }
    }
}

fn frame(tcp: &TcpRepr<'_>) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: PEER,
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
    tcp.emit(segment, &PEER.into(), &SERVICE.into(), &checksums);
    bytes
}

pub fn run(input: &[u8]) {
    let mut world = World::new();
    let mut rest = input;
    while let Some((&[op, a, b], after)) = rest.split_first_chunk::<3>() {
        world.step(op, a, b, after);
        world.turn();
        // What a step used as content is read again as steps: inputs stay short.
        rest = after;
    }
    assert!(world.stack.connection_count() <= input.len(), "connections from nowhere");
}
