//! TCP as tokio has it: [`TcpListener`], [`TcpStream`]; both move with the service.

mod listener;
mod stream;

pub use listener::TcpListener;
pub use stream::TcpStream;

use std::io;

use ferry_net::{ConnectError, ListenError, StreamError};

fn listen_error(error: ListenError) -> io::Error {
    let kind = match error {
        ListenError::InUse { .. } => io::ErrorKind::AddrInUse,
        ListenError::PortZero => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, error)
}

fn connect_error(error: ConnectError) -> io::Error {
    let kind = match error {
        ConnectError::Unaddressable { .. } => io::ErrorKind::InvalidInput,
        ConnectError::NoPort => io::ErrorKind::AddrNotAvailable,
        ConnectError::NoMemory => io::ErrorKind::OutOfMemory,
        ConnectError::Refused => io::ErrorKind::ConnectionRefused,
        ConnectError::TimedOut => io::ErrorKind::TimedOut,
    };
    io::Error::new(kind, error)
}

fn stream_error(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Reset => io::ErrorKind::ConnectionReset,
        StreamError::TimedOut => io::ErrorKind::TimedOut,
        StreamError::Closed => io::ErrorKind::NotConnected,
    };
    io::Error::new(kind, error)
}
