//! A virtqueue with a fixed buffer for each of its descriptors.

use core::ptr::addr_of_mut;

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

use super::dma::MachineHal;

/// Descriptors and buffers of a queue; QEMU's default ring size.
pub const SIZE: usize = 256;
/// Bytes of a buffer: the virtio header and a frame of MTU 1500.
pub const BUFFER_LEN: usize = 2048;
/// Index of the receive queue.
pub const RECEIVE: u16 = 0;
/// Index of the transmit queue.
pub const TRANSMIT: u16 = 1;

#[repr(C, align(4096))]
struct Buffers([[u8; BUFFER_LEN]; SIZE]);

static mut RECEIVE_BUFFERS: Buffers = Buffers([[0; BUFFER_LEN]; SIZE]);
static mut TRANSMIT_BUFFERS: Buffers = Buffers([[0; BUFFER_LEN]; SIZE]);

/// The buffer and the length that a descriptor was posted with.
#[derive(Clone, Copy)]
struct Posted {
    buffer: u16,
    len: u16,
}

/// One direction of the NIC.
pub struct Queue {
    ring: VirtQueue<MachineHal, SIZE>,
    index: u16,
    buffers: *mut [u8; BUFFER_LEN],
    /// By descriptor.
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
            posted: [Posted { buffer: 0, len: 0 }; SIZE],
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

    /// Gives a whole buffer to the device.
    pub fn post(&mut self, buffer: u16) {
        self.post_len(buffer, BUFFER_LEN);
    }

    /// Gives the first `len` bytes of a buffer to the device.
    pub fn post_len(&mut self, buffer: u16, len: usize) {
        let bytes = self.slice(buffer, len);
        // SAFETY: the buffer is not accessed again before `pop` or `take_free` returns it.
        let token = unsafe {
            if self.index == RECEIVE {
                self.ring.add(&[], &mut [&mut *bytes])
            } else {
                self.ring.add(&[&*bytes], &mut [])
            }
        };
        let token = token.expect("there are as many descriptors as buffers");
        self.posted[usize::from(token)] = Posted { buffer, len: len as u16 };
        self.unannounced = true;
    }

    /// Takes the oldest buffer that the device is done with, and the bytes it wrote.
    pub fn pop(&mut self) -> Option<(u16, usize)> {
        let token = self.ring.peek_used()?;
        let Posted { buffer, len } = *self.posted.get(usize::from(token))?;
        let bytes = self.slice(buffer, usize::from(len));
        // SAFETY: the same bytes that were posted under this token.
        let used = unsafe {
            if self.index == RECEIVE {
                self.ring.pop_used(token, &[], &mut [&mut *bytes])
            } else {
                self.ring.pop_used(token, &[&*bytes], &mut [])
            }
        };
        used.ok().map(|len| (buffer, len as usize))
    }

    /// A buffer to fill (transmit only), after taking back those the device has sent.
    pub fn take_free(&mut self) -> Option<u16> {
        if self.free.is_empty() {
            while let Some((buffer, _)) = self.pop() {
                // There are no more buffers than the vector has places.
                let _ = self.free.push(buffer);
            }
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
