//! A stack alone with its card, and segments to put to it one by one.

use std::task::{Context, Poll, Waker};

use ferry_net::{Config, ConnId, Instant, Stack, Storage};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, Ipv4Address, Ipv4Packet,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::hand::{PEER_MAC, PORT, SERVICE, SERVICE_MAC, frame};
use crate::nic::Card;

pub fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A stack alone with its card.
pub struct Alone {
    pub now: i64,
    pub stack: Stack,
    pub card: Card,
}

impl Alone {
    pub fn new(buffer: usize, gateway: Option<Ipv4Address>) -> Self {
        let config =
            Config { mac: SERVICE_MAC, ip: SERVICE, prefix: 24, gateway, seed: [1, 2, 3, 4] };
        let storage = move |_| Some(Storage { rx: vec![0; buffer], tx: vec![0; buffer] });
        let mut stack = Stack::new(&config, storage, Instant::ZERO);
        stack.listen(PORT, 20_000).expect("nobody else listens");
        Self { now: 0, stack, card: Card::new(100_000) }
    }

    /// Takes frames in; what comes out.
    pub fn exchange(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        self.card.received.extend(frames);
        loop {
            let progress = self.stack.poll(Instant::from_micros(self.now), &mut self.card);
            if !progress.more {
                return std::mem::take(&mut self.card.sent);
            }
        }
    }

    pub fn tcp(&mut self, segment: &TcpRepr<'_>) -> Vec<Segment> {
        self.exchange([frame(segment)]).iter().map(|frame| Segment::of(frame)).collect()
    }

    /// The next connection a listener has.
    pub fn accept(&mut self) -> ConnId {
        match self.stack.poll_accept(&mut cx(), PORT) {
            Poll::Ready(Ok(id)) => id,
            other => panic!("nobody to accept: {other:?}"),
        }
    }

    /// Finishes a handshake from `port`; the peer's next and the service's first sequence number.
    pub fn open(&mut self, port: u16) -> (TcpSeqNumber, TcpSeqNumber) {
        let answer = self.tcp(&syn(port, 1000));
        assert!(answer.len() == 1 && answer[0].syn && answer[0].ack == TcpSeqNumber(1001));
        let first = answer[0].seq + 1;
        assert_eq!(self.tcp(&data(port, 1001, first, &[])), []);
        (TcpSeqNumber(1001), first)
    }
}

/// What a test looks at in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub seq: TcpSeqNumber,
    pub ack: TcpSeqNumber,
    pub syn: bool,
    pub rst: bool,
    pub fin: bool,
    pub len: usize,
}

impl Segment {
    pub fn of(frame: &[u8]) -> Self {
        let ip = Ipv4Packet::new_checked(&frame[14..]).expect("IPv4");
        let tcp = TcpPacket::new_checked(ip.payload()).expect("TCP");
        assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        Self {
            seq: tcp.seq_number(),
            ack: tcp.ack_number(),
            syn: tcp.syn(),
            rst: tcp.rst(),
            fin: tcp.fin(),
            len: tcp.payload().len(),
        }
    }
}

pub fn data(port: u16, seq: i32, ack: TcpSeqNumber, payload: &[u8]) -> TcpRepr<'_> {
    TcpRepr {
        src_port: port,
        dst_port: PORT,
        control: TcpControl::None,
        seq_number: TcpSeqNumber(seq),
        ack_number: Some(ack),
        window_len: 60_000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    }
}

pub fn syn(port: u16, seq: i32) -> TcpRepr<'static> {
    TcpRepr {
        control: TcpControl::Syn,
        ack_number: None,
        max_seg_size: Some(1460),
        window_scale: Some(7),
        ..data(port, seq, TcpSeqNumber(0), &[])
    }
}

pub fn fin(port: u16, seq: i32, ack: TcpSeqNumber) -> TcpRepr<'static> {
    TcpRepr { control: TcpControl::Fin, ..data(port, seq, ack, &[]) }
}

pub fn arp(operation: ArpOperation, from: Ipv4Address, to: Ipv4Address) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(PEER_MAC),
        source_protocol_addr: from,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: to,
    };
    let mut frame = [&SERVICE_MAC[..], &PEER_MAC, &[8, 6], &[0; 28]].concat();
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
    frame
}

pub fn parsed_arp(frame: &[u8]) -> ArpRepr {
    let frame = EthernetFrame::new_checked(frame).expect("a frame");
    ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).expect("ARP")).expect("ARP")
}
