//! A peer for rehearsals: it answers a [`Stack`](crate::Stack) as a Linux client on the same network would,
//! frame by frame, without timers, loss or windows of its own.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Ipv4Address, Ipv4Packet, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::device::{emit, packet_len, segment};

/// Ephemeral ports begin here (RFC 6335 §6).
const FIRST_PORT: u16 = 49152;
/// Largest segment, as over Ethernet.
const MSS: u16 = 1460;
const WINDOW: u16 = 64240;

/// One connection, seen from the peer.
#[derive(Debug)]
struct Connection {
    local: u16,
    remote: u16,
    open: bool,
    snd_nxt: TcpSeqNumber,
    rcv_nxt: TcpSeqNumber,
}

/// See the module.
#[derive(Debug)]
pub struct Peer {
    mac: EthernetAddress,
    ip: Ipv4Address,
    service_mac: EthernetAddress,
    service_ip: Ipv4Address,
    connections: Vec<Connection>,
    received: usize,
}

impl Peer {
    /// A peer of the service with this MAC and IP address.
    #[must_use]
    pub fn new(service_mac: [u8; 6], service_ip: [u8; 4]) -> Self {
        let mut ip = service_ip;
        // Another address of the same network, whatever its prefix is.
        ip[3] ^= 1;
        Self {
            mac: EthernetAddress([2, 0, 0, 0, 0, 1]),
            ip: ip.into(),
            service_mac: EthernetAddress(service_mac),
            service_ip: service_ip.into(),
            connections: Vec::new(),
            received: 0,
        }
    }

    /// Bytes of the service so far, over all connections.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.connections.iter().filter(|connection| connection.open).count()
    }

    /// Begins a connection to a port of the service.
    pub fn connect(&mut self, port: u16, out: &mut VecDeque<Vec<u8>>) {
        let local = FIRST_PORT + self.connections.len() as u16;
        let isn = TcpSeqNumber(i32::from(local) << 12);
        let connection = Connection {
            local,
            remote: port,
            open: false,
            snd_nxt: isn + 1,
            rcv_nxt: TcpSeqNumber(0),
        };
        let syn = TcpRepr {
            control: TcpControl::Syn,
            seq_number: isn,
            ack_number: None,
            max_seg_size: Some(MSS),
            window_scale: Some(7),
            sack_permitted: true,
            ..next(&connection, &[])
        };
        out.push_back(self.frame(&syn));
        self.connections.push(connection);
    }

    /// Sends `data` on every open connection to `port`.
    pub fn say(&mut self, port: u16, data: &[u8], out: &mut VecDeque<Vec<u8>>) {
        for index in 0..self.connections.len() {
            for part in data.chunks(usize::from(MSS)) {
                let connection = &self.connections[index];
                if connection.remote != port || !connection.open {
                    break;
                }
                let frame =
                    self.frame(&TcpRepr { control: TcpControl::Psh, ..next(connection, part) });
                out.push_back(frame);
                self.connections[index].snd_nxt += part.len();
            }
        }
    }

    /// Takes a frame of the service and answers it.
    pub fn answer(&mut self, frame: &[u8], out: &mut VecDeque<Vec<u8>>) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                let packet = ArpPacket::new_checked(frame.payload());
                if let Some(reply) = packet.ok().and_then(|packet| self.arp(&packet)) {
                    out.push_back(reply);
                }
            }
            EthernetProtocol::Ipv4 => {
                let Ok(ip) = Ipv4Packet::new_checked(frame.payload()) else { return };
                let Ok(tcp) = TcpPacket::new_checked(ip.payload()) else { return };
                if let Some(reply) = self.tcp(&tcp) {
                    out.push_back(reply);
                }
            }
            _ => {}
        }
    }

    fn arp(&self, packet: &ArpPacket<&[u8]>) -> Option<Vec<u8>> {
        let Ok(ArpRepr::EthernetIpv4 { operation, target_protocol_addr, .. }) =
            ArpRepr::parse(packet)
        else {
            return None;
        };
        let asked = operation == ArpOperation::Request && target_protocol_addr == self.ip;
        asked.then(|| {
            let reply = ArpRepr::EthernetIpv4 {
                operation: ArpOperation::Reply,
                source_hardware_addr: self.mac,
                source_protocol_addr: self.ip,
                target_hardware_addr: self.service_mac,
                target_protocol_addr: self.service_ip,
            };
            self.ethernet(EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
                reply.emit(&mut ArpPacket::new_unchecked(bytes));
            })
        })
    }

    fn tcp(&mut self, tcp: &TcpPacket<&[u8]>) -> Option<Vec<u8>> {
        let (local, remote) = (tcp.dst_port(), tcp.src_port());
        let index = self
            .connections
            .iter()
            .position(|connection| (connection.local, connection.remote) == (local, remote))?;
        let connection = &mut self.connections[index];
        let (seq, len) = (tcp.seq_number(), tcp.payload().len());
        let mut duplicate = None;
        if tcp.syn() {
            connection.open = true;
            connection.rcv_nxt = seq + 1;
        } else if len == 0 {
            return None;
        } else if seq == connection.rcv_nxt {
            connection.rcv_nxt += len;
            self.received += len;
        } else {
            // It has been here before (RFC 2883 §4).
            duplicate = Some((seq.0.cast_unsigned(), (seq + len).0.cast_unsigned()));
        }
        let mut ack = next(&self.connections[index], &[]);
        ack.sack_ranges[0] = duplicate;
        Some(self.frame(&ack))
    }

    fn frame(&self, tcp: &TcpRepr<'_>) -> Vec<u8> {
        self.ethernet(EthernetProtocol::Ipv4, packet_len(tcp), |bytes| {
            emit(bytes, self.ip, self.service_ip, tcp);
        })
    }

    fn ethernet(
        &self,
        ethertype: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Vec<u8> {
        let header = EthernetRepr { src_addr: self.mac, dst_addr: self.service_mac, ethertype };
        let mut bytes = vec![0; header.buffer_len() + len];
        header.emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
        fill(&mut bytes[header.buffer_len()..]);
        bytes
    }
}

/// The next segment of a connection: an ACK with `payload`.
fn next<'p>(connection: &Connection, payload: &'p [u8]) -> TcpRepr<'p> {
    TcpRepr {
        src_port: connection.local,
        dst_port: connection.remote,
        ..segment(connection.snd_nxt, connection.rcv_nxt, WINDOW, payload)
    }
}

#[cfg(test)]
#[path = "understudy_tests.rs"]
mod tests;
