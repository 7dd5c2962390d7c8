//! The one place where host-tools opens and accepts connections.
//!
//! Manager, agents and commands meet over TCP or a unix socket. Everything above this module sees a
//! [`Stream`]. What authenticates and encrypts it is in [`security`](crate::security).

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsStream;

/// Where a manager or an agent listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`.
    Tcp(String),
    /// Path of a unix socket.
    Unix(PathBuf),
}

/// A text that is no [`Address`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is no address: use HOST:PORT, https://HOST:PORT or unix:PATH")]
pub struct AddressError {
    /// What was given.
    pub text: String,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError { text: text.to_owned() };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(error()) } else { Ok(Self::Unix(path.into())) };
        }
        // Whether a connection is secured is a matter of credentials, not of how the address is written.
        let scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = scheme.unwrap_or(text).trim_end_matches('/');
        match rest.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(rest.to_owned()))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Whether only processes on this machine can listen and connect there.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(host_port) => {
                let host = host_port.rsplit_once(':').map_or("", |(host, _)| host);
                let host = host.trim_start_matches('[').trim_end_matches(']');
                host == "localhost"
                    || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

/// Where one party is found: at any of these, or at the one of them that leads. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses(Vec<Address>);

impl From<Address> for Addresses {
    fn from(address: Address) -> Self {
        Self(vec![address])
    }
}

impl FromStr for Addresses {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        text.split(',').map(|one| one.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, address) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            address.fmt(f)?;
        }
        Ok(())
    }
}

impl Addresses {
    /// Those given; `None` if there are none.
    #[must_use]
    pub fn of(addresses: impl IntoIterator<Item = Address>) -> Option<Self> {
        Some(Self(addresses.into_iter().collect())).filter(|all| !all.0.is_empty())
    }

    /// The address at this place, counted around.
    #[must_use]
    pub fn nth(&self, place: usize) -> &Address {
        &self.0[place % self.0.len()]
    }

    /// How many there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Address> {
        self.0.iter()
    }

    /// Whether only processes on this machine can listen and connect at all of them.
    #[must_use]
    pub fn are_local(&self) -> bool {
        self.iter().all(Address::is_local)
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ConnectError {
    #[error("{address} does not answer: {source}")]
    Io { address: Address, source: io::Error },
    #[error("{address} did not answer within {} ms", timeout.as_millis())]
    Timeout { address: Address, timeout: Duration },
}

/// Why nothing listens at an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenError {
    /// Where.
    pub address: Address,
    /// Why.
    pub source: io::Error,
}

/// A connection.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Secure(Box<TlsStream<Self>>),
}

/// Connects to `address` within `timeout`.
///
/// # Errors
/// The peer refused, is unreachable, or did not answer in time.
pub async fn connect(address: &Address, timeout: Duration) -> Result<Stream, ConnectError> {
    let attempt = async {
        match address {
            Address::Tcp(host_port) => {
                let stream = TcpStream::connect(host_port).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Address::Unix(path) => UnixStream::connect(path).await.map(Stream::Unix),
        }
    };
    match tokio::time::timeout(timeout, attempt).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(source)) => Err(ConnectError::Io { address: address.clone(), source }),
        Err(_) => Err(ConnectError::Timeout { address: address.clone(), timeout }),
    }
}

/// Accepts connections; `axum::serve` takes it.
#[derive(Debug)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Listens at `address`. A unix socket left behind by a process that is gone is replaced; only the
/// owner may connect to it.
///
/// # Errors
/// The address is taken or not this machine's.
pub async fn listen(address: &Address) -> Result<Listener, ListenError> {
    let listener = match address {
        Address::Tcp(host_port) => TcpListener::bind(host_port).await.map(Listener::Tcp),
        Address::Unix(path) => listen_unix(path).await.map(Listener::Unix),
    };
    listener.map_err(|source| ListenError { address: address.clone(), source })
}

async fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"));
    }
    // Whoever sees it can connect, if he may.
    let mut next = path.as_os_str().to_owned();
    next.push("~");
    let next = Path::new(&next);
    match std::fs::remove_file(next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(next)?;
    std::fs::set_permissions(next, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(next, path)?;
    Ok(listener)
}

impl Listener {
    /// The address it got, for a TCP port chosen by the system.
    #[must_use]
    pub fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(listener) => TcpListener::local_addr(listener).ok(),
            Self::Unix(_) => None,
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = String;

    async fn accept(&mut self) -> (Stream, String) {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => {
                    TcpListener::accept(listener).await.and_then(|(stream, peer)| {
                        stream.set_nodelay(true)?;
                        Ok((Stream::Tcp(stream), peer.to_string()))
                    })
                }
                Self::Unix(listener) => UnixListener::accept(listener)
                    .await
                    .map(|(stream, _)| (Stream::Unix(stream), "unix".into())),
            };
            match accepted {
                Ok(accepted) => return accepted,
                // The peer went away again, or descriptors ran out: let others run, then go on.
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => TcpListener::local_addr(listener).map(|addr| addr.to_string()),
            Self::Unix(_) => Ok("unix".into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

/// What comes of writing. A server that has ended the connection may have said why (RFC 8446 §6.2), and its end can
/// be read in any case. What else it has sent is not lost: it is there for who reads.
fn or_last_words<T>(
    stream: &mut TlsStream<Stream>,
    cx: &mut Context<'_>,
    written: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData};
    let error = match written {
        Poll::Ready(Err(error)) if [BrokenPipe, ConnectionReset].contains(&error.kind()) => error,
        other => return other,
    };
    let TlsStream::Client(client) = stream else { return Poll::Ready(Err(error)) };
    let (below, session) = client.get_mut();
    let mut bytes = [0; 1024];
    loop {
        let mut read = ReadBuf::new(&mut bytes);
        let came = std::task::ready!(Pin::new(&mut *below).poll_read(cx, &mut read));
        let mut records = read.filled();
        if came.is_err() || records.is_empty() {
            return Poll::Ready(Err(error));
        }
        while !records.is_empty() {
            if !matches!(session.read_tls(&mut records), Ok(1..)) {
                return Poll::Ready(Err(error));
            }
            if let Err(alert) = session.process_new_packets() {
                return Poll::Ready(Err(io::Error::new(InvalidData, alert)));
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => {
                let written = Pin::new(&mut *stream).poll_write(cx, buf);
                or_last_words(stream, cx, written)
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => {
                let flushed = Pin::new(&mut *stream).poll_flush(cx);
                or_last_words(stream, cx, flushed)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A descriptor whose readiness to be read can be awaited: a pidfd, a queue of notifications.
///
/// # Errors
/// The kernel cannot wait for it.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is a descriptor of its own that stays open, and the same, until it is dropped,
    // and the `AsyncFd` that takes it over gives it up only when it has been deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Pauses between attempts, each twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    next: Duration,
    longest: Duration,
}

impl Pause {
    /// The first pause and the longest.
    #[must_use]
    pub fn growing(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// Waits.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, address) in [
            ("http://10.77.0.2:7700", Address::Tcp("10.77.0.2:7700".into())),
            ("http://localhost:80/", Address::Tcp("localhost:80".into())),
            ("10.77.0.2:7700", Address::Tcp("10.77.0.2:7700".into())),
            ("https://10.77.0.2:7700", Address::Tcp("10.77.0.2:7700".into())),
            ("unix:/run/f.sock", Address::Unix("/run/f.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in ["", "unix:", "host", ":80", "host:port", "http://host:99999"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError { text: text.into() }));
        }
    }

    #[test]
    fn several_addresses() {
        let both: Addresses = "10.0.0.1:1, unix:/s".parse().unwrap();
        assert_eq!(both.to_string(), "10.0.0.1:1,unix:/s");
        assert_eq!((both.len(), both.nth(3)), (2, &Address::Unix("/s".into())));
        assert!(!both.are_local());
        for text in ["", ",", "10.0.0.1:1,", "10.0.0.1:1,host"] {
            assert!(text.parse::<Addresses>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_of_this_machine() {
        for (text, local) in [
            ("127.3.2.1:1", true),
            ("[::1]:1", true),
            ("localhost:1", true),
            ("unix:/s", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("10.77.0.2:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().is_local(), local, "{text}");
        }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("s"));
        drop(listen(&address).await.unwrap());
        let live = listen(&address).await.unwrap();
        let error = listen(&address).await.unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        drop(live);
    }

    /// What a server said before it ended the connection can be read after writing has failed.
    #[tokio::test]
    async fn last_words_are_not_lost_when_writing_fails_first() {
        use crate::security::{Authority, Party, Role, Tls};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const LIMIT: Duration = Duration::from_secs(10);
        let dir = tempfile::tempdir().unwrap();
        let now = time::OffsetDateTime::now_utc();
        let authority = Authority::open(&dir.path().join("authority.json"), now).unwrap();
        let tls = |role, name| Tls::new(authority.credentials(role, name, now).unwrap().0).unwrap();
        let (server, client) = (tls(Role::Agent, "b"), tls(Role::Agent, "a"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let name = Party::Node("b".into()).server_name().unwrap();
        let (ours, theirs) = tokio::join!(
            client.connect(Stream::Unix(ours), name),
            server.accept(Stream::Unix(theirs), LIMIT)
        );
        let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap().0);
        theirs.write_all(b"why").await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let failed = async { while ours.write_all(&[0; 4096]).await.is_ok() {} };
        tokio::time::timeout(LIMIT, failed).await.unwrap();
        let mut said = [0; 3];
        tokio::time::timeout(LIMIT, ours.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(&said, b"why");
    }
}
