//! The wire between the bridge and a guest, at its tap (packet(7)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
    sockopt,
};

use super::{HostNetError, Tap};

/// Every protocol (linux/if_ether.h), in network order.
const ETH_P_ALL: u16 = 0x0003_u16.to_be();
/// Frames wait in the kernel while their reader waits for a processor or for the other host, in bytes.
const QUEUE: usize = 4 << 20;

/// What passes a guest's tap, in both directions. Frames that are sent go to the guest alone, past the bridge,
/// behind all that the tap's queue holds. Nothing is heard before [`TapWire::listen`].
#[derive(Debug)]
pub struct TapWire {
    socket: OwnedFd,
    tap: Tap,
}

impl TapWire {
    /// Opens it, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn open(tap: &Tap) -> Result<Self, HostNetError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
            .map_err(|source| failed("open", tap, source))?;
        // Beyond the system's limit only for those who may; without it there is room for less.
        if sockopt::set_socket_recv_buffer_size_force(&socket, QUEUE).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, QUEUE);
        }
        bind(&socket, &LinkAddress::new(0, tap.index()))
            .map_err(|source| failed("open", tap, source))?;
        Ok(Self { socket, tap: tap.clone() })
    }

    /// From now on every frame that passes the tap can be received, until this value is dropped.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn listen(&self) -> Result<(), HostNetError> {
        bind(&self.socket, &LinkAddress::new(ETH_P_ALL, self.tap.index()))
            .map_err(|source| failed("listen at", &self.tap, source))
    }

    /// The oldest frame that has passed and was not received yet; its bytes without check sequence. What does
    /// not fit in `frame` is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        let (len, _) = recv(&self.socket, frame, RecvFlags::empty())?;
        Ok(len)
    }

    /// Hands a frame to the guest.
    ///
    /// # Errors
    /// The tap's queue is full, or the tap is gone.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        send(&self.socket, frame, SendFlags::empty())?;
        Ok(())
    }
}

impl AsRawFd for TapWire {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for TapWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn failed(action: &'static str, tap: &Tap, source: rustix::io::Errno) -> HostNetError {
    HostNetError::Wire { action, name: tap.name().to_owned(), source: source.into() }
}

/// `struct sockaddr_ll` of linux/if_packet.h.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    index: u32,
    hardware_type: u16,
    packet_type: u8,
    address_len: u8,
    address: [u8; 8],
}

const _: () = assert!(size_of::<LinkAddress>() == 20);

impl LinkAddress {
    fn new(protocol: u16, index: u32) -> Self {
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol,
            index,
            hardware_type: 0,
            packet_type: 0,
            address_len: 0,
            address: [0; 8],
        }
    }
}

// SAFETY: the pointer is to `self`, all of whose 20 bytes are initialised (there is no padding, as asserted
// above), and it outlives the call.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f(std::ptr::from_ref(self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}
