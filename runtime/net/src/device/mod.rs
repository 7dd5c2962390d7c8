//! The device below smoltcp: one IP packet in at a time, packets out to wherever they have to go.
//!
//! Every segment of a connection passes through here, so here is where its [`Flow`] is kept and
//! where the window is closed in a drain: smoltcp goes on believing in the window it offered, accepts
//! what was sent into it, and the peer reads zero.

mod flow;
mod forge;
mod rewrite;

pub use flow::{Flow, Tuple};
pub(crate) use forge::{
    bare_ack, duplicate_ack, emit, fin, old_byte, packet_len, probe, segment, window_update,
};

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

/// The window that outgoing segments show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Window {
    /// What smoltcp offers.
    #[default]
    Open,
    /// Zero, except in SYN and RST segments.
    Closed,
}

/// A smoltcp device that holds at most one packet.
pub(crate) struct Port<'a, O> {
    pub packet: Option<&'a [u8]>,
    pub out: &'a mut O,
    pub flow: Option<&'a mut Flow>,
    pub window: Window,
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
    window: Window,
    now: Instant,
}

impl<O: Output> phy::TxToken for TxToken<'_, O> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        self.out.send(len, |packet| {
            let result = f(packet);
            if let Some(flow) = self.flow {
                pass_out(packet, flow, self.window, self.now);
            }
            result
        })
    }
}

/// Passes an outgoing segment of a connection on, as the wire should see it, and takes note of it.
fn pass_out(packet: &mut [u8], flow: &mut Flow, window: Window, now: Instant) {
    let Ok(ip) = Ipv4Packet::new_checked(&mut *packet) else { return };
    if ip.next_header() != IpProtocol::Tcp {
        return;
    }
    let header_len = usize::from(ip.header_len());
    let segment = &mut packet[header_len..];
    rewrite::apply(segment, window, flow);
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
            TxToken { out: self.out, flow: self.flow.as_deref_mut(), window: self.window, now };
        Some((RxToken(packet), tx))
    }

    fn transmit(&mut self, now: Instant) -> Option<TxToken<'_, O>> {
        self.out.ready().then_some(TxToken {
            out: self.out,
            flow: self.flow.as_deref_mut(),
            window: self.window,
            now,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}
