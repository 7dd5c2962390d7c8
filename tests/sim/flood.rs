//! smoltcp 0.14 takes more than its buffer holds right after the handshake, and panics.

use std::task::Poll;

use ferry_net::Instant;
use smoltcp::wire::{ArpOperation, EthernetAddress, TcpSeqNumber};

use crate::alone::{Alone, Segment, arp, cx, data, syn};
use crate::hand::{PEER, PORT, SERVICE, SERVICE_MAC, frame};

/// A peer that sends more than was offered, all before the first acknowledgement.
fn flood(ack: TcpSeqNumber) -> Vec<Vec<u8>> {
    let octets = [7; 1460];
    let segments = (0..70).map(|at| frame(&data(5, 1001 + at * 1460, ack, &octets)));
    std::iter::once(frame(&data(5, 1001, ack, &[]))).chain(segments).collect()
}

#[test]
fn a_flood_before_the_first_ack_does_not_panic() {
    let mut alone = Alone::new(100_000, None);
    let first = alone.tcp(&syn(5, 1000))[0].seq + 1;
    alone.exchange(flood(first));
    let id = alone.accept();
    let mut buf = vec![0; 200_000];
    let mut taken = 0;
    while let Poll::Ready(Ok(len)) = alone.stack.poll_recv(&mut cx(), id, &mut buf) {
        assert!(buf[..len].iter().all(|&octet| octet == 7));
        taken += len;
    }
    // Whole segments that fit.
    assert_eq!(taken, 100_000 / 1460 * 1460);
    // And out of order, beyond the buffer: not kept as if it had been stored.
    let mut alone = Alone::new(100_000, None);
    let first = alone.tcp(&syn(5, 1000))[0].seq + 1;
    alone.exchange(flood(first).into_iter().skip(60));
    let line = alone.stack.connections().find(|line| line.remote_port == 5).expect("there");
    assert_eq!(line.recv_queue, 0);
}

/// When this fails, smoltcp has mended it and the guard may go.
#[test]
fn smoltcp_alone_panics_at_the_same_flood() {
    use smoltcp::iface::{Config, Interface, SocketSet};
    use smoltcp::socket::tcp;
    let mut wire = Wire::default();
    let mut iface =
        Interface::new(Config::new(EthernetAddress(SERVICE_MAC).into()), &mut wire, Instant::ZERO);
    let address = smoltcp::wire::IpCidr::new(SERVICE.into(), 24);
    iface.update_ip_addrs(|addrs| addrs.push(address).expect("room for one"));
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.listen(PORT).expect("a fresh socket listens");
    sockets.add(socket);
    let arp = arp(ArpOperation::Request, PEER, SERVICE);
    wire.received.extend([arp, frame(&syn(5, 1000))]);
    iface.poll(Instant::ZERO, &mut wire, &mut sockets);
    let first = Segment::of(&wire.sent.pop().expect("a SYN-ACK")).seq + 1;
    wire.received.extend(flood(first));
    let poll = std::panic::AssertUnwindSafe(|| {
        while !wire.received.is_empty() {
            iface.poll_ingress_single(Instant::ZERO, &mut wire, &mut sockets);
        }
    });
    assert!(std::panic::catch_unwind(poll).is_err());
}

#[derive(Default)]
struct Wire {
    received: std::collections::VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
}

struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut Vec<Vec<u8>>);

impl smoltcp::phy::RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push(frame);
        result
    }
}

impl smoltcp::phy::Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.received.pop_front()?), Tx(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.sent))
    }

    fn capabilities(&self) -> smoltcp::phy::DeviceCapabilities {
        let mut capabilities = smoltcp::phy::DeviceCapabilities::default();
        capabilities.medium = smoltcp::phy::Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}
