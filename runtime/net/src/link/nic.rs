//! What the stack asks of a network card.

/// A network card that carries whole Ethernet frames, without their check sequence.
///
/// Neither call waits. The stack asks [`transmit_ready`](Nic::transmit_ready) before it lets smoltcp
/// build a segment, because a segment that was built counts as sent.
pub trait Nic {
    /// Shows the oldest frame received to `f` and gives its place back; `None` if there is none.
    fn receive<R>(&mut self, f: impl FnOnce(&[u8]) -> R) -> Option<R>;

    /// Whether the next [`transmit`](Nic::transmit) finds a free place.
    fn transmit_ready(&mut self) -> bool;

    /// Queues a frame of `len` bytes, written by `fill`. `false`, and `fill` is not called, if the
    /// ring is full. What `fill` does not write is undefined.
    fn transmit(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> bool;

    /// Tells the card about the frames queued since the last call.
    fn flush(&mut self);
}
