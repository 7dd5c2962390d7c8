//! A virtqueue with a fixed buffer for each of its descriptors.

use core::ptr::addr_of_mut;

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::dma::MachineHal;

/// Descriptors and buffers of a queue; QEMU's default ring size.
pub const SIZE: usize = 256;
/// Bytes of a buffer: the virtio header and a frame of MTU 1500.
pub const BUFFER_LEN: usize = 2048;
/// Parts of a frame at most.
const MAX_PARTS: usize = ferry_offload::MAX_SEGMENTS;
/// Index of the receive queue.
pub const RECEIVE: u16 = 0;
/// Index of the transmit queue.
pub const TRANSMIT: u16 = 1;

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER_LEN]; SIZE]);

static mut RECEIVE_BUFFERS: Buffers = Buffers([[0; BUFFER_LEN]; SIZE]);
static mut TRANSMIT_BUFFERS: Buffers = Buffers([[0; BUFFER_LEN]; SIZE]);

/// The part of a buffer that was posted, and the buffer whose part follows in the same chain.
#[derive(Clone, Copy)]
struct Posted {
    start: u16,
    len: u16,
    next: Option<u16>,
}

/// A part of a transmit buffer.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub buffer: u16,
    pub start: usize,
    pub len: usize,
}

/// One direction of the NIC.
pub struct Queue {
    ring: VirtQueue<MachineHal, SIZE>,
    index: u16,
    buffers: *mut [u8; BUFFER_LEN],
    /// First buffer of a chain, by its first descriptor.
    first: [u16; SIZE],
    /// By buffer.
    posted: [Posted; SIZE],
    /// Buffers that are neither posted nor handed out (transmit only).
    free: heapless::Vec<u16, SIZE>,
    /// Something was posted since the device was last told.
    unannounced: bool,
}

// SAFETY: the raw pointer is to a static that only this queue uses.
unsafe impl Send for Queue {}

impl Queue {
    /// Sets the queue up. Called once for each index.
    pub fn new<T: Transport>(transport: &mut T, index: u16) -> Result<Self, virtio_drivers::Error> {
        let ring = VirtQueue::new(transport, index, false, false)?;
        let buffers = match index {
            RECEIVE => addr_of_mut!(RECEIVE_BUFFERS),
            _ => addr_of_mut!(TRANSMIT_BUFFERS),
        };
        let mut free = heapless::Vec::new();
        if index == TRANSMIT {
            free.extend(0..SIZE as u16);
        }
        Ok(Self {
            ring,
            index,
            buffers: buffers.cast(),
            first: [0; SIZE],
            posted: [Posted { start: 0, len: 0, next: None }; SIZE],
            free,
            unannounced: false,
        })
    }

    /// The queue's index at the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Gives every buffer to the device (receive only).
    pub fn post_all(&mut self) -> Result<(), virtio_drivers::Error> {
        for buffer in 0..SIZE as u16 {
            self.post(buffer);
        }
        Ok(())
    }

    fn slice(&self, buffer: u16, len: usize) -> *mut [u8] {
        // SAFETY: buffer numbers are below SIZE by construction, so this stays in the static.
        let start = unsafe { self.buffers.add(usize::from(buffer)) };
        core::ptr::slice_from_raw_parts_mut(start.cast::<u8>(), len.min(BUFFER_LEN))
    }

    /// The bytes of a buffer that the device does not hold.
    pub fn buffer(&self, buffer: u16) -> &[u8] {
        // SAFETY: the buffer was popped and not posted again, so the device does not write it; shared
        // borrows only, as `self` is borrowed.
        unsafe { &*self.slice(buffer, BUFFER_LEN) }
    }

    /// As [`Queue::buffer`], to write.
    pub fn buffer_mut(&mut self, buffer: u16) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { &mut *self.slice(buffer, BUFFER_LEN) }
    }

    /// The bytes that are posted, or to be posted, of a buffer.
    fn part(&self, buffer: u16, Posted { start, len, .. }: Posted) -> *mut [u8] {
        let whole = self.slice(buffer, BUFFER_LEN);
        let start = usize::from(start).min(BUFFER_LEN);
        // SAFETY: not beyond the end of the buffer.
        let first = unsafe { whole.cast::<u8>().add(start) };
        core::ptr::slice_from_raw_parts_mut(first, usize::from(len).min(BUFFER_LEN - start))
    }

    /// Gives a whole buffer to the device (receive only).
    pub fn post(&mut self, buffer: u16) {
        let posted = Posted { start: 0, len: BUFFER_LEN as u16, next: None };
        let bytes = self.part(buffer, posted);
        // SAFETY: the buffer is not accessed again before `pop` returns it.
        let token = unsafe { self.ring.add(&[], &mut [&mut *bytes]) };
        self.note(token, buffer, posted);
    }

    /// Gives one frame in these parts to the device (transmit only).
    pub fn post_parts(&mut self, parts: &[Part]) {
        let mut inputs = heapless::Vec::<&[u8], MAX_PARTS>::new();
        for (at, &Part { buffer, start, len }) in parts.iter().enumerate() {
            let next = parts.get(at + 1).map(|part| part.buffer);
            let posted = Posted { start: start as u16, len: len as u16, next };
            self.posted[usize::from(buffer)] = posted;
            // SAFETY: the buffer is not accessed again before `take_free` returns it.
            let _ = inputs.push(unsafe { &*self.part(buffer, posted) });
        }
        let Some(first) = parts.first() else { return };
        // SAFETY: as above.
        let token = unsafe { self.ring.add(&inputs, &mut []) };
        self.note(token, first.buffer, self.posted[usize::from(first.buffer)]);
    }

    fn note(&mut self, token: virtio_drivers::Result<u16>, buffer: u16, posted: Posted) {
        let token = token.expect("there are as many descriptors as buffers");
        self.first[usize::from(token)] = buffer;
        self.posted[usize::from(buffer)] = posted;
        self.unannounced = true;
    }

    /// Takes the oldest buffer that the device is done with, and the bytes it wrote (receive only).
    pub fn pop(&mut self) -> Option<(u16, usize)> {
        let token = self.ring.peek_used()?;
        let buffer = *self.first.get(usize::from(token))?;
        let bytes = self.part(buffer, self.posted[usize::from(buffer)]);
        // SAFETY: the same bytes that were posted under this token.
        let used = unsafe { self.ring.pop_used(token, &[], &mut [&mut *bytes]) };
        used.ok().map(|len| (buffer, len as usize))
    }

    /// Takes back the buffers of the oldest frame that the device has sent; `None` if there is none.
    fn take_sent(&mut self) -> Option<()> {
        let token = self.ring.peek_used()?;
        let mut inputs = heapless::Vec::<&[u8], MAX_PARTS>::new();
        let mut next = Some(*self.first.get(usize::from(token))?);
        while let Some(buffer) = next {
            let posted = self.posted[usize::from(buffer)];
            // SAFETY: the device has only read it.
            let _ = inputs.push(unsafe { &*self.part(buffer, posted) });
            // There are no more buffers than the vector has places.
            let _ = self.free.push(buffer);
            next = posted.next;
        }
        // SAFETY: the same bytes that were posted under this token.
        unsafe { self.ring.pop_used(token, &inputs, &mut []) }.ok().map(drop)
    }

    /// A buffer to fill (transmit only), after taking back those the device has sent.
    pub fn take_free(&mut self) -> Option<u16> {
        if self.free.is_empty() {
            while self.take_sent().is_some() {}
        }
        self.free.pop()
    }

    /// Whether the device has finished with a buffer.
    pub fn has_used(&self) -> bool {
        self.ring.can_pop()
    }

    /// Turns the device's interrupts for this queue on or off.
    pub fn interrupts(&mut self, on: bool) {
        self.ring.set_dev_notify(on);
    }

    /// Whether something was posted since the last call.
    pub fn take_unannounced(&mut self) -> bool {
        core::mem::take(&mut self.unannounced)
    }

    /// Whether the device wants to be told.
    pub fn should_notify(&self) -> bool {
        self.ring.should_notify()
    }
}
