//! What was written and is not yet with the device: consecutive segments of a connection become one frame, which
//! the device cuts (virtio 1.2 §5.1.6.2).

use ferry_offload::{Burst, MAX_SEGMENTS};

use super::queue::{Part, Queue};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const TCP_V4: u8 = 1;

/// The frame that is being put together.
pub struct Sending {
    /// Bytes of `struct virtio_net_hdr`, which lies before each frame in its buffer.
    header: usize,
    /// Whether the device cuts frames.
    cuts: bool,
    burst: Option<Burst>,
    parts: heapless::Vec<Part, MAX_SEGMENTS>,
}

impl Sending {
    pub fn new(header: usize, cuts: bool) -> Self {
        Self { header, cuts, burst: None, parts: heapless::Vec::new() }
    }

    /// Takes a frame of `len` bytes in `buffer`, and queues what it does not belong to.
    pub fn take(&mut self, queue: &mut Queue, buffer: u16, len: usize) {
        let frame = &queue.buffer(buffer)[self.header..self.header + len];
        if let Some(burst) = &mut self.burst
            && let Some(payload) = burst.add(frame)
        {
            let part = Part { buffer, start: self.header + payload, len: len - payload };
            // A burst has no more segments than there are places.
            let _ = self.parts.push(part);
            return;
        }
        let burst = if self.cuts { Burst::begin(frame) } else { None };
        self.finish(queue);
        self.burst = burst;
        let _ = self.parts.push(Part { buffer, start: 0, len: self.header + len });
        if self.burst.is_none() {
            self.finish(queue);
        }
    }

    /// Queues what there is.
    pub fn finish(&mut self, queue: &mut Queue) {
        if let Some(burst) = self.burst.take()
            && burst.segments() > 1
            && let Some(first) = self.parts.first()
        {
            let bytes = queue.buffer_mut(first.buffer);
            let (header, frame) = bytes.split_at_mut(self.header);
            let cut = burst.finish(frame);
            header[..2].copy_from_slice(&[NEEDS_CHECKSUM, TCP_V4]);
            let fields = [cut.header_len, cut.segment_len, cut.checksum_start, cut.checksum_offset];
            for (place, field) in header[2..10].chunks_exact_mut(2).zip(fields) {
                place.copy_from_slice(&field.to_le_bytes());
            }
        }
        queue.post_parts(&self.parts);
        self.parts.clear();
    }
}
