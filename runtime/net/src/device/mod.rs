//! The device below smoltcp: one IP packet in at a time, packets out to wherever they have to go.
//!
//! Every segment of a connection passes through here, so here is where its [`Flow`] is kept and
//! where the window is closed in a drain: smoltcp goes on believing in the window it offered, accepts
//! what was sent into it, and the peer reads zero.

mod flow;
mod forge;
mod rewrite;

pub use flow::{Flow, Tuple};
pub(crate) use forge::{bare_ack, old_byte, probe};
#[cfg(test)]
pub(crate) use rewrite::refill_checksum;

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

use crate::link::MTU;

/// Where packets go that smoltcp sends.
pub(crate) trait Output {
    /// Whether a packet can be taken now.
    fn ready(&mut self) -> bool;
    /// Takes a packet of `len` bytes; `fill` is always called.
    fn send<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// What happens to outgoing segments on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    /// The window field becomes 0, except in SYN and RST segments.
    pub close_window: bool,
    /// A pure ACK gets SEQ = SND.NXT as the wire has seen it. smoltcp's own SND.NXT goes back to
    /// SND.UNA at a retransmission timeout, and a peer takes no window from an older SEQ
    /// (RFC 9293 §3.10.7.4, SND.WL1).
    pub newest_seq: bool,
}

/// A smoltcp device that holds at most one packet.
pub(crate) struct Port<'a, O> {
    pub packet: Option<&'a [u8]>,
    pub out: &'a mut O,
    pub flow: Option<&'a mut Flow>,
    pub egress: Egress,
}

/// What the interface may rely on: checksums of what comes in have been verified before.
pub(crate) fn capabilities() -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MTU;
    capabilities.checksum.ipv4 = Checksum::Tx;
    capabilities.checksum.tcp = Checksum::Tx;
    capabilities
}

pub(crate) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(crate) struct TxToken<'a, O> {
    out: &'a mut O,
    flow: Option<&'a mut Flow>,
    egress: Egress,
    now: Instant,
}

impl<O: Output> phy::TxToken for TxToken<'_, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.out.send(len, |packet| {
            let result = f(packet);
            if let Some(flow) = self.flow {
                pass_out(packet, flow, self.egress, self.now);
            }
            result
        })
    }
}

/// Applies `egress` to an outgoing segment of a connection and takes note of it.
fn pass_out(packet: &mut [u8], flow: &mut Flow, egress: Egress, now: Instant) {
    let Ok(ip) = Ipv4Packet::new_checked(&mut *packet) else { return };
    if ip.next_header() != IpProtocol::Tcp {
        return;
    }
    let header_len = usize::from(ip.header_len());
    let segment = &mut packet[header_len..];
    rewrite::apply(segment, egress, flow);
    if let Ok(segment) = TcpPacket::new_checked(&*segment) {
        flow.sent(&segment, now);
    }
}

impl<O: Output> phy::Device for Port<'_, O> {
    type RxToken<'b>
        = RxToken<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = TxToken<'b, O>
    where
        Self: 'b;

    fn receive(&mut self, now: Instant) -> Option<(RxToken<'_>, TxToken<'_, O>)> {
        let packet = self.packet.take()?;
        let tx =
            TxToken { out: self.out, flow: self.flow.as_deref_mut(), egress: self.egress, now };
        Some((RxToken(packet), tx))
    }

    fn transmit(&mut self, now: Instant) -> Option<TxToken<'_, O>> {
        self.out.ready().then_some(TxToken {
            out: self.out,
            flow: self.flow.as_deref_mut(),
            egress: self.egress,
            now,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}
