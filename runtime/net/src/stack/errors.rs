//! What can go wrong with a socket: one type per operation.

use core::fmt;
use smoltcp::wire::Ipv4Address;

use crate::table::connection::Ended;

/// Why a port cannot be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenError {
    /// Another listener has it.
    InUse {
        /// The port.
        port: u16,
    },
    /// Port 0 names no port.
    PortZero,
}

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The address or port names no host.
    Unaddressable {
        /// Where to.
        remote: (Ipv4Address, u16),
    },
    /// All local ports are in use towards this peer.
    NoPort,
    /// No memory for its buffers.
    NoMemory,
    /// The peer refused it.
    Refused,
    /// The peer did not answer.
    TimedOut,
}

/// Why a stream cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The peer reset the connection.
    Reset,
    /// The peer answered nothing for too long.
    TimedOut,
    /// The service has closed this direction, or the whole connection.
    Closed,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse { port } => write!(f, "port {port} has a listener already"),
            Self::PortZero => write!(f, "a listener needs a port other than 0"),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaddressable { remote: (addr, port) } => {
                write!(f, "{addr}:{port} is not the address of a host")
            }
            Self::NoPort => write!(f, "no local port is free towards this peer"),
            Self::NoMemory => write!(f, "no memory for the connection's buffers"),
            Self::Refused => write!(f, "the peer refused the connection"),
            Self::TimedOut => write!(f, "the peer did not answer"),
        }
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => write!(f, "the peer reset the connection"),
            Self::TimedOut => write!(f, "the peer did not answer for too long"),
            Self::Closed => write!(f, "the connection is closed"),
        }
    }
}

impl core::error::Error for ListenError {}
impl core::error::Error for ConnectError {}
impl core::error::Error for StreamError {}

impl From<Ended> for StreamError {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Reset => Self::Reset,
            Ended::TimedOut => Self::TimedOut,
        }
    }
}
