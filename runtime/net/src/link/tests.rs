use super::*;
use alloc::vec::Vec;

const US: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 1]);
const THEM: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 2]);
const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 0, 1);
const NEAR: Ipv4Address = Ipv4Address::new(10, 0, 0, 9);
const FAR: Ipv4Address = Ipv4Address::new(192, 0, 2, 9);

#[derive(Default)]
struct Ring(Vec<Vec<u8>>);

impl Nic for Ring {
    fn receive<R>(&mut self, _: impl FnOnce(&[u8]) -> R) -> Option<R> {
        None
    }

    fn transmit_ready(&mut self) -> bool {
        true
    }

    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool {
        let mut frame = vec![0; len];
        fill(&mut frame);
        self.0.push(frame);
        true
    }

    fn flush(&mut self) {}
}

impl Ring {
    /// Destination and ethertype of what was sent since the last call.
    fn sent(&mut self) -> Vec<(EthernetAddress, EthernetProtocol)> {
        let frames = core::mem::take(&mut self.0);
        let view = |frame: &Vec<u8>| {
            let frame = EthernetFrame::new_unchecked(frame);
            (frame.dst_addr(), frame.ethertype())
        };
        frames.iter().map(view).collect()
    }
}

fn link() -> Link {
    let cidr = Ipv4Cidr::new(Ipv4Address::new(10, 0, 0, 5), 24);
    Link::new(US, cidr, Some(GATEWAY), Key::new(1, 2))
}

fn at(seconds: i64) -> Instant {
    Instant::from_secs(seconds)
}

fn send(link: &mut Link, ring: &mut Ring, dst: Ipv4Address, now: Instant) {
    link.transmit(ring, dst, 20, now, |packet| packet.fill(7));
}

fn arp(operation: ArpOperation, from: (Ipv4Address, EthernetAddress), to: Ipv4Address) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: from.1,
        source_protocol_addr: from.0,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: to,
    };
    let mut bytes = vec![0; 28];
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
    bytes
}

const ASKED: (EthernetAddress, EthernetProtocol) =
    (EthernetAddress::BROADCAST, EthernetProtocol::Arp);
const TO_THEM: (EthernetAddress, EthernetProtocol) = (THEM, EthernetProtocol::Ipv4);

#[test]
fn an_unknown_neighbour_is_asked_for_and_the_newest_packet_waits() {
    let (mut link, mut ring) = (link(), Ring::default());
    send(&mut link, &mut ring, NEAR, at(0));
    send(&mut link, &mut ring, NEAR, at(0));
    assert_eq!(ring.sent(), [ASKED]);
    assert_eq!(link.poll_at(), Some(at(1)));
    let reply = arp(ArpOperation::Reply, (NEAR, THEM), link.ip());
    assert!(link.arp_input(&reply, at(0)).is_none());
    link.poll(&mut ring, at(0));
    assert_eq!(ring.sent(), [TO_THEM]);
    send(&mut link, &mut ring, NEAR, at(0));
    assert_eq!(ring.sent(), [TO_THEM]);
    assert_eq!(link.poll_at(), None);
}

#[test]
fn many_neighbours_are_asked_for_at_one_time() {
    let (mut link, mut ring) = (link(), Ring::default());
    for host in 20..120 {
        send(&mut link, &mut ring, Ipv4Address::new(10, 0, 0, host), at(0));
    }
    assert_eq!(ring.sent().len(), 100);
}

#[test]
fn a_neighbour_that_is_silent_is_asked_three_times() {
    let (mut link, mut ring) = (link(), Ring::default());
    send(&mut link, &mut ring, NEAR, at(0));
    for second in 1..10 {
        link.poll(&mut ring, at(second));
    }
    assert_eq!(ring.sent(), [ASKED; 3]);
    assert_eq!(link.poll_at(), None);
}

#[test]
fn frames_of_live_connections_teach_the_way_back() {
    let (mut link, mut ring) = (link(), Ring::default());
    link.learn(NEAR, THEM, at(0));
    send(&mut link, &mut ring, NEAR, at(0));
    assert_eq!(ring.sent(), [TO_THEM]);
    // From afar it is the gateway's address that was learned.
    link.learn(FAR, THEM, at(0));
    send(&mut link, &mut ring, Ipv4Address::new(198, 51, 100, 1), at(0));
    assert_eq!(ring.sent(), [TO_THEM]);
}

#[test]
fn an_old_neighbour_is_used_and_asked_about() {
    let (mut link, mut ring) = (link(), Ring::default());
    link.learn(NEAR, THEM, at(0));
    send(&mut link, &mut ring, NEAR, at(61));
    send(&mut link, &mut ring, NEAR, at(61));
    assert_eq!(ring.sent(), [TO_THEM, ASKED, TO_THEM]);
    link.learn(NEAR, THEM, at(61));
    send(&mut link, &mut ring, NEAR, at(62));
    assert_eq!(ring.sent(), [TO_THEM]);
    link.doubt_neighbours();
    send(&mut link, &mut ring, NEAR, at(62));
    assert_eq!(ring.sent(), [TO_THEM, ASKED]);
}

#[test]
fn only_packets_for_us_and_of_known_neighbours_fill_the_table() {
    let mut link = link();
    let other = Ipv4Address::new(10, 0, 0, 77);
    let gratuitous = arp(ArpOperation::Request, (NEAR, THEM), NEAR);
    assert!(link.arp_input(&gratuitous, at(0)).is_none());
    assert!(!link.neighbours.knows(NEAR));
    assert!(link.arp_input(&arp(ArpOperation::Request, (NEAR, THEM), other), at(0)).is_none());
    assert!(!link.neighbours.knows(NEAR));
    let foreign = arp(ArpOperation::Request, (FAR, THEM), link.ip());
    assert!(link.arp_input(&foreign, at(0)).is_none());
    assert!(!link.neighbours.knows(FAR));
    assert!(link.arp_input(&arp(ArpOperation::Request, (NEAR, US), link.ip()), at(0)).is_some());
    // It has changed its card, and says so.
    link.arp_input(&gratuitous, at(1));
    let mut ring = Ring::default();
    send(&mut link, &mut ring, NEAR, at(1));
    assert_eq!(ring.sent(), [TO_THEM]);
}

#[test]
fn garbage_is_ignored() {
    let mut link = link();
    let whole = arp(ArpOperation::Request, (NEAR, THEM), link.ip());
    for len in 0..whole.len() {
        assert!(link.arp_input(&whole[..len], at(0)).is_none());
    }
    assert!(!link.neighbours.knows(NEAR));
}
