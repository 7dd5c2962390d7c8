//! The NIC: one receive and one transmit queue of a virtio-net device (virtio 1.2 §5.1).
//!
//! Interrupts end a halt and do nothing else: the receive queue asks for them only while the CPU is
//! about to halt, the transmit queue only while it is full.

mod burst;
mod dma;
mod find;
mod queue;

use core::fmt;

use bitflags::bitflags;
use heapless::Deque;
use virtio_drivers::transport::{SomeTransport, Transport};

use self::burst::Sending;
use self::queue::{BUFFER_LEN, Queue, RECEIVE, TRANSMIT};
use crate::cell::Local;

bitflags! {
    /// The feature bits this driver knows (virtio 1.2 §5.1.3, §6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const CSUM = 1 << 0;
        const MAC = 1 << 5;
        const HOST_TSO4 = 1 << 11;
        const VERSION_1 = 1 << 32;
    }
}

/// Bytes of `struct virtio_net_hdr` with and without `num_buffers`.
const HEADER_MODERN: usize = 12;
const HEADER_LEGACY: usize = 10;
/// Frames a standby keeps at most; beyond that the oldest goes, so that what peers send last, right
/// around the switch, always finds a buffer.
const STANDBY_FRAMES: usize = queue::SIZE * 3 / 4;

/// Why there is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicError {
    /// No virtio-net device on PCI or virtio-mmio.
    Missing,
    /// The device is there and does not work.
    Device(virtio_drivers::Error),
}

impl fmt::Display for NicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(
                f,
                "no network card: start qemu with -device virtio-net-pci (q35) or virtio-net-device (microvm)"
            ),
            Self::Device(error) => write!(f, "the virtio-net device does not work: {error}"),
        }
    }
}

/// The driver.
pub struct Nic {
    transport: SomeTransport<'static>,
    /// Whether interrupts are messages of their own (MSI-X) and need no acknowledgement at the device.
    msix: bool,
    header: usize,
    receive: Queue,
    transmit: Queue,
    /// Frames taken in while in standby: buffer and bytes written, oldest first.
    held: Deque<(u16, usize), STANDBY_FRAMES>,
    /// Receive buffer handed out by [`Nic::receive`].
    taken: Option<u16>,
    /// Transmit buffer handed out by [`Nic::transmit`], and the frame's length.
    filling: Option<(u16, usize)>,
    /// What was filled and is not yet queued.
    sending: Sending,
    /// A transmit buffer was wanted the last time, and there was none.
    transmit_wanted: bool,
    mac: [u8; 6],
}

static NIC: Local<Option<Nic>> = Local::new(None);

/// Finds and starts the NIC; from here on it receives.
pub fn init() -> Result<[u8; 6], NicError> {
    let found = find::find().ok_or(NicError::Missing)??;
    let nic = Nic::start(found.transport, found.msix).map_err(NicError::Device)?;
    if let Some(msix) = found.msix {
        msix.enable();
    }
    let mac = nic.mac;
    *NIC.borrow() = Some(nic);
    Ok(mac)
}

/// Runs `f` with the NIC. [`crate::entry`] does not go on without one.
pub fn with<R>(f: impl FnOnce(&mut Nic) -> R) -> R {
    f(NIC.borrow().as_mut().expect("the NIC was started at boot"))
}

impl Nic {
    fn start(
        mut transport: SomeTransport<'static>,
        msix: Option<find::MsiX>,
    ) -> Result<Self, virtio_drivers::Error> {
        let features = transport.begin_init(Features::all());
        let modern = features.contains(Features::VERSION_1);
        let header = if modern { HEADER_MODERN } else { HEADER_LEGACY };
        let cuts = features.contains(Features::CSUM | Features::HOST_TSO4);
        let mut mac = [0; 6];
        for (at, byte) in mac.iter_mut().enumerate() {
            *byte = transport.read_config_space(at)?;
        }
        let mut receive = Queue::new(&mut transport, RECEIVE)?;
        let mut transmit = Queue::new(&mut transport, TRANSMIT)?;
        receive.post_all()?;
        receive.interrupts(false);
        transmit.interrupts(false);
        if let Some(msix) = &msix {
            msix.assign_queues();
        }
        transport.finish_init();
        transport.notify(RECEIVE);
        Ok(Self {
            transport,
            msix: msix.is_some(),
            header,
            receive,
            transmit,
            held: Deque::new(),
            taken: None,
            filling: None,
            sending: Sending::new(header, cuts),
            transmit_wanted: false,
            mac,
        })
    }

    /// The oldest received frame; it stays valid until [`Nic::receive_done`].
    pub fn receive(&mut self) -> Option<&[u8]> {
        self.receive_done();
        loop {
            let (buffer, len) = match self.held.pop_front() {
                Some(frame) => frame,
                None => self.receive.pop()?,
            };
            self.taken = Some(buffer);
            // A device that claims less than a header or more than the buffer is not believed.
            if (self.header..=BUFFER_LEN).contains(&len) {
                return Some(&self.receive.buffer(buffer)[self.header..len]);
            }
            self.receive_done();
        }
    }

    /// Gives the buffer of the last received frame back to the device.
    pub fn receive_done(&mut self) {
        if let Some(buffer) = self.taken.take() {
            self.receive.post(buffer);
        }
    }

    /// A buffer for a frame of `len` bytes; none if the ring is full or the frame too long.
    pub fn transmit(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.header + len > BUFFER_LEN {
            return None;
        }
        let buffer = match self.filling.take() {
            Some((buffer, _)) => buffer,
            None => match self.transmit.take_free() {
                Some(buffer) => buffer,
                None => {
                    self.transmit_wanted = true;
                    return None;
                }
            },
        };
        // What is still with the device, or was sent meanwhile, is nothing to wake for.
        self.transmit_wanted = false;
        self.filling = Some((buffer, len));
        let header = self.header;
        let bytes = self.transmit.buffer_mut(buffer);
        bytes[..header].fill(0);
        Some(&mut bytes[header..header + len])
    }

    /// Takes the frame written into the buffer from [`Nic::transmit`]: it is queued at the next flush at the
    /// latest.
    pub fn transmit_done(&mut self) {
        if let Some((buffer, len)) = self.filling.take() {
            self.sending.take(&mut self.transmit, buffer, len);
        }
    }

    /// Tells the device of what was queued since the last flush, in both queues.
    pub fn flush(&mut self) {
        self.receive_done();
        self.sending.finish(&mut self.transmit);
        for queue in [&mut self.receive, &mut self.transmit] {
            if queue.take_unannounced() && queue.should_notify() {
                self.transport.notify(queue.index());
            }
        }
    }

    /// Whether there is something to do: a frame to take, or room where there was none.
    pub fn ready(&mut self) -> bool {
        !self.held.is_empty()
            || self.receive.has_used()
            || (self.transmit_wanted && self.transmit.has_used())
    }

    /// Whether a frame has arrived that is not yet taken in.
    pub fn received(&mut self) -> bool {
        self.receive.has_used()
    }

    /// The portable side runs now: it asks again for what it still wants.
    pub fn tell(&mut self) {
        self.transmit_wanted = false;
    }

    /// Asks for an interrupt at the next event; to be called, with interrupts off, before a halt.
    pub fn listen(&mut self) {
        self.flush();
        self.receive.interrupts(true);
        self.transmit.interrupts(self.transmit_wanted);
        if !self.msix {
            // A level-triggered line stays up, and a further event makes no new interrupt, until the
            // device has been read.
            self.transport.ack_interrupt();
        }
    }

    /// No interrupts until the next [`Nic::listen`]. What was wanted still is, until the portable side has been
    /// told.
    pub fn attend(&mut self) {
        self.receive.interrupts(false);
        self.transmit.interrupts(false);
        if !self.msix {
            self.transport.ack_interrupt();
        }
    }

    /// In standby: takes in what has arrived, unanswered. Frames for this machine are held for the
    /// service that will resume here, the newest of them; what goes to everybody is dropped.
    pub fn hold(&mut self) {
        while let Some((buffer, len)) = self.receive.pop() {
            let for_us = len >= self.header + 6
                && self.receive.buffer(buffer)[self.header..self.header + 6] == self.mac;
            if !for_us {
                self.receive.post(buffer);
                continue;
            }
            if self.held.len() == STANDBY_FRAMES
                && let Some((oldest, _)) = self.held.pop_front()
            {
                self.receive.post(oldest);
            }
            // There is room: the oldest was dropped if there was none.
            let _ = self.held.push_back((buffer, len));
        }
        self.flush();
    }
}
